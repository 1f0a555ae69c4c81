"""Runs work on hostile files in a child process: a crash, a hang or a memory bomb costs one call.

The child decodes what strangers made and might be taken over, so the parent takes nothing but data
from it (JSON): it never unpickles an answer. Measured: 0.1 ms per call, 50 ms to start again.
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
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.stage import BadVideo, OutputError

BYTES = "\0bytes"  # the key of a JSON object that stands for bytes
MAX_ANSWER = 256 << 20  # bytes; rows are a few kilobytes
MAX_FILE = 1 << 30  # bytes; a child writes key frames
START_S = 120.0  # imports and models, on a machine that is busy
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Crashed(BadVideo):
    """The child ended in the middle of a call."""


class TimedOut(BadVideo):
    """The child gave no answer before its deadline."""


class NotStarted(RuntimeError):
    """There is no child to ask: the machine's or the set-up's fault, not that of an input."""


class Unexpected(BadVideo):
    """An error of our own code on this input, with the place it came from."""


class Isolated:
    """`call(*args)` in one child process, which is started when needed and again after each crash.

    call, setup: anything that pickle takes by name, such as `stage.process` and `stage.setup`;
    setup runs once per child. Arguments may be anything that pickle takes; results are plain data
    (str, int, float, bool, None, bytes, list, dict with str keys). Raises BadVideo, its subclasses
    here, and OutputError. Use it from a thread that lives as long as the child should: the kernel
    ends the child together with the thread that started it.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        setup: Callable[[], None] | None = None,
        *,
        timeout_s: float = 60.0,
        memory_gib: float = 4.0,  # address space on top of what is in use after setup
        log: str | None = None,  # where the child's stdout and stderr go; None: nowhere
    ) -> None:
        self._work = pickle.dumps((call, setup, int(memory_gib * 2**30)))
        self.timeout_s = timeout_s
        self.memory_gib = memory_gib
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __call__(self, *args: Any, timeout_s: float | None = None) -> Any:
        """The result of the call. timeout_s: for this one, s; None: the usual one."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if self._child is None or self._child.poll() is not None:
            self._start()
        try:
            answer = self._ask(pickle.dumps(args), limit_s)
        except TimeoutError as error:
            self.close()
            raise TimedOut(f"no result after {limit_s:g} s") from error
        except OSError as error:
            raise Crashed(self._last_words()) from error
        except (ValueError, RecursionError) as error:
            self.close()
            raise Crashed("the decoder gave an answer that is no data") from error
        except BaseException:  # interrupted: a late answer must not be taken for the next call's
            self.close()
            raise
        return self._unpack(answer)

    def call_with_retry(self, *args: Any, timeout_s: float | None = None) -> Any:
        """The call, once more where the child crashed.

        The first time it may be the machine's doing (memory short elsewhere, an operator's kill);
        the second time it is the input's.
        """
        try:
            return self(*args, timeout_s=timeout_s)
        except (Crashed, NotStarted):
            return self(*args, timeout_s=timeout_s)

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child; the next call starts a new one."""
        if self._child is not None:
            self._end()
            self._child = None

    def _start(self) -> None:
        self.close()
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        out: Any = open(self.log, "ab") if self.log else subprocess.DEVNULL  # noqa: SIM115 (below)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "curation.isolate", str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": path, "GLIBC_TUNABLES": _tunables()},
                start_new_session=True,  # Ctrl-C is the parent's business
            )
        finally:
            theirs.close()
            if self.log:
                out.close()
        self._socket = ours
        self._end = weakref.finalize(self, _end, self._child, ours)
        try:
            answer = self._ask(self._work, START_S)
        except (OSError, ValueError) as error:
            reason = self._last_words()
            where = f"; see {self.log}" if self.log else ""
            raise NotStarted(f"the isolated worker did not start: {reason}{where}") from error
        if "error" in answer:
            self.close()
            raise NotStarted(f"the isolated worker did not start: {answer.get('message')}")

    def _ask(self, question: bytes, limit_s: float) -> dict[str, Any]:
        """Sends and receives under one deadline. Raises OSError where the child is gone."""
        assert self._socket is not None
        until = time.monotonic() + limit_s
        _send(self._socket, question, until)
        answer = decode(_receive(self._socket, until))
        if not isinstance(answer, dict):
            raise ValueError("not an answer")
        return answer

    def _unpack(self, answer: dict[str, Any]) -> Any:
        if "ok" in answer:
            return answer["ok"]
        kind, message = answer.get("error"), str(answer.get("message"))[:2000]
        if kind == "OutputError":
            raise OutputError(message)
        if kind == "BadVideo":
            raise BadVideo(message)
        if kind == "MemoryError":
            self.close()  # its memory is in pieces
            raise BadVideo(f"needs more memory than the limit of {self.memory_gib:g} GiB")
        raise Unexpected(message)

    def _last_words(self) -> str:
        """Why the child is gone."""
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
        guess = ", most likely for the machine's memory" if name == "SIGKILL" else ""
        return f"the decoder crashed: {name}{guess}"


