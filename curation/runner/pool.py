"""Pools of workers, on the driver: starts and replaces workers, sends them rows, takes results."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from curation.access_check import AccessCheck
from curation.errors import UserError
from curation.isolate import NotStarted
from curation.progress import format_duration
from curation.runner.nodes import NodeWatch, WorkerNode, counts_against_row
from curation.runner.settings import ClusterSettings
from curation.runner.worker import ROW_S, AsyncWorker, Worker
from curation.stage import (
    OutputError,
    Row,
    RunContext,
    RunError,
    Stage,
    is_unfinished,
)
from curation.status import PoolState

WORKER_LOST = (ActorDiedError, ActorUnavailableError, ObjectLostError, OutOfMemoryError)

PREFETCHED_CALLS = 1  # queued at each worker, so that it never waits for the driver
MAX_CONSECUTIVE_DEATHS_PER_WORKER = 6  # with no result between them; the run then stops
NOT_STARTED = WorkerNode("", 0)
MAX_QUEUED_ROWS = 64  # in front of a pool; at this number the previous pool gets no more rows
MAX_ROWS_PER_CALL = 16  # of a stage without a batch size, where rows take little time
CALL_S = 0.2  # that a call of several such rows takes, about
RESIZE_INTERVAL_S = 15.0  # between checks for nodes that joined
WAIT_REASON_INTERVAL_S = 1.0
REPORT_INTERVAL_S = 0.5  # of the states of the workers
SLOW_START_S = 5.0  # a worker that takes longer to start is reported


def run_stages(
    stages: list[Stage],
    rows: Iterator[Row],
    settings: ClusterSettings,
    context: RunContext,
    access: AccessCheck,
    report_wait: Callable[[str | None], None],
    report_event: Callable[[str], None],
    report_workers: Callable[[list[PoolState]], None],
) -> Generator[Row]:
    """Implements `Cluster.stream`; this process is connected to the cluster already."""
    groups = [list(group) for _, group in groupby(stages, lambda s: s.needs)]
    # The pools share the CPUs: if each reserved its own, the second might wait for one forever.
    pools = [_Pool(group, settings, context, access, 1 / len(groups)) for group in groups]
    for pool in pools:
        pool.worker_limit()  # raises RunError before any worker starts
    nodes = NodeWatch()

    def report_nodes() -> None:
        if event := nodes.report():
            report_event(event)

    waits = _Clock(WAIT_REASON_INTERVAL_S)
    reports = _Clock(REPORT_INTERVAL_S)
    try:
        with _ray_errors():
            while _send_rows(pools, rows):
                report_nodes()
                if reports.is_due():
                    report_workers([pool.state() for pool in pools])
                yield from _collect_results(pools, waits, report_wait, report_nodes)
        report_wait(None)
    finally:
        report_workers([])
        if ray.is_initialized():  # a call would connect to any cluster that it finds
            for pool in pools:
                pool.stop_workers()


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Raises RunError, with the fix, for an error of Ray itself; one of a stage's code stays."""
    try:
        yield
    except OutOfDiskError:
        raise RunError(
            "Ray can't hold a row on a node: the disk of its temporary folder is full\n  fix: free "
            "more than 5 % of that disk (/tmp/ray by default), and run the same command again"
        ) from None
    except RuntimeEnvSetupError as e:
        cause = str(e).strip().splitlines()[-1]
        raise RunError(
            f"a node can't set up the code that this process sends it: {cause}\n  fix: check "
            "its disk space and its connection to this one, and run the same command again"
        ) from None
    except RayError as e:
        error = e.cause if isinstance(e, RayTaskError) else e
        # of a stage's code: the traceback names the place; Ray replaces what it can't pickle
        if not isinstance(error, RayError) or (error is not e and type(error) is RayError):
            raise
        cause, *_ = str(error).strip().splitlines() or [""]
        raise RunError(
            f"Ray failed: {type(error).__name__}: {cause}\n  fix: remove the cause, which the logs "
            "of Ray on the nodes describe (/tmp/ray/session_latest/logs by default), and run the "
            "same command again, which resumes"
        ) from None


@dataclass
class _Clock:
    """Something that is done every few seconds: with thousands of workers it takes milliseconds."""

    interval_s: float
    done_s: float = -float("inf")

    def is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s - self.done_s < self.interval_s:
            return False
        self.done_s = now_s
        return True


