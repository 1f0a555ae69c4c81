"""The ledger: Parquet parts with one row per unit of work, and the settings they were made with.

Only one process, the driver, writes; curation/lease.py keeps others away. A part is written under
another name and renamed, so that it is complete or absent; its name holds the SHA-256 of its bytes.
Where two parts have the same key (a retry, a changed file), the later part counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import config
from curation.checksums import changed_files
from curation.json_text import parse_hashed, with_hash
from curation.lease import LEASE, Cut, Lease, parse_lease
from curation.parquet import parquet_bytes
from curation.partitions import last_by_key, last_rows
from curation.records import (
    RELEASES,
    SCHEMA_VERSION,
    SCORE_NAMES,
    TAG_NAMES,
    schema_version,
    with_schema_version,
)
from curation.stage import OutputError, PlanError, Row
from curation.storage import Folder
from curation.texts import MAX_ERROR_CHARS, clean_outside_text

MAX_PARTS = 64  # more small ones are merged, during a phase and at its end
MAX_SMALL_BYTES = 8 << 20  # of a part's file; larger ones are not merged
MAX_READERS = 8  # of parts that are checked at the same time
MAX_MERGED_BYTES = 1 << 28  # of one part in memory, about
CONVERSION_ERRORS = (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError)
# number, epoch of the lease where the output has one, SHA-256, which parts of older versions lack
_PART = re.compile(r"part-(\d{8,})(?:-e(\d+))?(?:-([0-9a-f]{64}))?\.parquet")
# of a clip's video, in its row
VIDEO_COLUMNS = ("codec", "version", "bytes", "sha256", "video", "time_jumps")
ADDED_LATER = "scored by an older version"  # the null reason of a score or tag that a part lacks


class Ledger:
    """One table: `folder/name/part-*.parquet`, keyed by one column."""

    def __init__(
        self,
        folder: Folder,
        name: str,
        schema: pa.Schema,
        key: str,
        fix_of_damage: str = "delete it and run again, which computes its rows",
    ) -> None:
        """Raises PlanError where a version with other meanings of columns wrote the table."""
        self._fix_of_damage = fix_of_damage
        self._folder, self._key = folder / name, key
        self._schema = with_schema_version(schema)
        self._epoch, cuts = _epoch_and_cuts(folder)
        # of older epochs: those of such an epoch are not read from this number on
        self._cuts = [(cut["epoch"], cut["parts"].get(name, 0)) for cut in cuts]
        parts = self._part_names()
        self._appended = 0  # parts since the last time that they were merged
        self._next = 1 + max(map(_number_of, parts), default=-1)
        if parts:
            with self._damage_named(parts[-1]):
                found = schema_version(self._folder.read_schema(parts[-1]))
            _check_version(self._folder, found)

    @property
    def next_number(self) -> int:
        """The number of the next part, which is above that of every part so far."""
        return self._next

    def append(self, rows: list[Row]) -> None:
        """Commits rows as one part. A row with a value that does not fit the schema becomes one
        with an `error`, so that it costs no other row; without that column it raises."""
        if not rows:
            return
        try:
            table = pa.Table.from_pylist(rows, schema=self._schema)
        except CONVERSION_ERRORS:
            table = pa.concat_tables([self._table_of_row(row) for row in rows])
        self._write(self._next, table)
        self._next += 1
        self._appended += 1

    def _table_of_row(self, row: Row) -> pa.Table:
        try:
            return pa.Table.from_pylist([row], schema=self._schema)
        except CONVERSION_ERRORS as error:
            if "error" not in self._schema.names:
                raise
            cause = clean_outside_text(f"{type(error).__name__}: {error}", MAX_ERROR_CHARS)
        row = row | {"error": f"a value does not fit the ledger: {cause}"}
        if "status" in row:
            row["status"] = "failed"
        fitting = {}
        for name, value in row.items():
            with suppress(*CONVERSION_ERRORS, KeyError):
                pa.array([value], self._schema.field(name).type)
                fitting[name] = value
        return pa.Table.from_pylist([fitting], schema=self._schema)

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, one per key, in order of key. A column added since a part was written is null
        there, with the null reason ADDED_LATER where it is a score or tag of a clip."""
        names = self._schema.names if columns is None else [self._key, *columns]
        schema = pa.schema([self._schema.field(name) for name in dict.fromkeys(names)])
        parts = [self._read_part(part, schema) for part in self._part_names()]
        return last_by_key(pa.concat_tables([schema.empty_table(), *parts]), self._key)

    def empty(self, columns: list[str]) -> pa.Table:
        """A table of these columns without rows; `clips.NAME` is a field of the clips."""
        return _projected(self._schema, columns).empty_table()

    def batches(self, columns: list[str]) -> Iterator[pa.Table]:
        """All rows in the order in which they were written, some at a time, for what is too large
        for `read`. A later row of a key counts. columns: `clips.NAME` is a field of the clips."""
        schema = _projected(self._schema, columns)
        for part in self._part_names():
            yield from self._batches_of(part, schema, columns)

    def last_batches(self, columns: list[str], keys: pa.Array) -> Iterator[pa.Table]:
        """As `batches`, but only rows with these keys, and of each key the last row."""
        schema = _projected(self._schema, columns)
        for part, rows in self._last_rows(keys).items():
            first = 0
            for table in self._batches_of(part, schema, columns) if len(rows) else ():
                span = np.searchsorted(rows, [first, first + table.num_rows])
                here = rows[slice(*span)] - first
                first += table.num_rows
                if len(here):
                    yield table if len(here) == table.num_rows else table.take(pa.array(here))

    def _batches_of(self, part: str, schema: pa.Schema, columns: list[str]) -> Iterator[pa.Table]:
        with self._damage_named(part):
            for table in self._folder.table_batches(part, columns):
                yield with_schema(table, schema)

    def _last_rows(self, keys: pa.Array) -> dict[str, np.ndarray]:
        """Part -> the ascending numbers of its rows that count, of these keys."""
        schema = pa.schema([self._schema.field(self._key)])
        found = {part: self._read_part(part, schema)[self._key] for part in self._part_names()}
        if not found:
            return {}
        chunks = [chunk.cast(pa.large_string()) for c in found.values() for chunk in c.chunks]
        column = pa.chunked_array(chunks, pa.large_string())
        is_wanted = pc.is_in(column, value_set=keys.cast(pa.large_string())).to_numpy()
        last = last_rows(column).to_numpy()
        rows = np.sort(last[is_wanted[last]]).astype(np.int64)
        starts = np.cumsum([0, *map(len, found.values())])
        ends = np.searchsorted(rows, starts)
        return {part: rows[ends[i] : ends[i + 1]] - starts[i] for i, part in enumerate(found)}

    def compact(self) -> None:
        """Merges many small parts into few. Safe to interrupt: a row found twice is the same."""
        parts = self._part_names()
        self._appended = 0
        if len(parts) <= MAX_PARTS:
            return
        group: dict[str, pa.Table] = {}
        size = 0
        for part in parts:
            is_small = self._folder.size(part) <= MAX_SMALL_BYTES
            if is_small:
                group[part] = self._read_part(part, self._schema)
                size += group[part].nbytes
            if size > MAX_MERGED_BYTES or not is_small:
                self._merge(group)
                group, size = {}, 0
        self._merge(group)

    def compact_if_many(self) -> None:
        """`compact` after every MAX_PARTS parts. No other reader may be at work."""
        if self._appended > MAX_PARTS:
            self.compact()

    def _merge(self, group: dict[str, pa.Table]) -> None:
        """Consecutive parts into one with the number of the last, so that their order stays."""
        if len(group) < 2:
            return
        table = pa.concat_tables([self._schema.empty_table(), *group.values()])
        merged = self._write(_number_of([*group][-1]), last_by_key(table, self._key))
        for part in group:
            if part != merged:
                self._folder.delete(part)

    def _read_part(self, part: str, schema: pa.Schema) -> pa.Table:
        with self._damage_named(part):
            return with_schema(self._folder.read_table(part, schema.names), schema)

    @contextmanager
    def _damage_named(self, part: str) -> Iterator[None]:
        """Adds the part and the fix to an error of reading it."""
        try:
            yield
        except (*CONVERSION_ERRORS, OutputError) as error:
            raise OutputError(
                f"{self._folder.path(part)} can't be read as a part of the ledger: {error}\n"
                f"  fix: if the file is damaged, {self._fix_of_damage}"
            ) from None

    def _write(self, number: int, table: pa.Table) -> str:
        """Returns the name of the new part."""
        data = parquet_bytes(table)
        epoch = f"-e{self._epoch:04d}" if self._epoch else ""
        name = f"part-{number:08d}{epoch}-{hashlib.sha256(data).hexdigest()}.parquet"
        self._folder.write(name, data)
        return name

    def _part_names(self) -> list[str]:
        """The names in order, without parts that a run wrote after another had taken the output
        over."""
        return [
            name
            for name in _part_names(self._folder)
            if not any(
                0 < _epoch_of(name) < epoch and _number_of(name) >= number
                for epoch, number in self._cuts
            )
        ]


