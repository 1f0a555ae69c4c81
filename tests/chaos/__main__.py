"""Disturbs whole runs, runs them again, and compares the dataset with that of an undisturbed run.

    python -m tests.chaos [--plan] [--clock] [--keep FOLDER] SEED…

A seed chooses where the output is (a disk, an S3 server on this machine), two or three faults, and
the moment of each: when a file appears in the output, one of them while it is written. Consecutive
seeds go through all faults. The phases before the first fault are not run: their output is copied
from the undisturbed run. The same command runs until it ends with exit code 0; faults whose moment
did not come before a run ended are caused in the next. Nodes that are whole stay for the next run.
A full disk is a small one that is mounted, for which root is needed.

Prints a JSON line per seed, and one with the counts of all. `not_caused`: faults whose moment did
not come, or whose process was not there. Exit code 1: a dataset differs, or a run hangs; its last
lines are then the stacks of its threads. --plan: prints the faults alone. --clock: another fault
sets the machine's clock; for a virtual machine that does nothing else. --keep: the undisturbed run
is in this folder, or is written there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.captioning.test_captions import model
from tests.chaos.faults import (
    MOMENTS,
    Attempt,
    Plan,
    cause_faults,
    draw_plan,
    fill_disk,
    take_memory,
)
from tests.chaos.runs import ENVIRONMENT, Machine, make_output, wait_for_end
from tests.support.chat_server import ChatServer
from tests.support.small_input import draw_small_input
from tests.support.whole_run import differences, unfinished_files

MAX_RUNS = 7


def run_seed(
    seed: int, machine: Machine, known: Path, scratch: Path, with_clock: bool
) -> dict[str, Any]:
    rng = random.Random(seed)
    began_s = time.monotonic()
    is_local = seed % 2 == 0
    plan = draw_plan(seed, rng, is_local, with_clock)
    faults = [fault for fault, _ in plan]
    caused: list[dict[str, Any]] = []
    codes: list[int | None] = []
    runs = []
    with make_output(is_local, fill_disk in faults, scratch) as output:
        output.finish_phases_before(MOMENTS[plan[0][1]], known, scratch)
        while not codes or (codes[-1] != 0 and len(codes) < MAX_RUNS):
            run = machine.start_run(output.url, limit_memory=take_memory in [f for f, _ in plan])
            attempt = Attempt(rng, machine, output, machine.server, run)
            for done in cause_faults(attempt, plan, is_first_run=not codes):
                caused.append(done | {"run": len(codes)})
            codes.append(wait_for_end(run))
            runs.append(run)
            for other in attempt.others:
                wait_for_end(other)
                runs.append(other)
        made = scratch / "made"
        output.copy_to(made)
    ended = codes[-1] == 0
    different = differences(known, made) if ended else ["the run never ended well"]
    different += [f"unfinished: {name}" for name in unfinished_files(made)]
    hangs = None in codes
    tracebacks = sum("Traceback" in line for run in runs for line in run.log)
    return {
        "seed": seed,
        "output": "disk" if is_local else "s3",
        "faults": caused,
        "not_caused": [fault.__name__ for fault, _ in plan],
        "exit_codes": codes,
        "outcome": "hang" if hangs else "differs" if different else "equal",
        "different": different,
        "seconds": round(time.monotonic() - began_s),
        "last_lines": [run.log[-80 if hangs or tracebacks else -3 :] for run in runs],
        "tracebacks": tracebacks,
    }


@contextmanager
def undisturbed_run(folder: Path) -> Iterator[tuple[Machine, Path]]:
    """Yields the machine and the output of the undisturbed run, which is run if it is not there."""
    source, known, port = folder / "in", folder / "known", folder / "port"
    number = int(port.read_text()) if port.exists() else 0  # it is in the manifest
    with ChatServer(model, port=number) as server:
        machine = Machine(source, server)
        try:
            if not (known / "SHA256SUMS").exists():
                shutil.rmtree(known, ignore_errors=True)
                draw_small_input(source)
                port.write_text(str(server.port))
                run = machine.start_run(str(known))
                if wait_for_end(run) != 0:
                    raise SystemExit("\n".join(run.log))
            yield machine, known
        finally:
            machine.end_nodes()


def describe(plan: Plan) -> str:
    return ", ".join(f"{fault.__name__} at {moment}" for fault, moment in plan)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--clock", action="store_true")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    if args.plan:
        for seed in args.seeds:
            plan = draw_plan(seed, random.Random(seed), seed % 2 == 0, args.clock)
            print(seed, describe(plan))
        return 0
    os.environ |= {k: v for k, v in ENVIRONMENT.items() if k.startswith("AWS")}
    counts = Counter[str]()
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        keep = args.keep or Path(scratch, "undisturbed")
        keep.mkdir(parents=True, exist_ok=True)
        with undisturbed_run(keep) as (machine, known):
            for seed in args.seeds:
                folder = Path(scratch, str(seed))
                folder.mkdir()
                found = run_seed(seed, machine, known, folder, args.clock)
                print(json.dumps(found, ensure_ascii=False), flush=True)
                outcomes[found["outcome"]] += 1
                counts.update(f"{fault['fault']} in {fault['phase']}" for fault in found["faults"])
                shutil.rmtree(folder)
    print(json.dumps({"seeds": outcomes, "faults": dict(sorted(counts.items()))}))
    return int(outcomes.keys() != {"equal"})


if __name__ == "__main__":
    sys.exit(main())
