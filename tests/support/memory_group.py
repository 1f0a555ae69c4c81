"""A control group of Linux, whose processes together may use a limited amount of memory."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 1 << 60


@dataclass
class MemoryGroup:
    """The kernel ends a process of the group where they use more than the limit."""

    folder: Path
    limit_file: Path
    kills_file: Path

    def add(self, pid: int) -> None:
        """Adds a process and its later descendants. What it uses already does not count."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, size: int) -> None:
        self.limit_file.write_text(str(size))

    def kills(self) -> int:
        found = re.search(r"^oom_kill (\d+)$", self.kills_file.read_text(), re.M)
        return int(found[1]) if found else 0


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Yields a group without a limit. Skips the test where the machine permits none."""
    name = f"longtake-{uuid.uuid4().hex[:8]}"
    if (ROOT / "memory").is_dir():  # version 1
        folder = ROOT / "memory" / name
        group = MemoryGroup(folder, folder / "memory.limit_in_bytes", folder / "memory.oom_control")
    else:
        folder = ROOT / name
        group = MemoryGroup(folder, folder / "memory.max", folder / "memory.events")
    try:
        folder.mkdir()
        group.limit(UNLIMITED_BYTES)
    except OSError:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip("a limit on memory is not permitted here")
    yield group
    end_s = time.monotonic() + 20
    while (folder / "cgroup.procs").read_text() and time.monotonic() < end_s:
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        time.sleep(0.1)
    folder.rmdir()
