"""The clips of an output in memory: filtered, sorted and paged; one clip with all that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.ledger import recorded_settings
from curation.parquet import find_rows
from curation.policy import Policy
from curation.records import TAG_NAMES
from curation.stage import Row
from curation.storage import Folder
from pipelines.outdated import MANIFEST, SHARDS, read_manifest
from pipelines.reviews import CAPTION, FLAG, MARK, read_reviews
from pipelines.show import selected_with
from pipelines.tables import (
    CLIPS,
    captions_ledger,
    open_clips,
    rows_of,
    written_by_older_version,
)
from stages.report.difference import COMPARED, Difference, compare_clips, texts_differ
from stages.report.statistics import MEASUREMENTS

TEXTS = ("clip_id", "video", "status", "reason", "rule", "caption", "captioner", "split", "shard")
OF_SELECTION = ("reasons", "rules", "prefilter", "null_reasons")
COLUMNS = (*TEXTS, "start_s", "end_s", *OF_SELECTION, *MEASUREMENTS, *TAG_NAMES)
MAX_PAGE = 200  # clips
MAX_LISTED_CHARS = 240  # of a caption in the list
SORTED_BY = ("clip_id", "video", "status", "rule", "start_s", *MEASUREMENTS)
CHANGES = ("gained", "lost", "captions")  # against another output


class QueryError(ValueError):
    """A request asks for an unknown clip, column or value. The message names it, in one line."""


@dataclass(frozen=True)
class Output:
    """One state of an output. A later run writes other tables, of which another object is made."""

    folder: Folder
    clips: pa.Table  # COLUMNS, in order of clip_id
    policy: Policy  # of the last selection
    rejects_flagged: bool  # as the last selection did
    caption_set: str | None
    reviews: dict[tuple[str, str, str], Row]  # by clip, kind and, of marks, reviewer
    other: pa.Table | None = None  # COMPARED of another output

    @classmethod
    def read(cls, folder: Folder, other: Folder | None = None) -> Output:
        """Reads an output. Raises PlanError if the folder holds no output of this version."""
        clips = read_clips_table(folder, COLUMNS)
        return cls(
            folder,
            clips,
            in_order_of_reasons(selected_with(folder), clips),
            bool((recorded_settings(folder / "ledger", "selection") or {}).get("reject_flagged")),
            _caption_set(folder),
            {review_key(row): row for row in read_reviews(folder).to_pylist()},
            read_clips_table(other, COMPARED) if other is not None else None,
        )

    @cached_property
    def rows(self) -> dict[str, int]:
        """clip_id -> row number."""
        return {clip_id: i for i, clip_id in enumerate(self.clips["clip_id"].to_pylist())}

    def row(self, clip_id: str) -> int:
        """The clip's row number. Raises QueryError for an id that is not in the table."""
        if (found := self.rows.get(clip_id)) is None:
            raise QueryError("no clip of this id")
        return found

    @cached_property
    def difference(self) -> Difference:
        """The difference between the other output (A) and this one (B)."""
        assert self.other is not None
        ours = read_clips_table(self.folder, COMPARED)
        return compare_clips(self.other, ours)

    @cached_property
    def changed(self) -> dict[str, np.ndarray]:
        """CHANGES -> (n,) whether the clip is one."""
        assert self.other is not None
        ours = read_clips_table(self.folder, COMPARED)
        theirs = rows_of(ours["clip_id"], self.other, "clip_id")
        now, before = (
            pc.fill_null(pc.equal(t["status"], "kept"), False).to_numpy() for t in (ours, theirs)
        )
        texts = now & before
        texts[texts] = texts_differ(ours.filter(pa.array(texts)), theirs.filter(pa.array(texts)))
        return {"gained": now & ~before, "lost": before & ~now, "captions": texts}

    @cached_property
    def shards(self) -> dict[str, tuple[str, int, int]]:
        """clip_id -> the name of its shard, the mp4's offset in it and its size."""
        if not self.folder.exists(SHARDS):
            return {}
        table = self.folder.read_table(SHARDS, ["clip_id", "shard", "offset", "bytes", "error"])
        packed = table.filter(pc.is_null(table["error"])).drop_columns(["error"])
        return {
            row["clip_id"]: (row["shard"], row["offset"], row["bytes"])
            for row in packed.to_pylist()
        }

    def details(self, clip_id: str) -> Row:
        """All columns of a clip in clips.parquet. Raises QueryError."""
        self.row(clip_id)
        [row] = find_rows(self.folder.dataset(CLIPS), pc.field("clip_id") == clip_id)
        return row

    def key_frame(self, clip_id: str, number: int) -> tuple[str, str]:
        """The file of a clip's key frame below the ledger, and its SHA-256. Raises QueryError."""
        start, end = (int(self._key_frames[0][self.row(clip_id) + i].as_py()) for i in (0, 1))
        name = None
        if 0 <= number < end - start:
            name, sha256 = (column[start + number].as_py() for column in self._key_frames[1:])
        if name is None:
            raise QueryError("no such key frame")
        return name, sha256

    def _has_key_frame(self, clip_id: str) -> bool:
        try:
            return bool(self.key_frame(clip_id, 0))
        except QueryError:
            return False

    @cached_property
    def _key_frames(self) -> tuple[pa.Array, pa.Array, pa.Array]:
        """(n + 1,) offsets, and per key frame of all clips its file and SHA-256."""
        parts = [f"segments.list.element.{name}" for name in ("key_frame", "key_frame_sha256")]
        column = self.folder.read_table(CLIPS, parts)["segments"]
        flat = pc.list_flatten(column).combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        names = ("key_frame", "key_frame_sha256")
        return pa.array(np.cumsum([0, *lengths])), *(pc.struct_field(flat, n) for n in names)

    def captions_of(self, clip_id: str) -> Row | None:
        """The clip's row of records.CAPTION, as its captioner wrote it."""
        if self.caption_set is None:
            return None
        table = self._captions
        row = pc.index(table["clip_id"], clip_id).as_py()
        return table.slice(row, 1).to_pylist()[0] if row >= 0 else None

    @cached_property
    def _captions(self) -> pa.Table:
        columns = ["captioner", "caption", "sub_captions", "frames_sha256"]
        return captions_ledger(self.folder, self.caption_set or "").read(columns)

    # ---- reviews ----

    def review(self, clip_id: str, kind: str, reviewer: str = "") -> Row | None:
        return self.reviews.get((clip_id, kind, reviewer))

    def flag(self, clip_id: str) -> Row | None:
        found = self.review(clip_id, FLAG)
        return found if found and found["value"] is not None else None

    def correction(self, clip_id: str) -> Row | None:
        """The correction that counts for the present captions of the clip."""
        found = self.review(clip_id, CAPTION)
        if found is None or found["caption"] is None or found["captioner"] != self.caption_set:
            return None
        written = self.captions_of(clip_id)
        is_current = written and written["frames_sha256"] == found["frames_sha256"]
        return found if is_current else None

    def flags(self) -> list[str]:
        """clip_id of the flagged clips."""
        return [key[0] for key in list(self.reviews) if key[1] == FLAG and self.flag(key[0])]

    # ---- the list ----

    def select(self, query: Mapping[str, Any], mask: np.ndarray | None = None) -> np.ndarray:
        """Row numbers of the clips that pass all filters of the query, in its order.

        status: list.  rule: among the reasons.  flagged, corrected: true.  text: in id, name or
        caption.  ranges: column -> [min, max].  change: one of CHANGES.  sort, descending.
        mask: (n,) a further filter. Raises QueryError.
        """
        found = np.ones(self.clips.num_rows, bool) if mask is None else mask.copy()
        if (status := query.get("status")) is not None:
            found &= self._is_in("status", _texts(status))
        if (rule := query.get("rule")) is not None:
            if not isinstance(rule, str):
                raise QueryError("rule: expected a text")
            flat = pc.list_flatten(self.clips["rules"]).to_numpy()
            parents = pc.list_parent_indices(self.clips["rules"]).to_numpy()
            has_rule = np.zeros(len(found), bool)
            has_rule[parents[flat == rule]] = True
            found &= has_rule
        if query.get("flagged"):
            found &= self._is_in("clip_id", self.flags())
        if query.get("corrected"):
            clips = [k[0] for k in list(self.reviews) if k[1] == CAPTION and self.correction(k[0])]
            found &= self._is_in("clip_id", clips)
        if (change := query.get("change")) is not None:
            if self.other is None or change not in CHANGES:
                raise QueryError(f"change: expected one of {', '.join(CHANGES)} and two outputs")
            found &= self.changed[change]
        for name, ends in _ranges(query.get("ranges") or {}):
            values = self.clips[name].cast(pa.float64()).to_numpy()
            for end, is_outside in zip(ends, (np.less, np.greater), strict=True):
                if end is not None:
                    found &= ~is_outside(values, end) & ~np.isnan(values)
        if text := query.get("text"):
            found &= self._holds(str(text))
        return self._sorted(np.flatnonzero(found), query)

    def _is_in(self, column: str, values: list[str]) -> np.ndarray:
        return pc.is_in(self.clips[column], value_set=pa.array(values, pa.string())).to_numpy()

    def _holds(self, text: str) -> np.ndarray:
        found = np.zeros(self.clips.num_rows, bool)
        for name in ("clip_id", "video", "caption"):
            hit = pc.match_substring(self.clips[name], text, ignore_case=True)
            found |= pc.fill_null(hit, False).to_numpy()
        return found

    def _sorted(self, rows: np.ndarray, query: Mapping[str, Any]) -> np.ndarray:
        by = query.get("sort") or "clip_id"
        if by not in SORTED_BY:
            raise QueryError(f"sort: expected one of {', '.join(SORTED_BY)}")
        if by == "clip_id" and not query.get("descending"):
            return rows
        values = pa.table({"value": self.clips[by].take(pa.array(rows)), "row": rows})
        order = "descending" if query.get("descending") else "ascending"
        keys = [("value", order), ("row", "ascending")]
        return rows[pc.sort_indices(values, sort_keys=keys).to_numpy()]

    def listed(self, rows: np.ndarray, column: str | None) -> list[Row]:
        """What the list shows of these rows. column: of which it shows the value too."""
        names = [*("clip_id", "video", "status", "rule", "reason", "duration_s"), "caption"]
        names += [column] if column in MEASUREMENTS and column not in names else []
        found = self.clips.select(names).take(pa.array(rows)).to_pylist()
        for row in found:
            flag, correction = self.flag(row["clip_id"]), self.correction(row["clip_id"])
            row["flag"] = flag["value"] if flag else None
            row["has_frame"] = self._has_key_frame(row["clip_id"])
            row["is_corrected"] = correction is not None
            caption = correction["caption"] if correction else row["caption"]
            row["caption"] = (caption or "")[:MAX_LISTED_CHARS]
        return found


