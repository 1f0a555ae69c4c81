"""Pools of workers: starts and replaces them, and gives them the rows, on the driver."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayError,
    RayTaskError,
)

from curation.isolate import NotStarted
from curation.progress import format_duration
from curation.runner.settings import ClusterSettings
from curation.runner.worker import AsyncWorker, Worker
from curation.stage import OutputError, Row, RunContext, RunError, Stage, Unavailable

WORKER_LOST = (ActorDiedError, ActorUnavailableError, ObjectLostError)

EXTRA_CALLS = 1  # sent to a worker beyond those that run, so that it never waits for the driver
MAX_CONSECUTIVE_DEATHS_PER_WORKER = 6  # with no result between them; the run then stops
MAX_QUEUED_ROWS = 64  # before a later pool; then the pool before it gets no more
RESIZE_INTERVAL_S = 15.0  # between checks for nodes that joined
WAIT_REASON_INTERVAL_S = 1.0
SLOW_START_S = 5.0  # a worker that takes longer to start is reported


def run_stages(
    stages: list[Stage],
    rows: Iterator[Row],
    settings: ClusterSettings,
    context: RunContext,
    report_wait: Callable[[str | None], None],
) -> Iterator[Row]:
    """`Cluster.stream` on the cluster that this process is connected to."""
    groups = [list(group) for _, group in groupby(stages, lambda s: s.needs)]
    # The pools share the CPUs; if each reserved its own, the second could wait without end.
    pools = [_Pool(group, settings, context, 1 / len(groups)) for group in groups]
    for pool in pools:
        pool.worker_limit()
    try:
        while _send_rows(pools, rows):
            yield from _collect_results(pools, report_wait)
        report_wait(None)
    finally:
        for pool in pools:
            pool.stop_workers()


@dataclass
class _QueuedRow:
    row: Row
    worker_deaths: int = 0  # workers that died on it; after the first it gets an idle worker


@dataclass
class _WorkerState:
    """One worker of a pool; its actor is replaced when it dies.

    Rows go to actors that have started, never to one that waits for a CPU: after a node has left,
    it might wait without end, and its rows too.
    """

    actor: Any = None
    started: bool = False
    calls: int = 0  # in flight; a row that needs an idle worker counts as `_Pool.max_calls`
    created_s: float = 0.0
    reason: str | None = None  # the newest wait reason
    reason_call: Any = None
    reason_asked_s: float = 0.0

    def wait_reason(self) -> str | None:
        """Returns the newest wait reason received, and asks for the next; never waits for one."""
        if self.reason_call is not None and ray.wait([self.reason_call], timeout=0)[0]:
            with suppress(RayError):  # the calls with its rows report a dead worker
                self.reason = ray.get(self.reason_call)
            self.reason_call = None
        now_s = time.monotonic()
        if self.reason_call is None and now_s - self.reason_asked_s > WAIT_REASON_INTERVAL_S:
            self.reason_call, self.reason_asked_s = self.actor.wait_reason.remote(), now_s
        return self.reason


@dataclass
class _Pool:
    """The workers of neighbouring stages with the same needs, and the rows that wait for them."""

    stages: list[Stage]
    settings: ClusterSettings
    context: RunContext
    cpu_share: float  # of a worker's CPUs that Ray reserves for it
    queue: deque[_QueuedRow] = field(default_factory=deque)
    in_flight: dict[Any, tuple[_WorkerState, Any, list[_QueuedRow]]] = field(default_factory=dict)
    starting: dict[Any, tuple[_WorkerState, Any]] = field(default_factory=dict)  # by call
    consecutive_deaths: int = 0  # since the last result
    workers: list[_WorkerState] = field(default_factory=list)
    _resized_s: float = -RESIZE_INTERVAL_S

    @property
    def max_calls(self) -> int:
        """Calls that one worker may have in flight."""
        return (self.stages[0].needs.max_concurrency or 1) + EXTRA_CALLS

    def pending_calls(self) -> list[Any]:
        return [*self.in_flight, *self.starting]

    def send_rows(self) -> bool:
        """Sends the next rows to the least loaded worker; False where none is free."""
        needs_idle = self.queue[0].worker_deaths > 0
        max_calls = 1 if needs_idle else self.max_calls
        free = [w for w in self.workers if w.started and w.calls < max_calls]
        worker = min(free, key=lambda w: w.calls, default=None)
        if worker is None or worker.calls:
            self._start_worker()
        if worker is None:
            return False
        batch = [self.queue.popleft()]
        while len(batch) < self.stages[0].needs.batch_size and not needs_idle:
            if not self.queue or self.queue[0].worker_deaths:
                break
            batch.append(self.queue.popleft())
        worker.calls += self.max_calls if needs_idle else 1
        call = worker.actor.run.remote([queued.row for queued in batch])
        self.in_flight[call] = (worker, worker.actor, batch)
        return True

    def _start_worker(self) -> None:
        """Starts one more worker where the cluster has room and rows wait for it."""
        if time.monotonic() - self._resized_s > RESIZE_INTERVAL_S:
            self._resized_s = time.monotonic()
            more = self.worker_limit() - len(self.workers)
            self.workers += [_WorkerState() for _ in range(more)]
        empty = next((w for w in self.workers if w.actor is None), None)
        if empty is None or len(self.starting) >= len(self.queue):
            return
        needs = self.stages[0].needs
        if needs.max_concurrency is None:
            kind: Any = ray.remote(Worker)
        else:
            remote: Any = ray.remote  # its type hints lack concurrency groups
            kind = remote(concurrency_groups={"wait_reason": 1})(AsyncWorker)
        actor = kind.options(
            num_cpus=needs.cpus * self.cpu_share,
            num_gpus=needs.gpus,
            max_concurrency=needs.max_concurrency or 1,
        )
        empty.actor = actor.remote(self.stages, self.context, self.settings.memory_gib)
        empty.created_s, empty.reason, empty.reason_call = time.monotonic(), None, None
        self.starting[empty.actor.__ray_ready__.remote()] = (empty, empty.actor)

    def worker_limit(self) -> int:
        """Returns how many workers the cluster has room for. Raises RunError where for none."""
        have, needs = ray.cluster_resources(), self.stages[0].needs
        cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
        limit = int(gpus / needs.gpus) if needs.gpus else int(cpus / needs.cpus)
        if limit < 1 and not self.workers:
            raise RunError(
                f"{type(self.stages[0]).__name__} needs {needs.cpus:g} CPUs and {needs.gpus:g} GPUs"
                f" a worker; the cluster has {cpus:g} and {gpus:g}\n  fix: add such a node, or let "
                "the stage do without (gpus=0 in its settings: the CPU)"
            )
        limit = min(limit, needs.max_workers or limit)
        return limit if needs.gpus else min(limit, self.settings.workers or limit)

    def wait_reason(self) -> str | None:
        """Returns the first wait reason that any worker reports, or that none has started yet."""
        started = [worker for worker in self.workers if worker.started]
        if self.starting and not started:
            created_s = min(worker.created_s for worker, _ in self.starting.values())
            elapsed_s = time.monotonic() - created_s
            reason = (
                f"the first worker of {type(self.stages[0]).__name__} has been starting for "
                f"{format_duration(elapsed_s)}: it loads models, or waits for a free CPU or GPU"
            )
            return reason if elapsed_s > SLOW_START_S else None
        if self.stages[0].needs.max_concurrency is None:
            return None
        return next(filter(None, [w.wait_reason() for w in started if w.calls]), None)

    def take_result(self, call: Any) -> list[Row]:
        """Returns the rows of a finished call: none where a worker has started, or where it died.

        The rows of a dead worker are queued again. Raises OutputError, RunError.
        """
        if call in self.starting:
            worker, actor = self.starting.pop(call)
            try:
                ray.get(call)
                worker.started = worker.actor is actor
            except WORKER_LOST as e:
                self._discard_actor(worker, actor, e)
            return []
        worker, actor, batch = self.in_flight.pop(call)
        worker.calls -= self.max_calls if batch[0].worker_deaths else 1
        try:
            rows = ray.get(call)
        except RayTaskError as e:
            if isinstance(e.cause, OutputError):
                raise OutputError(str(e.cause)) from None
            if isinstance(e.cause, NotStarted | Unavailable):
                raise RunError(f"{type(self.stages[0]).__name__}: {e.cause}") from None
            raise
        except WORKER_LOST as e:
            self._discard_actor(worker, actor, e)
            for queued in batch:
                queued.worker_deaths += 1
            if batch[0].worker_deaths > 1:  # it was the only row of its worker: it is the cause
                batch[0].row["error"] = "the worker process died twice on this row"
                return [batch[0].row]
            self.queue.extendleft(reversed(batch))
            return []
        self.consecutive_deaths = 0
        return rows

    def _discard_actor(self, worker: _WorkerState, actor: Any, error: Exception) -> None:
        """Empties the worker, so that a new actor is started when needed.

        Every call to a dead actor fails: only the first of them counts. Raises RunError where too
        many actors died in a row.
        """
        if worker.actor is not actor:
            return
        ray.kill(actor)  # it may still run on a node that is not reachable
        worker.actor, worker.started = None, False
        self.consecutive_deaths += 1
        if self.consecutive_deaths > MAX_CONSECUTIVE_DEATHS_PER_WORKER * len(self.workers):
            name = type(self.stages[0]).__name__
            raise RunError(f"every worker of {name} dies; see the logs: {error}")

    def stop_idle_workers(self) -> None:
        """Frees the CPUs that they hold, for which another worker may wait."""
        for worker in self.workers:
            if worker.started and not worker.calls:
                ray.kill(worker.actor)
                worker.actor, worker.started = None, False

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.actor is not None:
                ray.kill(worker.actor)


def _send_rows(pools: list[_Pool], source: Iterator[Row]) -> bool:
    """Sends rows to every free worker, later pools first; False when all rows are done."""
    for number, pool in reversed(list(enumerate(pools))):
        queued_after = len(pools[number + 1].queue) if number + 1 < len(pools) else 0
        while queued_after < MAX_QUEUED_ROWS:
            if not pool.queue and number == 0:
                pool.queue += map(_QueuedRow, islice(source, pool.stages[0].needs.batch_size))
            if not pool.queue or not pool.send_rows():
                break
    return any(pool.pending_calls() for pool in pools)


def _collect_results(
    pools: list[_Pool], report_wait: Callable[[str | None], None]
) -> Iterator[Row]:
    """Waits for at least one result. Queues rows for the next pool, yields those of the last."""
    if not any(pool.in_flight for pool in pools):
        # All pools wait for workers to start. After a node has left, one pool may hold all CPUs.
        for pool in pools:
            pool.stop_idle_workers()
    owner = {call: number for number, pool in enumerate(pools) for call in pool.pending_calls()}
    while True:
        report_wait(next(filter(None, [pool.wait_reason() for pool in pools]), None))
        if ray.wait(list(owner), num_returns=1, timeout=WAIT_REASON_INTERVAL_S)[0]:
            break
    ready, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
    for call in ready:
        number = owner[call]
        for row in pools[number].take_result(call):
            if row.get("error") is None and number + 1 < len(pools):
                pools[number + 1].queue.append(_QueuedRow(row))
            else:
                yield row