def _part_names(folder: Folder) -> list[str]:
    """The names in order. Other files, such as .DS_Store and copies by an editor, are ignored."""
    return sorted((n for n in folder.names() if _PART.fullmatch(n)), key=_number_of)


def damaged_parts(folder: Folder) -> dict[str, str]:
    """Name of a part -> what is wrong with its bytes. Reads all parts of a table."""
    names = _part_names(folder)
    with ThreadPoolExecutor(MAX_READERS) as pool:
        found = pool.map(lambda name: _damage(folder, name), names)
        return {name: what for name, what in zip(names, found, strict=True) if what}


def _damage(folder: Folder, part: str) -> str | None:
    *_, sha256 = _PART.fullmatch(part).groups()  # type: ignore[union-attr]
    if sha256 is not None:
        return changed_files({part: sha256}, folder.sha256).get(part)
    try:  # of an older version
        folder.read_table(part)
    except (OutputError, FileNotFoundError) as error:
        return f"can't be read: {error}"
    return None


def _number_of(part: str) -> int:
    number, *_ = _PART.fullmatch(part).groups()  # type: ignore[union-attr]
    return int(number)


def _epoch_of(part: str) -> int:
    _, epoch, _ = _PART.fullmatch(part).groups()  # type: ignore[union-attr]
    return int(epoch or 0)


