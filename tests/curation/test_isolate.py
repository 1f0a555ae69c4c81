"""A crash, a hang or a memory bomb in the child fails one call; only plain data is returned."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from curation import isolate
from curation.access_check import AccessCheck
from curation.heartbeat import report_progress
from curation.isolate import Crashed, Isolated, TimedOut, Unexpected
from curation.runner.worker import Worker
from curation.stage import BadVideo, Needs, OutputError, RunContext, Stage, TransientError
from tests.support.memory_group import memory_group
from tests.support.paths import REPOSITORY


def run_task(task: str, value: object = None) -> object:
    """The call that runs in the child in these tests."""
    if task == "echo":
        return value
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(7)
    if task == "hang":
        time.sleep(3600)
    if task == "progress":
        for _ in range(4):
            time.sleep(0.6)
            report_progress()
    if task == "memory":
        return len(bytearray(8 << 30))
    if task == "all memory of the machine":
        return len(b"x" * (300 << 20))
    if task == "pid":
        return os.getpid()
    if task == "bad":
        raise BadVideo("not a video: text")
    if task == "full disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if task == "output":
        raise OutputError("storage unreachable")
    if task == "bug":
        row: dict[str, object] = {}
        return row["no such column"]
    if task == "print":
        os.write(1, b"[h264 @ 0x55] error while decoding MB\n")
        os.write(2, b"x264 [info]: profile High\n")
    if task == "big file":
        Path(str(value)).write_bytes(b"\0" * 4096)
        with open(str(value), "ab") as file:
            file.truncate(shutil.disk_usage(tempfile.gettempdir()).free + (2 << 30))
    return None


class Counter:
    """Counts its calls since `setup`."""

    def setup(self) -> None:
        self.calls = 100

    def count(self) -> int:
        self.calls += 1
        return self.calls


class NoWeights:
    def setup(self) -> None:
        raise FileNotFoundError("weights.pt is missing")

    def call(self) -> None: ...


@pytest.fixture(scope="module")
def isolated():
    with Isolated(run_task, timeout_s=20, memory_gib=0.5) as one:
        yield one


def test_plain_data_is_returned_unchanged(isolated):
    value = {
        "name": "odd Ünï\u200cname\n\t",
        "fingerprint": bytes(range(256)),
        "spans": [{"start_s": 0.1, "end_s": 1e-12}, None, True, -5, "bytes"],
        "nan": float("inf"),
    }
    assert isolated("echo", value) == value


def test_texts_of_the_child_come_back_without_unsafe_characters(isolated):
    value = {"title\0": ["lone \ud800", {"codec": "\x1b[2Jh264\u202e"}], "long": "x" * 100_000}
    found = isolated("echo", value)
    assert found.pop("long") == "x" * (isolate.MAX_TEXT_CHARS - 1) + "…"
    assert found == {"title\ufffd": ["lone \ufffd", {"codec": "\ufffd[2Jh264\ufffd"}]}


@dataclass
class NameCodec(Stage):
    writes = ("codec",)
    needs = Needs(isolated=True)

    def process(self, rows):
        return [row | {"codec": f"of {row['video']}", "video": "another"} for row in rows]


def test_isolated_stage_changes_no_text_that_it_does_not_write():
    path = "odd \u202e name\x1b.mp4"
    worker = Worker([NameCodec()], RunContext(), memory_gib=0.5, access=AccessCheck(None))
    [row] = worker.run([{"video": path}])
    assert row["video"] == path
    assert row["codec"] == "of odd \ufffd name\ufffd.mp4"


def test_numpy_numbers_are_returned_as_python_numbers(isolated):
    back = isolated("echo", {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)})
    assert back == {"a": 0.5, "b": 3, "c": True}
    assert [type(x) for x in back.values()] == [float, int, bool]


def test_result_that_is_not_plain_data_is_refused_with_its_type(isolated):
    with pytest.raises(Unexpected, match="ndarray can't be returned"):
        isolated("echo", np.zeros(3))


def test_crash_fails_one_call_and_the_child_restarts(isolated):
    before = isolated("pid")
    with pytest.raises(Crashed, match=r"^the decoder crashed: SIGSEGV$"):
        isolated("crash")
    assert isolated("echo", 1) == 1
    assert isolated("pid") != before


def test_call_that_the_machine_has_no_memory_for_may_be_made_again():
    """A real kill by the kernel: the memory of the child's control group ends before its limit."""
    with memory_group() as group, Isolated(run_task, timeout_s=20, memory_gib=0.5) as isolated:
        group.add(isolated("pid"))
        group.limit(100 << 20)
        with pytest.raises(TransientError, match="the machine ran out of memory"):
            isolated("all memory of the machine")
        assert isolated("all memory of the machine") == 300 << 20  # in a new child, not limited
        with pytest.raises(Crashed, match="SIGKILL"):  # by somebody else
            isolated("kill")


