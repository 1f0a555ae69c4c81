"""Models: the scores that need weights, from the pictures that the decode pass has stored.

One stage for all of them: a picture is read once, whoever looks at it. While the device scores some
clips, threads read the next. Rows come in lists, so that short videos fill a batch too.
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
from curation.stage import Needs, OutputError, PlanError, Row, RunContext, Stage
from curation.storage import Folder, compute_sha256
from stages.scorers.clip import Clip
from stages.scorers.lpips import Lpips
from stages.scorers.raft import Raft
from stages.scorers.scorer import Scorer, Seen, find_files

ROWS = 32  # videos in one call
CLIPS = 64  # scored together; the next as many are read meanwhile
READERS = 8  # threads at most


@dataclass
class Models(Stage):
    """Scores every clip above the prefilter with the scorers that have weights."""

    gpus: Annotated[float, Ge(0), Le(1)] = 0.25  # share of a GPU that a worker takes; 0: the CPU
    clip: Clip = field(default_factory=Clip)  # aesthetics, richness, coherence, embeddings
    lpips: Lpips = field(default_factory=Lpips)
    raft: Raft = field(default_factory=Raft)

    reads = ("clips",)
    writes = ("weights", "embeddings")

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, gpus=self.gpus, batch_size=ROWS)

    def on(self) -> dict[str, Scorer]:
        """The scorers that have weights, by name. Every field that holds a Scorer is one."""
        scorers = config.fields_of(self, Scorer)
        return {name: scorer for name, scorer in scorers.items() if scorer.weights is not None}

    def find_versions(self) -> dict[str, str]:
        """Scorer -> version of its weights. Raises PlanError, with how to get each missing file."""
        versions, missing = {}, []
        for name, scorer in self.on().items():
            try:
                files = find_files(scorer, name).values()
                versions[name] = "-".join(version(path) for path in files)
            except PlanError as error:
                missing.append(str(error))
        if missing:
            raise PlanError("\n".join(missing))
        return versions

    def missing_scorers(self, row: Row, versions: Mapping[str, str]) -> list[str]:
        """The scorers that have not scored this video's clips, or not with these weights."""
        known = dict(row.get("weights") or {})
        return [
            name
            for name, scorer in self.on().items()
            if any(known.get(column) != versions[name] for column in scorer.writes)
        ]

    def setup(self, context: RunContext) -> None:
        self._ledger, self._versions = Folder(context.ledger_url), dict(context.weights)
        device = "cuda" if self.gpus else "cpu"
        self._scorers = self.on()
        for name, scorer in self._scorers.items():
            paths = find_files(scorer, name)
            found = "-".join(version(path) for path in paths.values())
            if found != self._versions[name]:
                raise PlanError(
                    f"score.models.{name}: other weights on this node than on the first"
                )
            scorer.setup(paths, device)
        self._readers = ThreadPoolExecutor(min(READERS, len(os.sched_getaffinity(0))))

    def process(self, rows: list[Row]) -> list[Row]:
        done = [row | {"clips": [dict(c) for c in row["clips"]], "embeddings": []} for row in rows]
        work = [
            (row, clip, self.missing_scorers(row, self._versions))
            for row in done
            for clip in row["clips"]
        ]
        for _, clip, names in work:
            if clip["prefilter"] is not None:
                for name in names:
                    self._without(clip, name, f"failed the prefilter: {clip['prefilter']}")
        work = [item for item in work if item[1]["prefilter"] is None]
        for items, inputs in self._prepared(work):
            for name, scorer in self._scorers.items():
                self._score(name, scorer, items, [i.get(name) for i in inputs])
        for row in done:
            row["weights"] = dict(row.get("weights") or {}) | {
                column: self._versions[name]
                for name, scorer in self._scorers.items()
                for column in scorer.writes
            }
        return done

    def _prepared(self, work: list[Any]) -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
        """Some clips at a time with their scorers' inputs; threads make the next ones ready."""
        chunks = [work[at : at + CLIPS] for at in range(0, len(work), CLIPS)]
        ahead = self._start(chunks[0]) if chunks else []
        for number, items in enumerate(chunks):
            ready = ahead
            ahead = self._start(chunks[number + 1]) if number + 1 < len(chunks) else []
            yield items, [future.result() for future in ready]

    def _start(self, items: list[Any]) -> list[Future[dict[str, Any]]]:
        return [self._readers.submit(self._prepare, clip, names) for _, clip, names in items]

    def _prepare(self, clip: Row, names: list[str]) -> dict[str, Any]:
        """The input of each scorer, or the Exception why there is none."""
        seen = Seen(clip, self._ledger.read)
        inputs: dict[str, Any] = {}
        for name in names:
            try:
                inputs[name] = self._scorers[name].prepare(seen)
            except OutputError:
                raise
            except Exception as error:  # a picture that can't be read costs this score alone
                inputs[name] = error
        return inputs

    def _score(self, name: str, scorer: Scorer, items: list[Any], inputs: list[Any]) -> None:
        good = []
        for (row, clip, names), given in zip(items, inputs, strict=True):
            if isinstance(given, Exception):
                self._without(clip, name, f"{type(given).__name__}: {given}")
            elif name in names:
                good.append((row, clip, given))
        scored = scorer.score([given for *_, given in good]) if good else []
        for (row, clip, _), scores in zip(good, scored, strict=True):
            found = scores.pop("embeddings", None)
            if found is not None:
                made = {"clip_id": clip["clip_id"], "model": self._versions[name]}
                row["embeddings"].append(made | {"key_frames": list(found)})
            self._without(clip, name, "not measurable")
            clip |= scores
            known = {column for column, value in scores.items() if value is not None}
            clip["null_reasons"] = {k: v for k, v in clip["null_reasons"].items() if k not in known}

    def _without(self, clip: Row, name: str, cause: str) -> None:
        columns = self._scorers[name].writes
        clip |= dict.fromkeys(columns)
        clip["null_reasons"] = dict(clip.get("null_reasons") or {}) | dict.fromkeys(columns, cause)


@cache
def version(path: Path) -> str:
    """What tells these weights from others: the first digits of the file's SHA-256."""
    return compute_sha256(path)[:12]
