"""The server of `longtake browse`: what it answers, and which requests it refuses."""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import browse as benchmark
from curation.storage import Folder
from pipelines import diff
from pipelines.browse import __main__ as browse
from pipelines.browse import media
from pipelines.reviews import read_reviews
from tests.chaos.proxy import Proxy
from tests.support.local_page import LocalPage, local_page
from tests.support.paths import REPOSITORY
from tests.support.s3_server import s3_bucket, url_options
from tests.support.whole_run import start


@pytest.fixture(scope="module")
def out(dataset, tmp_path_factory) -> Path:
    return Path(shutil.copytree(dataset.out, tmp_path_factory.mktemp("browse") / "out"))


@pytest.fixture(scope="module")
def clips(out) -> list[dict]:
    return pq.read_table(out / "clips.parquet").to_pylist()


@pytest.fixture(scope="module")
def page(out):
    with local_page(str(out)) as page:
        yield page


@pytest.fixture
def writable(out, tmp_path):
    """A page of a copy, and the copy."""
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    with local_page(str(copy)) as page:
        yield page, copy


def ids(page: LocalPage, **query) -> list[str]:
    answer = page.post("/api/clips", query)
    assert answer.status == 200, answer.body
    return [row["clip_id"] for row in answer.json["rows"]]


# ---- clips ----


def test_list_is_filtered_sorted_and_paged_as_the_table_is(page, clips):
    assert ids(page) == [clip["clip_id"] for clip in clips]
    kept = [clip for clip in clips if clip["status"] == "kept"]
    assert ids(page, status=["kept"]) == [clip["clip_id"] for clip in kept]
    by_motion = sorted(kept, key=lambda clip: -clip["motion_dis"])
    found = page.post(
        "/api/clips",
        {"status": ["kept"], "sort": "motion_dis", "descending": True, "offset": 1, "limit": 2},
    ).json
    assert found["total"] == len(kept)
    assert [row["clip_id"] for row in found["rows"]] == [c["clip_id"] for c in by_motion[1:3]]
    assert found["rows"][0]["motion_dis"] == pytest.approx(by_motion[1]["motion_dis"])
    of_rule = [clip["clip_id"] for clip in clips if "static_share" in (clip["rules"] or [])]
    assert ids(page, rule="static_share") == of_rule
    least = by_motion[1]["motion_dis"]
    of_range = [c["clip_id"] for c in clips if c["motion_dis"] and c["motion_dis"] >= least]
    assert ids(page, ranges={"motion_dis": [least, None]}) == of_range
    assert ids(page, text="ÜNÏ") == [c["clip_id"] for c in clips if "ünï" in c["video"]]
    assert ids(page, text=clips[0]["clip_id"]) == [clips[0]["clip_id"]]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"sort": "fingerprint"}, "sort: expected one of"),
        ({"ranges": {"video": [1, 2]}}, "ranges: expected scores"),
        ({"ranges": {"motion_dis": ["a", None]}}, "ranges: motion_dis has an end that is no"),
        ({"ranges": {"motion_dis": [10**400, None]}}, "ranges: motion_dis has an end that is no"),
        ({"text": "\ud800"}, "the request is no JSON object in UTF-8"),
        ({"status": "kept"}, "expected a list of texts"),
        ({"rule": ["width", "height"]}, "rule: expected a text"),
        ({"offset": -1}, "offset: expected a whole number"),
        ({"change": "gained"}, "change: expected one of"),
        ({"preview": "gained"}, "preview: expected a policy and a change"),
    ],
)
def test_query_that_asks_for_nothing_known_is_refused_in_one_line(page, query, message):
    answer = page.post("/api/clips", query)
    assert answer.status == 400
    assert answer.json["error"].startswith(message)


