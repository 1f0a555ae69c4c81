"""The actors that run stages: one with a batch at a time, one with many rows in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from curation.access_check import AccessCheck
from curation.errors import UserError
from curation.isolate import Isolated, NotStarted
from curation.runner.nodes import WorkerNode, this_node
from curation.stage import (
    OPEN,
    BadVideo,
    OutputError,
    Row,
    RunContext,
    Stage,
    StageSequence,
    TransientError,
    Unavailable,
    is_device_failure,
    is_unfinished,
    record_duration,
)
from curation.texts import MAX_ERROR_CHARS, clean_outside_text

ROW_S = "row_s"  # key of the time that a row of a call took, s; no column of a table
STOPS_RUN = (OutputError, NotStarted, Unavailable)  # not the row's fault


class _NoResult(Exception):
    """A stage with concurrent rows, which await a server, returned none within the row's limit."""


class Worker:
    """An actor that runs some stages on one batch of rows at a time."""

    def __init__(
        self, stages: list[Stage], context: RunContext, memory_gib: float, access: AccessCheck
    ) -> None:
        self._stages = stages
        self._waits_s = context.retry_waits_s
        self._child: Isolated | None = None
        if stages[0].needs.isolated:
            work = StageSequence(stages, context)
            self._child = Isolated(work.run, work.setup, memory_gib=memory_gib)
        self._start_error = _set_up([] if self._child else stages, context, access)

    def start(self) -> WorkerNode:
        """Returns its node. Raises a UserError of `__init__`, which Ray would report as a death of
        the worker."""
        return _started(self._start_error)

    def run(self, rows: list[Row]) -> list[Row]:
        called_s, count = time.monotonic(), len(rows)
        for number in range(len(self._stages)):
            valid = [at for at, row in enumerate(rows) if is_unfinished(row)]
            started_s = time.monotonic()
            done = self._process_batch(number, [rows[at] for at in valid])
            each_s = (time.monotonic() - started_s) / max(1, len(valid))
            for at, row in zip(valid, done, strict=True):
                if self._child is None:  # the child records its own CPU time
                    record_duration(row, self._stages[number], each_s)
                rows[at] = row
        for row in rows:
            row[ROW_S] = (time.monotonic() - called_s) / count
        return rows

    def _process_batch(self, number: int, rows: list[Row]) -> list[Row]:
        """Runs the stage on the whole batch if it has batches; where that raises, and without
        batches, on each row by itself."""
        if len(rows) > 1 and self._stages[number].needs.batch_size > 1:
            try:
                return self._stages[number].process(rows)
            except STOPS_RUN:
                raise
            except Exception:
                logging.getLogger(__name__).warning(
                    "%s failed on a batch of %d rows; each row is retried by itself",
                    type(self._stages[number]).__name__,
                    len(rows),
                    exc_info=True,
                )
        return [self._process_row(number, row) for row in rows]

    def _process_row(self, number: int, row: Row) -> Row:
        stage = self._stages[number]
        for wait_s in (*self._waits_s, None):
            try:
                with record_error_on_row(row, stage):
                    return self._process_alone(number, row)
                return row
            except TransientError as error:
                if wait_s is None:
                    row[OPEN] = clean_outside_text(str(error), MAX_ERROR_CHARS)
                else:
                    time.sleep(wait_s)
        return row

    def _process_alone(self, number: int, row: Row) -> Row:
        stage = self._stages[number]
        if self._child is None:
            [row] = stage.process([row])
            return row
        given = {k: v for k, v in row.items() if isinstance(v, str)}  # such as the path
        limits_s = {
            "timeout_s": stage.row_timeout_s(row),
            "stall_timeout_s": stage.stall_timeout_s,
        }
        row = self._child.call_with_retry(number, row, **limits_s)
        return row | {k: v for k, v in given.items() if k not in stage.writes}


class AsyncWorker:
    """An actor that runs some stages on many rows concurrently, each of which awaits a server."""

    def __init__(
        self, stages: list[Stage], context: RunContext, memory_gib: float, access: AccessCheck
    ) -> None:
        self._stages = stages
        self._waits_s = context.retry_waits_s
        self._start_error = _set_up(stages, context, access)

    async def start(self) -> WorkerNode:
        """As Worker.start."""
        return _started(self._start_error)

    async def run(self, rows: list[Row]) -> list[Row]:
        return [await self._process_row(row) for row in rows]

    # Its group has a thread of its own, so that it answers while rows are computed.
    @ray.method(concurrency_group="wait_reason")
    async def wait_reason(self) -> str | None:
        return next(filter(None, (stage.wait_reason() for stage in self._stages)), None)

    async def _process_row(self, row: Row) -> Row:
        for stage in self._stages:
            if is_unfinished(row):
                row = await self._process_by_stage(stage, row)
        return row

    async def _process_by_stage(self, stage: Stage, row: Row) -> Row:
        for wait_s in (*self._waits_s, None):
            try:
                with record_error_on_row(row, stage):
                    return await self._process_alone(stage, row)
                return row
            except TransientError as error:
                if wait_s is None:
                    row[OPEN] = clean_outside_text(str(error), MAX_ERROR_CHARS)
                else:
                    await asyncio.sleep(wait_s)
            except _NoResult as error:  # the server is slow: not tried again in this run
                row[OPEN] = str(error)
                break
        return row

    async def _process_alone(self, stage: Stage, row: Row) -> Row:
        limit_s = stage.row_timeout_s(row)
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await stage.process_one(row)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _NoResult(f"no result after {limit_s:g} s") from None


def _set_up(stages: list[Stage], context: RunContext, access: AccessCheck) -> UserError | None:
    """Returns the UserError, after which the run must stop."""
    try:
        access.run()
        for stage in stages:
            stage.setup(context)
    except UserError as error:
        return error
    return None


def _started(start_error: UserError | None) -> WorkerNode:
    if start_error is not None:
        raise start_error
    return this_node()


@contextmanager
def record_error_on_row(row: Row, stage: Stage) -> Iterator[None]:
    """Stores an exception as the row's `error`, so that no other row is lost.

    Raises what is not the row's fault: TransientError, and what stops the run.
    """
    try:
        yield
    except BadVideo as e:
        row["error"] = clean_outside_text(str(e), MAX_ERROR_CHARS)
    except (*STOPS_RUN, TransientError, _NoResult):
        raise
    except Exception as e:
        error = f"{type(stage).__name__}: {type(e).__name__}: {e}"
        if is_device_failure(e):
            raise TransientError(error) from None
        row["error"] = clean_outside_text(error, MAX_ERROR_CHARS)
