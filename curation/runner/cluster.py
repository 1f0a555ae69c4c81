"""Runs stages on a Ray cluster. Ray is imported when the first row is there.

Plain actors, not Ray Data: the unit of retry is one row (a Ray Data block is a batch, retried
without end by default or dropped whole), a row that kills its worker is identified, and every
result reaches the driver, the only writer of the ledger, as soon as it is computed.
docs/architecture.md explains more. This folder is the only one that imports ray: `session.py`
connects, `pool.py` starts workers and gives them rows, `worker.py` runs the stages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from itertools import chain

from curation.access_check import AccessCheck
from curation.runner.settings import ClusterSettings
from curation.stage import OPEN, OutputError, Row, RunContext, RunError, Stage
from curation.status import PoolState
from curation.storage import Folder

MAX_CONSECUTIVE_OPEN_ROWS = 20  # without a finished row between them; the run then stops


class Cluster:
    """The Ray cluster that the stages run on. A context manager: leaving it calls `stop`."""

    def __init__(
        self, settings: ClusterSettings, log_folder: str, output: str | None = None
    ) -> None:
        """log_folder: local or a URL; Ray's messages go to `ray.log` in it. output: the folder of
        the run, which every worker must be able to read and write; None: not checked."""
        self._settings = settings
        self._log_folder = log_folder
        self._output = output
        self._started = False
        self._streams: list[Generator[Row]] = []
        self._checks: list[AccessCheck] = []
        self.pools: list[PoolState] = []  # of the present stream

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Connects, or starts Ray on this machine. `stream` calls it where there are rows.

        Raises RunError where there is no cluster, OutputError where the log can't be written.
        """
        from curation.runner import session

        address, workers = self._settings.address, self._settings.workers
        self._started |= session.start(address, workers, self._log_folder)

    def stop(self) -> None:
        """Ends the streams, disconnects, and ends the Ray that `start` started."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        for access in self._checks:
            with suppress(OutputError):  # Ray ends, also where the store fails
                Folder(access.output or "").delete(access.file)
        self._checks.clear()
        if self._started:
            from curation.runner import session

            session.stop()
            self._started = False

    def stream(
        self,
        stages: list[Stage],
        rows: Iterable[Row],
        report_wait: Callable[[str | None], None] = lambda _: None,
        context: RunContext | None = None,
        report_event: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Row]:
        """Yields each row once, finished, in any order. A row with an `error` skips later stages.

        Calls `report_wait` every second with what the workers wait for, None while they work, and
        `report_event` with a line where a node left.
        Raises OutputError, RunError; rows in flight are then lost, and computed again on resume.
        Rows that stay open because of a TransientError are not yielded; RunError names them at the
        end, or after MAX_CONSECUTIVE_OPEN_ROWS.
        """
        source = iter(rows)
        first = next(source, None)
        if first is not None:  # without rows Ray need not be started
            from curation.runner import pool

            self.start()
            source, context = chain([first], source), context or RunContext()
            access = AccessCheck.prepare(self._output, context.input_sample)
            self._checks += [access] if access.output is not None else []
            reports = (report_wait, report_event, self._set_pools)
            done = pool.run_stages(stages, source, self._settings, context, access, *reports)
            self._streams.append(done)
            yield from drop_open_rows(done)

    def _set_pools(self, pools: list[PoolState]) -> None:
        self.pools = pools


def drop_open_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields the other rows. Raises RunError at the end if there were any, or if too many follow
    each other."""
    reasons = Counter[str]()
    consecutive = 0
    for row in rows:
        if (reason := row.get(OPEN)) is None:
            consecutive = 0
            yield row
            continue
        reasons[reason] += 1
        consecutive += 1
        if consecutive >= MAX_CONSECUTIVE_OPEN_ROWS:
            break
    if reasons:
        worst = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
        raise RunError(
            f"{reasons.total()} rows stay open, because storage, a server or a device failed: "
            f"{worst}\n  fix: remove the cause and run the same command again, which computes them"
        )