@dataclass
class _QueuedRow:
    row: Row
    # nodes on which workers died that had the row; after the first death it is sent alone
    deaths: tuple[WorkerNode, ...] = ()


@dataclass
class _WorkerState:
    """One worker of a pool; its actor is replaced when it dies.

    Rows are sent only to actors that have started. After a node has left, a new actor may wait
    for a CPU forever, and so would its rows.
    """

    actor: Any = None
    number: int = 0  # in its pool
    started: bool = False
    node: WorkerNode = NOT_STARTED
    calls: int = 0  # in flight; a row that is sent alone counts as `_Pool.max_calls`
    created_s: float = 0.0
    reason: str | None = None  # the newest wait reason
    reason_call: Any = None
    reason_asked_s: float = 0.0

    def wait_reason(self) -> str | None:
        """Returns the newest wait reason received, and asks for the next; never waits for one."""
        if self.reason_call is not None and ray.wait([self.reason_call], timeout=0)[0]:
            with suppress(RayError):  # a dead worker is found by the calls that have its rows
                self.reason = ray.get(self.reason_call)
            self.reason_call = None
        now_s = time.monotonic()
        if self.reason_call is None and now_s - self.reason_asked_s > WAIT_REASON_INTERVAL_S:
            self.reason_call, self.reason_asked_s = self.actor.wait_reason.remote(), now_s
        return self.reason


