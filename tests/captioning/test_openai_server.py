import asyncio
import json
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
from curation.records import frames_sha256, stored_frame_hashes
from curation.stage import RunContext, Unavailable
from stages.captioning import openai_server as vlm_openai
from stages.captioning.openai_server import OpenAI, Room, _seconds
from stages.export.shards import check_captions_match
from tests.support.chat_server import ChatServer, wait_until
from tests.support.drawn_stills import Witness, drawn_clip, said_of


def captioner(server: ChatServer, ledger, similarity_limit=None, **more) -> OpenAI:
    quick = {"pause_s": 0.005, "patience_s": 20.0, "timeout_s": 5.0, "clips_in_flight": 8}
    stage = OpenAI(**{"url": server.url, "model": "tiny"} | quick | more)
    stage.check()
    stage.setup(RunContext(str(ledger), similarity_limit=similarity_limit, api_key=stage.api_key()))
    return stage


def right(row: dict) -> bool:
    """Whether each text is the one of its own clip and segment."""
    number = int(row["clip_id"].removeprefix("clip"))
    texts = [part["text"] for part in row["sub_captions"]]
    return texts == [said_of(number, part) for part in range(5)] and row["caption"] == said_of(
        number, None
    )


def test_a_clip_is_asked_about_once_a_segment_and_once_as_a_whole(tmp_path):
    clip = drawn_clip(tmp_path, 3)
    with ChatServer(Witness(4)) as server:
        [row] = captioner(server, tmp_path).process([clip])
    assert row["error"] is None
    assert right(row)
    assert [Witness(4).seen(asked)[1] for asked in server.asked] == [0, 1, 2, 3, 4, None]
    spans = [(part["start_s"], part["end_s"]) for part in row["sub_captions"]]
    assert spans == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15)]
    assert row["captioner"] == "openai"


def test_the_requests_of_a_clip_begin_with_the_same_bytes(tmp_path):
    with ChatServer(Witness(1)) as server:
        captioner(server, tmp_path).process([drawn_clip(tmp_path, 0)])
    first, *others = [json.dumps(asked.body["messages"]) for asked in server.asked]
    prefix = first[: first.index("Part 1 of 5")]
    assert prefix.count("data:image/jpeg") == 5 + 2
    common = prefix[: prefix.rindex('{"type": "image_url"')]
    common = common[: common.rindex('{"type": "image_url"')]
    assert common.count("data:image/jpeg") == 5
    assert all(other.startswith(common) for other in others)


def test_a_row_says_what_it_was_made_from_and_a_shard_takes_it(tmp_path):
    clip = drawn_clip(tmp_path, 0)
    with ChatServer(Witness(1)) as server:
        [row] = captioner(server, tmp_path, revision="abc123", temperature=0.25).process([clip])
    made = json.loads(row["provenance"])
    assert row["frames_sha256"] == frames_sha256(stored_frame_hashes(clip["segments"]))
    assert made["span_s"] == [0.0, 15.0]
    assert (made["model"], made["revision"], made["temperature"]) == ("tiny", "abc123", 0.25)
    assert len(made["prompts"]) == 12
    assert (made["requests"], made["prompt_tokens"], made["output_tokens"]) == (6, 42, 30)
    check_captions_match(clip | row)
    swapped = drawn_clip(tmp_path, 1)
    with pytest.raises(Exception, match="other frames"):
        check_captions_match(swapped | {k: row[k] for k in ("frames_sha256", "provenance")})
    with pytest.raises(Exception, match="another span"):
        check_captions_match(clip | row | {"end_s": 14.0})


def test_the_same_clip_is_asked_the_same_with_the_same_seeds_again(tmp_path):
    bodies = []
    for _ in range(2):
        with ChatServer(Witness(1)) as server:
            captioner(server, tmp_path).process([drawn_clip(tmp_path, 0)])
        bodies.append([asked.body for asked in server.asked])
    assert bodies[0] == bodies[1]
    assert len({body["seed"] for body in bodies[0]}) == 6


