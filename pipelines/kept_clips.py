"""The kept clips with their captions, in the orders that export needs: by shard and by video.

They lie in scratch files. In memory are a range of them, and about 150 bytes for each clip.
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
from curation.storage import Folder, scan
from pipelines.reviews import stream_captions
from pipelines.tables import (
    CLIP_COLUMNS,
    SELECTION,
    clip_partitions,
    clip_schema,
    rows_of,
    stream_clips,
)

SPLITS = ("train", "validation")
COLUMNS = [name for name in CLIP_COLUMNS if name not in ("fingerprint", "overlay_mask")]
CLIPS = clip_schema(COLUMNS).append(pa.field("split", pa.string()))
CAPTIONS = records.schema(records.CAPTION)
PLANNED = ["clip_id", "video", "split", "starts_on_keyframe", "packet_bytes"]
PLANNED += ["num_frames", "width", "height"]
KEY = "group"  # the column by which rows are ordered: the number of the group and clip_id
ROWS_PER_BATCH = 256  # that are Python's objects at the same time


class SelectedIds:
    """The selection: about 30 bytes of memory a clip."""

    def __init__(self, out: Folder) -> None:
        if not (out / "ledger").exists(SELECTION):
            raise PlanError(f"{out.url} holds no selection; run longtake select first")
        ids, split = [np.empty(0, "S1")], [np.empty(0, np.int8)]
        for table in scan((out / "ledger").dataset(SELECTION), ["clip_id", "split"]):
            ids.append(as_bytes(table["clip_id"]))
            index = pc.index_in(table["split"], value_set=pa.array(SPLITS))
            split.append(pc.fill_null(index, -1).to_numpy().astype(np.int8))
        names = np.concatenate(ids)
        order = np.argsort(names)
        # sorted; an index into SPLITS, -1 where the clip is not kept
        self._ids, self._split = names[order], np.concatenate(split)[order]

    def split_of(self, clip_id: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
        """(n,) the split of each clip, null where it is not kept; and whether it is selected."""
        if not len(self._ids):
            return pa.nulls(len(clip_id), pa.string()), np.zeros(len(clip_id), bool)
        names = as_bytes(clip_id)
        place = np.minimum(np.searchsorted(self._ids, names), len(self._ids) - 1)
        is_known = self._ids[place] == names
        index = np.where(is_known, self._split[place], -1)
        return pa.array(SPLITS).take(pa.array(index, mask=index < 0)), is_known


def stream_kept(out: Folder) -> Iterator[pa.Table]:
    """The kept clips with their `split`, some at a time, without their large columns."""
    selection = SelectedIds(out)
    unselected = 0
    for clips in stream_clips(out, COLUMNS):
        split, is_known = selection.split_of(clips["clip_id"])
        unselected += len(is_known) - int(is_known.sum())
        yield clips.append_column("split", split).filter(pc.is_valid(split))
    if unselected:
        raise PlanError(f"{unselected} clips are newer than the selection; run longtake select")


class KeptClips:
    """Of these clips, those that have captions: the ones to pack."""

    def __init__(self, by_id: Partitions) -> None:
        self._by_id = by_id

    def tables(self) -> Iterator[pa.Table]:
        """In order of clip_id, with their captions."""
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
                f"{missing} kept clips have no captions yet; run longtake caption first"
            )

    def planned(self, videos: dict[str, int]) -> Iterator[Row]:
        """The columns that decide the shards of each clip. Counts the clips of each video."""
        for table in self.tables():
            for row in table.select(PLANNED).to_pylist():
                videos[row["video"]] = videos.get(row["video"], 0) + 1
                yield row


@contextmanager
def read_kept(out: Folder, caption_set: str) -> Iterator[KeptClips]:
    """Raises PlanError where clips are not selected; later, where one has no captions."""
    with clip_partitions(out) as by_id:
        by_id.write(stream_kept(out), {"clips": CLIPS.names})
        by_id.write(stream_captions(out, caption_set), {"captions": CAPTIONS.names})
        yield KeptClips(by_id)


@contextmanager
def grouped(
    tables: Iterable[pa.Table], group_of: Callable[[pa.Table], np.ndarray], sizes: list[int]
) -> Iterator[Groups]:
    """The rows in groups. group_of: the number of each row's.  sizes: of the groups, at most."""
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
