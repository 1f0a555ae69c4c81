"""Status: prints what the run that writes to an output has done, and whether it still runs.

    python -m pipelines.status OUT

OUT is a folder or a URL. Prints the phases with counts, speed and time left, the workers, what they
wait for and the last errors. `OUT/status.json` has the same for programs, `OUT/status.prom` for
Prometheus. Exit code 0: running, or finished. Exit code 1: the run failed, was stopped or is gone.
"""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from typing import Any, TypeVar

from curation.cli import MAX_LINE_CHARS, Arguments, NoSettings, run_command
from curation.json_text import parse_object
from curation.progress import Counts, PhaseState, format_duration, printable
from curation.stage import PlanError
from curation.status import STATUS
from curation.storage import Folder
from pipelines.outdated import MANIFEST, read_manifest

MISSED_RENEWALS = 6  # after so many, the process counts as gone

# An object store's size of a file and its data are two requests, and a renewal may come between.
READ_ATTEMPTS = 4

# of `status_lines`, where another version or program wrote the file
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, OverflowError)

_Kind = TypeVar("_Kind", Counts, PhaseState)


def read_status(out: Folder) -> dict[str, Any]:
    """Returns the content of status.json. Raises PlanError if there is none."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return parse_object(out.read(STATUS))
        except FileNotFoundError:
            raise PlanError(f"no run has written to {out.url} yet: it has no {STATUS}") from None
        except ValueError as error:
            if attempt == READ_ATTEMPTS:
                raise PlanError(f"{out.path(STATUS)} is damaged: {error}") from None
    raise AssertionError


def status_lines(status: dict[str, Any], now_s: float) -> tuple[list[str], bool]:
    """Returns the lines, and whether all is well. now_s: Unix time. Raises MALFORMED."""
    age_s = max(0.0, now_s - status["renewed_unix_s"])
    process = f"{status['command']}, process {status['pid']} on {status['host']}"
    state, well = status["state"], status["state"] in ("running", "finished")
    lines = [f"{state}: {process}"]
    if state == "running" and age_s > MISSED_RENEWALS * status["renewal_interval_s"]:
        well = False
        lines = [
            f"no process has renewed this for {format_duration(age_s)}: {process}\n"
            "  fix: if that process is gone, run the same command again, which resumes"
        ]
    elif state != "running":
        lines.append(f"ended {format_duration(age_s)} ago")
    lines += [status["error"]] if status["error"] else []
    for phase in status["phases"]:
        counts = _known_fields(Counts, phase["counts"])
        state_of_phase = _known_fields(PhaseState, phase | {"counts": counts})
        lines.append(state_of_phase.format_line())
    for pool in status["workers"]:
        lines.append(
            f"workers of {pool['stage']}: {pool['started']} started, {pool['starting']} starting; "
            f"rows: {pool['rows_in_flight']} in flight, {pool['rows_queued']} queued"
        )
    lines += [f"waits for: {status['waits_for']}"] if status["waits_for"] else []
    lines += [f"last error: {text}" for text in status["last_errors"]]
    return [printable(part, MAX_LINE_CHARS) for line in lines for part in line.split("\n")], well


def _known_fields(kind: type[_Kind], values: dict[str, Any]) -> _Kind:
    """An object of a dataclass, without fields that another version wrote in addition."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def outdated_lines(out: Folder) -> list[str]:
    """Returns lines about shards that are older than the selection, from the manifest; or none."""
    if not out.exists(MANIFEST):
        return []
    found = read_manifest(out).get("outdated_shards")
    lines = [found["what"], f"  fix: {found['fix']}"] if found else []
    return [printable(line, MAX_LINE_CHARS) for line in lines]


def run(given: Arguments[NoSettings]) -> int:
    out = Folder(given.values[0])
    status = read_status(out)
    try:
        lines, well = status_lines(status, time.time())
    except MALFORMED:
        lines = [f"{out.path(STATUS)} was written by another version; the next run replaces it"]
        well = False
    print("\n".join([*lines, *outdated_lines(out)]))
    return 0 if well else 1


if __name__ == "__main__":
    run_command(__doc__, run, sys.argv[1:], arguments="OUT")
