"""Runs stages over rows on a Ray cluster: the only file that imports ray.

Plain actors, not Ray Data: the unit of retry is one row (a Ray Data block is a batch, retried for
ever by default or dropped whole), a row that kills its worker is known by name, and every result
reaches the driver, the one writer of the ledger, as soon as it is there. docs/architecture.md says
more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from curation.isolate import Isolated, NotStarted
from curation.progress import duration
from curation.stage import BadVideo, OutputError, Row, Stage, StageSequence, Unavailable, took
from curation.storage import is_url

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._private import worker as ray_worker
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayError,
    RayTaskError,
)

LOST = (ActorDiedError, ActorUnavailableError, ObjectLostError)  # a worker or its node is gone

WAITING = 1  # calls per worker beyond those that run, so that it never waits for the driver
DEATHS = 6  # per place for a worker, with no result between them: then none will live
QUEUE_ROWS = 64  # rows that may wait before a later group of stages
LOOK_FOR_NODES_S = 15.0
ASK_S = 1.0  # between looks at what workers wait for
SLOW_START_S = 5.0  # a worker that takes longer to start is told of
REPOSITORY = Path(__file__).resolve().parents[2]


class RunError(Exception):
    """The cluster can't do the work: what is missing, and what to do."""


@dataclass
class Cluster:
    """The Ray cluster that the stages run on. Its fields are the settings under `cluster:`."""

    address: str | None = None  # null: this machine alone; "auto", "HOST:PORT" or "ray://HOST:PORT"
    workers: Annotated[int, Ge(1)] | None = None  # CPU workers at most; null: one per free CPU
    memory_gib: Annotated[float, Gt(0)] = 4.0  # what the child process of one worker may take

    _started: bool = field(init=False, default=False, repr=False)

    def start(self, log_folder: str) -> None:
        """Connects, or starts Ray on this machine. Ray's own talk goes to `ray.log`."""
        if ray.is_initialized():
            return
        _keep_talk_in(log_folder)
        settings: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if self.address in (None, "local"):
            settings |= {"address": "local", "include_dashboard": False}
            settings["num_cpus"] = self.workers or len(os.sched_getaffinity(0))
        else:
            # Workers on other nodes import our code; their packages are the nodes' own.
            code = [str(REPOSITORY / name) for name in ("curation", "stages", "pipelines")]
            settings |= {"address": self.address, "runtime_env": {"py_modules": code}}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            _reach(self.address or "")
            ray.init(configure_logging=False, **settings)
        except (OSError, RuntimeError, ValueError, RayError) as e:
            raise RunError(
                f"no Ray cluster at {self.address or 'this machine'}: {e}\n  fix: check the address"
                "; where the cluster asks for a token, have it in ~/.ray/auth_token and set "
                "RAY_AUTH_MODE=token"
            ) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init sets its own
        self._started = True

    def stop(self) -> None:
        """Disconnects, and ends the Ray that `start` started."""
        if self._started:
            ray.shutdown()
            self._started = False

    def stream(
        self,
        stages: list[Stage],
        rows: Iterable[Row],
        note: Callable[[str | None], None] = lambda _: None,
    ) -> Iterator[Row]:
        """Each row once, finished, as it comes (no order). An `error` in a row ends its way.

        `note` is told every second what the workers wait for, None where they work.
        Raises OutputError, RunError; rows under way then are lost, and done again on resume.
        """
        source = iter(rows)
        first = next(source, None)
        if first is None:  # nothing to do: Ray need not be there
            return
        groups = [list(group) for _, group in groupby(stages, lambda s: s.needs)]
        # Groups take turns on the CPUs; if each reserved its own, the second could wait for ever.
        pools = [_Pool(group, self, 1 / len(groups)) for group in groups]
        for pool in pools:
            pool.size()
        source = chain([first], source)
        try:
            while _feed(pools, source):
                yield from _collect(pools, note)
            note(None)
        finally:
            for pool in pools:
                pool.close()


