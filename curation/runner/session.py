"""Connects this process to a Ray cluster, and disconnects it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from curation.runner.cluster_messages import log_cluster_messages
from curation.stage import OutputError, RunError
from curation.urls import is_url

REPOSITORY = Path(__file__).resolve().parents[2]
CONNECT_TIMEOUT_S = 10
MAX_SOCKET_BYTES = 107  # of a Unix socket's path, Linux
SOCKET = "/ray/session_2026-11-28_18-35-00_123456_1234567/sockets/plasma_store"
MAX_TEMP_FOLDER_BYTES = MAX_SOCKET_BYTES - len(SOCKET)
START_TIMEOUT_S = 180.0  # of Ray on this machine; Ray's own limit is 30 s
START_ATTEMPTS = 2


def start(address: str | None, workers: int | None, log_folder: str) -> bool:
    """Connects, or starts Ray with that many CPUs; False where this process is connected.

    Raises RunError, OutputError.
    """
    if ray.is_initialized():
        return False
    _redirect_ray_logs(log_folder)
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address in (None, "local"):
        options |= {"address": "local", "include_dashboard": False}
        options["num_cpus"] = workers or len(os.sched_getaffinity(0))
        if (folder := _short_temp_folder()) is not None:
            options["_temp_dir"] = folder
    else:
        # Workers on other nodes import our code; the packages are those installed on the node.
        code = [str(REPOSITORY / name) for name in ("curation", "stages", "pipelines")]
        options |= {"address": address, "runtime_env": {"py_modules": code}}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if options["address"] == "local":
            _start_local(options)
        else:
            _check_reachable(address or "")
            ray.init(configure_logging=False, **options)
    except RunError:
        raise
    except Exception as e:  # Ray has no class of its own for it
        raise RunError(
            f"no Ray cluster at {address or 'this machine'}: {e}\n  fix: check the address"
            "; if the cluster needs a token, store it in ~/.ray/auth_token and set "
            "RAY_AUTH_MODE=token"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # ray.init sets its own
    return True


def _short_temp_folder() -> str | None:
    """A folder for Ray's sockets where the user's temporary folder has too long a name for them;
    None where it has not. Raises RunError where there is no other."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(temporary)) <= MAX_TEMP_FOLDER_BYTES:
        return None
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            return f"{folder}/ray"
    raise RunError(
        f"the temporary folder {temporary} has too long a name for Ray's sockets, which may have "
        f"{MAX_SOCKET_BYTES} bytes\n  fix: set RAY_TMPDIR to a folder of at most "
        f"{MAX_TEMP_FOLDER_BYTES}"
    )


def _start_local(options: dict[str, Any]) -> None:
    """Starts Ray on this machine; a second time where the machine is too slow. Raises RunError."""
    os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", "15")  # Ray's limit is 5 s
    others = _child_processes()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with _patient_start():
                ray.init(configure_logging=False, **options)
            return
        except Exception as e:  # Ray has no type of its own for this
            for pid in _child_processes() - others:  # of the start that failed
                os.kill(pid, signal.SIGKILL)
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise RunError(
                    f"Ray does not start on this machine: {e}\n  fix: correct that; if other "
                    "processes use the CPUs and the memory, end them; run again"
                ) from None


@contextmanager
def _patient_start() -> Iterator[None]:
    """Ray waits 30 s for its own node and has no setting for it, so its question is replaced by one
    that waits longer. In a Ray without this function the limit stays."""
    ask: Any = getattr(services, "get_node", None)
    deadline_s = time.monotonic() + START_TIMEOUT_S

    def ask_until_answered(*args: Any) -> Any:
        while True:
            try:
                return ask(*args)
            except RuntimeError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.5)

    if ask is not None:
        services.get_node = ask_until_answered
    try:
        yield
    finally:
        if ask is not None:
            services.get_node = ask


def _child_processes() -> set[int]:
    """Process ids of the children of this process, where the system lists them."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for children in lists for pid in children.read_text().split()}


def stop() -> None:
    """Disconnects. Ignores Ctrl-C meanwhile, which would leave Ray's processes behind."""
    is_main = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        ray.shutdown()
    finally:
        if is_main:
            signal.signal(signal.SIGINT, on_interrupt)


def _check_reachable(address: str) -> None:
    """Raises OSError or ValueError where no server answers: Ray itself would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        server = (host.strip("[]"), int(port))
        socket.create_connection(server, timeout=CONNECT_TIMEOUT_S).close()


def _redirect_ray_logs(folder: str) -> None:
    """Ray's loggers write to a file. For an output that is not local, the file is in the
    temporary folder of this machine."""
    if is_url(folder):
        folder = os.path.join(tempfile.gettempdir(), "longtake-logs")
    try:
        os.makedirs(folder, exist_ok=True)
        handler = logging.FileHandler(os.path.join(folder, "ray.log"))
    except OSError as e:
        raise OutputError(f"can't write {folder}/ray.log: {e.strerror}") from None
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # of a full disk
    for name in ("ray", "ray._private"):  # ray.init removes the handlers of "ray"
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
    log_cluster_messages(logging.getLogger("ray._private"))
