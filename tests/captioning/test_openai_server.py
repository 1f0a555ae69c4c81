import asyncio
import json
import re
import socket
import socketserver
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.config import ConfigError
from curation.records import hash_frames, stored_frame_hashes
from curation.stage import RunContext, Unavailable
from stages.captioning import openai_server
from stages.captioning.adaptive_limit import AdaptiveLimit
from stages.captioning.chat_api import parse_completion, parse_retry_after
from stages.captioning.conversation import Completion
from stages.captioning.openai_server import OpenAICaptioner
from stages.export.shards import check_captions_match
from tests.support.chat_server import ChatServer, wait_until
from tests.support.drawn_key_frames import IdentifyingModel, caption_of, make_clip


def make_captioner(server: ChatServer, ledger, similarity_limit=None, **more) -> OpenAICaptioner:
    fast = {"backoff_s": 0.005, "max_outage_s": 20.0, "timeout_s": 5.0, "max_clips_in_flight": 8}
    stage = OpenAICaptioner(**{"url": server.url, "model": "tiny"} | fast | more)
    stage.check()
    stage.setup(RunContext(str(ledger), similarity_limit=similarity_limit, api_key=stage.api_key()))
    return stage


def is_correct(row: dict) -> bool:
    """Whether each text is the one of its own clip and segment."""
    number = int(row["clip_id"].removeprefix("clip"))
    texts = [part["text"] for part in row["sub_captions"]]
    expected = [caption_of(number, segment) for segment in (*range(5), None)]
    return [*texts, row["caption"]] == expected


def test_clip_gets_one_request_per_segment_and_one_for_the_whole(tmp_path):
    clip = make_clip(tmp_path, 3)
    with ChatServer(IdentifyingModel(4)) as server:
        [row] = make_captioner(server, tmp_path).process([clip])
    assert row["error"] is None
    assert is_correct(row)
    assert [IdentifyingModel(4).identify(r)[1] for r in server.requests] == [0, 1, 2, 3, 4, None]
    spans = [(part["start_s"], part["end_s"]) for part in row["sub_captions"]]
    assert spans == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15)]
    assert row["captioner"] == "openai"


def test_requests_of_a_clip_share_their_first_bytes(tmp_path):
    with ChatServer(IdentifyingModel(1)) as server:
        make_captioner(server, tmp_path).process([make_clip(tmp_path, 0)])
    first, *others = [json.dumps(request.body["messages"]) for request in server.requests]
    prefix = first[: first.index("Part 1 of 5")]
    assert prefix.count("data:image/jpeg") == 5 + 2
    common = prefix[: prefix.rindex('{"type": "image_url"')]
    common = common[: common.rindex('{"type": "image_url"')]
    assert common.count("data:image/jpeg") == 5
    assert all(other.startswith(common) for other in others)


def test_row_records_its_provenance_and_passes_the_export_check(tmp_path):
    clip = make_clip(tmp_path, 0)
    with ChatServer(IdentifyingModel(1)) as server:
        [row] = make_captioner(server, tmp_path, revision="abc123", temperature=0.25).process(
            [clip]
        )
    provenance = json.loads(row["provenance"])
    assert row["frames_sha256"] == hash_frames(stored_frame_hashes(clip["segments"]))
    assert provenance["span_s"] == [0.0, 15.0]
    assert (provenance["model"], provenance["revision"], provenance["temperature"]) == (
        "tiny",
        "abc123",
        0.25,
    )
    assert len(provenance["prompts"]) == 12
    assert (provenance["requests"], provenance["prompt_tokens"], provenance["output_tokens"]) == (
        6,
        42,
        30,
    )
    check_captions_match(clip | row)
    swapped = make_clip(tmp_path, 1)
    with pytest.raises(Exception, match="other frames"):
        check_captions_match(swapped | {k: row[k] for k in ("frames_sha256", "provenance")})
    with pytest.raises(Exception, match="another span"):
        check_captions_match(clip | row | {"end_s": 14.0})


def test_same_clip_gets_the_same_requests_and_seeds_again(tmp_path):
    bodies = []
    for _ in range(2):
        with ChatServer(IdentifyingModel(1)) as server:
            make_captioner(server, tmp_path).process([make_clip(tmp_path, 0)])
        bodies.append([request.body for request in server.requests])
    assert bodies[0] == bodies[1]
    assert len({body["seed"] for body in bodies[0]}) == 6


