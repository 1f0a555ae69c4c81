"""Runs stages on a Ray cluster. Ray is imported when the first row is there.

Plain actors, not Ray Data: the unit of retry is one row (a Ray Data block is a batch, retried
without end by default or dropped whole), a row that kills its worker is identified, and every
result reaches the driver, the only writer of the ledger, as soon as it is computed.
docs/architecture.md explains more. This folder is the only one that imports ray: `session.py`
connects, `pool.py` starts workers and gives them rows, `worker.py` runs the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from curation.runner.settings import ClusterSettings
from curation.stage import Row, RunContext, Stage


class Cluster:
    """The Ray cluster that the stages run on. A context manager: leaving it calls `stop`."""

    def __init__(self, settings: ClusterSettings, log_folder: str) -> None:
        """log_folder: local or a URL; Ray's messages go to `ray.log` in it."""
        self._settings = settings
        self._log_folder = log_folder
        self._started = False

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
        """Disconnects, and ends the Ray that `start` started."""
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
    ) -> Iterator[Row]:
        """Yields each row once, finished, in any order. A row with an `error` skips later stages.

        Calls `report_wait` every second with what the workers wait for, None while they work.
        Raises OutputError, RunError; rows in flight are then lost, and computed again on resume.
        """
        source = iter(rows)
        first = next(source, None)
        if first is not None:  # without rows Ray need not be started
            from curation.runner import pool

            self.start()
            source, context = chain([first], source), context or RunContext()
            yield from pool.run_stages(stages, source, self._settings, context, report_wait)
