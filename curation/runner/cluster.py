"""The settings of the Ray cluster, and running stages on it. Ray is imported only by a run.

Plain actors, not Ray Data: the unit of retry is one row (a Ray Data block is a batch, retried
without end by default or dropped whole), a row that kills its worker is identified, and every
result reaches the driver, the only writer of the ledger, as soon as it is computed.
docs/architecture.md explains more. This folder is the only one that imports ray: `session.py`
connects, `pool.py` starts workers and gives them rows, `worker.py` runs the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

from annotated_types import Ge, Gt

from curation.stage import Row, Stage


@dataclass
class Cluster:
    """The Ray cluster that the stages run on. Its fields are the settings under `cluster:`."""

    address: str | None = None  # null: this machine alone; "auto", "HOST:PORT" or "ray://HOST:PORT"
    workers: Annotated[int, Ge(1)] | None = None  # maximum of CPU workers; null: one per free CPU
    memory_gib: Annotated[float, Gt(0)] = 4.0  # limit of the child process of one worker

    _started = False  # whether `start` connected; without annotation, so it is no setting

    def start(self, log_folder: str) -> None:
        """Connects, or starts Ray on this machine. Ray's messages go to `ray.log` in the folder.

        Raises RunError where there is no cluster, OutputError where the log can't be written.
        """
        from curation.runner import session

        self._started |= session.start(self.address, self.workers, log_folder)

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
    ) -> Iterator[Row]:
        """Yields each row once, finished, in any order. A row with an `error` skips later stages.

        Calls `report_wait` every second with what the workers wait for, None while they work.
        Raises OutputError, RunError; rows in flight are then lost, and computed again on resume.
        """
        source = iter(rows)
        first = next(source, None)
        if first is not None:  # without rows Ray need not be started
            from curation.runner import pool

            source = chain([first], source)
            yield from pool.run_stages(stages, source, self.workers, self.memory_gib, report_wait)
