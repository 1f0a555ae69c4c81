"""The faults of a seed, and the moments at which they are caused."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.runs import (
    CONTROL_SERVICE,
    PHASES,
    RAYLET,
    WORKER,
    Machine,
    Output,
    Run,
    memory_kib,
    wait_for_end,
)
from tests.support.chat_server import ChatServer
from tests.support.whole_run import descendants

STORE_FAULT_S = 8.0
PAUSE_S = 6.0
DISK_FAULT_S = 60.0  # at most; the run ends before, as a rule
CLOCK_JUMP_S = 3600.0
CLOCK_FAULT_S = 6.0
MEMORY_TAKEN = 0.3  # share of the free memory that the fault takes
MEMORY_FAULT_S = 6.0
CHILD = "curation.isolate"
NO_PROCESS = "no such process"
# Moments: patterns of files in the output, in the order of a run, and their phase. In those of
# DISK_WRITES and S3_WRITES a file is unfinished, or others of its kind are being written.
MOMENTS = {
    "ledger/input.parquet": "score",
    "ledger/key_frames/*/*": "score",
    "ledger/videos/.tmp-*": "score",
    "ledger/videos/part-*": "score",
    "ledger/selection.parquet": "select",
    "ledger/captions/*/.tmp-*": "caption",
    "ledger/captions/*/part-*": "caption",
    "extracted/.tmp-*": "export",
    "extracted/*": "export",
    "shards/.tmp-*": "export",
    "shards/*": "export",
    "presto/videos/*": "export",
    ".tmp-*clips*": "export",
    "clips.parquet": "export",
}
DISK_WRITES = tuple(moment for moment in MOMENTS if ".tmp-" in moment)
S3_WRITES = ("ledger/key_frames/*/*", "extracted/*", "shards/*", "presto/videos/*")
CAPTIONS_START = "ledger/selection.parquet"


@dataclass
class Attempt:
    """One seed's surroundings, for its faults."""

    random: random.Random
    machine: Machine
    output: Output
    server: ChatServer
    run: Run
    others: list[Run] = field(default_factory=list)  # second drivers

    def kill(self, part: str) -> str:
        pids = self.run.processes(part)
        if not pids:
            return NO_PROCESS
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(pids), signal.SIGKILL)
        return ""

    def pause(self, pid: int, seconds: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)


Fault = Callable[[Attempt], str]  # returns a detail, or NO_PROCESS where it was not caused
Plan = list[tuple[Fault, str]]  # faults, and the moment of each


def kill_worker(a: Attempt) -> str:
    return a.kill(WORKER)


def kill_child(a: Attempt) -> str:
    return a.kill(CHILD)


def kill_driver(a: Attempt) -> str:
    a.run.driver.kill()
    a.run.driver.wait()
    return ""


def kill_raylet(a: Attempt) -> str:
    return a.kill(RAYLET)


def kill_control_service(a: Attempt) -> str:
    return a.kill(CONTROL_SERVICE)


def kill_node(a: Attempt) -> str:
    """The raylet of a node with workers, and at the same time these."""
    below = {raylet: [*descendants(raylet)] for raylet in a.run.nodes.worker_raylets()}
    workers = {
        raylet: [pid for pid, line in found if re.match(WORKER, line)]
        for raylet, found in below.items()
    }
    busy = [raylet for raylet, found in workers.items() if found]
    if not busy:
        return NO_PROCESS
    victim = a.random.choice(busy)
    for pid in (*(pid for pid, _ in below[victim]), victim):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return f"with {len(workers[victim])} workers"


def fill_disk(a: Attempt) -> str:
    """The disk of the output has no free byte until the run ends."""
    assert a.output.disk is not None
    filler = a.output.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        code = a.run.driver.wait(min(DISK_FAULT_S, a.run.left_s()))
        return f"the run ended with {code}"
    except subprocess.TimeoutExpired:
        return "the run did not end"
    finally:
        filler.unlink()


def remove_output(a: Attempt) -> str:
    a.output.remove()
    return ""


def pause_process(a: Attempt) -> str:
    part = a.random.choice((WORKER, CHILD, RAYLET, "pipelines.curate"))
    pids = [a.run.driver.pid] if part == "pipelines.curate" else a.run.processes(part)
    if not pids:
        return NO_PROCESS
    a.pause(a.random.choice(pids), PAUSE_S)
    return part


