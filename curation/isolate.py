"""Runs calls on hostile files in a child process, so that a crash, a hang or a file that takes all
memory fails one call.

A hostile file might take over the child, so the parent accepts only plain data from it (JSON) and
never unpickles a reply. Measured: 0.1 ms per call, 50 ms to restart the child.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import faulthandler
import gc
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.heartbeat import set_sender
from curation.stage import BadVideo, OutputError, TransientError, is_device_failure
from curation.texts import MAX_ERROR_CHARS, clean_outside_text

BYTES_KEY = "\0bytes"  # of a JSON object that stands for bytes
MAX_REPLY_BYTES = 256 << 20  # rows are a few kilobytes
MAX_TEXT_CHARS = 1 << 16  # of one string in a reply; a path has at most 4096
MIN_FILE_LIMIT_BYTES = 1 << 30  # a child writes key frames
PROGRESS = {"progress": True}  # a message before the reply
START_TIMEOUT_S = 120.0  # imports and models, on a busy machine
NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Crashed(BadVideo):
    """The child ended in the middle of a call."""


class TimedOut(BadVideo):
    """The child sent no reply before the timeout."""


class NotStarted(RuntimeError):
    """The child did not start: the fault of the machine or of `setup`, not of an input."""


class Unexpected(BadVideo):
    """An unexpected error of this project's code on this input, with its source line."""