def test_clip_has_its_texts_scores_reasons_and_key_frames(page, clips):
    clip = next(clip for clip in clips if clip["status"] == "kept")
    found = page.get(f"/api/clips/{clip['clip_id']}").json
    assert found["caption"] == clip["caption"]
    assert found["captions"] == [part["text"] for part in clip["sub_captions"]]
    length_s = clip["end_s"] - clip["start_s"]
    assert found["media"] == {"start_s": 0.0, "length_s": pytest.approx(length_s)}
    scores = {score["name"]: score for score in found["scores"]}
    assert scores["brightness"]["value"] == pytest.approx(clip["brightness"])
    assert scores["motion_raft"] == {
        "name": "motion_raft",
        "value": None,
        "why": "no scorer configured",
    }
    assert len(found["segments"]) == 5
    frame = page.get(f"/frames/{clip['clip_id']}/2")
    assert frame.headers["content-type"] == "image/jpeg"
    assert frame.body[:3] == b"\xff\xd8\xff"
    assert page.get(f"/frames/{clip['clip_id']}/5").status == 400
    rejected = next(clip for clip in clips if clip["rule"] == "static_share")
    found = page.get(f"/api/clips/{rejected['clip_id']}").json
    assert found["reasons"] == rejected["reasons"]
    assert found["media"]["start_s"] == rejected["start_s"]


def test_mp4_of_a_shard_is_read_by_ranges(page, out, clips, monkeypatch):
    monkeypatch.setattr(media, "MAX_PART_BYTES", 10_000)
    clip = next(clip for clip in clips if clip["status"] == "kept")
    with tarfile.open(out / "shards" / clip["shard"]) as tar:
        mp4 = tar.extractfile(f"{clip['clip_id']}.mp4").read()
    path = f"/media/{clip['clip_id']}"
    answer = page.get(path, Range="bytes=100-299")
    assert (answer.status, answer.body) == (206, mp4[100:300])
    assert answer.headers["content-range"] == f"bytes 100-299/{len(mp4)}"
    assert answer.headers["content-type"] == "video/mp4"
    assert page.get(path, Range="bytes=-50").body == mp4[-50:]
    whole = b""
    while len(whole) < len(mp4):
        answer = page.get(path, Range=f"bytes={len(whole)}-")
        assert 0 < len(answer.body) <= 10_000
        whole += answer.body
    assert whole == mp4
    digits = "9" * 5000
    for header in (
        *(f"bytes={len(mp4)}-", "bytes=5-2", "bytes=-", "bytes=0-1,4-5", "lines=0-1"),
        *(f"bytes={digits}-", f"bytes=0-{digits}"),
    ):
        answer = page.get(path, Range=header)
        assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(mp4)}")


def test_clip_in_no_shard_is_read_from_its_source(page, clips):
    clip = next(clip for clip in clips if clip["rule"] == "static_share")
    source = Path(clip["video"]).read_bytes()
    assert page.get(f"/media/{clip['clip_id']}", Range="bytes=10-99").body == source[10:100]


def replace_sources(out: Path, video: str) -> str:
    """Makes it the source of all clips, which are then in no shard. Returns the id of one."""
    table = pq.read_table(out / "clips.parquet")
    table = table.set_column(1, "video", pa.array([video] * table.num_rows))
    pq.write_table(table, out / "clips.parquet")
    (out / "shards.parquet").unlink()
    return table["clip_id"][0].as_py()


def test_source_whose_data_never_arrives_is_an_error_and_no_data(writable):
    page, out = writable
    with s3_bucket() as (server, options):
        Folder(f"s3://bucket?{options}").write("a.mp4", bytes(range(256)))
        proxy = Proxy(server)
        video = f"s3://bucket/a.mp4?{url_options(proxy.address)}"
        path = f"/media/{replace_sources(out, video)}"
        assert page.get("/api/output").status == 200  # reads the tables again
        proxy.fault = "cut data"
        answer = page.get(path, Range="bytes=16-99")
        assert (answer.status, answer.json) == (404, {"error": "its source video can't be read"})
        proxy.fault = ""
        assert page.get(path, Range="bytes=16-99").body == bytes(range(16, 100))
        proxy.close()


@pytest.mark.parametrize("video", ["/nowhere/a.mp4", "nostore://bucket/a.mp4"])
def test_missing_source_and_missing_key_frame_are_one_line(writable, video):
    page, out = writable
    clip_id = replace_sources(out, video)
    shutil.rmtree(out / "ledger/key_frames")
    assert page.get("/api/output").status == 200
    error = page.get(f"/api/clips/{clip_id}").json["media"]["error"]
    assert error == "its source video can't be read, and it is in no shard"
    assert page.get(f"/media/{clip_id}").status == 404
    assert page.get(f"/frames/{clip_id}/0").status in (400, 404)