@dataclass
class _Pool:
    """The workers of consecutive stages with the same needs, and the rows that wait for them."""

    stages: list[Stage]
    settings: ClusterSettings
    context: RunContext
    access: AccessCheck  # before a worker gets its first row
    cpu_share: float  # Ray reserves this fraction of `needs.cpus` for each worker
    queue: deque[_QueuedRow] = field(default_factory=deque)
    in_flight: dict[Any, tuple[_WorkerState, Any, WorkerNode, list[_QueuedRow]]] = field(
        default_factory=dict
    )
    starting: dict[Any, tuple[_WorkerState, Any]] = field(default_factory=dict)
    consecutive_deaths: int = 0  # since the last result
    workers: list[_WorkerState] = field(default_factory=list)
    row_s: float | None = None  # that a row takes, a mean in which the last ones count most
    rows_in_flight: int = 0
    # (calls, number) of workers, least loaded first; of a worker, only its present calls count
    _free: list[tuple[int, int]] = field(default_factory=list)
    _without_actor: list[_WorkerState] = field(default_factory=list)
    _resized_s: float = -RESIZE_INTERVAL_S

    @property
    def max_calls(self) -> int:
        """Calls that one worker may have in flight."""
        return (self.stages[0].needs.max_concurrency or 1) + PREFETCHED_CALLS

    def state(self) -> PoolState:
        return PoolState(
            type(self.stages[0]).__name__,
            sum(worker.started for worker in self.workers),
            len(self.starting),
            self.rows_in_flight,
            len(self.queue),
        )

    @property
    def max_rows_per_call(self) -> int:
        """Rows that are sent in one call; several where each takes little time."""
        needs = self.stages[0].needs
        if needs.batch_size > 1 or needs.max_concurrency or self.row_s is None:
            return needs.batch_size
        return max(1, min(MAX_ROWS_PER_CALL, int(CALL_S / max(self.row_s, 1e-6))))

    def has_call(self, call: Any) -> bool:
        return call in self.in_flight or call in self.starting

    def _set_calls(self, worker: _WorkerState, calls: int) -> None:
        worker.calls = calls
        if len(self._free) > 4 * len(self.workers) + 16:  # most are of earlier numbers of calls
            found = [(w.calls, w.number) for w in self.workers if w.started]
            self._free = [entry for entry in found if entry[0] < self.max_calls]
            heapq.heapify(self._free)
        elif worker.started and calls < self.max_calls:
            heapq.heappush(self._free, (calls, worker.number))

    def _least_loaded(self) -> _WorkerState | None:
        while self._free:
            calls, number = self._free[0]
            worker = self.workers[number]
            if worker.started and worker.calls == calls:
                return worker
            heapq.heappop(self._free)
        return None

    def send_batch(self) -> bool:
        """Sends the next rows to the least loaded worker. Returns False if no worker is free."""
        is_sent_alone = bool(self.queue[0].deaths)
        worker = self._least_loaded()
        if worker is not None and worker.calls >= (1 if is_sent_alone else self.max_calls):
            worker = None
        if worker is None or worker.calls:
            self._start_workers()
        if worker is None:
            return False
        batch = [self.queue.popleft()]
        while len(batch) < self.max_rows_per_call and not is_sent_alone:
            if not self.queue or self.queue[0].deaths:
                break
            batch.append(self.queue.popleft())
        self._set_calls(worker, worker.calls + (self.max_calls if is_sent_alone else 1))
        call = worker.actor.run.remote([queued.row for queued in batch])
        self.in_flight[call] = (worker, worker.actor, worker.node, batch)
        self.rows_in_flight += len(batch)
        return True

    def _start_workers(self) -> None:
        """Starts a worker for each row that waits, as far as the cluster has room."""
        if time.monotonic() - self._resized_s > RESIZE_INTERVAL_S:
            self._resized_s = time.monotonic()
            count = len(self.workers)
            added = [_WorkerState(number=i) for i in range(count, self.worker_limit())]
            self.workers += added
            self._without_actor += reversed(added)
        while self._without_actor and len(self.starting) < len(self.queue):
            self._start_worker(self._without_actor.pop())

    def _start_worker(self, worker: _WorkerState) -> None:
        needs = self.stages[0].needs
        if needs.max_concurrency is None:
            actor_class: Any = ray.remote(Worker)
        else:
            remote: Any = ray.remote  # its type hints lack concurrency groups
            actor_class = remote(concurrency_groups={"wait_reason": 1})(AsyncWorker)
        configured = actor_class.options(
            num_cpus=needs.cpus * self.cpu_share,
            num_gpus=needs.gpus,
            max_concurrency=needs.max_concurrency or 1,
        )
        given = (self.stages, self.context, self.settings.memory_gib, self.access)
        worker.actor = configured.remote(*given)
        worker.created_s, worker.reason, worker.reason_call = time.monotonic(), None, None
        self.starting[worker.actor.start.remote()] = (worker, worker.actor)

    def worker_limit(self) -> int:
        """Returns how many workers the cluster has room for. Raises RunError if for none."""
        needs, (limit, lack) = self.stages[0].needs, self._room()
        if limit < 1 and not self.workers:
            raise RunError(
                f"{lack}\n  fix: add a node that has them, or set gpus=0 in the stage's settings "
                "to use the CPU"
            )
        limit = min(limit, needs.max_workers or limit)
        return limit if needs.gpus else min(limit, self.settings.workers or limit)

    def _room(self) -> tuple[int, str]:
        """How many workers the cluster has room for now, and the message where that is none."""
        resources, needs = ray.cluster_resources(), self.stages[0].needs
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        limit = int(gpus / needs.gpus) if needs.gpus else int(cpus / needs.cpus)
        return limit, (
            f"{type(self.stages[0]).__name__} needs {needs.cpus:g} CPUs and {needs.gpus:g} GPUs a "
            f"worker; the cluster has {cpus:g} and {gpus:g}"
        )

    def wait_reason(self) -> str | None:
        """Returns a wait reason of any worker, or that no worker has started for a long time."""
        started = [worker for worker in self.workers if worker.started]
        if self.starting and not started:
            room, lack = self._room()
            if room < 1:  # nodes have left
                return f"{lack}: waiting for a node to join"
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
        """Returns the rows of a finished call. Raises OutputError, RunError.

        Returns no rows if the call only started a worker, or if the worker died: then its rows
        are queued again.
        """
        if call in self.starting:
            worker, actor = self.starting.pop(call)
            try:
                worker.node = self._get(call)
                worker.started = worker.actor is actor
                self._set_calls(worker, worker.calls)
            except WORKER_LOST as e:
                self._discard_actor(worker, actor, e)
            return []
        worker, actor, node, batch = self.in_flight.pop(call)
        self.rows_in_flight -= len(batch)
        self._set_calls(worker, worker.calls - (self.max_calls if batch[0].deaths else 1))
        try:
            rows = self._get(call)
        except WORKER_LOST as e:
            self._discard_actor(worker, actor, e)
            # other errors: no memory was left on the node, or a connection or a result was lost
            if isinstance(e, ActorDiedError):
                for queued in batch:
                    queued.deaths += (node,)
            if len(batch[0].deaths) > 1:  # those of lost nodes do not count
                batch[0].deaths = tuple(filter(counts_against_row, batch[0].deaths))
            if len(batch[0].deaths) > 1:  # the worker had no other row, so this one is the cause
                batch[0].row["error"] = "the worker process died twice on this row"
                return [batch[0].row]
            self.queue.extendleft(reversed(batch))
            return []
        self.consecutive_deaths = 0
        for row in rows:
            took_s = row.pop(ROW_S, CALL_S)
            self.row_s = took_s if self.row_s is None else 0.9 * self.row_s + 0.1 * took_s
        return rows

    def _get(self, call: Any) -> Any:
        """Returns the result of a call. Raises OutputError, RunError, WORKER_LOST."""
        try:
            return ray.get(call)
        except RayTaskError as e:
            if isinstance(e.cause, OutputError):
                raise OutputError(str(e.cause)) from None
            if isinstance(e.cause, NotStarted | UserError):
                raise RunError(f"{type(self.stages[0]).__name__}: {e.cause}") from None
            raise

    def _discard_actor(self, worker: _WorkerState, actor: Any, error: Exception) -> None:
        """Removes a dead actor from its worker, so that a new one is started when needed.

        Every call to a dead actor fails; the first failure counts as a death. Raises RunError if
        too many actors died in a row.
        """
        if worker.actor is not actor:
            return
        ray.kill(actor)  # it may still run, on a node that can't be reached
        worker.actor, worker.started = None, False
        self._without_actor.append(worker)
        self.consecutive_deaths += 1
        if self.consecutive_deaths > MAX_CONSECUTIVE_DEATHS_PER_WORKER * len(self.workers):
            name = type(self.stages[0]).__name__
            raise RunError(
                f"the workers of {name} died {self.consecutive_deaths} times without a result; "
                f"see the logs: {error}"
            )

    def stop_idle_workers(self) -> None:
        """Stops workers without rows: their CPUs are free for a worker that waits for one."""
        for worker in self.workers:
            if worker.started and not worker.calls:
                ray.kill(worker.actor)
                worker.actor, worker.started = None, False
                self._without_actor.append(worker)

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.actor is not None:
                ray.kill(worker.actor)


