"""Runs stages over rows on a Ray cluster: the only file that imports ray.

Plain actors, not Ray Data: the unit of retry is one row (a Ray Data block is a batch, retried for
ever by default or dropped whole), a row that kills its worker is known by name, and every result
reaches the driver, the one writer of the ledger, as soon as it is there. docs/architecture.md says
more.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from curation.isolate import Isolated
from curation.stage import BadVideo, InOrder, OutputError, Row, Stage

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

IN_FLIGHT = 2  # calls per worker: one runs, one waits, so a worker never waits for the driver
QUEUE_ROWS = 64  # rows that may wait before a later group of stages
LOOK_FOR_NODES_S = 15.0
REPOSITORY = Path(__file__).resolve().parent.parent


class RunError(Exception):
    """The cluster can't do the work: what is missing, and what to do."""


@dataclass
class Cluster:
    """The Ray cluster that the stages run on. Its fields are the settings under `cluster:`."""

    address: str | None = None  # null: this machine alone; "auto", "HOST:PORT" or "ray://HOST:PORT"
    workers: Annotated[int, Ge(1)] | None = None  # CPU workers at most; null: one per free CPU
    memory_gib: Annotated[float, Gt(0)] = 4.0  # what the child process of one worker may take

    def start(self, log_folder: str) -> None:
        """Connects, or starts Ray on this machine. Ray's own talk goes to `ray.log`."""
        if ray.is_initialized():
            return
        os.makedirs(log_folder, exist_ok=True)
        handler = logging.FileHandler(os.path.join(log_folder, "ray.log"))
        for name in ("ray", "ray._private"):  # ray.init takes the handlers of "ray" away
            log = logging.getLogger(name)
            log.handlers, log.propagate = [handler], False
        settings: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if self.address in (None, "local"):
            settings |= {"address": "local", "include_dashboard": False}
            settings["num_cpus"] = self.workers or len(os.sched_getaffinity(0))
        else:
            # Workers on other nodes import our code; their packages are the nodes' own.
            code = [str(REPOSITORY / name) for name in ("curation", "stages", "pipelines")]
            settings |= {"address": self.address, "runtime_env": {"py_modules": code}}
        try:
            ray.init(configure_logging=False, **settings)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise RunError(f"no Ray cluster at {self.address}: {e}") from None

    def stop(self) -> None:
        ray.shutdown()

    def stream(self, stages: list[Stage], rows: Iterable[Row]) -> Iterator[Row]:
        """Each row once, finished, as it comes (no order). An `error` in a row ends its way.

        Raises OutputError, RunError; rows under way then are lost, and done again on resume.
        """
        groups = [list(group) for _, group in groupby(stages, lambda s: s.needs)]
        # Groups take turns on the CPUs; if each reserved its own, the second could wait for ever.
        pools = [_Pool(group, self, 1 / len(groups)) for group in groups]
        source = iter(rows)
        try:
            while _feed(pools, source):
                yield from _collect(pools)
        finally:
            for pool in pools:
                pool.close()


class Worker:
    """One actor: some stages, one row at a time."""

    def __init__(self, stages: list[Stage], memory_gib: float) -> None:
        self._stages = stages
        self._child: Isolated | None = None
        if stages[0].needs.isolated:
            work = InOrder(stages)
            self._child = Isolated(work.run, work.setup, memory_gib=memory_gib)
        else:
            for stage in stages:
                stage.setup()

    def run(self, row: Row) -> Row:
        for number, stage in enumerate(self._stages):
            if row.get("error") is not None:
                break
            try:
                if self._child is not None:
                    row = self._child(number, row, deadline_s=stage.deadline_s(row))
                else:
                    [row] = stage.process([row])
            except BadVideo as e:
                row["error"] = str(e)
            except OutputError:
                raise
            except Exception as e:  # a row must never cost another one
                row["error"] = f"{type(stage).__name__}: {type(e).__name__}: {e}"
        return row


@dataclass
class _Job:
    row: Row
    deaths: int = 0  # workers that died with it; after the first it gets a worker of its own


