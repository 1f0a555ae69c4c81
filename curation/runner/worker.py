"""The actors that run stages: one with a batch at a time, one with many rows in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from curation.isolate import Isolated, NotStarted
from curation.stage import (
    BadVideo,
    OutputError,
    Row,
    RunContext,
    Stage,
    StageSequence,
    Unavailable,
    record_duration,
)
from curation.texts import MAX_ERROR_CHARS, clean_outside_text

STOPS_RUN = (OutputError, NotStarted, Unavailable)  # no row's fault


class Worker:
    """An actor that runs some stages on one batch of rows at a time."""

    def __init__(self, stages: list[Stage], context: RunContext, memory_gib: float) -> None:
        self._stages = stages
        self._child: Isolated | None = None
        if stages[0].needs.isolated:
            work = StageSequence(stages, context)
            self._child = Isolated(work.run, work.setup, memory_gib=memory_gib)
        else:
            for stage in stages:
                stage.setup(context)

    def run(self, rows: list[Row]) -> list[Row]:
        for number in range(len(self._stages)):
            valid = [at for at, row in enumerate(rows) if row.get("error") is None]
            started_s = time.monotonic()
            done = self._process_batch(number, [rows[at] for at in valid])
            each_s = (time.monotonic() - started_s) / max(1, len(valid))
            for at, row in zip(valid, done, strict=True):
                if self._child is None:  # the child records its own CPU time
                    record_duration(row, self._stages[number], each_s)
                rows[at] = row
        return rows

    def _process_batch(self, number: int, rows: list[Row]) -> list[Row]:
        """Runs the stage on the whole batch; where that raises, on each row by itself."""
        if len(rows) > 1:
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
        with record_error_on_row(row, stage):
            if self._child is not None:
                limit_s = stage.row_timeout_s(row)
                given = {k: v for k, v in row.items() if isinstance(v, str)}  # such as the path
                row = self._child.call_with_retry(number, row, timeout_s=limit_s)
                row |= {k: v for k, v in given.items() if k not in stage.writes}
            else:
                [row] = stage.process([row])
        return row


class AsyncWorker:
    """An actor that runs some stages on many rows concurrently, each of which awaits a server."""

    def __init__(self, stages: list[Stage], context: RunContext, memory_gib: float) -> None:
        self._stages = stages
        for stage in stages:
            stage.setup(context)

    async def run(self, rows: list[Row]) -> list[Row]:
        return [await self._process_row(row) for row in rows]

    # Its group has a thread of its own, so that it answers while rows are computed.
    @ray.method(concurrency_group="wait_reason")
    async def wait_reason(self) -> str | None:
        return next(filter(None, (stage.wait_reason() for stage in self._stages)), None)

    async def _process_row(self, row: Row) -> Row:
        for stage in self._stages:
            if row.get("error") is not None:
                break
            with record_error_on_row(row, stage):
                limit_s = stage.row_timeout_s(row)
                try:
                    async with asyncio.timeout(limit_s) as limit:
                        row = await stage.process_one(row)
                except TimeoutError:
                    if not limit.expired():
                        raise
                    raise BadVideo(f"no result after {limit_s:g} s") from None
        return row


@contextmanager
def record_error_on_row(row: Row, stage: Stage) -> Iterator[None]:
    """Stores an exception as the row's `error`, so that no other row is lost.

    Raises what is no row's fault: it stops the run.
    """
    try:
        yield
    except BadVideo as e:
        row["error"] = clean_outside_text(str(e), MAX_ERROR_CHARS)
    except STOPS_RUN:
        raise
    except Exception as e:
        error = f"{type(stage).__name__}: {type(e).__name__}: {e}"
        row["error"] = clean_outside_text(error, MAX_ERROR_CHARS)
