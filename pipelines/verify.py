"""Verify: reads every file of an output, and names what is damaged or missing and how to repair it.

    python -m pipelines.verify OUT [--repair]

OUT is the output of `curate`, or a run folder of the trainer: a folder or a URL. Parts of the
ledger, stored frames, extracted clips, shards, tables, manifest and checkpoints are compared with
the hashes that were recorded when they were written. Each finding is a line with the command that
repairs it; run that with the INPUT, CONFIG and settings of the run. Exit code 1: something was
found.

--repair deletes the files that are damaged, so that the named commands write them again, and marks
the videos of damaged frames as failed, so that `retry_failed=true` scores them again. It changes
nothing that is intact. Without it nothing is written.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from curation.cli import (
    MAX_LINE_CHARS,
    Arguments,
    NoSettings,
    UsageError,
    print_to_stderr,
    run_command,
)
from curation.images import RESCORE
from curation.ledger import locked
from curation.progress import printable
from curation.records import VIDEO
from curation.stage import Row
from curation.storage import Folder
from pipelines.damage import (
    OTHER_FIXES,
    PHASES,
    Finding,
    check_checkpoints,
    check_checksums,
    check_extracted,
    check_ledger_parts,
    check_rows,
    check_shards,
    check_stored_frames,
    check_tables_of_ledger,
)
from pipelines.tables import videos_ledger

REPAIR = "--repair"


def find(out: Folder, repair: bool = False) -> Iterator[Finding]:
    """Yields what is wrong with an output. repair: damaged files are deleted as they are found."""
    of_tables = (check_ledger_parts, check_tables_of_ledger)
    of_rows = (check_stored_frames, check_rows)
    is_readable = True
    for check in (
        *(*of_tables, *of_rows),
        *(check_extracted, check_shards, check_checksums, check_checkpoints),
    ):
        if check in of_rows and not is_readable:
            continue
        damaged_videos: dict[str, str] = {}
        for finding in check(out):
            yield finding
            is_readable = is_readable and (repair or check not in of_tables)
            if repair:
                for name in finding.remove:
                    out.delete(name)
                if finding.video is not None:
                    damaged_videos[finding.video] = f"{finding.name} {finding.what}"
        if damaged_videos:
            mark_as_failed(out, damaged_videos)


def mark_as_failed(out: Folder, errors: dict[str, str]) -> None:
    """Gives the videos the status failed, so that `score retry_failed=true` scores them again.
    errors: by video."""
    ledger = videos_ledger(out)
    columns, names = [column.name for column in VIDEO], pa.array(errors, pa.string())
    no_content: Row = {"clips": [], "cuts_s": [], "gradual": [], "takes": []}
    rows: list[Row] = []
    for table in ledger.last_batches([c for c in columns if c not in no_content], names):
        for row in table.to_pylist():
            error = f"{errors[row['video']]}; {RESCORE}"
            rows.append(row | no_content | {"status": "failed", "error": error})
    ledger.append(rows)


def fix_of(finding: Finding, out: Folder, repaired: bool) -> str:
    """The commands that repair it; if --repair has run, those that are still needed."""
    place = shlex.quote(out.url)
    if finding.phase == "train":
        checkpoint = shlex.quote(out.path(finding.name.rpartition("/")[0]))
        return f"rm -r {checkpoint}; training then resumes from the checkpoint before"
    if finding.phase == "restore":
        return "restore it from a copy; a review can't be computed again"
    given = ["CONFIG", *(["input=INPUT"] if finding.phase == "score" else [])]
    given += [f"output={place}", *([finding.arguments] if finding.arguments else [])]
    given += ["retry_failed=true"] if finding.video else []
    command = f"python -m pipelines.{finding.phase} {' '.join(given)}"
    if (finding.remove or finding.video) and not repaired:
        return f"python -m pipelines.verify {place} {REPAIR} && {command}"
    return command


def run(arguments: Arguments[NoSettings]) -> int:
    out = Folder(arguments.values[0])
    repair = REPAIR in arguments.options
    if not (out.names() or out.names("ledger") or Path(out.url, "checkpoints").is_dir()):
        raise UsageError(f"{out.url}: no output there")
    if not repair:
        return report(out, repair)
    with locked(out, print_to_stderr):
        return report(out, repair)


def report(out: Folder, repair: bool) -> int:
    """Prints the findings and returns the exit code."""
    phases: Counter[str] = Counter()
    for finding in find(out, repair):
        phases[finding.phase] += 1
        line = f"{out.path(finding.name)} {finding.what}; fix: {fix_of(finding, out, repair)}"
        print(printable(line, MAX_LINE_CHARS))
    if not phases:
        print(f"{out.url}: nothing is damaged or missing")
        return 0
    counts = ", ".join(
        f"{phase} {phases[phase]}" for phase in (*PHASES, *OTHER_FIXES) if phases[phase]
    )
    print(f"{phases.total()} findings; by the phase that repairs them: {counts}")
    return 1


def main(argv: list[str]) -> None:
    run_command(__doc__, run, argv, arguments="OUT", options=(REPAIR,))


if __name__ == "__main__":
    main(sys.argv[1:])