def _reach(address: str) -> None:
    """Raises OSError or ValueError where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _keep_talk_in(folder: str) -> None:
    """Ray's loggers write to a file. For an output that is not local, to one in the temporary
    folder of this machine."""
    if is_url(folder):
        folder = os.path.join(tempfile.gettempdir(), "longtake-logs")
    try:
        os.makedirs(folder, exist_ok=True)
        handler = logging.FileHandler(os.path.join(folder, "ray.log"))
    except OSError as e:
        raise OutputError(f"can't write {folder}/ray.log: {e.strerror}") from None
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # of a full disk
    for name in ("ray", "ray._private"):  # ray.init takes the handlers of "ray" away
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
    # What the cluster tells of dead workers is printed, whatever log_to_driver says.
    talk = logging.getLogger("ray")
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: talk.warning(
        "%s: %s", data["pid"], "\n".join(data["lines"])
    )


class Worker:
    """One actor: some stages, as many rows at a time as they like."""

    def __init__(self, stages: list[Stage], memory_gib: float) -> None:
        self._stages = stages
        self._child: Isolated | None = None
        if stages[0].needs.isolated:
            work = StageSequence(stages)
            self._child = Isolated(work.run, work.setup, memory_gib=memory_gib)
        else:
            for stage in stages:
                stage.setup()

    def run(self, rows: list[Row]) -> list[Row]:
        for number in range(len(self._stages)):
            whole = [at for at, row in enumerate(rows) if row.get("error") is None]
            started = time.monotonic()
            done = self._together(number, [rows[at] for at in whole])
            each_s = (time.monotonic() - started) / max(1, len(whole))
            for at, row in zip(whole, done, strict=True):
                isolated = self._child is not None
                rows[at] = row if isolated else took(row, self._stages[number], each_s)
        return rows

    def _together(self, number: int, rows: list[Row]) -> list[Row]:
        """The stage on all rows at once; where one of them fails, on each for itself."""
        if len(rows) > 1:
            try:
                return self._stages[number].process(rows)
            except (OutputError, NotStarted, Unavailable):
                raise
            except Exception:
                logging.getLogger(__name__).warning(
                    "%s failed on %d rows at once; each is tried alone",
                    type(self._stages[number]).__name__,
                    len(rows),
                    exc_info=True,
                )
        return [self._alone(number, row) for row in rows]

    def _alone(self, number: int, row: Row) -> Row:
        stage = self._stages[number]
        with _its_own_trouble(row, stage):
            if self._child is not None:
                row = self._child.twice(number, row, timeout_s=stage.row_timeout_s(row))
            else:
                [row] = stage.process([row])
        return row


class AsyncWorker:
    """One actor: some stages with many rows under way at once, which wait for others' answers."""

    def __init__(self, stages: list[Stage], memory_gib: float) -> None:
        self._stages = stages
        for stage in stages:
            stage.setup()

    async def run(self, rows: list[Row]) -> list[Row]:
        return [await self._whole_way(row) for row in rows]

    @ray.method(concurrency_group="notes")  # a thread of its own: no row keeps it from answering
    async def note(self) -> str | None:
        return next(filter(None, (stage.wait_reason() for stage in self._stages)), None)

    async def _whole_way(self, row: Row) -> Row:
        for stage in self._stages:
            if row.get("error") is not None:
                break
            with _its_own_trouble(row, stage):
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
def _its_own_trouble(row: Row, stage: Stage) -> Iterator[None]:
    """An error becomes the row's: it must never cost another one. What stops the run goes on."""
    try:
        yield
    except BadVideo as e:
        row["error"] = str(e)
    except (OutputError, NotStarted, Unavailable):
        raise
    except Exception as e:
        row["error"] = f"{type(stage).__name__}: {type(e).__name__}: {e}"


@dataclass
class _Job:
    row: Row
    deaths: int = 0  # workers that died with it; after the first it gets a worker of its own


