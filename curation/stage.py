"""The contract of a stage: read this first. A stage adds columns to rows.

What the one decode pass (stages/decode_pass.py) gives its frames to has contracts of its own:
stages/meters/meter.py and stages/shots/detector.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from curation.errors import UserError

Row = dict[str, Any]


class BadVideo(Exception):
    """What is wrong with an input, in plain words. Its row gets `failed`; no other is touched."""


class OutputError(UserError):
    """The output can't be written (disk full, storage gone). Stops the run, ready to go on."""


class Unavailable(UserError, RuntimeError):
    """What a stage needs is gone (a server, its key): no input's fault. Stops the run, ready to go
    on."""


class PlanError(UserError):
    """The list of stages can't work. Raised before any worker starts."""


class RunError(UserError):
    """The cluster can't do the work: what is missing, and the fix."""


@dataclass(frozen=True)
class Needs:
    """What one worker of a stage takes. Neighbouring stages with the same needs share a worker."""

    cpus: float = 1.0
    gpus: float = 0.0
    isolated: bool = False  # runs in a child process with a deadline and a memory limit
    batch_size: int = 1  # rows per call at most; a free worker never waits to fill a batch
    max_concurrency: int | None = None  # rows in flight per worker, by `process_one`
    max_workers: int | None = None  # None: as many as the cluster has room for


@dataclass(frozen=True)
class RunContext:
    """Facts of a run that stages need in addition to their settings. Each phase makes its own."""

    ledger_url: str = ""  # folder of the ledger, which holds the key frames
    thumbnail_share: float = 1.0  # of the clips that fail the prefilter: store thumbnails of these
    weights: Mapping[str, str] = field(default_factory=dict)  # scorer -> version of its weights
    caption_set: str = ""  # written to the column `captioner`; empty: the captioner's own name
    similarity_limit: float | None = None  # of neighbouring sub-captions, by the policy
    api_key: str | None = field(default=None, repr=False)  # of the caption server


class Stage:
    """Adds columns to rows. Its dataclass fields are its settings, and nothing else."""

    reads: ClassVar[tuple[str, ...]] = ()  # columns it needs
    writes: ClassVar[tuple[str, ...]] = ()  # columns it adds

    @property
    def needs(self) -> Needs:
        """What one worker takes. A subclass may set a class attribute instead."""
        return Needs()

    def setup(self, context: RunContext) -> None:
        """Loads models: once per worker, on the worker, never in __init__."""

    def row_timeout_s(self, row: Row) -> float:
        """How long one row may take before an isolated worker, or one with many rows under way,
        gives it up."""
        return 120.0

    def process(self, rows: list[Row]) -> list[Row]:
        """The same rows, in order, with more columns. Raises BadVideo for a broken input."""
        raise NotImplementedError

    async def process_one(self, row: Row) -> Row:
        """`process` for one row, called by stages with `needs.max_concurrency`."""
        raise NotImplementedError

    def wait_reason(self) -> str | None:
        """What a stage with `needs.max_concurrency` waits for, None while it works.
        Called every second, in another thread."""
        return None


def record_duration(row: Row, stage: Stage, seconds: float) -> None:
    """Adds a stage's time for a row to `took_s`: CPU time where it is isolated, else wall time."""
    row["took_s"] = {**row.get("took_s", {}), type(stage).__name__: seconds}


@dataclass
class StageSequence:
    """Some stages, as the one thing that an isolated child process holds."""

    stages: list[Stage]
    context: RunContext

    def setup(self) -> None:
        for stage in self.stages:
            stage.setup(self.context)

    def run(self, number: int, row: Row) -> Row:
        started = time.process_time()
        [row] = self.stages[number].process([row])
        record_duration(row, self.stages[number], time.process_time() - started)
        return row


def check_plan(stages: Sequence[Stage], given: Sequence[str]) -> None:
    """Raises PlanError where a stage reads a column that nothing before it writes."""
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
