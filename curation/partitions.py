"""Tables that are larger than memory, in order of a key: distributed by ranges of the key to files
in a scratch folder, then read range by range."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.scratch import driver_scratch_errors

ROWS_PER_RANGE = 16384  # about; up to MAX_RANGES
MAX_RANGES = 1024  # more would make the pieces of a range too small to be read quickly
BUFFER_BYTES = 32 << 20  # of rows that are distributed in one step


class Partitions:
    """Named tables with the same key and the same ranges."""

    def __init__(self, folder: Path, key: str, bounds: np.ndarray) -> None:
        """bounds: the first key of each range but the first, ascending, as bytes."""
        self._folder, self._key, self._bounds = folder, key, bounds

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._bounds) + 1

    def write(self, tables: Iterable[pa.Table], columns: Mapping[str, list[str]]) -> None:
        """Appends the rows. columns: name -> the columns that are stored under it. Raises
        OutputError where the temporary folder is full."""
        buffer: list[pa.Table] = []
        size = 0
        for table in tables:
            buffer.append(table)
            size += table.nbytes
            if size > BUFFER_BYTES:
                self._distribute(pa.concat_tables(buffer), columns)
                buffer, size = [], 0
        if buffer:
            self._distribute(pa.concat_tables(buffer), columns)

    def _distribute(self, table: pa.Table, columns: Mapping[str, list[str]]) -> None:
        number = np.searchsorted(self._bounds, as_bytes(table[self._key]), "right")
        order = np.argsort(number, kind="stable")
        ends = np.cumsum(np.bincount(number, minlength=len(self)))
        for name, chosen in columns.items():
            part = table.select(chosen).take(pa.array(order))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            for i in np.unique(number).tolist():
                start = int(ends[i - 1]) if i else 0
                with (
                    driver_scratch_errors(),
                    pa.OSFile(str(self._file(name, i)), "ab") as file,
                    pa.ipc.new_stream(file, part.schema, options=options) as stream,
                ):
                    stream.write_table(part.slice(start, int(ends[i]) - start).combine_chunks())

    def read(self, name: str, number: int, schema: pa.Schema) -> pa.Table:
        """The rows of a range in order of the key; of several rows of a key the last one.

        schema: of the table that is returned where nothing was written."""
        file = self._file(name, number)
        if not file.exists():
            return schema.empty_table()
        tables = []
        with pa.OSFile(str(file), "rb") as source:
            while source.tell() < source.size():
                tables.append(pa.ipc.open_stream(source).read_all())
        return last_by_key(pa.concat_tables(tables), self._key)

    def _file(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:04d}.arrow"


def last_by_key(table: pa.Table, key: str) -> pa.Table:
    """The last row of each key, in order of key."""
    return table.take(last_rows(table[key]))


def last_rows(keys: pa.ChunkedArray) -> pa.Array:
    """The number of the last row of each key, in order of key."""
    order = pc.sort_indices(keys)  # stable
    ordered = keys.take(order)
    differs = pc.not_equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0)))
    is_last = np.append(differs.to_numpy(), True)[: len(ordered)]
    return order.filter(pa.array(is_last))


def as_bytes(names: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(n,) the names as bytes of one length, in which they sort as before; null is empty."""
    values = pc.fill_null(names, "").cast(pa.binary()).to_numpy(zero_copy_only=False)
    return np.array(values, np.bytes_) if len(values) else np.empty(0, "S1")


@contextmanager
def scratch_partitions(key: str, bounds: np.ndarray) -> Iterator[Partitions]:
    """Partitions in the temporary folder, which are deleted at the end. Raises OutputError where it
    can't be written, as `Partitions.write` does."""
    with driver_scratch_errors():
        folder = tempfile.TemporaryDirectory(prefix="longtake-")
    with folder as path:
        yield Partitions(Path(path), key, bounds)


def hash_bounds(rows: int) -> np.ndarray:
    """Bounds for so many rows whose keys are hexadecimal digits of a hash."""
    count = min(max(-(-rows // ROWS_PER_RANGE), 1), MAX_RANGES)
    return np.array([f"{(i << 32) // count:08x}".encode() for i in range(1, count)], "S8")