# ---- another policy ----


def test_preview_of_the_same_policy_gives_the_recorded_reasons(page, out):
    policy = page.get("/api/output").json["policy"]
    recorded = pq.read_table(out / "funnel.parquet").to_pylist()
    expected = {
        (r["status"], r["reason"]): (r["count"], r["any"]) for r in recorded if r["unit"] == "clips"
    }
    for exact in (False, True):
        found = page.post("/api/preview", {"policy": policy, "exact": exact}).json
        assert found["is_exact"] == exact
        rows = found["funnel"]
        assert {(r["status"], r["reason"]): (r["count"], r["any"]) for r in rows} == expected
        assert found["gained"]["clips"] == found["lost"]["clips"] == 0
        assert found["settings"] == []


@pytest.mark.parametrize("rule", ["static_share", "motion_dis"])
def test_preview_of_another_policy_keeps_what_select_keeps(page, out, rule, clips):
    rules = page.get("/api/output").json["policy"]
    if rule == "static_share":
        policy = {name: of for name, of in rules.items() if name != rule}
    else:
        values = sorted(c["motion_dis"] for c in clips if c["status"] == "kept")
        policy = rules | {"motion_dis": {"min": round((values[0] + values[1]) / 2, 3)}}
    found = page.post("/api/preview", {"policy": policy, "exact": True}).json
    changes = [setting.replace("'", "") for setting in found["settings"]]
    selected = diff.select_with(Folder(str(out)), None, changes)["status"].to_pylist()
    [kept] = [row["count"] for row in found["funnel"] if row["status"] == "kept"]
    assert kept == selected.count("kept") != found["kept_before"]
    by_rules = page.post("/api/preview", {"policy": policy}).json
    assert [r["count"] for r in by_rules["funnel"] if r["status"] == "kept"] == [kept]
    change = "gained" if rule == "static_share" else "lost"
    shown = page.post("/api/clips", {"preview": {"policy": policy, "change": change}}).json
    assert shown["total"] == by_rules[change]["clips"] > 0


def test_policy_that_is_not_valid_or_looser_than_the_prefilter_is_refused(page):
    for policy, message in (
        ({"motion": {"min": 1}}, "policy: motion is not a score"),
        ({"motion_dis": {"min": 3, "max": 1}}, "policy: min 3"),
        ({"motion_dis": {"least": 1}}, "policy: "),
        ([], "policy: "),
    ):
        answer = page.post("/api/preview", {"policy": policy})
        assert answer.status == 400
        assert answer.json["error"].startswith(message), answer.json
    rules = page.get("/api/output").json["policy"] | {"duration_s": {"min": 1}}
    answer = page.post("/api/preview", {"policy": rules, "exact": True})
    assert answer.status == 409
    assert "looser than the prefilter" in answer.json["error"]


# ---- reviews ----


def test_flags_and_corrections_are_stored_and_shown(writable):
    page, out = writable
    kept = ids(page, status=["kept"])[0]
    flag = {"kind": "flag", "clip_id": kept, "reviewer": "Bo", "value": " a\n \u202elogo "}
    assert page.post("/api/reviews", flag).json == {"written": 0}
    assert ids(page, flagged=True) == [kept]
    stored = {"value": "a \ufffdlogo", "reviewer": "Bo"}
    assert page.get(f"/api/clips/{kept}").json["flag"] == stored
    policy = page.get("/api/output").json["policy"]
    for exact in (False, True):
        query = {"policy": policy, "reject_flagged": True, "exact": exact}
        assert page.post("/api/preview", query).json["lost"]["clips"] == 1
    texts = [f"part {i}" for i in range(5)]
    caption = {"kind": "caption", "clip_id": kept, "reviewer": "Bo"}
    right = caption | {"caption": "the whole", "captions": texts}
    assert page.post("/api/reviews", right).status == 200
    assert page.post("/api/reviews", right | {"captions": texts[1:]}).status == 400
    found = page.get(f"/api/clips/{kept}").json
    assert (found["caption"], found["captions"]) == ("the whole", texts)
    assert found["captioner"] == "corrected by Bo"
    assert ids(page, corrected=True) == [kept]
    assert page.post("/api/reviews", caption | {"withdraw": True}).status == 200
    assert page.get(f"/api/clips/{kept}").json["caption"] != "the whole"
    assert read_reviews(Folder(str(out))).num_rows == 2


