"""CPU seconds and memory of a command and of everything that it starts, daemons and orphans too.

    python -m benchmarks.cpu_time COMMAND…

A shell's `time` counts only processes that their parents waited for. Ray's raylet does not wait for
its workers (it ignores SIGCHLD), so their time is lost, and that of their isolated children. So a
supervisor adopts every orphan (PR_SET_CHILD_SUBREAPER), polls /proc, and ends when no process is
left. A process that no parent waits for loses at most its last POLL_INTERVAL_S. Kernel threads
(page cache, disk) are not counted.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY

POLL_INTERVAL_S = 0.2
MAX_ORPHAN_S = 60.0  # that processes may run on after the command ended
SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

ProcessKey = tuple[int, int]  # pid and start time, because pids are reused


@dataclass(frozen=True)
class Cost:
    cpu_s: float  # user and system, all processes and threads
    wall_s: float
    peak_bytes: int  # resident memory of the largest process at its peak


@dataclass(frozen=True)
class ProcessTimes:
    """A process at its last poll."""

    parent: int  # pid
    own_s: float
    waited_s: float  # of its descendants that ended and were waited for, at every level
    peak_bytes: int  # of its resident memory; 0 for a zombie


def measure_command(command: Sequence[str]) -> Cost:
    """Runs a command to its end. Raises RuntimeError with the end of its output if it fails."""
    with tempfile.NamedTemporaryFile("r") as result, tempfile.TemporaryFile() as output:
        supervisor = [sys.executable, "-m", "benchmarks.cpu_time", "--result", result.name]
        run = subprocess.run([*supervisor, *command], cwd=REPOSITORY, stdout=output, stderr=output)
        if run.returncode:
            output.seek(max(0, output.seek(0, os.SEEK_END) - 4000))
            end = output.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)}: exit code {run.returncode}\n{end}")
        return Cost(**json.load(result))


def list_processes() -> dict[ProcessKey, ProcessTimes]:
    """Every process of the machine, zombies included, in the order of their start."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
            status = Path("/proc", entry, "status").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # man 5 proc: fields 3 to 52 follow the name in brackets, which may contain anything
        field = stat.rpartition(")")[2].split()
        user, system, waited_user, waited_system = (int(f) * TICK_S for f in field[11:15])
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
        found[int(entry), int(field[19])] = ProcessTimes(
            int(field[1]),
            user + system,
            waited_user + waited_system,
            int(peak[1]) * 1024 if peak else 0,
        )
    return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0])))


def total_cpu_s(processes: Mapping[ProcessKey, ProcessTimes], root: int, waited_s: float) -> float:
    """CPU seconds of all descendants of `root`, which itself waited for `waited_s` of them.

    The time that a process waited for is exact, but excludes children that it ignored; the sum over
    its children excludes their time after the last poll. Neither counts any time twice, so the
    larger one is nearer to the truth.
    """
    children = defaultdict(list)
    for (pid, _), process in processes.items():
        children[process.parent].append((pid, process))

    def below(pid: int, waited_s: float) -> float:
        # a pid that is reused under the same parent has one list of children: pop counts it once
        found = children.pop(pid, [])
        return max(waited_s, sum(p.own_s + below(child, p.waited_s) for child, p in found))

    return below(root, waited_s)


def supervise(command: Sequence[str]) -> tuple[int, Cost]:
    """Exit code and cost. Adopts and waits for all processes that the command leaves running."""
    if ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this kernel can't let a process adopt orphans (PR_SET_CHILD_SUBREAPER)")
    processes: dict[ProcessKey, ProcessTimes] = {}
    peak_bytes = 0
    start = time.monotonic()
    main = os.posix_spawnp(command[0], command, os.environ)
    code, end, pids = None, 0.0, {main}
    while True:
        try:
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                if waited[0] == main:
                    code, end = os.waitstatus_to_exitcode(waited[1]), time.monotonic()
        except ChildProcessError:
            break
        if code is not None and time.monotonic() - end > MAX_ORPHAN_S:
            raise RuntimeError(f"{command[0]} ended, but left processes running: {pids}")
        pids = {os.getpid()}
        for key, process in list_processes().items():
            if process.parent in pids or key in processes:
                pids.add(key[0])
                processes[key] = process
                peak_bytes = max(peak_bytes, process.peak_bytes)
        time.sleep(POLL_INTERVAL_S)
    assert code is not None
    times = os.times()
    waited_s = times.children_user + times.children_system
    cpu_s = total_cpu_s(processes, os.getpid(), waited_s)
    return code, Cost(cpu_s, end - start, peak_bytes)


def main() -> None:
    command, result = sys.argv[1:], None
    if command[:1] == ["--result"]:
        result, command = command[1], command[2:]
    if not command:
        sys.exit(__doc__)
    code, cost = supervise(command)
    if result:
        Path(result).write_text(json.dumps(vars(cost)))
    else:
        peak = f"{cost.peak_bytes / 2**20:.0f} MiB in the largest process"
        print(f"{cost.cpu_s:.2f} CPU-s, {cost.wall_s:.2f} s, {peak}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