def _epoch_and_cuts(folder: Folder) -> tuple[int, list[Cut]]:
    """The epoch of this run, or of the last one that had a lease, and the cuts of its lease."""
    if isinstance(folder.lease, Lease):
        return folder.lease.epoch, folder.lease.cuts
    if not folder.exists(LEASE):
        return 0, []
    found = parse_lease(folder.read(LEASE), folder.path(LEASE))
    return found["epoch"], found["cuts"]


def locked(out: Folder, report: Callable[[str], None]) -> AbstractContextManager[None]:
    """`Folder.locked`, which keeps other runs from an output, with the parts of its ledger."""
    return out.locked(lambda: _next_part_numbers(out / "ledger"), report)


def _next_part_numbers(folder: Folder) -> dict[str, int]:
    """Table -> one above the number of its last part. folder: ledger/."""
    captions = [f"captions/{name}" for name in (folder / "captions").subfolders()]
    names = ["videos", "embeddings", "reviews", *captions]
    parts = {name: list(map(_number_of, _part_names(folder / name))) for name in names}
    return {name: 1 + max(found, default=-1) for name, found in parts.items()}


def _check_version(folder: Folder, found: int) -> None:
    if found == SCHEMA_VERSION:
        return
    made_by, fix = "a later version", "install that version"
    if found < SCHEMA_VERSION:
        made_by = f"version {RELEASES[found]}"
        fix = (
            f"score into another output, or continue with version {RELEASES[found]}; CHANGELOG.md "
            "has the new names of settings and columns"
        )
    raise PlanError(
        f"{folder.url} was made by {made_by} (schema version {found}); version "
        f"{RELEASES[SCHEMA_VERSION]} reads schema version {SCHEMA_VERSION}\n  fix: {fix}"
    )