class Isolated:
    """Runs `call(*args)` in one child process, which starts when needed and after each crash.

    call, setup: picklable, such as `stage.process` and `stage.setup`; setup runs once per child.
    Arguments are picklable; results are plain data (str, int, float, bool, None, bytes, list, dict
    with str keys). Raises BadVideo and its subclasses here, OutputError, TransientError (also where
    the machine ran out of memory), NotStarted.
    Use it from a thread that lives as long as the child should: the kernel kills the child when
    the thread that started it ends.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        setup: Callable[[], None] | None = None,
        *,
        timeout_s: float = 60.0,
        memory_gib: float = 4.0,  # address space in addition to what is in use after setup
    ) -> None:
        self._setup_request = pickle.dumps((call, setup, int(memory_gib * 2**30)))
        self.timeout_s = timeout_s
        self.memory_gib = memory_gib
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._kills_at_start = 0

    def __call__(
        self, *args: Any, timeout_s: float | None = None, stall_timeout_s: float | None = None
    ) -> Any:
        """Returns the result of the call. timeout_s: of this call; None: the usual one.
        stall_timeout_s: since the call last reported progress (curation/heartbeat.py)."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if self._child is None or self._child.poll() is not None:
            self._start()
        try:
            reply = self._request(pickle.dumps(args), limit_s, stall_timeout_s)
        except TimedOut:
            self.close()
            raise
        except OSError as error:
            raise self._crash() from error
        except (ValueError, RecursionError) as error:
            self.close()
            raise Crashed("malformed JSON from the decoder") from error
        except BaseException:  # interrupted: a late reply must not become that of the next call
            self.close()
            raise
        return self._result_of(reply)

    def call_with_retry(
        self, *args: Any, timeout_s: float | None = None, stall_timeout_s: float | None = None
    ) -> Any:
        """Calls a second time where the child crashed.

        The first crash may be the machine's fault (another process took the memory, or an operator
        killed the child); the second is the input's.
        """
        try:
            return self(*args, timeout_s=timeout_s, stall_timeout_s=stall_timeout_s)
        except (Crashed, NotStarted):
            return self(*args, timeout_s=timeout_s, stall_timeout_s=stall_timeout_s)

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the child; the next call starts a new one."""
        if self._child is not None:
            self._kill()
            self._child = None

    def _start(self) -> None:
        self.close()
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "curation.isolate", str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the decoder prints what it finds wrong with a video
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "GLIBC_TUNABLES": _glibc_tunables()},
                start_new_session=True,  # Ctrl-C goes to the parent alone
            )
        finally:
            theirs.close()
        self._socket, self._kills_at_start = ours, out_of_memory_kills()
        self._kill = weakref.finalize(self, _kill, self._child, ours)
        try:
            reply = self._request(self._setup_request, START_TIMEOUT_S)
        except TimedOut as error:
            self.close()
            raise NotStarted(f"the isolated worker did not start: {error}") from error
        except (OSError, ValueError) as error:
            reason = self._exit_reason()
            raise NotStarted(f"the isolated worker did not start: {reason}") from error
        if "error" in reply:
            self.close()
            raise NotStarted(f"the isolated worker did not start: {reply.get('message')}")

    def _request(
        self, request: bytes, limit_s: float, stall_s: float | None = None
    ) -> dict[str, Any]:
        """Returns the child's reply. Raises OSError where the child ended, ValueError, TimedOut."""
        assert self._socket is not None
        deadline, reply = time.monotonic() + limit_s, PROGRESS
        try:
            _send(self._socket, request, deadline)
            while reply == PROGRESS:
                until = deadline if stall_s is None else min(deadline, time.monotonic() + stall_s)
                reply = decode_reply(_receive(self._socket, until))
        except TimeoutError as error:
            is_late = time.monotonic() >= deadline
            what = f"result after {limit_s:g} s" if is_late else f"progress for {stall_s:g} s"
            raise TimedOut(f"no {what}") from error
        if not isinstance(reply, dict):
            raise ValueError("not a JSON object")
        return reply

    def _result_of(self, reply: dict[str, Any]) -> Any:
        if "ok" in reply:
            return reply["ok"]
        kind, message = reply.get("error"), str(reply.get("message"))[:MAX_ERROR_CHARS]
        if kind == "OutputError":
            raise OutputError(message)
        if kind == "TransientError":
            self.close()  # a failed GPU stays failed in a process
            raise TransientError(message)
        if kind == "BadVideo":
            raise BadVideo(message)
        if kind == "MemoryError":
            self.close()  # restart: its heap is fragmented
            raise BadVideo(f"needs more memory than the limit of {self.memory_gib:g} GiB")
        raise Unexpected(message)

    def _crash(self) -> Crashed | TransientError:
        """Returns the error of a child that ended in a call: a TransientError if the machine had
        less memory than the child's limit, because then the input is not the cause."""
        reason = self._exit_reason()
        if "SIGKILL" not in reason or out_of_memory_kills() == self._kills_at_start:
            return Crashed(reason)
        return TransientError(
            "the machine ran out of memory, and its kernel ended the decoder; fix: a lower "
            f"cluster.workers, or a cluster.memory_gib below {self.memory_gib:g}"
        )

    def _exit_reason(self) -> str:
        """Returns why the child ended."""
        assert self._child is not None
        try:
            code = self._child.wait(5.0)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        if code is None:
            return "the decoder closed its connection"
        if code >= 0:
            return f"the decoder ended with exit code {code}"
        name = signal.Signals(-code).name
        guess = ", most likely because the machine ran out of memory" if name == "SIGKILL" else ""
        return f"the decoder crashed: {name}{guess}"


def out_of_memory_kills() -> int:
    """Returns how many processes the kernel has ended because memory ran out, since the start of
    the machine; 0 where it does not count them."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", counters, re.M)
    return int(found[1]) if found else 0


def _glibc_tunables() -> str:
    """Returns GLIBC_TUNABLES with large pages for large allocations: decoded frames of 3 MB each in
    pages of 4 kB take 4 % of a decoder's time. Other C libraries ignore the variable."""
    given = os.environ.get("GLIBC_TUNABLES")
    return ":".join(filter(None, (given, "glibc.malloc.hugetlb=1")))


