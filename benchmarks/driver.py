"""The driver of `score`: rows per second, from the listed video to the committed part.

    python -m benchmarks.driver [--rows 40000] [--workers 3200] [--compare OTHER_CHECKOUT]

Ray's calls are replayed in this process: rows are pickled when they are sent, results are unpickled
when they are taken, and READY_CALLS of those in flight have ended whenever the driver asks. So the
numbers are of the driver's own code (sending, taking and counting rows, the ledger with its
compaction); what Ray itself takes is not in them. Two kinds of rows: a video with one clip that a
worker decodes for two seconds, and one that takes 10 ms, as one that its header rules out. Rows
count from the moment when all workers have started.

--compare: the same measurement with the code of another checkout, in turns.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from curation import records
from curation.access_check import AccessCheck
from curation.runner import nodes, pool
from curation.runner.settings import ClusterSettings
from curation.stage import Row, RunContext, Stage
from curation.storage import Folder
from pipelines import score
from pipelines.settings import timed_batches
from pipelines.tables import embeddings_ledger, videos_ledger

READY_CALLS = 64
ROUNDS = 2  # the faster one counts, because other processes disturb a round
KINDS = {"one clip": (2.0, True), "header": (0.01, False)}  # s that a row takes; scores and frames
HASH = "0123456789abcdef" * 4


class ReplayedRay:
    """What the pool uses of Ray, for workers that answer at once."""

    def __init__(self, workers: int, answer: Row) -> None:
        self.workers = workers
        self._answer = pickle.dumps(answer)
        self.started = self.rows = 0  # workers; rows since all of them
        self.since_s = 0.0  # CPU time at that moment

    def remote(self, _: Any) -> ReplayedRay:
        """The class of the actors."""
        return self

    def options(self, **_: Any) -> Any:
        return _Constructor(self)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.workers)}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "1", "Alive": True, "Resources": self.cluster_resources()}]

    def get_runtime_context(self) -> ReplayedRay:
        return self

    def get_node_id(self) -> str:
        return "1"

    def is_initialized(self) -> bool:
        return True

    def kill(self, _: Any) -> None:
        pass

    def wait(self, calls: list[_Call], num_returns: int, timeout: float) -> tuple[Any, Any]:
        most = READY_CALLS if self.started == self.workers else 1
        ran = [call for call in calls if call.rows][: min(most, num_returns)]
        ready = [call for call in calls if not call.rows] + ran
        return ready, []

    def get(self, call: _Call) -> Any:
        if self.started == self.workers:
            self.rows += call.rows
        elif not call.rows:
            self.started += 1
            self.since_s = time.process_time()
        return call.result()

    def run(self, rows: list[Row]) -> _Call:
        done = [row | pickle.loads(self._answer) for row in pickle.loads(pickle.dumps(rows))]
        if self.started < self.workers:  # one row a call: with several, fewer workers would start
            done = [row | {"row_s": 2.0} for row in done]
        return _Call(pickle.dumps(done), len(rows))


class _Call:
    def __init__(self, pickled: bytes, rows: int = 0) -> None:
        self._pickled, self.rows = pickled, rows

    def result(self) -> Any:
        return pickle.loads(self._pickled)


class _Constructor:
    def __init__(self, ray: ReplayedRay) -> None:
        self._ray = ray

    def remote(self, *_: Any) -> _Actor:
        return _Actor(self._ray)


class _Actor:
    def __init__(self, ray: ReplayedRay) -> None:
        self.start = _Method(lambda: _Call(pickle.dumps("1")))
        self.run = _Method(ray.run)


class _Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


def answer_of(kind: str) -> Row:
    """The columns that the workers add to a row of this kind."""
    row_s, has_scores = KINDS[kind]
    row = {c.name: _value(c.type) for c in records.VIDEO if c.name not in ("status", "error")}
    for name in ("video", "bytes", "version"):
        del row[name]
    clip = {c.name: _value(c.type) for c in records.CLIP}
    if has_scores:
        segment = {c.name: _value(c.type) for c in records.SEGMENT}
        sample = {"s": 1.5, "file": f"key_frames/01/{HASH[:24]}-0.jpg", "sha256": HASH}
        clip["segments"] = [segment | {"frame_samples": [sample] * 2}] * 5
        clip["fingerprint"] = bytes(960)
        clip["null_reasons"] = [(name, "no weights") for name in records.SCORE_NAMES[-8:]]
    else:
        clip |= dict.fromkeys((*records.SCORE_NAMES, "segments", "fingerprint", "overlay_mask"))
        clip["null_reasons"] = [(name, "not decoded") for name in records.SCORE_NAMES]
    took_s = {"DecodePass": row_s, "OcrStage": 0.0}
    return row | {"clips": [clip], "weights": [], "error": None, "took_s": took_s, "row_s": row_s}


def _value(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind) or pa.types.is_map(kind):
        return []
    if pa.types.is_boolean(kind):
        return False
    if pa.types.is_string(kind):
        return HASH[:24]
    if pa.types.is_binary(kind):
        return None
    return 1 if pa.types.is_integer(kind) else 1.5


class _NoProgress:
    def update(self, **_: int) -> None:
        pass


def rows_per_s(count: int, workers: int, kind: str) -> float:
    """Rows per second of CPU time."""
    answer = answer_of(kind)
    replayed = ReplayedRay(workers, answer)
    pool.ray, nodes.ray = replayed, replayed  # type: ignore[attr-defined, assignment]
    listed = pa.table(
        {
            "video": [f"/data/videos/part-{i // 1000:05d}/{i:09d}.mp4" for i in range(count)],
            "bytes": [50_000_000] * count,
            "version": ["1700000000.000000000"] * count,
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = Folder(scratch)
        ledger, embeddings = videos_ledger(out), embeddings_ledger(out)
        done = _stream(score.new_rows(listed))
        written = 0
        for batch in timed_batches(score._with_status(done, 1.0, _NoProgress())):  # type: ignore
            score._commit(batch, ledger, embeddings)
            written += len(batch)
            if hasattr(ledger, "compact_if_many"):  # not in older checkouts
                ledger.compact_if_many()
        ledger.compact()
        spent = time.process_time() - replayed.since_s
    if written != count or replayed.rows < count / 3:
        raise RuntimeError(
            f"{written} of {count} rows came back, {replayed.rows} of them after the start of "
            f"{replayed.started} workers; expected more rows"
        )
    return replayed.rows / spent


def _stream(rows: Iterator[Row]) -> Iterator[Row]:
    def ignore(*_: Any) -> None:
        pass

    settings, access = ClusterSettings(), AccessCheck(None)
    return pool.run_stages([Stage()], rows, settings, RunContext(), access, ignore, ignore, ignore)


def measure_in(checkout: str, args: argparse.Namespace, kind: str) -> float:
    """The measurement with the code of a checkout, in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), "--kind", kind]
    command += ["--rows", str(args.rows), "--workers", str(args.workers)]
    env = os.environ | {"PYTHONPATH": checkout}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.load(io.StringIO(done.stdout.splitlines()[-1]))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=40_000)
    options.add_argument("--workers", type=int, default=3200)
    options.add_argument("--compare", metavar="CHECKOUT")
    options.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.kind:
        print(json.dumps(rows_per_s(args.rows, args.workers, args.kind)))
        return
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    checkouts = {"this one": here} | ({"other": args.compare} if args.compare else {})
    for kind in KINDS:
        found: dict[str, list[float]] = {name: [] for name in checkouts}
        for _ in range(ROUNDS):
            for name, path in checkouts.items():
                found[name].append(measure_in(path, args, kind))
        rates = ", ".join(f"{name} {max(rates):.0f}" for name, rates in found.items())
        print(f"{kind}: rows per CPU-s with {args.workers} workers: {rates}", flush=True)


if __name__ == "__main__":
    main()