def test_exit_of_the_child_is_reported_with_its_exit_code(isolated):
    with pytest.raises(Crashed, match="exit code 7"):
        isolated("exit")


def test_hanging_call_ends_at_its_timeout(isolated):
    started_s = time.monotonic()
    with pytest.raises(TimedOut, match=r"^no result after 0\.5 s$"):
        isolated("hang", timeout_s=0.5)
    assert time.monotonic() - started_s < 10
    assert isolated("echo", 2) == 2


def test_memory_limit_is_named_in_the_error(isolated):
    with pytest.raises(BadVideo, match=r"needs more memory than the limit of 0\.5 GiB"):
        isolated("memory")
    assert isolated("echo", 3) == 3


def test_errors_of_the_child_keep_their_class_and_message(isolated):
    with pytest.raises(BadVideo, match=r"^not a video: text$"):
        isolated("bad")
    with pytest.raises(OutputError, match="storage unreachable"):
        isolated("output")
    with pytest.raises(OutputError, match="No space left"):
        isolated("full disk")
    with pytest.raises(Unexpected, match=r"KeyError: 'no such column' \(test_isolate.py:\d+\)"):
        isolated("bug")


def test_output_of_the_decoder_is_not_shown(isolated, capfd):
    isolated("print")
    assert capfd.readouterr() == ("", "")


def test_setup_runs_once_per_child_on_the_same_object():
    counter = Counter()
    with Isolated(counter.count, counter.setup) as one:
        assert [one(), one()] == [101, 102]
        one.close()
        assert one() == 101
    assert not hasattr(counter, "calls")  # of the parent's object


def test_setup_without_an_end_is_named_so(monkeypatch):
    monkeypatch.setattr("curation.isolate.START_TIMEOUT_S", 0.5)
    with (
        Isolated(len, partial(time.sleep, 60)) as one,
        pytest.raises(RuntimeError, match=r"did not start: no result after 0\.5 s"),
    ):
        one("ab")


def test_failed_setup_is_no_error_of_the_input():
    worker = NoWeights()
    with Isolated(worker.call, worker.setup) as one:
        with pytest.raises(
            RuntimeError, match=r"did not start: .*weights\.pt is missing"
        ) as raised:
            one()
        assert not isinstance(raised.value, BadVideo)


def test_call_that_reports_progress_runs_on_and_one_that_stalls_is_ended(isolated):
    isolated("progress", stall_timeout_s=1.5)
    with pytest.raises(TimedOut, match=r"^no progress for 0\.5 s$"):
        isolated("hang", stall_timeout_s=0.5)
    with pytest.raises(TimedOut, match=r"^no result after 1\.5 s$"):
        isolated("progress", timeout_s=1.5, stall_timeout_s=1.4)


def test_child_cannot_write_a_file_larger_than_the_free_space(isolated, tmp_path):
    with pytest.raises(Unexpected, match="File too large"):
        isolated("big file", str(tmp_path / "big"))


def test_hanging_child_ends_with_its_parent():
    code = (
        "import os, signal, threading, time\n"
        "from curation.isolate import Isolated\n"
        "from tests.curation.test_isolate import run_task\n"
        "one = Isolated(run_task)\n"
        "print(one('pid'), flush=True)\n"
        "one('hang')\n"
    )
    root = REPOSITORY
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)  # it hangs by now, or is about to: the child must end in both cases
        parent.kill()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_child_of_a_deleted_object_is_killed():
    one = Isolated(run_task)
    pid = one("pid")
    del one
    assert not is_alive(pid)


@pytest.mark.parametrize(
    "reply",
    [
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",  # a pickle
        b"[" * 100_000,
        b"{",
        b'"ok"',
        b'{"ok":{"\\u0000bytes":5}}',
        b"\xff\xfe",
    ],
)
def test_malformed_reply_counts_as_a_crash(isolated, reply):
    isolated("echo")  # starts the child
    ours, theirs = socket.socketpair()
    isolated._socket.close()
    isolated._socket = ours
    isolate._send(theirs, reply)
    with pytest.raises(Crashed, match="malformed JSON"):
        isolated("echo")
    theirs.close()
    assert isolated("echo", 4) == 4


def test_reply_of_impossible_length_is_not_read():
    ours, theirs = socket.socketpair()
    theirs.sendall((1 << 60).to_bytes(8))
    with pytest.raises(ValueError, match="a message of"):
        isolate._receive(ours)