TROUBLE = ("429", "503", "500", "502", "408", "cut", "half", "slow", "no JSON", "no answer in it")
REFUSED = ("wrong", "broken off")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    troubles=st.lists(st.sampled_from(("", "", *TROUBLE, *REFUSED)), max_size=60),
    clips=st.integers(1, 5),
    max_concurrency=st.integers(1, 8),
    stop_after=st.one_of(st.none(), st.integers(1, 30)),
)
def test_whatever_happens_a_caption_lands_on_its_own_clip_and_segment(
    tmp_path_factory, troubles, clips, max_concurrency, stop_after
):
    """In any order of answers, with any trouble, and stopped and begun again."""
    ledger = tmp_path_factory.mktemp("ledger")
    rows = [drawn_clip(ledger, number) for number in range(clips)]
    done: dict[str, dict] = {}
    seen = 0

    def trouble(number: int) -> str:
        nonlocal seen
        seen += 1
        return troubles[number] if number < len(troubles) else ""

    async def run(stage: OpenAI, limit: int | None) -> None:
        room = asyncio.Semaphore(max_concurrency)

        async def one(row: dict) -> None:
            async with room:
                done[row["clip_id"]] = await stage.process_one(dict(row))

        todo = [asyncio.create_task(one(r)) for r in rows if r["clip_id"] not in done]
        while not all(task.done() for task in todo):
            await asyncio.sleep(0.001)
            if limit is not None and seen >= limit:
                for task in todo:
                    task.cancel()
        await asyncio.gather(*todo, return_exceptions=True)
        await stage.close()

    with ChatServer(Witness(clips), trouble, slow_s=0.01) as server:
        for limit in (stop_after, None):
            stage = captioner(server, ledger, clips_in_flight=max_concurrency, attempts=70)
            asyncio.run(run(stage, limit))
    assert sorted(done) == sorted(row["clip_id"] for row in rows)
    for row in done.values():
        # a server that fails one request again and again, while it answers others, fails the clip
        assert row["error"] is None or "while others are answered" in row["error"]
        assert row["error"] is not None or right(row)


def test_a_full_server_gets_fewer_requests_and_every_clip_its_captions(tmp_path):
    rows = [drawn_clip(tmp_path, number) for number in range(12)]

    class Full(ChatServer):
        async def _answered(self, request):
            if self._now > 3:
                from aiohttp import web

                return web.json_response({}, status=429, headers={"Retry-After": "0"})
            return await super()._answered(request)

    with Full(Witness(12), lambda _: "slow", slow_s=0.004) as server:
        done = captioner(server, tmp_path, clips_in_flight=12).process(rows)
    assert all(right(row) for row in done)
    assert server.statuses[429] < server.statuses[200]


def test_a_server_that_restarts_costs_nothing(tmp_path):
    rows = [drawn_clip(tmp_path, number) for number in range(6)]
    with ChatServer(Witness(6), lambda _: "slow", slow_s=0.02) as server:

        def restart():
            while len(server.asked) < 5:
                time.sleep(0.002)
            server.stop()
            time.sleep(0.15)
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        done = captioner(server, tmp_path).process(rows)
        thread.join()
    assert all(right(row) for row in done)