@dataclass
class _Slot:
    """A place for one worker. Rows go to workers that have started, never to one that waits for a
    CPU: with a node gone it might wait for ever, and the rows with it."""

    actor: Any = None
    started: bool = False
    load: int = 0
    since_s: float = 0.0  # when the actor was made
    note: str | None = None  # what it waits for, as it said last
    asked: Any = None  # the call that asks again
    asked_s: float = 0.0

    def ask(self) -> str | None:
        """The newest note that has come; never waits for one."""
        if self.asked is not None and ray.wait([self.asked], timeout=0)[0]:
            with suppress(RayError):  # that it died, its rows' calls tell
                self.note = ray.get(self.asked)
            self.asked = None
        if self.asked is None and time.monotonic() - self.asked_s > ASK_S:
            self.asked, self.asked_s = self.actor.note.remote(), time.monotonic()
        return self.note


@dataclass
class _Pool:
    """The workers of one group of stages."""

    stages: list[Stage]
    cluster: Cluster
    cpu_share: float  # of a worker's CPUs that Ray reserves for it
    queue: deque[_Job] = field(default_factory=deque)
    flying: dict[Any, tuple[_Slot, Any, list[_Job]]] = field(default_factory=dict)  # by call
    starting: dict[Any, tuple[_Slot, Any]] = field(default_factory=dict)  # by call; its worker
    fatal: int = 0  # deaths since the last result
    _slots: list[_Slot] = field(default_factory=list)
    _looked_s: float = -LOOK_FOR_NODES_S

    @property
    def room(self) -> int:
        """Calls that one worker may have."""
        return (self.stages[0].needs.max_concurrency or 1) + WAITING

    def feed(self) -> bool:
        """Gives the next rows to the least loaded worker with room; False where there is none."""
        alone = self.queue[0].deaths > 0
        free = [s for s in self._slots if s.started and s.load < (1 if alone else self.room)]
        slot = min(free, key=lambda s: s.load, default=None)
        if slot is None or slot.load:
            self._start_worker()
        if slot is None:
            return False
        jobs = [self.queue.popleft()]
        while len(jobs) < self.stages[0].needs.batch_size and not alone:
            if not self.queue or self.queue[0].deaths:
                break
            jobs.append(self.queue.popleft())
        slot.load += self.room if alone else 1
        self.flying[slot.actor.run.remote([job.row for job in jobs])] = (slot, slot.actor, jobs)
        return True

    def _start_worker(self) -> None:
        """One more, where the cluster has room and rows wait for it. The pool grows with it."""
        if time.monotonic() - self._looked_s > LOOK_FOR_NODES_S:
            self._looked_s = time.monotonic()
            more = self.size() - len(self._slots)
            self._slots += [_Slot() for _ in range(more)]
        empty = next((s for s in self._slots if s.actor is None), None)
        if empty is None or len(self.starting) >= len(self.queue):
            return
        need = self.stages[0].needs
        if need.max_concurrency is None:
            kind: Any = ray.remote(Worker)
        else:
            remote: Any = ray.remote  # its types don't know of groups
            kind = remote(concurrency_groups={"notes": 1})(AsyncWorker)
        actor = kind.options(
            num_cpus=need.cpus * self.cpu_share,
            num_gpus=need.gpus,
            max_concurrency=need.max_concurrency or 1,
        )
        empty.actor = actor.remote(self.stages, self.cluster.memory_gib)
        empty.since_s, empty.note, empty.asked = time.monotonic(), None, None
        self.starting[empty.actor.__ray_ready__.remote()] = (empty, empty.actor)

    def size(self) -> int:
        """Workers that the cluster has room for. Raises RunError where there is none for one."""
        have, need = ray.cluster_resources(), self.stages[0].needs
        cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
        size = int(gpus / need.gpus) if need.gpus else int(cpus / need.cpus)
        if size < 1 and not self._slots:
            raise RunError(
                f"{type(self.stages[0]).__name__} needs {need.cpus:g} CPUs and {need.gpus:g} GPUs a"
                f" worker; the cluster has {cpus:g} and {gpus:g}\n  fix: add such a node, or let "
                "the stage do without (gpus=0 in its settings: the CPU)"
            )
        size = min(size, need.max_workers or size)
        return size if need.gpus else min(size, self.cluster.workers or size)

    def waits(self) -> list[Any]:
        return [*self.flying, *self.starting]

    def note(self) -> str | None:
        """What its workers wait for: the first that says so speaks for all."""
        started = [slot for slot in self._slots if slot.started]
        if self.starting and not started:
            since_s = min(slot.since_s for slot, _ in self.starting.values())
            took_s = time.monotonic() - since_s
            said = (
                f"the first worker of {type(self.stages[0]).__name__} has been starting for "
                f"{duration(took_s)}: it loads what it needs, or waits for a free CPU or GPU"
            )
            return said if took_s > SLOW_START_S else None
        if self.stages[0].needs.max_concurrency is None:
            return None
        return next(filter(None, [slot.ask() for slot in started if slot.load]), None)

    def result(self, call: Any) -> list[Row]:
        """The rows that came back; none where a worker has started, or died: they go once more.

        Raises OutputError, RunError.
        """
        if call in self.starting:
            slot, actor = self.starting.pop(call)
            try:
                ray.get(call)
                slot.started = slot.actor is actor
            except LOST as e:
                self._bury(slot, actor, e)
            return []
        slot, actor, jobs = self.flying.pop(call)
        slot.load -= self.room if jobs[0].deaths else 1
        try:
            rows = ray.get(call)
        except RayTaskError as e:
            if isinstance(e.cause, OutputError):
                raise OutputError(str(e.cause)) from None
            if isinstance(e.cause, NotStarted | Unavailable):
                raise RunError(f"{type(self.stages[0]).__name__}: {e.cause}") from None
            raise
        except LOST as e:
            self._bury(slot, actor, e)
            for job in jobs:
                job.deaths += 1
            if jobs[0].deaths > 1:  # it was alone with its worker: the row is what kills
                jobs[0].row["error"] = "it killed its worker twice"
                return [jobs[0].row]
            self.queue.extendleft(reversed(jobs))
            return []
        self.fatal = 0
        return rows

    def _bury(self, slot: _Slot, actor: Any, error: Exception) -> None:
        """The slot gets another worker when one is needed. Each call of a dead one tells of it."""
        if slot.actor is not actor:
            return
        ray.kill(actor)  # it may live on, out of reach
        slot.actor, slot.started = None, False
        self.fatal += 1
        if self.fatal > DEATHS * len(self._slots):
            name = type(self.stages[0]).__name__
            raise RunError(f"every worker of {name} dies; see the logs: {error}")

    def release(self) -> None:
        """Ends the idle workers: the CPUs that they hold may be those that another waits for."""
        for slot in self._slots:
            if slot.started and not slot.load:
                ray.kill(slot.actor)
                slot.actor, slot.started = None, False

    def close(self) -> None:
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)