def test_review_of_no_clip_without_a_name_or_of_no_kind_is_refused(page, clips):
    captioned = next(clip["clip_id"] for clip in clips if clip["caption"])
    right = {"kind": "flag", "clip_id": captioned, "reviewer": "Bo", "value": ""}
    for wrong in (
        {"clip_id": "0" * 24},
        {"clip_id": "../../etc/passwd"},
        {"clip_id": None},
        {"reviewer": " "},
        {"reviewer": None},
        {"kind": "other"},
        {"kind": "mark", "value": "fine"},
        {"value": 3},
        {"kind": "caption", "caption": "A dog runs.", "captions": 5},
    ):
        assert page.post("/api/reviews", right | wrong).status == 400, wrong


def test_review_is_refused_while_a_run_holds_the_output_and_the_page_stays_readable(writable):
    page, out = writable
    clip_id = ids(page)[0]
    flag = {"kind": "flag", "clip_id": clip_id, "reviewer": "Bo", "value": ""}
    with open(out / "ledger/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = page.post("/api/reviews", flag)
        assert answer.status == 409
        assert "another run is writing" in answer.json["error"]
        assert ids(page, flagged=True) == []
    assert page.post("/api/reviews", flag).status == 200


def test_two_outputs_are_compared(out, tmp_path, clips):
    table = pq.read_table(out / "clips.parquet")
    kept = [clip["clip_id"] for clip in clips if clip["status"] == "kept"]
    rows = [
        clip | {"status": "rejected", "rule": "where"} if clip["clip_id"] == kept[0] else clip
        for clip in table.to_pylist()
    ]
    rows = [r | {"caption": "another"} if r["clip_id"] == kept[1] else r for r in rows]
    next(r for r in rows if r["clip_id"] == kept[2])["sub_captions"][0]["text"] = "another"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "clips.parquet")
    with local_page(str(out), str(tmp_path)) as page:
        other = page.get("/api/output").json["other"]
        assert other["kept"] == [len(kept) - 1, len(kept)]
        assert other["counts"] == {"gained": 1, "lost": 0, "captions": 2}
        assert other["changes"]["gained"][0]["rule"] == "where"
        assert ids(page, change="gained") == [kept[0]]
        assert ids(page, change="captions") == kept[1:3]
        found = page.get(f"/api/clips/{kept[1]}").json["other"]
        assert (found["status"], found["caption"]) == ("kept", "another")


def test_output_in_s3_is_browsed_played_and_flagged(out, clips):
    clip = next(clip for clip in clips if clip["status"] == "kept")
    with s3_bucket() as (_, options):
        folder = Folder(f"s3://bucket/out?{options}")
        for path in out.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                folder.write(str(path.relative_to(out)), path.read_bytes())
        with local_page(folder.url) as page:
            assert len(ids(page)) == len(clips)
            assert page.get(f"/frames/{clip['clip_id']}/0").status == 200
            answer = page.get(f"/media/{clip['clip_id']}", Range="bytes=4-7")
            assert answer.body == b"ftyp"
            flag = {"kind": "flag", "clip_id": clip["clip_id"], "reviewer": "Bo", "value": ""}
            assert page.post("/api/reviews", flag).status == 200
            assert ids(page, flagged=True) == [clip["clip_id"]]


# ---- who is refused ----

PATHS = ["/", "/browse.js", "/api/output", "/api/clips/x", "/media/x", "/frames/x/0", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}"]
)
def test_request_through_another_name_is_refused(page, path, host):
    """DNS rebinding: evil.example resolves to 127.0.0.1, and its page reads the answers."""
    answer = page.get(path, Host=host.format(port=page.address.port))
    assert answer.status == 421
    assert b"127.0.0.1" in answer.body


def test_request_without_the_host_header_is_refused(page):
    assert page.get("/api/output", Host=None).status in (400, 421)


