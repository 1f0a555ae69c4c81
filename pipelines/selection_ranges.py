"""The selection of all clips of an output, range by range of their clip_ids.

Only one range of clips is in memory at a time. The selection of a clip may depend on all others:
duplicates, the split, select.limit and equal captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.partitions import Partitions, as_bytes
from curation.storage import Folder
from pipelines.reviews import flag_reasons, read_reviews, stream_captions
from pipelines.settings import SelectSettings, Settings
from pipelines.subset import (
    CAPTION_COLUMNS,
    EMBEDDINGS,
    inside_where,
    reads_captions,
    where_columns,
    with_captions,
)
from pipelines.tables import (
    clip_partitions,
    clip_schema,
    read_embeddings,
    rows_of,
    stream_clips,
    videos_of_input,
)
from stages.selection.caption_rules import CaptionCounts, apply_caption_rules
from stages.selection.clip_selection import ClipSelector, selected_columns
from stages.selection.selection_table import OUTSIDE_BY_CAPTION, OVER_LIMIT, reject_clips
from stages.selection.subset import clips_over_limit, column_groups, embedding_groups

# the columns of captions that the selection depends on
CAPTION_SCHEMA = pa.schema(
    [
        field
        for field in records.schema(records.CAPTION)
        if field.name in ("clip_id", "error", "rejected", *CAPTION_COLUMNS)
    ]
)


@dataclass(frozen=True)
class SelectedRange:
    """The selection of the clips of one range of clip_ids, in order, and what it depends on."""

    clips: pa.Table  # `selected_columns` of the policy without the fingerprint, and those of where
    selection: pa.Table  # records.SELECTION
    captions: pa.Table  # CAPTION_SCHEMA: of these clips, and of others whose ids are in the range


class _Ranges:
    """The clips and captions of an output, range by range."""

    def __init__(self, settings: Settings, out: Folder, partitions: Partitions) -> None:
        chosen = settings.select
        where = where_columns(chosen)
        balanced = [] if chosen.balance in (None, EMBEDDINGS) else [chosen.balance]
        names = [*selected_columns(chosen.policy), *where, *balanced]
        self.columns = [n for n in dict.fromkeys(names) if n != "fingerprint"]
        self._partitions = partitions
        partitions.write(
            stream_clips(out, [*self.columns, "fingerprint"]),
            {"clips": self.columns, "fingerprints": ["clip_id", "fingerprint"]},
        )
        captions = stream_captions(out, settings.caption.set_name)
        partitions.write(captions, {"captions": CAPTION_SCHEMA.names})

    def __iter__(self) -> Iterator[tuple[int, pa.Table, pa.Table]]:
        """Yields, for each range, how many clips come before it, its clips and its captions."""
        first = 0
        for number in range(len(self._partitions)):
            clips = self._partitions.read("clips", number, clip_schema(self.columns))
            captions = self._partitions.read("captions", number, CAPTION_SCHEMA)
            yield first, clips, captions
            first += clips.num_rows

    def fingerprints(self) -> Iterator[pa.ChunkedArray]:
        schema = clip_schema(["clip_id", "fingerprint"])
        for number in range(len(self._partitions)):
            yield self._partitions.read("fingerprints", number, schema)["fingerprint"]


def stream_selection(settings: Settings, out: Folder) -> Iterator[SelectedRange]:
    """The selection of all clips, range by range in order of clip_id.

    select.limit counts before captions are written: a drawn clip that a rule on captions rejects is
    not replaced. Where select.where reads captions, it counts once every kept clip has some.
    """
    with clip_partitions(out) as partitions:
        yield from _RangeSelector(settings, out, _Ranges(settings, out, partitions))


class _RangeSelector:
    """Selects the clips range by range, after it has read all of them once."""

    def __init__(self, settings: Settings, out: Folder, ranges: _Ranges) -> None:
        chosen = settings.select
        self._chosen, self._ranges = chosen, ranges
        self._where_reads_captions = chosen.where is not None and reads_captions(chosen.where)
        # per range (n,) bool; empty without a condition, and where the condition reads captions
        self._inside: list[np.ndarray] = []
        if not self._where_reads_captions:
            self._inside = inside_where(chosen, (clips for _, clips, _ in ranges))
        self._selector = ClipSelector(
            chosen.policy,
            np.unique(as_bytes(videos_of_input(out)["sha256"])),
            semantic_similarity=chosen.semantic_similarity,
            seed=chosen.seed,
            validation_share=chosen.validation_share,
            flags=flag_reasons(read_reviews(out)) if chosen.reject_flagged else None,
        )
        group = self._add_all(self._read_embeddings(out))
        self._selector.decide()
        self._over_limit = np.empty(0, np.int64)  # numbers of clips, ascending
        if chosen.limit is not None and not self._where_reads_captions:
            self._over_limit = _over_limit(chosen, group, **self._selector.kept)
        self._counts = self._count_captions()
        if chosen.limit is not None and self._where_reads_captions:
            self._over_limit = _over_limit_by_caption(chosen, group, ranges, self._by_captions)

    def __iter__(self) -> Iterator[SelectedRange]:
        for number, (first, clips, captions) in enumerate(self._ranges):
            selection = self._by_captions(number, first, clips, captions)
            if self._where_reads_captions:
                selection = _reject(selection, self._over_limit, first, OVER_LIMIT)
            yield SelectedRange(clips, selection, captions)

    def _read_embeddings(self, out: Folder) -> np.ndarray | None:
        """(n, D) `mean_embeddings` of all clips; None where no setting needs them."""
        if self._chosen.semantic_similarity is None and self._chosen.balance != EMBEDDINGS:
            return None
        ids = [chunk for _, clips, _ in self._ranges for chunk in clips["clip_id"].chunks]
        return read_embeddings(out, pa.chunked_array(ids, pa.string()))

    def _add_all(self, embeddings: np.ndarray | None) -> np.ndarray | None:
        """Adds all clips to the selector. Returns the `_groups` of select.balance."""
        balanced: list[pa.ChunkedArray] = []
        for number, ((first, clips, _), codes) in enumerate(
            zip(self._ranges, self._ranges.fingerprints(), strict=True)
        ):
            self._selector.add(
                clips.append_column("fingerprint", codes),
                self._inside_of(number),
                None if embeddings is None else embeddings[first : first + clips.num_rows],
            )
            if self._chosen.balance not in (None, EMBEDDINGS):
                balanced.append(clips[self._chosen.balance])
        return _groups(self._chosen, balanced, embeddings)

    def _count_captions(self) -> CaptionCounts | None:
        if self._chosen.max_equal_captions is None:
            return None
        counts = CaptionCounts()
        for number, (first, clips, captions) in enumerate(self._ranges):
            if captions.num_rows:
                counts.add(self._by_clips(number, first, clips), captions)
        return counts

    def _inside_of(self, number: int) -> np.ndarray | None:
        return self._inside[number] if self._inside else None

    def _by_clips(self, number: int, first: int, clips: pa.Table) -> pa.Table:
        """The selection of a range by all but captions."""
        selection = self._selector.rows(clips, first, self._inside_of(number))
        if self._where_reads_captions:  # the limit then counts after the captions
            return selection
        return _reject(selection, self._over_limit, first, OVER_LIMIT)

    def _by_captions(
        self, number: int, first: int, clips: pa.Table, captions: pa.Table
    ) -> pa.Table:
        """The selection of a range by clips and captions; without the limit if it counts after the
        captions."""
        chosen = self._chosen
        selection = apply_caption_rules(
            self._by_clips(number, first, clips),
            captions,
            chosen.policy,
            chosen.max_equal_captions,
            self._counts,
        )
        if not self._where_reads_captions:
            return selection
        captioned = rows_of(clips["clip_id"], captions, "clip_id")
        [is_inside] = inside_where(chosen, [with_captions(clips, captioned)])
        has_text = pc.is_valid(captioned["caption"])
        is_outside = pc.and_(
            pc.and_(pc.equal(selection["status"], "kept"), has_text),
            pc.invert(pc.fill_null(is_inside, False)),
        )
        return reject_clips(selection, np.flatnonzero(is_outside.to_numpy()), OUTSIDE_BY_CAPTION)


def _groups(
    chosen: SelectSettings, balanced: list[pa.ChunkedArray], embeddings: np.ndarray | None
) -> np.ndarray | None:
    """The group of each clip that select.balance shares the limit among; None where it is off."""
    if chosen.balance == EMBEDDINGS:
        assert embeddings is not None
        return embedding_groups(embeddings, chosen.seed)
    if balanced:
        return column_groups(pa.chunked_array([c for part in balanced for c in part.chunks]))
    return None


def _over_limit(
    chosen: SelectSettings,
    group: np.ndarray | None,
    number: np.ndarray,
    clip_id: np.ndarray,
    held_out: np.ndarray,
) -> np.ndarray:
    """The numbers of the kept clips that are not drawn, ascending. The arrays are of kept clips."""
    assert chosen.limit is not None
    of_kept = None if group is None else group[number]
    over = clips_over_limit(clip_id, held_out, chosen.limit, chosen.seed, of_kept)
    return number[over].astype(np.int64)


def _over_limit_by_caption(
    chosen: SelectSettings,
    group: np.ndarray | None,
    ranges: _Ranges,
    select_range: Callable[[int, int, pa.Table, pa.Table], pa.Table],
) -> np.ndarray:
    """As `_over_limit`, for the clips that the condition on captions keeps. Empty while a clip that
    passes the rules has no captions."""
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, (first, clips, captions) in enumerate(ranges):
        found = select_range(number, first, clips, captions)
        rows = np.flatnonzero(pc.equal(found["status"], "kept").to_numpy())
        of_kept = found.take(pa.array(rows))
        if rows_of(of_kept["clip_id"], captions, "clip_id")["clip_id"].null_count:
            return np.empty(0, np.int64)
        held_out = pc.equal(of_kept["split"], "validation").to_numpy()
        kept.append((first + rows, as_bytes(of_kept["clip_id"]), held_out))
    numbers, ids, held_out = map(np.concatenate, zip(*kept, strict=True))
    return _over_limit(chosen, group, numbers, ids, held_out)


def _reject(selection: pa.Table, numbers: np.ndarray, first: int, reason: str) -> pa.Table:
    """reject_clips of those of the numbers, counted over all ranges, that are in this one."""
    span = slice(*np.searchsorted(numbers, [first, first + selection.num_rows]))
    return reject_clips(selection, numbers[span] - first, reason)
