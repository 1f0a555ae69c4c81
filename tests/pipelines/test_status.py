"""The state of a run in its output, on a disk and in an object store."""

import json
import math
import re
import sys
import threading
import time
import urllib.parse

import pytest
from moto.server import ThreadedMotoServer

import curation.status
from curation.cli import run_command
from curation.progress import Progress
from curation.stage import OutputError, PlanError
from curation.status import METRICS, STATUS, PoolState, StatusWriter, prometheus_lines
from curation.storage import Folder
from curation.urls import file_system
from pipelines.outdated import MANIFEST, record_outdated
from pipelines.status import outdated_lines, read_status, status_lines
from pipelines.status import run as show_status

POOLS = [PoolState("DecodePass", 3, 1, 4, 7)]
SAMPLE = re.compile(r'longtake_[a-z_]+\{(?:[a-z]+="(?:[^"\\]|\\.)*",?)*\} -?[0-9.e+]+')


@pytest.fixture(params=["disk", "s3"])
def out(request, tmp_path):
    if request.param == "disk":
        yield Folder(str(tmp_path / "out"))
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = urllib.parse.quote("{}:{}".format(*server.get_host_and_port()), safe="")
    options = f"endpoint_override={address}&scheme=http"
    file_system(f"s3://bucket?{options}&allow_bucket_creation=true")[0].create_dir("bucket")
    yield Folder(f"s3://bucket/out?{options}")
    server.stop()


def lines_of(out, later_s=0.0):
    lines, well = status_lines(read_status(out), time.time() + later_s)
    return "\n".join(lines), well


def test_errors_that_are_added_meanwhile_do_not_end_the_renewals():
    usual_s = sys.getswitchinterval()
    with Progress("score", 1, "videos", open("/dev/null", "w")) as progress:
        writer, ended = StatusWriter(Folder("."), "score", list), threading.Event()
        writer._started_s = 0.0

        def add_errors() -> None:
            while not ended.is_set():
                progress.add_error("no moov")

        thread = threading.Thread(target=add_errors)
        thread.start()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(30_000):
                assert len(writer._status("running", None)["last_errors"]) <= 5
        finally:
            sys.setswitchinterval(usual_s)
            ended.set()
            thread.join()


def test_status_shows_counts_workers_waits_and_errors_while_a_run_lasts(out, monkeypatch):
    monkeypatch.setattr(curation.status, "RENEWAL_INTERVAL_S", 0.3)
    with (
        StatusWriter(out, "curate", lambda: POOLS),
        Progress("score", 34, "videos", open("/dev/null", "w")) as progress,
    ):
        progress.update(done=12, failed=1)
        progress.print_error('failed: "a\n.mp4": no moov')
        progress.show_wait_reason("the server is down")
        while not out.exists(METRICS) or "server" not in lines_of(out)[0]:
            time.sleep(0.05)
        text, well = lines_of(out)
    metrics = out.read(METRICS).decode()
    assert well
    assert text.startswith("running: curate, process ")
    assert "score  12/34 videos · 1 failed · " in text
    assert "workers of DecodePass: 3 started, 1 starting; rows: 4 in flight, 7 queued" in text
    assert "waits for: the server is down" in text
    assert r'last error: failed: "a\n.mp4": no moov' in text
    samples = [line for line in metrics.splitlines() if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples), metrics
    assert 'longtake_units{phase="score",unit="videos",outcome="failed"} 1' in samples
    assert 'longtake_workers{stage="DecodePass",state="started"} 3' in samples
    assert "longtake_running{} 0" in samples
    text, well = lines_of(out, 60)
    assert well
    assert text.startswith("finished: curate, process ")
    assert "ended 1 min " in text


def test_process_that_is_gone_is_reported_with_the_time_since_its_last_renewal(tmp_path):
    out = Folder(str(tmp_path))
    status = StatusWriter(out, "score", list)
    status.__enter__()  # and never left, as after a SIGKILL
    while not out.exists(STATUS):
        time.sleep(0.01)
    text, well = lines_of(out, 25)
    assert (text.startswith("running: score"), well) == (True, True)
    text, well = lines_of(out, 120)
    assert not well
    assert text.startswith("no process has renewed this for 2 min ")
    assert "fix: " in text
    status.__exit__(None, None, None)


