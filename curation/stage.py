"""The contract of a stage: read this first. A stage adds columns to rows.

The decode pass (stages/decode_pass.py) is one stage; the meters and detectors that it feeds have
contracts of their own: stages/meters/meter.py and stages/shots/detector.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from curation.errors import UserError

Row = dict[str, Any]

OPEN = "open"  # key of the TransientError of a row that stays open; no column of a table


class BadVideo(Exception):
    """An input that can't be processed, and why. Its row gets the status `failed`, no other row."""


class TransientError(Exception):
    """Storage, a server or a device failed, and not because of the row. The row is retried; if that
    fails too, it stays open: no result is stored, and the next run computes it."""


class OutputError(UserError):
    """The output can't be written (disk full, storage unreachable). Stops the run, which can be
    resumed."""


class Unavailable(UserError, RuntimeError):
    """A service that a stage needs is unavailable (a server, its key). Stops the run, which can be
    resumed."""


class PlanError(UserError):
    """The settings name stages that can't run. Raised before any worker starts."""


class RunError(UserError):
    """The cluster can't run the stages: what is missing, and the fix."""


@dataclass(frozen=True)
class Needs:
    """What one worker of a stage needs. Adjacent stages with the same needs share a worker."""

    cpus: float = 1.0
    gpus: float = 0.0
    isolated: bool = False  # runs in a child process with a timeout and a memory limit
    batch_size: int = 1  # maximum of rows per call; a free worker never waits to fill a batch
    max_concurrency: int | None = None  # rows in flight per worker, by `process_one`
    max_workers: int | None = None  # None: as many as the cluster has room for


@dataclass(frozen=True)
class RunContext:
    """Facts of a run that stages need in addition to their settings. Each phase makes its own."""

    ledger_url: str = ""  # folder of the ledger, which holds the key frames
    thumbnail_share: float = 1.0  # of the clips that fail the prefilter: store thumbnails of these
    weights: Mapping[str, str] = field(default_factory=dict)  # scorer -> version of its weights
    caption_set: str = ""  # written to the column `captioner`; empty: the captioner's own name
    similarity_limit: float | None = None  # of consecutive sub-captions, by the policy
    api_key: str | None = field(default=None, repr=False)  # of the caption server
    input_sample: tuple[str, ...] = ()  # some videos; a worker that can read none is refused
    # seconds before each further attempt at a row after a TransientError
    retry_waits_s: tuple[float, ...] = (1.0, 5.0, 25.0, 60.0)


class Stage:
    """Adds columns to rows. Its dataclass fields are its settings, and nothing else."""

    reads: ClassVar[tuple[str, ...]] = ()  # columns it needs
    writes: ClassVar[tuple[str, ...]] = ()  # columns it adds
    # how long an isolated worker waits for the next `heartbeat.report_progress`; None: for ever
    stall_timeout_s: ClassVar[float | None] = None

    @property
    def needs(self) -> Needs:
        """What one worker needs. A subclass may set a class attribute instead."""
        return Needs()

    def setup(self, context: RunContext) -> None:
        """Loads models: once per worker, on the worker, never in __init__."""

    def row_timeout_s(self, row: Row) -> float:
        """Returns how long an isolated worker, or one with concurrent rows, waits for one row."""
        return 120.0

    def process(self, rows: list[Row]) -> list[Row]:
        """Returns the same rows, in order, with more columns. Raises BadVideo of a broken input."""
        raise NotImplementedError

    async def process_one(self, row: Row) -> Row:
        """`process` for one row, called by stages with `needs.max_concurrency`."""
        raise NotImplementedError

    def wait_reason(self) -> str | None:
        """Returns what a stage with `needs.max_concurrency` waits for, None while it works.
        Called every second, in another thread."""
        return None


def is_unfinished(row: Row) -> bool:
    """Whether later stages process the row: it has no error, and no stage had to leave it open."""
    return row.get("error") is None and row.get(OPEN) is None


def is_device_failure(error: BaseException) -> bool:
    """Whether a GPU failed: then every later call on it fails too."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def record_duration(row: Row, stage: Stage, seconds: float) -> None:
    """Adds a stage's time for a row to `took_s`: CPU time where it is isolated, else wall time."""
    row["took_s"] = {**row.get("took_s", {}), type(stage).__name__: seconds}


@dataclass
class StageSequence:
    """Adjacent stages that run in one isolated child process."""

    stages: list[Stage]
    context: RunContext

    def setup(self) -> None:
        for stage in self.stages:
            stage.setup(self.context)

    def run(self, number: int, row: Row) -> Row:
        started_s = time.process_time()
        [row] = self.stages[number].process([row])
        record_duration(row, self.stages[number], time.process_time() - started_s)
        return row


def check_plan(stages: Sequence[Stage], given: Sequence[str]) -> None:
    """Raises PlanError where a stage reads a column that is not given and no earlier stage
    writes."""
    written = set(given)
    for number, stage in enumerate(stages, 1):
        for column in stage.reads:
            if column in written:
                continue
            later = [type(s).__name__ for s in stages[number:] if column in s.writes]
            name = type(stage).__name__
            fix = f"add a stage that writes '{column}' before {name}"
            if later:
                fix = f"put {later[0]} before {name}"
            raise PlanError(
                f"stage {number} of {len(stages)}, {name}, reads '{column}', "
                "which no earlier stage writes\n"
                f"  written so far: {', '.join(sorted(written))}\n"
                f"  fix: {fix}"
            )
        written.update(stage.writes)