def _kill(child: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def encode_reply(value: Any) -> bytes:
    """Returns plain data as JSON: bytes as base64, numpy's numbers as Python's. Raises TypeError
    for other data."""

    def plain(other: Any) -> Any:
        if isinstance(other, bytes | bytearray | memoryview):
            return {BYTES_KEY: base64.b64encode(other).decode()}
        if hasattr(other, "dtype") and getattr(other, "ndim", None) == 0:
            return other.item()
        raise TypeError(f"{type(other).__name__} can't be returned from an isolated call")

    return json.dumps(value, default=plain, separators=(",", ":")).encode()


def decode_reply(data: bytes) -> Any:
    """Returns what `encode_reply` was given, its texts cleaned (`clean_outside_text`).

    Raises ValueError or RecursionError of other data.
    """

    def revive(found: Any) -> Any:
        if isinstance(found, str):
            return clean_outside_text(found, MAX_TEXT_CHARS)
        if isinstance(found, list):
            return [revive(item) for item in found]
        if not isinstance(found, dict):
            return found
        if found.keys() != {BYTES_KEY}:
            return {revive(name): revive(item) for name, item in found.items()}
        if not isinstance(found[BYTES_KEY], str):
            raise ValueError("not bytes")
        return base64.b64decode(found[BYTES_KEY], validate=True)

    return revive(json.loads(data))


def _send(connection: socket.socket, data: bytes, deadline: float | None = None) -> None:
    _set_timeout(connection, deadline)
    connection.sendall(len(data).to_bytes(8) + data)


def _receive(connection: socket.socket, deadline: float | None = None) -> bytes:
    """Returns one message. Raises ConnectionError if it is cut off, TimeoutError."""

    def take(count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            _set_timeout(connection, deadline)
            part = connection.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise ConnectionError("the other side closed the connection")
            parts += part
        return bytes(parts)

    length = int.from_bytes(take(8))
    if length > MAX_REPLY_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return take(length)


def _set_timeout(connection: socket.socket, deadline: float | None) -> None:
    if deadline is not None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)


def _restrict_child(parent: int) -> None:
    """Limits what the child may do, and has the kernel kill it when its parent thread ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A fetched video or the key frames of hours of video may take what is free now, but no more.
    limit = max(MIN_FILE_LIMIT_BYTES, shutil.disk_usage(tempfile.gettempdir()).free)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        die_with_parent, no_new_privileges = 1, 38  # linux/prctl.h
        prctl(die_with_parent, signal.SIGKILL, 0, 0, 0)
        prctl(no_new_privileges, 1, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call of prctl
        os._exit(1)


def _limit_memory(extra_bytes: int) -> None:
    """Limits the address space to `extra_bytes` more than what libraries have reserved by now."""
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + extra_bytes, in_use + extra_bytes))


def _error_reply(error: BaseException) -> dict[str, str]:
    """Returns an error as plain data: its kind and message."""
    if isinstance(error, OutputError):
        return {"error": "OutputError", "message": str(error)}
    if isinstance(error, BadVideo):
        return {"error": "BadVideo", "message": str(error)}
    if isinstance(error, TransientError) or is_device_failure(error):
        return {"error": "TransientError", "message": str(error)}
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
        return {"error": "OutputError", "message": str(error)}
    if isinstance(error, MemoryError) or "Insufficient memory" in str(error):  # of OpenCV
        return {"error": "MemoryError", "message": ""}
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return {"error": "Unexpected", "message": f"{type(error).__name__}: {error}{where}"}


def _serve(connection: socket.socket) -> None:
    """Child main loop: set up, then serve requests until the parent closes the connection."""
    call, setup, memory = pickle.loads(_receive(connection))
    if setup is not None:
        setup()
    set_sender(lambda: _send(connection, encode_reply(PROGRESS)))
    gc.collect()
    _limit_memory(memory)
    _send(connection, encode_reply({"ok": None}))
    while True:
        args = pickle.loads(_receive(connection))
        try:
            reply = encode_reply({"ok": call(*args)})
        except Exception as error:
            reply = encode_reply(_error_reply(error))
        _send(connection, reply)


def _main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    faulthandler.enable()
    _restrict_child(int(sys.argv[2]))
    try:
        _serve(connection)
    except ConnectionError:
        pass
    except Exception as error:
        traceback.print_exc()
        _send(
            connection, encode_reply({"error": "start", "message": _error_reply(error)["message"]})
        )


if __name__ == "__main__":
    _main()