RETRIED_FAULTS = ("429", "503", "500", "502", "408", "disconnect", "partial reply", "slow")
RETRIED_FAULTS += ("no JSON", "no choices")
BAD_ANSWERS = ("refusal", "truncated answer")


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(st.sampled_from(("", "", *RETRIED_FAULTS, *BAD_ANSWERS)), max_size=60),
    clips=st.integers(1, 5),
    max_concurrency=st.integers(1, 8),
    stop_after=st.one_of(st.none(), st.integers(1, 30)),
)
def test_captions_belong_to_their_clip_and_segment_under_any_faults(
    tmp_path_factory, faults, clips, max_concurrency, stop_after
):
    """In any order of answers, with any faults, and across an interruption."""
    ledger = tmp_path_factory.mktemp("ledger")
    rows = [make_clip(ledger, number) for number in range(clips)]
    done: dict[str, dict] = {}
    received = 0

    def choose_fault(number: int) -> str:
        nonlocal received
        received += 1
        return faults[number] if number < len(faults) else ""

    async def run(stage: OpenAICaptioner, stop_after: int | None) -> None:
        in_flight = asyncio.Semaphore(max_concurrency)

        async def one(row: dict) -> None:
            async with in_flight:
                done[row["clip_id"]] = await stage.process_one(dict(row))

        todo = [asyncio.create_task(one(r)) for r in rows if r["clip_id"] not in done]
        while not all(task.done() for task in todo):
            await asyncio.sleep(0.001)
            if stop_after is not None and received >= stop_after:
                for task in todo:
                    task.cancel()
        await asyncio.gather(*todo, return_exceptions=True)
        await stage.close()

    with ChatServer(IdentifyingModel(clips), choose_fault, delay_s=0.01) as server:
        for stop_at in (stop_after, None):
            stage = make_captioner(server, ledger, max_clips_in_flight=max_concurrency, attempts=70)
            asyncio.run(run(stage, stop_at))
    assert sorted(done) == sorted(row["clip_id"] for row in rows)
    for row in done.values():
        # a request that fails again and again while others are answered fails its clip
        assert row["error"] is None or "while others are answered" in row["error"]
        assert row["error"] is not None or is_correct(row)


def test_overloaded_server_gets_fewer_requests_and_every_clip_is_captioned(tmp_path):
    rows = [make_clip(tmp_path, number) for number in range(12)]

    class OverloadedServer(ChatServer):
        async def _respond(self, request):
            if self._in_flight > 3:
                from aiohttp import web

                return web.json_response({}, status=429, headers={"Retry-After": "0"})
            return await super()._respond(request)

    with OverloadedServer(IdentifyingModel(12), lambda _: "slow", delay_s=0.004) as server:
        done = make_captioner(server, tmp_path, max_clips_in_flight=12).process(rows)
    assert all(is_correct(row) for row in done)
    assert server.statuses[429] < server.statuses[200]


def test_restart_of_the_server_fails_no_clip(tmp_path):
    rows = [make_clip(tmp_path, number) for number in range(6)]
    with ChatServer(IdentifyingModel(6), lambda _: "slow", delay_s=0.02) as server:

        def restart():
            while len(server.requests) < 5:
                time.sleep(0.002)
            server.stop()
            time.sleep(0.15)
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        done = make_captioner(server, tmp_path).process(rows)
        thread.join()
    assert all(is_correct(row) for row in done)


@pytest.mark.parametrize("outage", ["refused", "503", "hangs"])
def test_display_names_the_unavailable_server_until_it_answers(tmp_path, monkeypatch, outage):
    monkeypatch.setattr(openai_server, "ERROR_SHOWN_AFTER_S", 0.1)
    monkeypatch.setattr(openai_server, "SILENCE_SHOWN_AFTER_S", 0.2)
    fault = {"refused": "", "503": "503", "hangs": "slow"}[outage]
    with ChatServer(IdentifyingModel(1), lambda _: fault, delay_s=20) as server:
        stage = make_captioner(server, tmp_path, max_outage_s=600.0, timeout_s=30.0)
        assert stage.wait_reason() is None
        if outage == "refused":
            server.stop()
        done: list[dict] = []
        clip = make_clip(tmp_path, 0)
        thread = threading.Thread(target=lambda: done.extend(stage.process([clip])))
        thread.start()
        wait_until(lambda: stage.wait_reason() is not None)
        reason = stage.wait_reason()
        if outage != "refused":
            server.stop()  # disconnects a request that hangs
        server.choose_fault = lambda _: ""
        server.start()
        thread.join()
    expected = {
        "refused": "does not answer: ",
        "503": 'answers 503: {"error"',
        "hangs": "has 1 requests",
    }
    assert reason.startswith(f"{server.url} {expected[outage]}")
    assert re.search(
        r"no answer for \d s; the run continues when one arrives, and otherwise stops in about "
        r"(10 min 00|9 min 5\d) s$",
        reason,
    )
    assert stage.wait_reason() is None
    assert is_correct(*done)