def _projected(schema: pa.Schema, columns: list[str]) -> pa.Schema:
    """The schema of these columns; of `clips.NAME`, a list of structs of the fields named."""
    inner: dict[str, list[str]] = {}
    for column in columns:
        name, _, field = column.partition(".")
        inner.setdefault(name, []).extend([field] if field else [])
    types = {name: schema.field(name).type for name in inner}
    for name, fields in inner.items():
        if fields:
            struct = types[name].value_type
            types[name] = pa.list_(pa.struct([struct.field(field) for field in fields]))
    return pa.schema(list(types.items()))


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns, also of nested structs; nulls where it has none."""
    columns = [
        pa.chunked_array(
            [_with_type(chunk, field.type) for chunk in table[field.name].chunks], field.type
        )
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _with_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)  # a slice's offsets are refused
        offsets = pa.array(np.cumsum([0, *lengths.to_numpy()]), pa.int32())
        values = _with_type(pc.list_flatten(array), kind.value_type)
        return pa.ListArray.from_arrays(offsets, values, kind, mask=array.is_null())
    if not pa.types.is_struct(kind):
        return array.cast(kind)
    names = [field.name for field in array.type]
    columns = {
        field.name: _with_type(pc.struct_field(array, field.name), field.type)
        if field.name in names
        else pa.nulls(len(array), field.type)
        for field in kind
    }
    added = [name for name in columns if name in (*SCORE_NAMES, *TAG_NAMES) and name not in names]
    if added and "null_reasons" in names:
        extra = list(dict.fromkeys(added, ADDED_LATER).items())
        reasons = [[*(known or []), *extra] for known in columns["null_reasons"].to_pylist()]
        columns["null_reasons"] = pa.array(reasons, columns["null_reasons"].type)
    return pa.StructArray.from_arrays(list(columns.values()), fields=kind, mask=array.is_null())


def flatten_clips(videos: pa.Table) -> pa.Table:
    """A row per clip of the videos, with those of the VIDEO_COLUMNS that the table has."""
    clips = videos["clips"].combine_chunks()
    parents = pc.list_parent_indices(clips)
    flat = pa.Table.from_struct_array(pc.list_flatten(clips))
    for name in VIDEO_COLUMNS:
        if name in videos.column_names:
            flat = flat.add_column(0, name, videos[name].take(parents))
    return flat


def record_settings(folder: Folder, name: str, settings: dict[str, Any]) -> None:
    """Writes what a table is made with to `NAME.settings.json`."""
    text = json.dumps(with_hash(settings), indent=1, sort_keys=True)
    folder.write(f"{name}.settings.json", text.encode())


def recorded_settings(folder: Folder, name: str) -> dict[str, Any] | None:
    """What a table was made with; None where nothing is recorded. Raises PlanError where it can't
    be read."""
    file = f"{name}.settings.json"
    if not folder.exists(file):
        return None
    try:
        return parse_hashed(folder.read(file))
    except ValueError as error:
        raise PlanError(
            f"{folder.path(file)} is damaged: {error}\n  fix: if {folder.path(name)} was made with "
            "the settings of this run, delete the file and run again"
        ) from None


def check_settings(
    folder: Folder,
    name: str,
    settings: dict[str, Any],
    defaults: dict[str, Any],
    fix: str,
) -> None:
    """Raises ConfigError, which names each difference, if a table was made with other settings.

    A setting that is not recorded was added by a later version: it counts as its default. Records
    the settings where the table has no row yet.
    """
    recorded = recorded_settings(folder, name)
    if recorded is None or not _part_names(folder / name):
        record_settings(folder, name, settings)
        return
    recorded = config.merged(json.loads(json.dumps(defaults)), recorded)
    changed = config.differences(recorded, json.loads(json.dumps(settings)))
    if changed:
        raise config.ConfigError(
            f"{folder.path(name)} was made with other settings:\n  "
            + "\n  ".join(changed)
            + f"\n  fix: {fix}"
        )
