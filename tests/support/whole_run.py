"""Runs a pipeline as its own process, and compares the datasets of two runs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from curation import config
from curation.runner.cluster import Cluster
from curation.storage import Folder
from pipelines import export, select
from pipelines.settings import DEFAULT_CONFIG, Settings
from tests.support.paths import REPOSITORY
from tests.support.small_input import SETTINGS

TABLES = ("clips", "videos", "shards", "stats")


@dataclass
class FinishedRun:
    exit_code: int
    stdout: str
    stderr: str


def start(module: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """`python -m pipelines.MODULE ARGS`, in a process group of its own."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", f"pipelines.{module}", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
        start_new_session=True,
    )


def wait_for_end(process: subprocess.Popen[str], within_s: float = 240) -> FinishedRun:
    stdout, stderr = process.communicate(timeout=within_s)
    return FinishedRun(process.returncode, stdout, stderr)


def curate(source: Path, out: Path, *overrides: str, **env: str) -> subprocess.Popen[str]:
    return start("curate", f"input={source}", f"output={out}", *SETTINGS, *overrides, **env)


def run_here(phase: str, out: Path, cluster: Cluster, *overrides: str) -> None:
    """select or export, in this process and on the tests' Ray, whose start takes seconds."""
    work = {"select": select.select_and_publish, "export": export.run}[phase]
    settings = config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, f"output={out}", *overrides])
    work(settings, Folder(str(out)), cluster)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Returns False where the run ended before the condition was true."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return False


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Kills the driver once the condition is true. Returns False where the run ended before."""
    if not wait_for(process, condition):
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Yields process id and command line of all descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            todo.append(child)
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            yield child, os.fsdecode(line)


def commands_with_mark(mark: str) -> list[str]:
    """Returns the command lines of processes with a variable of this value in the environment."""
    entry_end = f"={mark}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry_end in (entry / "environ").read_bytes():
                    found.append(os.fsdecode((entry / "cmdline").read_bytes()))
            except OSError:
                continue
    return found


def unfinished_files(out: Path) -> list[str]:
    """Returns the unfinished files in a dataset."""
    return [str(path) for path in out.rglob(".tmp-*")]


def differences(a: Path, b: Path) -> list[str]:
    """Returns the names of tables whose rows differ, and of files whose bytes differ."""
    found = []
    for name in TABLES:
        if not pq.read_table(a / f"{name}.parquet").equals(pq.read_table(b / f"{name}.parquet")):
            found.append(f"{name}.parquet")
    if json.loads((a / "manifest.json").read_text()) != json.loads(
        (b / "manifest.json").read_text()
    ):
        found.append("manifest.json")
    for folder in ("shards", "presto"):
        if _hashes(a / folder) != _hashes(b / folder):
            found.append(folder)
    for page in ("report.html", "README.md"):
        if (a / page).read_bytes() != (b / page).read_bytes():
            found.append(page)
    return found


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