def test_unavailable_caption_server_stops_the_run(tmp_path):
    with ChatServer(IdentifyingModel(1)) as server:
        stage = make_captioner(server, tmp_path, max_outage_s=0.3)
        server.stop()
        with pytest.raises(Unavailable, match=r"no request answered for 0.3 s"):
            stage.process([make_clip(tmp_path, 0)])
        server.start()


def test_server_without_the_model_stops_the_run(tmp_path):
    with ChatServer(IdentifyingModel(1), lambda n: "404" if n == 2 else "") as server:
        stage = make_captioner(server, tmp_path)
        with pytest.raises(Unavailable, match="answers 404"):
            stage.process([make_clip(tmp_path, 0)])


def test_request_that_times_out_is_retried(tmp_path):
    with ChatServer(IdentifyingModel(1), lambda n: "slow" if n == 0 else "", delay_s=1.0) as server:
        [row] = make_captioner(server, tmp_path, timeout_s=0.2).process([make_clip(tmp_path, 0)])
    assert is_correct(row)


def test_request_that_always_fails_is_the_error_of_its_clip(tmp_path):
    rows = [make_clip(tmp_path, number) for number in range(4)]
    model = IdentifyingModel(4)

    class FailingServer(ChatServer):
        async def _respond(self, request):
            response = await super()._respond(request)
            if (
                self.requests
                and model.identify(self.requests[-1])[0] == 2
                and response.status == 200
            ):
                from aiohttp import web

                return web.json_response({"error": "CUDA assert"}, status=500)
            return response

    with FailingServer(model) as server:
        done = make_captioner(server, tmp_path, max_clips_in_flight=2, max_outage_s=0.5).process(
            rows
        )
    assert [is_correct(row) for row in done if row["clip_id"] != "clip2"] == [True] * 3
    assert "answers 500" in done[2]["error"]
    assert "CUDA assert" in done[2]["error"]
    assert done[2]["caption"] is done[2]["sub_captions"] is None


@pytest.mark.parametrize("status", [400, 422])
def test_server_without_schemas_gets_requests_without_one(tmp_path, status):
    with ChatServer(IdentifyingModel(2), schema_status=status) as server:
        stage = make_captioner(server, tmp_path)
        for number in range(2):
            assert is_correct(*stage.process([make_clip(tmp_path, number)]))
    assert server.statuses[status] == 1  # and none later


def test_server_with_schemas_gets_one(tmp_path):
    with ChatServer(IdentifyingModel(1)) as server:
        make_captioner(server, tmp_path).process([make_clip(tmp_path, 0)])
    schema = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["caption"]


def test_failed_caption_is_requested_again_with_the_reason_and_another_seed(tmp_path):
    with ChatServer(IdentifyingModel(1), lambda n: "refusal" if n == 1 else "") as server:
        [row] = make_captioner(server, tmp_path).process([make_clip(tmp_path, 0)])
    assert is_correct(row)
    first, second = server.requests[1:3]
    assert "could not be used: refusal." in second.question
    assert second.texts[:-1] == first.texts
    assert second.images == first.images
    assert first.body["seed"] != second.body["seed"]


def test_caption_that_fails_every_attempt_rejects_the_clip_and_is_kept(tmp_path):
    with ChatServer(lambda request: '{"caption": "I cannot describe these people."}') as server:
        [row] = make_captioner(server, tmp_path, attempts=2).process([make_clip(tmp_path, 0)])
    assert row["rejected"] == "caption refusal: sub-caption 1, “cannot describe”"
    assert row["error"] is row["caption"] is None
    assert [part["text"] for part in row["sub_captions"]] == ["I cannot describe these people."]
    assert len(server.requests) == 2


def test_sub_caption_more_similar_than_the_policy_allows_is_rejected(tmp_path):
    with ChatServer(IdentifyingModel(1)) as server:
        stage = make_captioner(server, tmp_path, similarity_limit=0.05, attempts=1)
        [row] = stage.process([make_clip(tmp_path, 0)])
    assert row["rejected"].startswith("caption too similar to the one before: sub-caption 2, 0.")