def second_driver(a: Attempt) -> str:
    """It is refused as long as the first runs."""
    a.others.append(a.machine.start_run(a.output.url))
    return ""


def take_over(a: Attempt) -> str:
    """The driver is paused; in S3 a second one takes the output over, on a disk it is refused."""
    os.kill(a.run.driver.pid, signal.SIGSTOP)
    second = a.machine.start_run(a.output.url, own_nodes=not a.output.is_local)
    code = wait_for_end(second)
    a.others.append(second)
    os.kill(a.run.driver.pid, signal.SIGCONT)
    return f"second driver: {code}"


def take_memory(a: Attempt) -> str:
    """Ray ends workers on a node with little free memory."""
    size = int(MEMORY_TAKEN * memory_kib()["MemAvailable"] * 1024)
    hold = f"import time; taken = b'x' * {size}; time.sleep({MEMORY_FAULT_S})"
    before = set(a.run.processes(WORKER))
    subprocess.run([sys.executable, "-c", hold], check=False)
    return f"{len(before - set(a.run.processes(WORKER)))} of {len(before)} workers ended"


def restart_caption_server(a: Attempt) -> str:
    a.server.stop()
    time.sleep(PAUSE_S)
    a.server.start()
    return ""


def jump_clock(a: Attempt) -> str:
    """The machine's clock is an hour fast or slow for some seconds. Root is needed."""
    jump_s = a.random.choice((-CLOCK_JUMP_S, CLOCK_JUMP_S))
    time.clock_settime(time.CLOCK_REALTIME, time.time() + jump_s)
    try:
        time.sleep(CLOCK_FAULT_S)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - jump_s)
    return f"{jump_s:+.0f} s"


def fail_store(fault: str) -> Fault:
    def work(a: Attempt) -> str:
        assert a.output.proxy is not None
        before = a.output.proxy.faults_done
        a.output.proxy.fault = fault
        time.sleep(STORE_FAULT_S)
        a.output.proxy.fault = ""
        return f"{a.output.proxy.faults_done - before} times"

    work.__name__ = f"store_{fault}"
    return work


FAULTS: tuple[Fault, ...] = (
    *(kill_worker, kill_child, kill_driver, kill_raylet, kill_control_service, kill_node),
    *(remove_output, pause_process, second_driver, take_over, restart_caption_server),
    take_memory,
)
ON_DISK = (fill_disk,)
IN_S3 = (fail_store("503"), fail_store("slow"), fail_store("cut"))


def draw_plan(seed: int, rng: random.Random, is_local: bool, with_clock: bool = False) -> Plan:
    """Returns two or three faults with the moment of each, in the order of a run; with_clock: and
    a jump of the clock."""
    choices = [*FAULTS, *(ON_DISK if is_local else IN_S3)]
    others = [m for m in MOMENTS if is_local or m not in DISK_WRITES]
    moments = [rng.choice(DISK_WRITES if is_local else S3_WRITES)]
    moments += rng.choices(others, k=rng.choice((1, 1, 2)))
    faults = [choices[seed // 2 % len(choices)], *rng.choices(choices, k=len(moments) - 1)]
    rng.shuffle(faults)
    plan = list(zip(faults, moments, strict=True))
    plan = [(f, CAPTIONS_START if f is restart_caption_server else m) for f, m in plan]
    if with_clock:
        plan.append((jump_clock, rng.choice(others)))
    return sorted(plan, key=lambda pair: [*MOMENTS].index(pair[1]))


def cause_faults(a: Attempt, plan: Plan, is_first_run: bool) -> Iterator[dict[str, Any]]:
    """Causes the faults of the plan, each once its moment or a later one has come, until the run
    ends or hangs. Removes those that were caused; one whose process is not there waits for it."""
    while plan and a.run.driver.poll() is None and a.run.left_s():
        moments = [*MOMENTS][[*MOMENTS].index(plan[0][1]) :]
        last = a.output.last_of(moments)
        for fault, moment in [pair for pair in plan if moments.index(pair[1]) <= last]:
            phase = a.run.phase()
            if is_first_run:  # the display may be later than the file
                phases = ("start", *PHASES)
                phase = max(phase, MOMENTS[moment], key=phases.index)
            detail = fault(a)
            if detail != NO_PROCESS:
                at = moments[last]
                yield {"fault": fault.__name__, "phase": phase, "at": at, "detail": detail}
                plan.remove((fault, moment))
                break
        time.sleep(0.004 if a.output.is_local else 0.3)