def test_localhost_is_served(page):
    assert page.get("/api/output", Host=f"localhost:{page.address.port}").status == 200


@pytest.mark.parametrize("path", PATHS[2:])
@pytest.mark.parametrize("token", [None, "", "wrong", "tökén"])
def test_request_without_the_token_gets_no_data(page, path, token):
    sent = token.encode().decode("latin-1") if token else token
    answer = page.get(path, X_Longtake_Token=sent)
    assert answer.status == 403
    assert answer.json["error"].startswith("the token is missing or wrong")


def test_token_in_the_address_is_for_images_and_videos_alone(page, clips):
    token = page.address.token
    path = f"{clips[0]['clip_id']}?token={token}"
    assert page.get(f"/media/{path}", X_Longtake_Token=None).status == 206
    assert page.get(f"/api/clips/{path}", X_Longtake_Token=None).status == 403
    flag = {"kind": "flag", "clip_id": clips[0]["clip_id"], "reviewer": "Bo", "value": ""}
    assert page.post(f"/api/reviews?token={token}", flag, X_Longtake_Token=None).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": None},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": None},
    ],
)
def test_write_from_another_site_is_refused_even_with_the_token(writable, headers):
    page, out = writable
    flag = {"kind": "flag", "clip_id": ids(page)[0], "reviewer": "Bo", "value": ""}
    assert page.post("/api/reviews", flag, **headers).status in (403, 415)
    assert read_reviews(Folder(str(out))).num_rows == 0


def test_answers_are_allowed_to_no_other_site(page):
    answer = page.request("OPTIONS", "/api/output", Origin="https://evil.example")
    assert answer.status == 403
    for path in ("/", "/api/output"):
        headers = page.get(path).headers
        assert not [name for name in headers if name.startswith("access-control")]
        assert "set-cookie" not in headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/media/..%2f..%2fetc%2fpasswd",
        "/media/%2fetc%2fpasswd",
        "/frames/..%2f..%2f..%2fetc%2fpasswd/0",
        "/browse.js/../guard.py",
        "/guard.py",
        "/api/clips/..%2f..%2fclips.parquet",
        "/api/histogram/..%2fvideo",
    ],
)
def test_path_in_a_request_reaches_no_file(page, path):
    answer = page.get(path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_large_body_is_refused(page):
    body = b'{"text": "' + b"a" * (1 << 20) + b'"}'
    assert page.request("POST", "/api/clips", body).status == 413
    assert page.request("POST", "/api/clips", b"[" * 100_000).status == 400


def test_socket_is_bound_to_this_machine_alone(page):
    assert page.address.socket.getsockname()[0] == "127.0.0.1"
    assert len(page.address.token) >= 32


# ---- the commands ----


def test_folder_that_is_no_output_and_a_used_port_are_one_line(tmp_path, page, out):
    for argv, message in (
        ([str(tmp_path)], f"PlanError: {tmp_path} has no clips.parquet"),
        ([str(out), "--port", "x"], "UsageError: --port is 'x'"),
        ([str(out), "--port", str(page.address.port)], "UsageError: --port"),
    ):
        with pytest.raises(SystemExit) as error:
            browse.main(argv)
        assert str(error.value.code).startswith(message)
        assert "\n" not in str(error.value.code)


def test_command_prints_the_address_and_ends_with_ctrl_c(out):
    process = start("browse", str(out))
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"open http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", line)
        assert url, line
        connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=60)
        connection.request("GET", "/api/output", headers={"X-Longtake-Token": url[2]})
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["total"]) == (200, 6)
    finally:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "stopped\n")


def test_missing_package_is_named_with_the_command_that_installs_it(out):
    hidden = "import sys; sys.modules['uvicorn'] = None; from pipelines.browse import __main__ as b"
    command = [sys.executable, "-c", f"{hidden}; b.main([{str(out)!r}])"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("PlanError: uvicorn is not installed\n  fix: pip install")


def test_benchmark_of_the_page_runs_on_a_small_output(tmp_path, capsys):
    benchmark.main(200, str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "200 clips, " in printed
    assert "'kept': " in printed
    assert "threshold, exact, again: " in printed
