"""CPU seconds of a command and of everything that it started, daemons and orphans included.

    python -m benchmarks.cpu_time COMMAND…

What a shell's `time` counts is only what was waited for; Ray's raylet lets its workers go uncounted
(it ignores SIGCHLD), and their isolated children with them. So a supervisor adopts every orphan
(PR_SET_CHILD_SUBREAPER), reads /proc while it waits, and ends when nothing is left. A process that
nobody waits for loses at most its last LOOK_S. Kernel threads (page cache, disk) are not counted.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY

LOOK_S = 0.2
LEFT_S = 60.0  # what the command leaves behind must end by itself within this
SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

Process = tuple[int, int]  # pid, start time: pids are used again


@dataclass(frozen=True)
class Spent:
    cpu_s: float  # user and system, all processes and threads
    wall_s: float


@dataclass(frozen=True)
class Seen:
    """A process when it was last looked at."""

    parent: int  # pid
    own_s: float
    waited_s: float  # of descendants that ended and were waited for, all the way up


def spent(command: Sequence[str]) -> Spent:
    """Runs a command to its end. Raises RuntimeError with its last words where it fails."""
    with tempfile.NamedTemporaryFile("r") as result, tempfile.TemporaryFile() as said:
        supervisor = [sys.executable, "-m", "benchmarks.cpu_time", "--result", result.name]
        run = subprocess.run([*supervisor, *command], cwd=REPOSITORY, stdout=said, stderr=said)
        code = run.returncode
        if code:
            said.seek(max(0, said.seek(0, os.SEEK_END) - 4000))
            words = said.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)}: exit code {code}\n{words}")
        return Spent(**json.load(result))


def look() -> dict[Process, Seen]:
    """Every process of the machine and what it has used, zombies included; older ones first."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # man 5 proc: after the name in brackets (which may hold anything) come fields 3 to 52.
        field = stat.rpartition(")")[2].split()
        user, system, waited_user, waited_system = (int(f) * TICK_S for f in field[11:15])
        found[int(entry), int(field[19])] = Seen(
            int(field[1]), user + system, waited_user + waited_system
        )
    return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0])))


def total_s(seen: Mapping[Process, Seen], root: int, waited_s: float) -> float:
    """CPU seconds of all descendants of `root`, which itself has waited for `waited_s` of them.

    What a process has waited for is exact but lacks those that it ignored; the sum over its
    children as last seen lacks their last moments. Neither counts anything twice: the larger one.
    """
    children = defaultdict(list)
    for (pid, _), one in seen.items():
        children[one.parent].append((pid, one))

    def below(pid: int, waited_s: float) -> float:
        # A pid used again under the same parent would be two children with one set of children:
        # they are taken once, with the first.
        kin = children.pop(pid, [])
        return max(waited_s, sum(one.own_s + below(child, one.waited_s) for child, one in kin))

    return below(root, waited_s)


def supervise(command: Sequence[str]) -> tuple[int, Spent]:
    """Exit code and cost. Adopts and waits for whatever the command leaves behind."""
    if ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this kernel lets no process adopt orphans (PR_SET_CHILD_SUBREAPER)")
    seen: dict[Process, Seen] = {}
    began = time.monotonic()
    main = os.posix_spawnp(command[0], command, os.environ)
    code, ended, ours = None, 0.0, {main}
    while True:
        try:
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                if waited[0] == main:
                    code, ended = os.waitstatus_to_exitcode(waited[1]), time.monotonic()
        except ChildProcessError:
            break
        if code is not None and time.monotonic() - ended > LEFT_S:
            raise RuntimeError(f"{command[0]} ended but left processes behind that go on: {ours}")
        ours = {os.getpid()}
        for process, one in look().items():
            if one.parent in ours or process in seen:
                ours.add(process[0])
                seen[process] = one
        time.sleep(LOOK_S)
    assert code is not None
    times = os.times()
    waited_s = times.children_user + times.children_system
    return code, Spent(total_s(seen, os.getpid(), waited_s), ended - began)


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
        print(f"{cost.cpu_s:.2f} CPU-s, {cost.wall_s:.2f} s", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
