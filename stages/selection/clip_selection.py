"""Which clips enter the dataset by their scores, and in which split: one row per clip, no decode.

Captions are not read: caption_rules.py then rejects kept clips whose captions fail a check or rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.partitions import as_bytes
from curation.policy import Policy, decide_table
from curation.records import CAPTION_SCORES
from stages.selection.clip_fingerprints import FingerprintFile, read_fingerprints
from stages.selection.near_duplicates import connected_components, find_duplicates
from stages.selection.selection_table import OUTSIDE, append_reasons, selection_table
from stages.selection.semantic_duplicates import find_semantic_duplicates

RANK_COLUMNS = ("clip_id", "width", "height", "duration_s", "sharpness", "packet_bytes")


def selected_columns(policy: Policy) -> list[str]:
    """The columns of a clip that ClipSelector reads."""
    needed = [*RANK_COLUMNS, "sha256", "fingerprint", "null_reasons", *policy]
    return list(dict.fromkeys(name for name in needed if name not in CAPTION_SCORES))


class ClipSelector:
    """Selects clips that come table by table, twice: `add` each, `decide`, then ask for `rows`.

    The tables hold the clips in order of clip_id. Per clip that passes the policy about 70 bytes
    stay in memory; fingerprints go to a scratch file.
    """

    def __init__(
        self,
        policy: Policy,
        sources: np.ndarray,
        *,
        semantic_similarity: float | None = None,
        seed: int = 0,
        validation_share: float = 0.05,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        """sources: the sorted distinct `sha256` of all clips, (n,) bytes. The others are those of
        `select_clips`."""
        self._flags = flags or {}
        self._policy = policy.without(CAPTION_SCORES)
        self._sources = sources
        self._similarity = semantic_similarity
        self._seed, self._validation_share = seed, validation_share
        self._fingerprints = FingerprintFile()
        self._count = 0  # of the clips added
        # of each table's clips that pass the policy: columns of numbers and ids
        self._added: list[dict[str, np.ndarray]] = []
        # of all clips that pass the policy, in order of clip_id: what `decide` found
        self._found: dict[str, np.ndarray] = {}

    def add(
        self,
        clips: pa.Table,
        inside: pa.ChunkedArray | None = None,
        embeddings: np.ndarray | None = None,
    ) -> None:
        """Decides the clips by the policy. inside: as `select_clips`. embeddings: (n, D),
        with the same D of all tables."""
        reasons = self._policy_reasons(clips, inside)
        passed = np.flatnonzero(pc.list_value_length(reasons).to_numpy() == 0)
        passing = clips.select([*RANK_COLUMNS, "sha256"]).take(pa.array(passed))
        number = (self._count + passed).astype(np.uint32)
        source = self._source(passing)
        self._added.append({"number": number, "source": source, **_rank_columns(passing)})
        if embeddings is not None:
            self._added[-1]["embedding"] = embeddings[passed]
        self._fingerprints.append(
            read_fingerprints(clips["fingerprint"].cast(pa.large_binary()).take(pa.array(passed)))
        )
        self._count += clips.num_rows

    def decide(self) -> None:
        """Finds the duplicates among all clips, and the split of their sources."""
        assert self._added, "no table was added"
        names = list(self._added[0])
        of = {name: np.concatenate([a.pop(name) for a in self._added]) for name in names}
        source = of["source"]
        rank_of = _QualityRanks(of)
        duplicate_of, edges = find_duplicates(self._fingerprints.read(), source, rank_of)
        kept = duplicate_of < 0
        semantic = np.full(len(source) if self._similarity is not None else 0, -1, np.int32)
        if self._similarity is not None:
            vectors = of["embedding"]
            kept &= ~np.isnan(vectors[:, 0])
            rows = np.flatnonzero(kept)
            found, links = find_semantic_duplicates(vectors[rows], rank_of(rows), self._similarity)
            semantic[rows[found >= 0]] = rows[found[found >= 0]]
            edges = np.concatenate([edges, rows[links]])
            kept &= semantic < 0
        held_out = _sources_for_validation(
            self._sources, source, edges, kept, self._seed, self._validation_share
        )
        self._found = {"passed": of["number"], "clip_id": of["clip_id"], "kept": kept}
        self._found |= {"duplicate_of": duplicate_of, "semantic_duplicate_of": semantic}
        self._found["held_out"] = held_out[source]

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """Of the kept clips: `number` among all clips, `clip_id` (bytes), `held_out` (bool)."""
        kept = self._found["kept"]
        of = {"number": "passed", "clip_id": "clip_id", "held_out": "held_out"}
        return {name: self._found[column][kept] for name, column in of.items()}

    def rows(self, clips: pa.Table, first: int, inside: pa.ChunkedArray | None = None) -> pa.Table:
        """A row of records.SELECTION per clip. first: how many clips the earlier tables have."""
        reasons = self._policy_reasons(clips, inside)
        split = np.full(clips.num_rows, None, object)
        passed = self._found["passed"]
        span = slice(*np.searchsorted(passed, [first, first + clips.num_rows]))
        if span.start < span.stop:
            row = passed[span].astype(np.int64) - first
            of = {name: values[span] for name, values in self._found.items() if len(values)}
            reasons = self._append_duplicates(reasons, row, "duplicate of", of["duplicate_of"])
            if self._similarity is not None:
                semantic = of["semantic_duplicate_of"]
                without = row[~of["kept"] & (of["duplicate_of"] < 0) & (semantic < 0)]
                texts = np.full(len(without), "embeddings not measured")
                reasons = append_reasons(reasons, without, texts)
                reasons = self._append_duplicates(reasons, row, "shows the same as", semantic)
            names = np.where(of["held_out"], "validation", "train")
            split[row[of["kept"]]] = names[of["kept"]]
        ids = clips["clip_id"]
        assert len(pc.unique(ids)) == clips.num_rows, "a clip_id is in the table twice"
        return selection_table(ids, reasons, pa.array(split, pa.string()))

    def _policy_reasons(self, clips: pa.Table, inside: pa.ChunkedArray | None) -> pa.ListArray:
        reasons = decide_table(clips, self._policy)
        if inside is not None:
            outside = np.flatnonzero(pc.invert(pc.fill_null(inside, False)).to_numpy())
            reasons = append_reasons(reasons, outside, np.full(len(outside), OUTSIDE))
        if self._flags:
            ids = pa.array(self._flags, pa.string())
            row = pc.index_in(ids, clips["clip_id"].combine_chunks())
            texts = pa.array(self._flags.values(), pa.string()).filter(row.is_valid())
            texts = texts.to_numpy(zero_copy_only=False)
            reasons = append_reasons(reasons, row.drop_null().to_numpy(), texts)
        return reasons

    def _append_duplicates(
        self, reasons: pa.ListArray, row: np.ndarray, prefix: str, duplicate_of: np.ndarray
    ) -> pa.ListArray:
        found = np.flatnonzero(duplicate_of >= 0)
        ids = self._found["clip_id"][duplicate_of[found]]
        texts = np.array([f"{prefix} {name.decode()}" for name in ids.tolist()], object)
        return append_reasons(reasons, row[found], texts)

    def _source(self, clips: pa.Table) -> np.ndarray:
        return np.searchsorted(self._sources, as_bytes(clips["sha256"])).astype(np.int32)


def select_clips(
    clips: pa.Table,
    policy: Policy,
    *,
    semantic_similarity: float | None = None,
    embeddings: np.ndarray | None = None,
    seed: int = 0,
    validation_share: float = 0.05,
    inside: pa.ChunkedArray | None = None,
    flags: Mapping[str, str] | None = None,
) -> pa.Table:
    """A row of records.SELECTION per clip, in order of clip_id.

    Of near-duplicates among the clips that pass the policy, the best is kept: see `quality_ranks`.
    With `semantic_similarity`, also of the remaining clips whose embeddings have a cosine above it;
    a clip without an embedding is then rejected. The policy's rules about captions are not applied.

    The split is by source: sources that are linked by a pair of duplicates form a group, and about
    `validation_share` of the groups are for validation; where two groups or more have kept clips,
    at least one is on each side.

    clips: records.CLIP with `sha256` of the source (`ledger.flatten_clips`), in any order.
    embeddings: (n, D) `mean_embeddings`, a row per clip as given.  inside: (n,) whether a clip is
    kept as far as select.where is concerned; null counts as false.  flags: clip_id -> the reason
    against it, of clips that a person rejects.
    """
    selector = ClipSelector(
        policy,
        np.unique(as_bytes(clips["sha256"])),
        semantic_similarity=semantic_similarity,
        seed=seed,
        validation_share=validation_share,
        flags=flags,
    )
    order = pc.sort_indices(clips["clip_id"])
    columns = [name for name in selected_columns(policy) if name in clips.column_names]
    large = clips["fingerprint"].cast(pa.large_binary())  # binary's offsets end at 2 GB
    column = clips.column_names.index("fingerprint")
    clips = clips.set_column(column, "fingerprint", large).select(columns).take(order)
    inside = None if inside is None else inside.take(order)
    selector.add(clips, inside, None if embeddings is None else embeddings[order.to_numpy()])
    selector.decide()
    return selector.rows(clips, 0, inside)


def quality_ranks(clips: pa.Table) -> np.ndarray:
    """(n,) rank of each clip among near-duplicates, 0 the best.

    The larger picture is better, then the sharper one, then more bytes per second, then the longer
    clip, then clip_id. Sharpness and bytes are means over the source's clips: so of two copies of a
    video all clips of one are better, and shifted spans of both don't suppress each other in turns.
    """
    _, source = np.unique(as_bytes(clips["sha256"]), return_inverse=True)
    rank_of = _QualityRanks({"source": source, **_rank_columns(clips)})
    return rank_of(np.arange(clips.num_rows))


def _rank_columns(clips: pa.Table) -> dict[str, np.ndarray]:
    """What `_QualityRanks` takes of each clip in addition to its source: RANK_COLUMNS as arrays."""
    seconds = _floats(clips["duration_s"])
    return {
        "clip_id": as_bytes(clips["clip_id"]),
        "area": (_floats(clips["width"]) * _floats(clips["height"])).astype(np.int64),
        "seconds": seconds,
        "sharpness": _floats(clips["sharpness"]).astype(np.float32),
        "rate": _floats(clips["packet_bytes"]) / np.maximum(seconds, 1e-3),
    }


class _QualityRanks:
    """`quality_ranks` of some of the clips; the means are over all clips of their sources."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        """columns: `source`, and those of `_rank_columns`, each (n,)."""
        self._of = columns
        self._sharpness = _means(columns["source"], columns["sharpness"])
        self._rate = _means(columns["source"], columns["rate"])

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        of = {name: self._of[name][clips] for name in ("clip_id", "source", "area", "seconds")}
        means = (-self._rate[of["source"]], -self._sharpness[of["source"]])
        order = np.lexsort((of["clip_id"], -of["seconds"], *means, -of["area"]))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank


def _sources_for_validation(
    sources: np.ndarray,
    source: np.ndarray,
    edges: np.ndarray,
    kept: np.ndarray,
    seed: int,
    share: float,
) -> np.ndarray:
    """(sources,) bool: whether its clips are for validation. Depends on the sources and the seed.

    source, kept: (n,) of each clip.  edges: (P, 2) clips.
    """
    # A group's number is that of its first hash: the hashes are sorted.
    group = connected_components(source[edges], len(sources))
    uniform = np.array([uniform_hash(name.decode(), seed) for name in sources])[group]
    chosen = uniform < share
    has_kept = np.bincount(source[kept], minlength=len(sources)) > 0
    groups = np.unique(uniform[has_kept])
    if share <= 0 or len(groups) < 2:
        return chosen
    if not chosen[has_kept].any():
        return uniform == groups[0]
    return uniform < groups[-1] if chosen[has_kept].all() else chosen


def uniform_hash(name: str, seed: int) -> float:
    """A number in [0, 1) from a name and a seed, the same on any machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.nan_to_num(column.cast(pa.float64()).to_numpy())  # not measured: 0, ranks last


def _means(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(groups,) the mean of each group's values, rounded: a float sum depends on the order of its
    terms."""
    total, count = np.bincount(group, values), np.bincount(group)
    return np.round(total / np.maximum(count, 1), 6)