@pytest.mark.parametrize("gone", ["refused", "503", "hangs"])
def test_who_is_waited_for_is_said_until_the_server_is_back(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(vlm_openai, "TOLD_S", 0.1)
    monkeypatch.setattr(vlm_openai, "QUIET_S", 0.2)
    trouble = {"refused": "", "503": "503", "hangs": "slow"}[gone]
    with ChatServer(Witness(1), lambda _: trouble, slow_s=20) as server:
        stage = captioner(server, tmp_path, patience_s=600.0, timeout_s=30.0)
        assert stage.wait_reason() is None
        if gone == "refused":
            server.stop()
        done: list[dict] = []
        clip = drawn_clip(tmp_path, 0)
        thread = threading.Thread(target=lambda: done.extend(stage.process([clip])))
        thread.start()
        wait_until(lambda: stage.wait_reason() is not None)
        said = stage.wait_reason()
        if gone != "refused":
            server.stop()  # a request that hangs is cut
        server.trouble = lambda _: ""
        server.start()
        thread.join()
    found = {"refused": "answers nothing: ", "503": 'answers 503: {"error"', "hangs": "is asked 1"}
    assert said.startswith(f"{server.url} {found[gone]}")
    assert "no answer for 0 s; goes on by itself" in said
    assert said.endswith("gives up in about 10 min 00 s")
    assert stage.wait_reason() is None
    assert right(*done)


def test_a_server_that_is_gone_stops_the_run_and_fails_no_clip(tmp_path):
    with ChatServer(Witness(1)) as server:
        stage = captioner(server, tmp_path, patience_s=0.3)
        server.stop()
        with pytest.raises(Unavailable, match=r"no answer to anyone for 0.3 s"):
            stage.process([drawn_clip(tmp_path, 0)])
        server.start()


def test_a_server_that_loses_its_model_stops_the_run(tmp_path):
    with ChatServer(Witness(1), lambda n: "404" if n == 2 else "") as server:
        stage = captioner(server, tmp_path)
        with pytest.raises(Unavailable, match="answers 404"):
            stage.process([drawn_clip(tmp_path, 0)])


def test_a_server_too_slow_for_one_request_is_asked_again(tmp_path):
    with ChatServer(Witness(1), lambda n: "slow" if n == 0 else "", slow_s=1.0) as server:
        [row] = captioner(server, tmp_path, timeout_s=0.2).process([drawn_clip(tmp_path, 0)])
    assert right(row)


def test_one_clip_that_a_server_cannot_answer_is_its_own_error(tmp_path):
    rows = [drawn_clip(tmp_path, number) for number in range(4)]
    witness = Witness(4)

    class Chokes(ChatServer):
        async def _answered(self, request):
            response = await super()._answered(request)
            if self.asked and witness.seen(self.asked[-1])[0] == 2 and response.status == 200:
                from aiohttp import web

                return web.json_response({"error": "CUDA assert"}, status=500)
            return response

    with Chokes(witness) as server:
        done = captioner(server, tmp_path, clips_in_flight=2, patience_s=0.5).process(rows)
    assert [right(row) for row in done if row["clip_id"] != "clip2"] == [True] * 3
    assert "answers 500" in done[2]["error"]
    assert "CUDA assert" in done[2]["error"]
    assert done[2]["caption"] is done[2]["sub_captions"] is None


def test_a_server_that_knows_no_schemas_is_asked_without(tmp_path):
    with ChatServer(Witness(2), structured=False) as server:
        stage = captioner(server, tmp_path)
        for number in range(2):
            assert right(*stage.process([drawn_clip(tmp_path, number)]))
    assert server.statuses[400] == 1  # it is not tried again and again


def test_a_server_that_knows_schemas_is_given_one(tmp_path):
    with ChatServer(Witness(1)) as server:
        captioner(server, tmp_path).process([drawn_clip(tmp_path, 0)])
    schema = server.asked[0].body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["caption"]


def test_a_text_that_fails_is_asked_for_anew_with_the_reason_and_another_seed(tmp_path):
    with ChatServer(Witness(1), lambda n: "wrong" if n == 1 else "") as server:
        [row] = captioner(server, tmp_path).process([drawn_clip(tmp_path, 0)])
    assert right(row)
    first, second = server.asked[1:3]
    assert "could not be used: refusal." in second.question
    assert second.texts[:-1] == first.texts
    assert second.pictures == first.pictures
    assert first.body["seed"] != second.body["seed"]


def test_a_text_that_fails_for_good_rejects_the_clip_and_stays_to_be_seen(tmp_path):
    with ChatServer(lambda asked: '{"caption": "I cannot describe these people."}') as server:
        [row] = captioner(server, tmp_path, attempts=2).process([drawn_clip(tmp_path, 0)])
    assert row["rejected"] == "caption refusal: sub-caption 1, “I cannot”"
    assert row["error"] is row["caption"] is None
    assert [part["text"] for part in row["sub_captions"]] == ["I cannot describe these people."]
    assert len(server.asked) == 2


def test_a_neighbour_that_is_too_similar_is_refused_by_the_policys_limit(tmp_path):
    with ChatServer(Witness(1)) as server:
        stage = captioner(server, tmp_path, similarity_limit=0.05, attempts=1)
        [row] = stage.process([drawn_clip(tmp_path, 0)])
    assert row["rejected"].startswith("caption too similar to the one before: sub-caption 2, 0.")


def test_each_sub_caption_can_be_rewritten_with_the_whole_in_mind(tmp_path):
    def model(asked):
        if "Rewrite the draft" in asked.question:
            number = int(asked.question.split("before part ")[1][0])
            earlier = asked.question.split("final words:\n<data>")[1].split("</data>")[0]
            assert json.loads(earlier) == [finished(n) for n in range(1, number)]
            assert said_of(0, number - 1) in asked.question
            assert said_of(0, None) in asked.question
            return json.dumps({"caption": finished(number)})
        return Witness(1)(asked)

    def finished(number: int) -> str:
        return said_of(0, number - 1).replace("In the harbour of", "Now in the port at")

    with ChatServer(model) as server:
        [row] = captioner(server, tmp_path, refine=True).process([drawn_clip(tmp_path, 0)])
    assert row["error"] is row["rejected"] is None
    assert [p["text"] for p in row["sub_captions"]] == [finished(n) for n in range(1, 6)]
    assert row["caption"] == said_of(0, None)
    assert len(server.asked) == 11


def test_a_still_that_is_not_the_one_scored_is_never_sent(tmp_path):
    clip = drawn_clip(tmp_path, 0)
    (tmp_path / "clip0_2_2.jpg").write_bytes((tmp_path / "clip0_0_0.jpg").read_bytes())
    with ChatServer(Witness(1)) as server:
        [row] = captioner(server, tmp_path).process([clip])
    assert "clip0_2_2.jpg is not the key frame that was scored" in row["error"]
    assert not server.asked


def test_a_missing_server_is_said_before_anything_starts_with_what_to_do():
    stage = OpenAI(url="http://127.0.0.1:9/v1", model="Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(ConfigError) as error:
        stage.check()
    assert "no caption server at http://127.0.0.1:9/v1 (" in str(error.value)
    assert "vllm serve Qwen/Qwen2.5-VL-7B-Instruct --port 8000" in str(error.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000/v1", "found '127.0.0.1:8000/v1'"),
        ("http://", "found 'http:'"),
        ("http://host:port/v1", "found 'http://host:port/v1'"),
        ("http://me:hidden@127.0.0.1:8000/v1", "variable OPENAI_API_KEY"),
        ("http://127.0.0.1:8000/v1?key=hidden", "variable OPENAI_API_KEY"),
    ],
)
def test_an_address_is_a_servers_and_holds_no_secret(url, said):
    with pytest.raises(ConfigError, match=r"caption\.openai\.url: expected the") as error:
        OpenAI(url=url, model="tiny").check()
    assert said in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_server_that_speaks_no_http_is_said_to_be_no_caption_server():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match=f"no caption server at {url}"):
            OpenAI(url=url, model="tiny").check()


