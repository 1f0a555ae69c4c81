"""Models: the scores that need weights, from the images that the decode pass stored.

One stage runs all scorers, so that each image is read once. While the device scores some clips,
threads read the images of the next. A call takes several videos, so that short ones fill a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from curation import config
from curation.records import FAILED_PREFILTER
from curation.stage import Needs, PlanError, Row, RunContext, Stage
from curation.storage import Folder
from curation.video_files import compute_sha256
from stages.scorers.clip import ClipScorer
from stages.scorers.lpips import LpipsScorer
from stages.scorers.raft import RaftScorer
from stages.scorers.scorer import ClipImages, Scorer, find_weight_files

VIDEOS_PER_CALL = 32
CLIPS_PER_BATCH = 64  # the images of the next batch are read at the same time
MAX_READER_THREADS = 8


@dataclass
class Models(Stage):
    """Scores every clip above the prefilter with the scorers that have weights."""

    gpus: Annotated[float, Ge(0), Le(1)] = 0.25  # share of a GPU that a worker takes; 0: the CPU
    clip: ClipScorer = field(default_factory=ClipScorer)
    lpips: LpipsScorer = field(default_factory=LpipsScorer)
    raft: RaftScorer = field(default_factory=RaftScorer)

    reads = ("clips",)
    writes = ("weights", "embeddings")

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, gpus=self.gpus, batch_size=VIDEOS_PER_CALL)

    def enabled_scorers(self) -> dict[str, Scorer]:
        """Name -> scorer, of the fields that hold a scorer with weights."""
        scorers = config.fields_of(self, Scorer)
        return {name: scorer for name, scorer in scorers.items() if scorer.weights is not None}

    def find_versions(self) -> dict[str, str]:
        """Scorer -> version of its weights. Raises PlanError, with how to get each missing file."""
        versions, missing = {}, []
        for name, scorer in self.enabled_scorers().items():
            try:
                versions[name] = weights_version(find_weight_files(scorer, name))
            except PlanError as error:
                missing.append(str(error))
        if missing:
            raise PlanError("\n".join(missing))
        return versions

    def missing_scorers(self, row: Row, versions: Mapping[str, str]) -> list[str]:
        """Names of the scorers that have not scored this video's clips with these weights."""
        known = dict(row.get("weights") or {})
        return [
            name
            for name, scorer in self.enabled_scorers().items()
            if any(known.get(column) != versions[name] for column in scorer.writes)
        ]

    def setup(self, context: RunContext) -> None:
        self._ledger, self._versions = Folder(context.ledger_url), dict(context.weights)
        device = "cuda" if self.gpus else "cpu"
        self._scorers = self.enabled_scorers()
        for name, scorer in self._scorers.items():
            paths = find_weight_files(scorer, name)
            if weights_version(paths) != self._versions[name]:
                raise PlanError(
                    f"score.models.{name}: other weights on this node than on the first\n"
                    "  fix: copy the same files to every node"
                )
            scorer.setup(paths, device)
        self._readers = ThreadPoolExecutor(min(MAX_READER_THREADS, len(os.sched_getaffinity(0))))

    def process(self, rows: list[Row]) -> list[Row]:
        done = [row | {"clips": [dict(c) for c in row["clips"]], "embeddings": []} for row in rows]
        work = [
            (row, clip, self.missing_scorers(row, self._versions))
            for row in done
            for clip in row["clips"]
        ]
        for _, clip, names in work:
            if clip["prefilter"] is not None and clip["num_frames"] is not None:
                for name in names:
                    self._set_null(clip, name, FAILED_PREFILTER + clip["prefilter"])
        work = [item for item in work if item[1]["prefilter"] is None]
        for items, inputs in self._prepare_batches(work):
            for name, scorer in self._scorers.items():
                self._score(name, scorer, items, [i.get(name) for i in inputs])
        for row in done:
            row["weights"] = dict(row.get("weights") or {}) | {
                column: self._versions[name]
                for name, scorer in self._scorers.items()
                for column in scorer.writes
            }
        return done

    def _prepare_batches(self, work: list[Any]) -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
        """Yields batches of clips with the scorers' inputs; threads prepare the next batch."""
        starts = range(0, len(work), CLIPS_PER_BATCH)
        batches = [work[start : start + CLIPS_PER_BATCH] for start in starts]
        upcoming = self._submit(batches[0]) if batches else []
        for number, items in enumerate(batches):
            current = upcoming
            upcoming = self._submit(batches[number + 1]) if number + 1 < len(batches) else []
            yield items, [future.result() for future in current]

    def _submit(self, items: list[Any]) -> list[Future[dict[str, Any]]]:
        return [self._readers.submit(self._prepare, clip, names) for _, clip, names in items]

    def _prepare(self, clip: Row, names: list[str]) -> dict[str, Any]:
        """Name of a scorer -> its input, or the ValueError that it has none."""
        images = ClipImages(clip, self._ledger.read)
        inputs: dict[str, Any] = {}
        for name in names:
            try:
                inputs[name] = self._scorers[name].prepare(images)
            except ValueError as error:  # makes these scores null
                inputs[name] = error
        return inputs

    def _score(self, name: str, scorer: Scorer, items: list[Any], inputs: list[Any]) -> None:
        prepared = []
        for (row, clip, names), clip_input in zip(items, inputs, strict=True):
            if isinstance(clip_input, ValueError):
                self._set_null(clip, name, str(clip_input))
            elif name in names:
                prepared.append((row, clip, clip_input))
        scored = scorer.score([clip_input for *_, clip_input in prepared]) if prepared else []
        for (row, clip, _), scores in zip(prepared, scored, strict=True):
            embeddings = scores.pop("embeddings", None)
            if embeddings is not None:
                source = {"clip_id": clip["clip_id"], "model": self._versions[name]}
                row["embeddings"].append(source | {"key_frames": list(embeddings)})
            self._set_null(clip, name, "not measurable")
            clip |= scores
            known = {column for column, value in scores.items() if value is not None}
            clip["null_reasons"] = {k: v for k, v in clip["null_reasons"].items() if k not in known}

    def _set_null(self, clip: Row, name: str, reason: str) -> None:
        columns = self._scorers[name].writes
        clip |= dict.fromkeys(columns)
        clip["null_reasons"] = dict(clip.get("null_reasons") or {}) | dict.fromkeys(columns, reason)


def weights_version(paths: Mapping[str, Path]) -> str:
    """Identifies the weights of a scorer: the first digits of each file's SHA-256."""
    return "-".join(_short_hash(path) for path in paths.values())


@cache
def _short_hash(path: Path) -> str:
    return compute_sha256(path)[:12]