def _feed(pools: list[_Pool], source: Iterator[Row]) -> bool:
    """Gives every free worker a row, later groups first; False when all is done."""
    for number, pool in reversed(list(enumerate(pools))):
        waiting = len(pools[number + 1].queue) if number + 1 < len(pools) else 0
        while waiting < QUEUE_ROWS:
            if not pool.queue and number == 0:
                pool.queue += map(_Job, islice(source, pool.stages[0].needs.batch_size))
            if not pool.queue:
                break
            if not pool.feed():
                break
    return any(pool.waits() for pool in pools)


def _collect(pools: list[_Pool], note: Callable[[str | None], None]) -> Iterator[Row]:
    """Waits for at least one result; hands rows on to the next group, or out."""
    if not any(pool.flying for pool in pools):
        # All wait for workers to start. With a node gone, one group's may hold all that is left.
        for pool in pools:
            pool.release()
    owner = {call: number for number, pool in enumerate(pools) for call in pool.waits()}
    while True:
        note(next(filter(None, [pool.note() for pool in pools]), None))
        if ray.wait(list(owner), num_returns=1, timeout=ASK_S)[0]:
            break
    ready, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
    for call in ready:
        number = owner[call]
        for row in pools[number].result(call):
            if row.get("error") is None and number + 1 < len(pools):
                pools[number + 1].queue.append(_Job(row))
            else:
                yield row