def test_run_that_fails_or_is_stopped_leaves_its_error_in_the_status(tmp_path):
    out = Folder(str(tmp_path))
    with pytest.raises(OutputError), StatusWriter(out, "score", list):
        raise OutputError("no space left")
    text, well = lines_of(out)
    assert (text.splitlines()[2], well) == ("OutputError: no space left", False)
    assert "longtake_failed{} 1" in out.read(METRICS).decode().splitlines()
    with pytest.raises(KeyboardInterrupt), StatusWriter(out, "score", list):
        raise KeyboardInterrupt
    assert lines_of(out)[0].startswith("stopped: score")


def test_status_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    ended = False
    with StatusWriter(Folder(str(tmp_path / "out")), "score", list):
        ended = True
    assert ended
    assert (tmp_path / "out").read_text() == "a file where the folder should be"


def test_status_names_shards_of_an_earlier_selection_with_the_command_to_run(tmp_path):
    out = Folder(str(tmp_path))
    assert outdated_lines(out) == []
    found = {"what": "shards are of an earlier selection", "fix": "longtake export"}
    out.write(MANIFEST, json.dumps({"outdated_shards": found}).encode())
    assert outdated_lines(out) == [found["what"], "  fix: longtake export"]
    out.write(MANIFEST, json.dumps({"outdated_shards": found | {"fix": "\x1b]0;a"}}).encode())
    assert outdated_lines(out)[1] == r"  fix: \x1b]0;a"


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 200_000, b"\xff"])
def test_damaged_manifest_is_named_with_the_fix(tmp_path, text):
    out = Folder(str(tmp_path))
    out.write(MANIFEST, text)
    for work in (outdated_lines, lambda out: record_outdated(out, None)):
        with pytest.raises(PlanError, match=r"manifest\.json is damaged: .*\n  fix: delete it; "):
            work(out)


def test_missing_or_damaged_status_is_one_line(tmp_path):
    out = Folder(str(tmp_path))
    with pytest.raises(PlanError, match=r"no run has written to .* yet"):
        read_status(out)
    out.write(STATUS, b"[1")
    with pytest.raises(PlanError, match="is damaged"):
        read_status(out)


def test_status_of_another_version_is_shown_or_named_in_one_line(tmp_path, capsys):
    out = Folder(str(tmp_path))
    with (
        StatusWriter(out, "score", lambda: POOLS),
        Progress("score", 34, "videos", open("/dev/null", "w")) as progress,
    ):
        progress.update(done=12)
    status = read_status(out)
    status["phases"][0]["counts"]["kept"] = 3
    out.write(STATUS, json.dumps(status).encode())
    run_command(None, show_status, [out.url], arguments="OUT")
    assert "score  12/34 videos · " in capsys.readouterr().out
    others = [
        {k: v for k, v in status.items() if k != name} for name in ("renewed_unix_s", "phases")
    ]
    others += [status | {"error": 5}, status | {"renewed_unix_s": -math.inf, "state": "finished"}]
    for other in others:
        out.write(STATUS, json.dumps(other).encode())
        with pytest.raises(SystemExit) as ended:
            run_command(None, show_status, [out.url], arguments="OUT")
        line = f"{out.path(STATUS)} was written by another version; the next run replaces it\n"
        assert (ended.value.code, capsys.readouterr()) == (1, (line, ""))


def test_names_in_prometheus_labels_are_escaped():
    with Progress('a"b\\c', 1, "x", open("/dev/null", "w")) as progress:
        status = {"phases": [vars(progress.state()) | {"counts": vars(progress.counts)}]}
    status |= {"workers": [], "waits_for": None, "state": "running", "renewed_unix_s": 1.5}
    assert 'longtake_units{phase="a\\"b\\\\c",unit="x",outcome="done"} 0\n' in list(
        prometheus_lines(status)
    )