def _send_rows(pools: list[_Pool], source: Iterator[Row]) -> bool:
    """Sends rows to every free worker, last pool first. Returns False when all rows are done:
    a worker that is still starting is then not needed."""
    for index, pool in reversed(list(enumerate(pools))):
        queued_after = len(pools[index + 1].queue) if index + 1 < len(pools) else 0
        while queued_after < MAX_QUEUED_ROWS:
            if not pool.queue and index == 0:
                pool.queue += map(_QueuedRow, islice(source, MAX_QUEUED_ROWS))
            if not pool.queue or not pool.send_batch():
                break
    return any(pool.queue or pool.in_flight for pool in pools)


def _collect_results(
    pools: list[_Pool],
    waits: _Clock,
    report_wait: Callable[[str | None], None],
    report_nodes: Callable[[], None],
) -> Iterator[Row]:
    """Waits for at least one result. Queues the rows for the next pool; yields rows that failed
    and those of the last pool."""
    if not any(pool.in_flight for pool in pools):
        # All pools wait for workers to start. If a node has left, one pool may hold all the CPUs.
        for pool in pools:
            pool.stop_idle_workers()
    calls = [call for pool in pools for call in (*pool.in_flight, *pool.starting)]
    while True:
        if waits.is_due():
            report_wait(next(filter(None, [pool.wait_reason() for pool in pools]), None))
        if ray.wait(calls, num_returns=1, timeout=WAIT_REASON_INTERVAL_S)[0]:
            break
        report_nodes()
    ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
    for call in ready:
        index = next(i for i, pool in enumerate(pools) if pool.has_call(call))
        for row in pools[index].take_result(call):
            if is_unfinished(row) and index + 1 < len(pools):
                pools[index + 1].queue.append(_QueuedRow(row))
            else:
                yield row
