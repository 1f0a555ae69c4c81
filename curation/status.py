"""The state of a run, for people and monitors: `status.json` and `status.prom` in its output."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from curation.progress import Progress, printable
from curation.stage import OutputError
from curation.storage import Folder

STATUS, METRICS = "status.json", "status.prom"
RENEWAL_INTERVAL_S = 5.0


@dataclass(frozen=True)
class PoolState:
    """The workers of one pool, and its rows."""

    stage: str  # the first of the pool
    started: int
    starting: int
    rows_in_flight: int
    rows_queued: int


class StatusWriter:
    """Renews both files every few seconds while it is entered, and once more at the end.

    A file that can't be written never stops the run; it is tried again at the next renewal.
    """

    def __init__(self, out: Folder, command: str, pools: Callable[[], list[PoolState]]) -> None:
        self._out, self._command, self._pools = out, command, pools
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> StatusWriter:
        Progress.started.clear()
        self._started_s = time.time()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None:
            self._write("finished")
        elif issubclass(kind, KeyboardInterrupt):
            self._write("stopped")
        else:
            self._write("failed", f"{kind.__name__}: {error}")

    def _renew(self) -> None:
        while True:
            self._write("running")
            if self._ended.wait(RENEWAL_INTERVAL_S):
                return

    def _write(self, state: str, error: str | None = None) -> None:
        status = self._status(state, error)
        with suppress(OutputError):
            self._out.write(STATUS, json.dumps(status, indent=1).encode())
            self._out.write(METRICS, "".join(prometheus_lines(status)).encode())

    def _status(self, state: str, error: str | None) -> dict[str, Any]:
        phases = list(Progress.started)
        errors = [text for phase in phases for text in list(phase.errors)]  # other threads add some
        return {
            "state": state,
            "error": error and printable(error, 1000),
            "command": self._command,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_unix_s": round(self._started_s, 1),
            "renewed_unix_s": round(time.time(), 1),
            "renewal_interval_s": RENEWAL_INTERVAL_S,
            "phases": [asdict(phase.state()) for phase in phases],
            "workers": [asdict(pool) for pool in self._pools()],
            "waits_for": phases[-1].wait_reason if phases else None,
            "last_errors": errors[-5:],
        }


Samples = list[tuple[dict[str, str], Any]]  # labels, value


def prometheus_lines(status: dict[str, Any]) -> Iterator[str]:
    """The status in Prometheus' text format."""
    units: Samples = []
    for phase in status["phases"]:
        name = {"phase": phase["phase"], "unit": phase["unit"]}
        counts = phase["counts"] | {"all": phase["total"]}
        units += [(name | {"outcome": key}, n) for key, n in counts.items()]
    running = [p for p in status["phases"] if not p["finished"]]
    pools = [({"stage": pool["stage"]}, pool) for pool in status["workers"]]

    def flag(is_true: bool) -> Samples:
        return [({}, int(is_true))]

    def of_phases(key: str) -> Samples:
        return [({"phase": phase["phase"]}, phase[key]) for phase in running]

    def of_pools(prefix: str, keys: tuple[str, str]) -> Samples:
        return [(stage | {"state": k}, pool[prefix + k]) for stage, pool in pools for k in keys]

    yield from _gauge("running", "1 while the run is running", flag(status["state"] == "running"))
    yield from _gauge("failed", "1 after an error", flag(status["state"] == "failed"))
    renewed: Samples = [({}, status["renewed_unix_s"])]
    yield from _gauge("renewed_timestamp_seconds", "Unix time of the last renewal", renewed)
    yield from _gauge("units", "Units of a phase by outcome", units)
    yield from _gauge("units_per_second", "Speed of the present phase", of_phases("per_s"))
    yield from _gauge("left_seconds", "Estimated time left of the phase", of_phases("left_s"))
    yield from _gauge("waits", "1 while workers wait", flag(status["waits_for"] is not None))
    yield from _gauge("workers", "Workers of a stage", of_pools("", ("started", "starting")))
    in_rows = of_pools("rows_", ("in_flight", "queued"))
    yield from _gauge("rows", "Rows at the workers of a stage", in_rows)


def _gauge(name: str, what: str, samples: Samples) -> Iterator[str]:
    """A metric; samples without a value are left out."""
    yield f"# HELP longtake_{name} {what}.\n# TYPE longtake_{name} gauge\n"
    for labels, value in samples:
        if value is not None:
            # JSON escapes backslash, quote and newline as Prometheus does
            texts = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in labels.items()]
            yield f"longtake_{name}{{{','.join(texts)}}} {float(value):.15g}\n"
