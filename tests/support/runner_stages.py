"""Stages for tests of the runner.

Workers import this file alone: pytest and the tests would take half of the time of their start.
"""

import asyncio
import importlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from curation.stage import (
    BadVideo,
    Needs,
    OutputError,
    PlanError,
    Stage,
    TransientError,
    Unavailable,
)


@dataclass
class Double(Stage):
    reads = ("n",)
    writes = ("doubled",)

    def process(self, rows):
        return [row | {"doubled": 2 * row["n"]} for row in rows]


class NotImportable:
    """A value whose module the process that gets it does not have."""

    def __reduce__(self):
        return importlib.import_module, ("only_elsewhere",)


@dataclass
class Unread(Double):
    """Returns what the driver can't read."""

    def process(self, rows):
        return [row | {"doubled": NotImportable()} for row in rows]


@dataclass
class MarkedStart(Double):
    """Each worker leaves a file; rows take half a second."""

    folder: str

    def setup(self, context):
        Path(self.folder, str(os.getpid())).touch()

    def process(self, rows):
        time.sleep(0.5)
        return super().process(rows)


def kill_self(number):
    os.kill(os.getpid(), number)
    time.sleep(5)  # the signal may go to another thread


@dataclass
class TakeMemory(Double):
    """Needs more memory than the control group has, which its first workers join."""

    group: str  # folder of the control group
    marks: str  # folder
    limited: int  # how many workers

    def process(self, rows):
        attempt = len(os.listdir(self.marks))
        Path(self.marks, str(attempt)).touch()
        if attempt < self.limited:
            Path(self.group, "cgroup.procs").write_text(str(os.getpid()))
        taken = b"x" * (300 << 20)
        return super().process(rows) if taken else []


@dataclass
class FailOnRequest(Stage):
    """Fails on a row as its value `failure` requires."""

    reads = ("n",)

    def process(self, rows):
        for row in rows:
            match row.get("failure"):
                case "bad":
                    raise BadVideo("no moov")
                case "bug":
                    raise KeyError("x")
                case "storage":
                    raise TransientError("can't fetch a.mp4")
                case "storage once":
                    if not Path(row["mark"]).exists():
                        Path(row["mark"]).touch()
                        raise TransientError("can't fetch a.mp4")
                case "gpu":
                    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
                case "full":
                    raise OutputError("disk full")
                case "crash":
                    kill_self(signal.SIGSEGV)
                case "hang":
                    time.sleep(60)
                case "crash once":
                    if not Path(row["mark"]).exists():
                        Path(row["mark"]).touch()
                        kill_self(signal.SIGKILL)
        return rows


@dataclass
class Isolated(FailOnRequest):
    needs = Needs(isolated=True)

    def row_timeout_s(self, row):
        return 3.0


@dataclass
class SetupFails(Stage):
    needs = Needs(isolated=True)

    def setup(self, context):
        raise FileNotFoundError("weights.onnx")

    def process(self, rows):
        return rows


class OtherWeights(Double):
    def setup(self, context):
        raise PlanError("other weights on this node than on the first")


@dataclass
class Batched(FailOnRequest):
    """Processes rows in batches, and adds the size of its batch to each row."""

    needs = Needs(batch_size=4)

    def process(self, rows):
        return [row | {"batch": len(rows)} for row in super().process(rows)]


@dataclass
class Concurrent(FailOnRequest):
    """Every row waits until `concurrency` rows are in flight."""

    concurrency: int = 8
    needs = Needs(max_concurrency=8, max_workers=1)

    def setup(self, context):
        self.in_flight, self.all_in_flight = 0, asyncio.Event()

    def row_timeout_s(self, row):
        return 3.0

    async def process_one(self, row):
        self.in_flight += 1
        if self.in_flight >= self.concurrency:
            self.all_in_flight.set()
        await self.all_in_flight.wait()
        if row.get("failure") == "unavailable":
            raise Unavailable("the server is down")
        if row.get("failure") == "hang":
            await asyncio.sleep(60)
        self.process([row])
        return row | {"worker": os.getpid()}


@dataclass
class WaitForFile(Stage):
    """Waits for a file, which the test creates once the wait is reported."""

    path: str = ""
    needs = Needs(max_concurrency=3, max_workers=1)
    waiting = 0

    def wait_reason(self):
        return f"{self.waiting} wait for a file" if self.waiting else None

    async def process_one(self, row):
        self.waiting += 1
        while not Path(self.path).exists():
            await asyncio.sleep(0.01)
        self.waiting -= 1
        return row


@dataclass
class SlowToStart(Double):
    path: str = ""  # `setup` waits for this file

    def setup(self, context):
        while not Path(self.path).exists():
            time.sleep(0.01)


@dataclass
class FailOnEveryVideo(Stage):
    """In place of a stage after the decode pass."""

    reads = ("clips",)
    needs = Needs(cpus=1, isolated=True)

    def process(self, rows):
        raise BadVideo("no text can be found")


class NotPickled(Unavailable):
    """Ray can't send it to the driver."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


@dataclass
class RaiseNotPickled(Stage):
    reads = ("n",)

    def process(self, rows):
        raise NotPickled("the server is gone")
