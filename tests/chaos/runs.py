"""Whole runs on a Ray cluster of two worker nodes, and the output that they write to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs

from curation.urls import file_system
from tests.captioning.test_captions import chat
from tests.chaos.proxy import Proxy
from tests.support.chat_server import ChatServer
from tests.support.paths import REPOSITORY
from tests.support.s3_server import s3_bucket, url_options
from tests.support.whole_run import descendants, start

RUN_LIMIT_S = 200.0  # of one run, with its faults; a longer one hangs
NODE_STARTS = 3  # attempts
MEMORY_LIMIT = 0.2  # share of the memory that is free at first: more used, and Ray ends workers
DISK_BYTES = 64 << 20  # of an output on a disk of its own; a whole output has 3 MB
# A process whose command line has such a pattern. The arguments of a raylet name a DefaultWorker.
WORKER = "^ray::(Async)?Worker"
RAYLET = "/raylet/raylet"
HEAD = "--head"  # in the command of the raylet of the driver's node
CONTROL_SERVICE = "gcs_server"
PHASES = ("score", "select", "caption", "export")
# RAY_…: lost nodes and a lost control service are noticed within seconds
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "PYTHONFAULTHANDLER": "1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Output:
    """Where a seed's runs write."""

    url: str  # as the runs have it
    fs: pafs.FileSystem
    root: str
    proxy: Proxy | None = None
    disk: Path | None = None  # of its own, DISK_BYTES

    @property
    def is_local(self) -> bool:
        return self.proxy is None

    def last_of(self, patterns: list[str]) -> int:
        """Returns the number of the last pattern that a file of the output matches; -1: none."""
        numbers = reversed(range(len(patterns)))
        if self.is_local:
            return next((n for n in numbers if any(Path(self.root).glob(patterns[n]))), -1)
        selector = pafs.FileSelector(self.root, recursive=True, allow_not_found=True)
        found = self.fs.get_file_info(selector)
        names = "\n".join(f.path.removeprefix(f"{self.root}/") for f in found)
        return next((n for n in numbers if _expression(patterns[n]).search(names)), -1)

    def remove(self) -> None:
        if self.is_local:
            shutil.rmtree(self.root, ignore_errors=True)
            return
        selector = pafs.FileSelector(self.root, recursive=True, allow_not_found=True)
        for found in self.fs.get_file_info(selector):
            if found.type == pafs.FileType.File:
                self.fs.delete_file(found.path)

    def copy_to(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        pafs.copy_files(self.root, str(folder), source_filesystem=self.fs)

    def finish_phases_before(self, phase: str, known: Path, scratch: Path) -> None:
        """Copies what a run has written when this phase begins."""
        if phase == "score":
            return
        left_out = ("shards", ".lock", "lease.json")
        left_out += () if phase == "export" else ("captions", "selection.*")
        ledger = scratch / "finished" / "ledger"
        shutil.copytree(known / "ledger", ledger, ignore=shutil.ignore_patterns(*left_out))
        pafs.copy_files(str(ledger.parent), self.root, destination_filesystem=self.fs)


def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("^" + pattern.replace("*", r"[^/\n]*") + "$", re.M)


@contextmanager
def make_output(is_local: bool, has_own_disk: bool, scratch: Path) -> Iterator[Output]:
    if not is_local:
        with s3_bucket() as (address, direct):
            proxy = Proxy(address)
            path = f"s3://bucket/{scratch.name}"  # servers of one process share their buckets
            fs, root = file_system(f"{path}?{direct}")
            output = Output(f"{path}?{url_options(proxy.address)}", fs, root, proxy)
            yield output
            output.remove()
            proxy.close()
        return
    disk = scratch / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if has_own_disk:
        subprocess.run(mount, check=True)
    root = str(disk / "out")
    try:
        yield Output(root, pafs.LocalFileSystem(), root, disk=disk if has_own_disk else None)
    finally:
        if has_own_disk:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@dataclass
class Nodes:
    """A Ray cluster of two worker nodes on this machine."""

    process: subprocess.Popen[str]
    address: str
    limit_memory: bool

    def processes(self, part: str) -> list[int]:
        return [pid for pid, line in descendants(self.process.pid) if re.search(part, line)]

    def worker_raylets(self) -> list[int]:
        lines = descendants(self.process.pid)
        return [pid for pid, line in lines if RAYLET in line and HEAD not in line.split()]

    def is_whole(self) -> bool:
        return len(self.worker_raylets()) == 2 and bool(self.processes(CONTROL_SERVICE))

    def end(self) -> None:
        end_process(self.process)


def start_nodes(limit_memory: bool = False) -> Nodes:
    env = dict(ENVIRONMENT)
    if limit_memory:
        env["RAY_memory_usage_threshold"] = f"{_memory_threshold():.3f}"
    for _ in range(NODE_STARTS):  # Ray waits no longer than 30 s for a slow machine
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | env | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        if address := process.stdout.readline().strip():
            return Nodes(process, address, limit_memory)
        end_process(process)
    raise SystemExit("Ray's nodes do not start on this machine")


@dataclass
class Run:
    """A driver and its nodes."""

    driver: subprocess.Popen[str]
    nodes: Nodes
    owns_nodes: bool
    log: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        return max(0.0, self.started_s + RUN_LIMIT_S - time.monotonic())

    def processes(self, part: str) -> list[int]:
        """Process ids of descendants whose command line has this pattern."""
        below = [pid for pid, line in descendants(self.driver.pid) if re.search(part, line)]
        return sorted([*below, *self.nodes.processes(part)])

    def phase(self) -> str:
        """Returns the phase of the newest line of the display, `start` before the first."""
        words = (line.split(" ", 1)[0] for line in reversed(self.log))
        return next((word for word in words if word in PHASES), "start")


@dataclass
class Machine:
    """Starts runs. Nodes that a run leaves whole are those of the next one."""

    source: Path
    server: ChatServer
    nodes: Nodes | None = None

    def start_run(self, out: str, *, limit_memory: bool = False, own_nodes: bool = False) -> Run:
        nodes = start_nodes() if own_nodes else self._nodes(limit_memory)
        settings = [*chat(out, self.server), "cluster.workers=2"]
        settings += ["caption.openai.max_outage_s=60", f"cluster.address={nodes.address}"]
        driver = start("curate", f"input={self.source}", *settings, **ENVIRONMENT)
        run = Run(driver, nodes, own_nodes)
        threading.Thread(target=_read, args=(driver, run.log), daemon=True).start()
        threading.Thread(target=driver.stdout.read, daemon=True).start()  # type: ignore[union-attr]
        return run

    def _nodes(self, limit_memory: bool) -> Nodes:
        kept = self.nodes
        if kept is None or kept.limit_memory != limit_memory or not kept.is_whole():
            self.end_nodes()
            self.nodes = start_nodes(limit_memory)
        assert self.nodes is not None
        return self.nodes

    def end_nodes(self) -> None:
        if self.nodes is not None:
            self.nodes.end()
            self.nodes = None


def _memory_threshold() -> float:
    """Returns the used share of the machine's memory at which Ray ends workers."""
    kib = memory_kib()
    return 1 - (1 - MEMORY_LIMIT) * kib["MemAvailable"] / kib["MemTotal"]


def memory_kib() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def _read(driver: subprocess.Popen[str], lines: list[str]) -> None:
    assert driver.stderr is not None
    lines.extend(line.rstrip("\n") for line in driver.stderr)


def wait_for_end(run: Run) -> int | None:
    """Returns the driver's exit code, None of one that hangs; its nodes are then ended too."""
    try:
        return run.driver.wait(run.left_s())
    except subprocess.TimeoutExpired:
        run.driver.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        with suppress(subprocess.TimeoutExpired):
            run.driver.wait(5)
        run.nodes.end()
        return None
    finally:
        end_process(run.driver)
        if run.owns_nodes:
            run.nodes.end()


def end_process(process: subprocess.Popen[str]) -> None:
    """Kills it and its descendants."""
    below = [pid for pid, _ in descendants(process.pid)]
    if process.poll() is None:
        process.kill()
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