def test_refine_rewrites_each_sub_caption_with_the_caption_given(tmp_path):
    def model(request):
        if "Rewrite the draft" in request.question:
            number = int(request.question.split("before part ")[1][0])
            earlier = request.question.split("final words:\n<data>")[1].split("</data>")[0]
            assert json.loads(earlier) == [refined(n) for n in range(1, number)]
            assert caption_of(0, number - 1) in request.question
            assert caption_of(0, None) in request.question
            return json.dumps({"caption": refined(number)})
        return IdentifyingModel(1)(request)

    def refined(number: int) -> str:
        return caption_of(0, number - 1).replace("In the harbour of", "Now in the port at")

    with ChatServer(model) as server:
        [row] = make_captioner(server, tmp_path, refine=True).process([make_clip(tmp_path, 0)])
    assert row["error"] is row["rejected"] is None
    assert [p["text"] for p in row["sub_captions"]] == [refined(n) for n in range(1, 6)]
    assert row["caption"] == caption_of(0, None)
    assert len(server.requests) == 11


def test_frame_sample_with_another_hash_is_never_sent(tmp_path):
    clip = make_clip(tmp_path, 0)
    (tmp_path / "clip0_2_2.jpg").write_bytes((tmp_path / "clip0_0_0.jpg").read_bytes())
    with ChatServer(IdentifyingModel(1)) as server:
        [row] = make_captioner(server, tmp_path).process([clip])
    assert "clip0_2_2.jpg is not the frame that was scored" in row["error"]
    assert not server.requests


def test_missing_server_is_an_error_with_the_command_to_start_one():
    stage = OpenAICaptioner(url="http://127.0.0.1:9/v1", model="Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(ConfigError) as error:
        stage.check()
    assert "no caption server at http://127.0.0.1:9/v1 (" in str(error.value)
    assert "vllm serve Qwen/Qwen2.5-VL-7B-Instruct --port 8000" in str(error.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1:8000/v1", "found '127.0.0.1:8000/v1'"),
        ("http://", "found 'http:'"),
        ("http://host:port/v1", "found 'http://host:port/v1'"),
        ("http://me:hidden@127.0.0.1:8000/v1", "variable OPENAI_API_KEY"),
        ("http://127.0.0.1:8000/v1?key=hidden", "variable OPENAI_API_KEY"),
    ],
)
def test_invalid_or_secret_address_is_refused_and_not_shown(url, reason):
    with pytest.raises(ConfigError, match=r"caption\.openai\.url: expected the") as error:
        OpenAICaptioner(url=url, model="tiny").check()
    assert reason in str(error.value)
    assert "hidden" not in str(error.value)


def test_server_without_http_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send_ssh_banner():
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=send_ssh_banner).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match=f"no caption server at {url}"):
            OpenAICaptioner(url=url, model="tiny").check()


def test_model_that_the_server_lacks_is_an_error_that_lists_its_models():
    with ChatServer(IdentifyingModel(1), models=("a", "b")) as server:
        with pytest.raises(ConfigError, match=r"model is c; .* serves a, b"):
            OpenAICaptioner(url=server.url, model="c").check()
        with pytest.raises(ConfigError, match=r"model is not given; .* serves a, b"):
            OpenAICaptioner(url=server.url).check()


def test_key_comes_from_the_environment_and_is_never_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "se-cret")
    with ChatServer(IdentifyingModel(1), key="se-cret") as server:
        stage = make_captioner(server, tmp_path, api_key_env="SOME_KEY")
        [row] = stage.process([make_clip(tmp_path, 0)])
        monkeypatch.delenv("SOME_KEY")
        with pytest.raises(ConfigError, match="set the environment variable SOME_KEY"):
            OpenAICaptioner(url=server.url, model="tiny", api_key_env="SOME_KEY").check()
    assert is_correct(row)
    assert "se-cret" not in json.dumps(row) + repr(stage)


REDIRECTS = (301, 302, 303, 307, 308)