def test_a_model_that_the_server_has_not_is_said_with_those_it_has():
    with ChatServer(Witness(1), models=("a", "b")) as server:
        with pytest.raises(ConfigError, match=r"model is c; .* serves a, b"):
            OpenAI(url=server.url, model="c").check()
        with pytest.raises(ConfigError, match=r"model is not given; .* serves a, b"):
            OpenAI(url=server.url).check()


def test_a_key_is_taken_from_the_environment_and_never_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "se-cret")
    with ChatServer(Witness(1), key="se-cret") as server:
        stage = captioner(server, tmp_path, api_key_env="SOME_KEY")
        [row] = stage.process([drawn_clip(tmp_path, 0)])
        monkeypatch.delenv("SOME_KEY")
        with pytest.raises(ConfigError, match="set the environment variable SOME_KEY"):
            OpenAI(url=server.url, model="tiny", api_key_env="SOME_KEY").check()
    assert right(row)
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
            threading.Thread(target=server.serve_forever, daemon=True).start()
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
        OpenAI(url=servers.url, model="tiny").check()
    assert servers.requests == ["GET /v1/models"]
    assert servers.received == []


@pytest.mark.parametrize("status", REDIRECTS)
def test_redirect_of_a_chat_request_stops_the_run_and_sends_nothing_on(
    tmp_path, monkeypatch, status
):
    monkeypatch.setenv("OPENAI_API_KEY", "se-cret")
    with Redirecting(status) as servers:
        stage = OpenAI(url=servers.url, model="tiny", patience_s=1.0, pause_s=0.05)
        stage.setup(RunContext(str(tmp_path), api_key=stage.api_key()))
        with pytest.raises(Unavailable, match=servers.error):
            stage.process([drawn_clip(tmp_path, 0)])
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
        OpenAI(url=servers.url, model="tiny").check()
    assert shown in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    assert "key=hidden" not in str(error.value)
    assert "me:" not in str(error.value)
    assert servers.received == []


def test_what_a_server_takes_goes_down_at_once_and_up_slowly():
    async def course() -> list[float]:
        room = Room(64)
        sent_s = time.monotonic()
        for _ in range(20):  # sent together: one message, not twenty
            room.full(sent_s)
        seen = [room.limit]
        for _ in range(3):
            room.full(time.monotonic())
        seen.append(room.limit)
        for _ in range(2000):
            room.took()
        return [*seen, room.limit]

    assert asyncio.run(course()) == pytest.approx([44.8, 64 * 0.7**4, 64.0])


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 0), ("", 0), ("1.5", 1.5), ("-3", 0), ("soon", 0)]
)
def test_a_server_may_ask_to_wait(header, seconds):
    assert _seconds(header) == seconds


def test_a_server_may_name_the_time_to_come_back_at():
    assert _seconds(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