@dataclass
class _Pool:
    """The workers of one group of stages."""

    stages: list[Stage]
    cluster: Cluster
    cpu_share: float  # of a worker's CPUs that Ray reserves for it
    queue: deque[_Job] = field(default_factory=deque)
    flying: dict[Any, tuple[int, _Job]] = field(default_factory=dict)  # call -> worker, job
    fatal: int = 0  # deaths since the last result
    _actors: list[Any] = field(default_factory=list)
    _load: list[int] = field(default_factory=list)
    _looked_s: float = -LOOK_FOR_NODES_S

    def slot(self, alone: bool) -> int | None:
        """The least loaded worker with room; the pool grows with the cluster."""
        if time.monotonic() - self._looked_s > LOOK_FOR_NODES_S:
            self._looked_s = time.monotonic()
            while len(self._actors) < self._size():
                self._actors.append(None)
                self._load.append(0)
        least = min(range(len(self._load)), key=self._load.__getitem__)
        return least if self._load[least] < (1 if alone else IN_FLIGHT) else None

    def _size(self) -> int:
        have, need = ray.cluster_resources(), self.stages[0].needs
        cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
        size = int(gpus / need.gpus) if need.gpus else int(cpus / need.cpus)
        if size < 1:
            raise RunError(
                f"{type(self.stages[0]).__name__} needs {need.cpus:g} CPUs and {need.gpus:g} GPUs a"
                f" worker; the cluster has {cpus:g} and {gpus:g}"
            )
        return size if need.gpus else min(size, self.cluster.workers or size)

    def submit(self, job: _Job, slot: int) -> None:
        if self._actors[slot] is None:
            need = self.stages[0].needs
            actor = ray.remote(Worker).options(
                num_cpus=need.cpus * self.cpu_share, num_gpus=need.gpus
            )
            self._actors[slot] = actor.remote(self.stages, self.cluster.memory_gib)
        self._load[slot] += IN_FLIGHT if job.deaths else 1
        self.flying[self._actors[slot].run.remote(job.row)] = (slot, job)

    def result(self, call: Any) -> Row | None:
        """The row that came back; None where its worker died and it goes once more."""
        slot, job = self.flying.pop(call)
        self._load[slot] -= IN_FLIGHT if job.deaths else 1
        try:
            row = ray.get(call)
        except RayTaskError as e:
            if isinstance(e.cause, OutputError):
                raise OutputError(str(e.cause)) from None
            raise
        except (ActorDiedError, ActorUnavailableError) as e:
            self._actors[slot] = None
            self.fatal += 1
            if self.fatal > 3 * IN_FLIGHT * len(self._actors):
                name = type(self.stages[0]).__name__
                raise RunError(f"every worker of {name} dies; see the logs: {e}") from None
            job.deaths += 1
            if job.deaths > 1:  # it was alone with its worker: the row is what kills
                job.row["error"] = "it killed its worker twice"
                return job.row
            self.queue.appendleft(job)
            return None
        self.fatal = 0
        return row

    def close(self) -> None:
        for actor in self._actors:
            if actor is not None:
                ray.kill(actor)


def _feed(pools: list[_Pool], source: Iterator[Row]) -> bool:
    """Gives every free worker a row, later groups first; False when all is done."""
    for number, pool in reversed(list(enumerate(pools))):
        waiting = len(pools[number + 1].queue) if number + 1 < len(pools) else 0
        while waiting < QUEUE_ROWS:
            if not pool.queue and number == 0 and (row := next(source, None)) is not None:
                pool.queue.append(_Job(row))
            if not pool.queue:
                break
            slot = pool.slot(alone=pool.queue[0].deaths > 0)
            if slot is None:
                break
            pool.submit(pool.queue.popleft(), slot)
    return any(pool.flying for pool in pools)


def _collect(pools: list[_Pool]) -> Iterator[Row]:
    """Waits for at least one result; hands rows on to the next group, or out."""
    owner = {call: number for number, pool in enumerate(pools) for call in pool.flying}
    ray.wait(list(owner), num_returns=1)
    ready, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
    for call in ready:
        number = owner[call]
        row = pools[number].result(call)
        if row is None:
            continue
        if row.get("error") is None and number + 1 < len(pools):
            pools[number + 1].queue.append(_Job(row))
        else:
            yield row