def read_clips_table(folder: Folder, columns: tuple[str, ...]) -> pa.Table:
    """Reads those of the columns that clips.parquet has. Raises PlanError."""
    known = open_clips(folder).schema.names
    if "rules" not in known:
        raise written_by_older_version(folder)
    table = folder.read_table(CLIPS, [name for name in columns if name in known])
    for name in columns:  # a score added since
        if name not in known:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.float32()))
    return table.combine_chunks()


def in_order_of_reasons(policy: Policy, clips: pa.Table) -> Policy:
    """The policy in an order that gives the recorded reasons of all clips: settings are recorded
    in order of names, and the first reason of a clip is that of the first rule."""
    flat = pc.list_flatten(clips["rules"]).to_numpy()
    failed = pc.match_substring_regex(pc.list_flatten(clips["reasons"]), r" [<>] | is ").to_numpy()
    row = pc.list_parent_indices(clips["rules"]).to_numpy()
    flat, row = flat[failed], row[failed]
    follows = row[1:] == row[:-1]
    pairs = set(zip(flat[:-1][follows], flat[1:][follows], strict=True))
    sorter: TopologicalSorter[str] = TopologicalSorter({name: set() for name in policy})
    for first, second in pairs:
        if first in policy and second in policy and first != second:
            sorter.add(second, first)
    try:
        return Policy({name: policy[name] for name in sorter.static_order()})
    except CycleError:  # tables and settings of two selections
        return policy


def review_key(row: Row) -> tuple[str, str, str]:
    return row["clip_id"], row["kind"], row["reviewer"] if row["kind"] == MARK else ""


def _caption_set(folder: Folder) -> str | None:
    """The set of captions that the output has; None before the first export."""
    if folder.exists(MANIFEST):
        return read_manifest(folder)["config"]["caption"]["name"]
    sets = (folder / "ledger/captions").subfolders()
    return sets[0] if len(sets) == 1 else None


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise QueryError("expected a list of texts")
    return value


def _ranges(value: Any) -> list[tuple[str, tuple[float | None, float | None]]]:
    """Column and both ends, which are null where there is no limit. Raises QueryError."""
    if not isinstance(value, dict):
        raise QueryError("ranges: expected scores with [min, max]")
    found = []
    for name, ends in value.items():
        if name not in MEASUREMENTS or not isinstance(ends, list) or len(ends) != 2:
            raise QueryError("ranges: expected scores with [min, max]")
        try:
            low, high = (None if end is None else float(end) for end in ends)
        except (TypeError, ValueError, OverflowError):
            raise QueryError(f"ranges: {name} has an end that is no number") from None
        found.append((name, (low, high)))
    return found
