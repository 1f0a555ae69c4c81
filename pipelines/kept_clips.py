"""The kept clips with their captions, in the orders that export needs: by shard and by video.

The rows are in scratch files. Memory holds one range of them, and about 150 bytes for each clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.partitions import ROWS_PER_RANGE, Partitions, as_bytes, scratch_partitions
from curation.stage import PlanError, Row
from curation.storage import Folder
from pipelines.reviews import stream_captions
from pipelines.tables import (
    SMALL_CLIP_COLUMNS,
    clip_partitions,
    clip_schema,
    rows_of,
    scan_selection,
    stream_clips,
)

SPLITS = ("train", "validation")
CLIPS = clip_schema(SMALL_CLIP_COLUMNS).append(pa.field("split", pa.string()))
CAPTIONS = records.schema(records.CAPTION)
# The columns that decide the shard of a clip
PLAN_COLUMNS = ["clip_id", "video", "split", "starts_on_keyframe", "packet_bytes"]
PLAN_COLUMNS += ["num_frames", "width", "height"]
KEY = "group"  # the column by which rows are ordered: "NUMBER-CLIP_ID", the group's number first
ROWS_PER_BATCH = 256  # rows of a table that are Python objects at the same time


class SelectedIds:
    """The ids of the selected clips and the split of those that are kept, in about 30 bytes of
    memory for each."""

    def __init__(self, out: Folder) -> None:
        """Reads the selection of an output folder. Raises PlanError where there is none."""
        ids, splits = [np.empty(0, "S1")], [np.empty(0, np.int8)]
        for table in scan_selection(out, ["clip_id", "split"]):
            ids.append(as_bytes(table["clip_id"]))
            index = pc.index_in(table["split"], value_set=pa.array(SPLITS))
            splits.append(pc.fill_null(index, -1).to_numpy().astype(np.int8))
        all_ids = np.concatenate(ids)
        order = np.argsort(all_ids)
        self._ids = all_ids[order]  # ascending
        self._splits = np.concatenate(splits)[order]  # indices into SPLITS; -1: rejected

    def find_splits(self, clip_id: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
        """The split of each of n clips, (n,), null where it is not kept; and whether the selection
        holds the clip, (n,) bool."""
        if not len(self._ids):
            return pa.nulls(len(clip_id), pa.string()), np.zeros(len(clip_id), bool)
        ids = as_bytes(clip_id)
        row = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        is_selected = self._ids[row] == ids
        index = np.where(is_selected, self._splits[row], -1)
        return pa.array(SPLITS).take(pa.array(index, mask=index < 0)), is_selected


def stream_kept(out: Folder) -> Iterator[pa.Table]:
    """Tables of the kept clips with SMALL_CLIP_COLUMNS and their `split`. Raises PlanError where
    there is no selection, and after the last table where a clip is newer than the selection."""
    selection = SelectedIds(out)
    unselected = 0
    for clips in stream_clips(out, SMALL_CLIP_COLUMNS):
        splits, is_selected = selection.find_splits(clips["clip_id"])
        unselected += len(is_selected) - int(is_selected.sum())
        yield clips.append_column("split", splits).filter(pc.is_valid(splits))
    if unselected:
        raise PlanError(f"{unselected} clips are newer than the selection; run longtake select")


class KeptClips:
    """The clips to export: the kept clips that have captions."""

    def __init__(self, by_id: Partitions, captions: str) -> None:
        """captions: the folder of their set, in errors."""
        self._by_id, self._captions = by_id, captions

    def tables(self) -> Iterator[pa.Table]:
        """The clips with their captions, in order of clip_id. Raises PlanError after the last table
        where a kept clip has no captions yet."""
        missing = 0
        for number in range(len(self._by_id)):
            clips = self._by_id.read("clips", number, CLIPS)
            captions = self._by_id.read("captions", number, CAPTIONS)
            captions = rows_of(clips["clip_id"], captions, "clip_id")
            missing += captions["clip_id"].null_count
            for name in captions.drop_columns(["clip_id", "error", "rejected"]).column_names:
                if name in clips.column_names:
                    clips = clips.drop_columns([name])
                clips = clips.append_column(captions.schema.field(name), captions[name])
            yield clips.filter(pc.is_valid(captions["caption"]))
        if missing:
            raise PlanError(
                f"{missing} kept clips have no captions in {self._captions} yet\n  fix: give the "
                "caption.* settings of that run, or CONFIG with them; if these are meant, run "
                "longtake caption with them first"
            )

    def plan_rows(self, counts: dict[str, int]) -> Iterator[Row]:
        """PLAN_COLUMNS of each clip, in order of clip_id. Adds the number of clips of each video to
        `counts`."""
        for table in self.tables():
            for row in table.select(PLAN_COLUMNS).to_pylist():
                counts[row["video"]] = counts.get(row["video"], 0) + 1
                yield row


@contextmanager
def read_kept(out: Folder, caption_set: str) -> Iterator[KeptClips]:
    """Sorts the kept clips and their captions into scratch files, which exist within the context.
    Raises PlanError where clips are not selected; `tables` does where one has no captions."""
    with clip_partitions(out) as by_id:
        by_id.write(stream_kept(out), {"clips": CLIPS.names})
        by_id.write(stream_captions(out, caption_set), {"captions": CAPTIONS.names})
        yield KeptClips(by_id, (out / f"ledger/captions/{caption_set}").url)


@contextmanager
def group_rows(
    tables: Iterable[pa.Table], group_of: Callable[[pa.Table], np.ndarray], sizes: list[int]
) -> Iterator[Groups]:
    """Sorts rows by group into scratch files, which exist within the context.

    group_of: the group number of each row of a table, (n,).  sizes: most rows of each group.
    """
    ends = np.cumsum(sizes)
    first = np.unique(np.searchsorted(ends, np.arange(0, sum(sizes), ROWS_PER_RANGE), "right"))
    bounds = np.array([f"{number:010d}".encode() for number in first[1:]], "S10")
    with scratch_partitions(KEY, bounds) as partitions:
        schema = None
        for table in tables:
            numbers = pa.array([f"{number:010d}" for number in group_of(table)], pa.string())
            ids = pa.chunked_array(table["clip_id"].chunks, pa.string()).combine_chunks()
            key = pc.binary_join_element_wise(numbers, ids, "-")
            table = table.append_column(KEY, key)
            schema = table.schema
            partitions.write([table], {"rows": table.column_names})
        yield Groups(partitions, schema)


class Groups:
    """The rows of `group_rows`; can be iterated several times."""

    def __init__(self, partitions: Partitions, schema: pa.Schema | None) -> None:
        """schema: None where there are no rows."""
        self._partitions, self._schema = partitions, schema

    def __iter__(self) -> Iterator[tuple[int, list[Row]]]:
        """The number of each group that has rows, ascending, and its rows by clip_id."""
        for number in range(len(self._partitions) if self._schema else 0):
            table = self._partitions.read("rows", number, self._schema)
            batches = table.to_batches(max_chunksize=ROWS_PER_BATCH)
            rows = (row for batch in batches for row in batch.to_pylist())
            for group, members in groupby(rows, lambda row: int(row[KEY].partition("-")[0])):
                yield group, [{k: v for k, v in row.items() if k != KEY} for row in members]