@dataclass
class Redirecting:
    """A server that answers each request with a redirect, and one that counts what reaches it."""

    status: int
    location: str = "{other}{path}"
    requests: list[str] = field(default_factory=list)  # each one's method and path
    received: list[bytes] = field(default_factory=list)  # what reached the other server

    def __enter__(self):
        test = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                test.requests.append(f"{self.command} {self.path}")
                self.send_response(test.status)
                other = f"http://127.0.0.1:{test.other.server_address[1]}"
                location = test.location.format(other=other, path=self.path)
                self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Recorder(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                test.received.append(self.request.recv(1 << 16))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.other = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Recorder)
        for server in (self.server, self.other):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.server, self.other):
            server.shutdown()
            server.server_close()

    @property
    def error(self) -> str:
        other = f"http://127.0.0.1:{self.other.server_address[1]}/v1"
        return f"answers {self.status}, a redirect to {other}; .* set caption.openai.url to it"


@pytest.mark.parametrize("status", REDIRECTS)
def test_redirect_of_the_list_of_models_is_refused_and_sends_nothing_on(monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "se-cret")
    with Redirecting(status) as servers, pytest.raises(ConfigError, match=servers.error):
        OpenAICaptioner(url=servers.url, model="tiny").check()
    assert servers.requests == ["GET /v1/models"]
    assert servers.received == []


@pytest.mark.parametrize("status", REDIRECTS)
def test_redirect_of_a_chat_request_stops_the_run_and_sends_nothing_on(
    tmp_path, monkeypatch, status
):
    monkeypatch.setenv("OPENAI_API_KEY", "se-cret")
    with Redirecting(status) as servers:
        stage = OpenAICaptioner(url=servers.url, model="tiny", max_outage_s=1.0, backoff_s=0.05)
        stage.setup(RunContext(str(tmp_path), api_key=stage.api_key()))
        with pytest.raises(Unavailable, match=servers.error):
            stage.process([make_clip(tmp_path, 0)])
    assert servers.requests == ["POST /v1/chat/completions"]
    assert servers.received == []


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://me:hidden@host/v1/models?key=hidden#hidden", "to http://host/v1;"),
        ("/v2/models", "/v2;"),
        ("//host/v1/models", "to http://host/v1;"),
        ("http://host/\x1b]0;v1/models", "to http://host/ ]0;v1;"),
        ("http://me:hidden@[host/v1", "a redirect without a valid address"),
        ("http://host/" + "x" * 5000, "xxx…;"),
        ("ftp://host/v1", "to ftp://host/v1;"),
        ("", "a redirect without a valid address"),
    ],
)
def test_address_of_a_redirect_is_shown_on_one_short_line_without_secrets(location, shown):
    with Redirecting(302, location) as servers, pytest.raises(ConfigError) as error:
        OpenAICaptioner(url=servers.url, model="tiny").check()
    assert shown in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    assert "key=hidden" not in str(error.value)
    assert "me:" not in str(error.value)
    assert servers.received == []


def test_limit_of_requests_in_flight_decreases_at_once_and_increases_slowly():
    async def limits() -> list[float]:
        limit = AdaptiveLimit(64)
        sent_s = time.monotonic()
        for _ in range(20):  # sent together: they count once
            limit.decrease(sent_s)
        found = [limit.limit]
        for _ in range(3):
            limit.decrease(time.monotonic())
        found.append(limit.limit)
        for _ in range(2000):
            limit.increase()
        return [*found, limit.limit]

    assert asyncio.run(limits()) == pytest.approx([44.8, 64 * 0.7**4, 64.0])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *[(None, 0), ("", 0), ("1.5", 1.5), ("-3", 0), ("soon", 0), ("1e308", 0), ("nan", 0)],
        *[("inf", 0), ("3601", 0), ("9" * 5000, 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 0)],
        *[("Mon, 99 Foo 2026 00:00:00", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
    ],
)
def test_retry_after_in_seconds_is_parsed(header, seconds):
    assert parse_retry_after(header) == seconds


@pytest.mark.parametrize(
    "usage", ["1e999", "-5", "NaN", '"7"', "null", "[]", "1" + "0" * 300, "true and more"]
)
def test_usage_that_is_no_plausible_count_is_not_counted(usage):
    choices = '"choices": [{"message": {"content": "A dog."}, "finish_reason": "stop"}]'
    body = f'{{{choices}, "model": "tiny-2026-01-01", "usage": {{"completion_tokens": {usage}}}}}'
    completion = parse_completion(body.encode())
    if usage == "true and more":
        assert completion is None  # no JSON
        return
    assert completion == Completion("A dog.", 0, 0, "stop", "tiny-2026-01-01")
    body = f'{{{choices}, "usage": {usage}}}'
    assert parse_completion(body.encode()).output_tokens == 0


def test_retry_after_as_a_date_is_parsed():
    assert parse_retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
