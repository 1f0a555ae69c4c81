"""The ledger: Parquet parts with one row per unit of work, and what the run was set to.

One process, the driver, writes. A part is written beside and renamed, so it is there whole or not
at all; a row that stands in two parts (a retry, a changed file) counts as its later part says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import config
from curation.stage import Row
from curation.storage import Folder

COMPACT_ABOVE = 64  # parts
COMPACT_BYTES = 1 << 30  # of a merged part in memory, about: a list column's offsets end at 2**31
VIDEO_COLUMNS = ("codec", "version", "bytes", "sha256", "video")  # what a clip's row has of it


class Ledger:
    """One table: `folder/name/part-*.parquet`, keyed by one column."""

    def __init__(self, folder: Folder, name: str, schema: pa.Schema, key: str) -> None:
        self._folder, self._schema, self._key = folder / name, schema, key
        self._next = 1 + max((_number(p) for p in self._folder.names()), default=-1)

    def append(self, rows: list[Row]) -> None:
        """Commits rows as one part."""
        if rows:
            self._write(pa.Table.from_pylist(rows, schema=self._schema))

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, one per key, in order of key."""
        wanted = None if columns is None else [self._key, *(c for c in columns if c != self._key)]
        parts = [self._folder.read_table(p, wanted) for p in self._folder.names()]
        schema = (
            self._schema if wanted is None else pa.schema([self._schema.field(c) for c in wanted])
        )
        table = pa.concat_tables([schema.empty_table(), *parts], promote_options="default")
        return _last_by_key(table, self._key)

    def parts(self, columns: list[str]) -> Iterator[pa.Table]:
        """What is too large for `read`, a part at a time: a later row of a key counts."""
        for part in self._folder.names():
            yield self._folder.read_table(part, columns)

    def compact(self) -> None:
        """Many small parts into few; safe to be interrupted: a row found twice is the same row."""
        old = self._folder.names()
        if len(old) <= COMPACT_ABOVE:
            return
        group: dict[str, pa.Table] = {}
        size = 0
        for part in old:
            group[part] = self._folder.read_table(part)
            size += group[part].nbytes
            if size > COMPACT_BYTES:
                self._merge(group)
                group, size = {}, 0
        self._merge(group)

    def _merge(self, group: dict[str, pa.Table]) -> None:
        """Parts that follow each other into one, in the place of the last, so none overtakes."""
        if len(group) < 2:
            return
        *others, last = group
        tables = [self._schema.empty_table(), *group.values()]
        table = pa.concat_tables(tables, promote_options="default")
        self._folder.write_table(last, _last_by_key(table, self._key))
        for part in others:
            self._folder.delete(part)

    def _write(self, table: pa.Table) -> None:
        self._folder.write_table(f"part-{self._next:08d}.parquet", table)
        self._next += 1


def _number(part: str) -> int:
    return int(part.removeprefix("part-").removesuffix(".parquet"))


def _last_by_key(table: pa.Table, key: str) -> pa.Table:
    place = pa.chunked_array([pa.array(range(table.num_rows), pa.int64())])
    last = (
        table.select([key])
        .append_column("place", place)
        .group_by(key)
        .aggregate([("place", "max")])
    )
    last = last.sort_by(key)
    return table.take(last["place_max"])


def flatten_clips(videos: pa.Table) -> pa.Table:
    """The clips nested in the videos' rows as a table, with what they need of their video."""
    clips = videos["clips"].combine_chunks()
    parents = pc.list_parent_indices(clips)
    flat = pa.Table.from_struct_array(pc.list_flatten(clips))
    for name in VIDEO_COLUMNS:
        flat = flat.add_column(0, name, videos[name].take(parents))
    return flat


def record_settings(folder: Folder, name: str, settings: dict[str, Any]) -> None:
    """What a table is made with, beside it."""
    text = json.dumps(settings, indent=1, sort_keys=True)
    folder.write(f"{name}.settings.json", text.encode())


def recorded_settings(folder: Folder, name: str) -> dict[str, Any] | None:
    """What a table was made with; None where it isn't there yet."""
    file = f"{name}.settings.json"
    return json.loads(folder.read(file)) if folder.exists(file) else None


def check_settings(folder: Folder, name: str, settings: dict[str, Any], remedy: str) -> None:
    """Refuses other settings than a table was made with, saying what differs.

    Records them where the table has no row yet. Raises ConfigError.
    """
    recorded = recorded_settings(folder, name)
    if recorded is None or not folder.names(name):
        record_settings(folder, name, settings)
        return
    changed = config.differences(recorded, json.loads(json.dumps(settings)))
    if changed:
        raise config.ConfigError(
            f"{folder.path(name)} was made with other settings:\n  "
            + "\n  ".join(changed)
            + f"\n  fix: {remedy}"
        )