def _tunables() -> str:
    """Large pages where malloc takes much at once: decoded pictures of 3 MB each in pages of 4 kB
    cost a decoder 4 % of its time. Another C library than glibc takes no notice."""
    given = os.environ.get("GLIBC_TUNABLES")
    return ":".join(filter(None, (given, "glibc.malloc.hugetlb=1")))


def _end(child: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def encode(value: Any) -> bytes:
    """Plain data as JSON; bytes as base64, numpy's numbers as Python's. Else raises TypeError."""

    def plain(other: Any) -> Any:
        if isinstance(other, bytes | bytearray | memoryview):
            return {BYTES: base64.b64encode(other).decode()}
        if hasattr(other, "dtype") and getattr(other, "ndim", None) == 0:
            return other.item()
        raise TypeError(f"{type(other).__name__} can't be returned from an isolated call")

    return json.dumps(value, default=plain, separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """What `encode` wrote. Raises ValueError or RecursionError for anything else."""

    def revive(found: dict[str, Any]) -> Any:
        if found.keys() != {BYTES}:
            return found
        if not isinstance(found[BYTES], str):
            raise ValueError("not bytes")
        return base64.b64decode(found[BYTES], validate=True)

    return json.loads(data, object_hook=revive)


def _send(connection: socket.socket, data: bytes, until: float | None = None) -> None:
    _set_timeout(connection, until)
    connection.sendall(len(data).to_bytes(8) + data)


def _receive(connection: socket.socket, until: float | None = None) -> bytes:
    """One message. Raises ConnectionError where it breaks off, TimeoutError at the deadline."""

    def take(count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            _set_timeout(connection, until)
            part = connection.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise ConnectionError("the other side is gone")
            parts += part
        return bytes(parts)

    length = int.from_bytes(take(8))
    if length > MAX_ANSWER:
        raise ValueError(f"a message of {length} bytes")
    return take(length)


def _set_timeout(connection: socket.socket, until: float | None) -> None:
    if until is not None:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)


def _confine(parent: int) -> None:
    """What a child may do less than its parent, and that it ends with it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        die_with_parent, no_new_privileges = 1, 38  # linux/prctl.h
        prctl(die_with_parent, signal.SIGKILL, 0, 0, 0)
        prctl(no_new_privileges, 1, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


def _limit_memory(more: int) -> None:
    """more: bytes of address space on top of what libraries have reserved by now."""
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + more, in_use + more))


def _describe(error: BaseException) -> dict[str, str]:
    """An error as data: kind and message."""
    if isinstance(error, OutputError):
        return {"error": "OutputError", "message": str(error)}
    if isinstance(error, BadVideo):
        return {"error": "BadVideo", "message": str(error)}
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return {"error": "OutputError", "message": str(error)}
    if isinstance(error, MemoryError) or "Insufficient memory" in str(error):  # OpenCV's words
        return {"error": "MemoryError", "message": ""}
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return {"error": "Unexpected", "message": f"{type(error).__name__}: {error}{place}"}


def _serve(connection: socket.socket) -> None:
    """The child's life: set up once, then one answer per question until the parent is gone."""
    call, setup, memory = pickle.loads(_receive(connection))
    if setup is not None:
        setup()
    gc.collect()
    _limit_memory(memory)
    _send(connection, encode({"ok": None}))
    while True:
        args = pickle.loads(_receive(connection))
        try:
            answer = encode({"ok": call(*args)})
        except Exception as error:
            answer = encode(_describe(error))
        _send(connection, answer)


def _main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    faulthandler.enable()
    _confine(int(sys.argv[2]))
    try:
        _serve(connection)
    except ConnectionError:
        pass
    except Exception as error:
        traceback.print_exc()
        _send(connection, encode({"error": "start", "message": _describe(error)["message"]}))


if __name__ == "__main__":
    _main()
