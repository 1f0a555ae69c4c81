"""Writes and reads tables in Parquet: row groups of bounded size, and a checksum for each page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from curation.stage import Row
from curation.storage_errors import storage_errors

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

# One clip of 100,000 is read in a tenth of the time of one group.
ROWS_PER_GROUP = 16384
BYTES_PER_GROUP = 64 << 20  # in memory, about: rows of videos with many clips are large
BYTES_PER_BATCH = 16 << 20  # read in one step, about


def batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.Table]:
    """The rows, some at a time. columns: also fields of structs in lists, `clips.take`; those that
    the file lacks are left out."""
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    wanted = [path for path in leaves if _is_within(path, columns)]
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    rows = BYTES_PER_BATCH * file.metadata.num_rows // max(size, 1)
    for batch in file.iter_batches(min(max(rows, 16), ROWS_PER_GROUP), columns=wanted):
        yield pa.Table.from_batches([batch])


def _is_within(leaf: str, columns: list[str]) -> bool:
    """Whether a column of a Parquet file, with its steps into lists, is or belongs to one."""
    name = ".".join(n for n in leaf.split(".") if n not in ("list", "element", "item")) + "."
    return any(name.startswith(f"{column}.") for column in columns)


def scan(data: ds.Dataset, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a dataset in order, some at a time; other columns are not read. Raises
    OutputError, MissingFile."""
    import pyarrow.dataset as ds  # takes 0.25 s: it imports pandas

    options = ds.ParquetFragmentScanOptions(
        pre_buffer=False,  # it would keep all that was read
        page_checksum_verification=True,
    )
    is_in_files = isinstance(data, ds.FileSystemDataset)
    with storage_errors("read", _place_of(data)):
        for batch in data.to_batches(
            columns=columns,
            batch_size=ROWS_PER_GROUP,
            batch_readahead=1,
            fragment_readahead=1,
            fragment_scan_options=options if is_in_files else None,
            use_threads=False,
        ):
            yield pa.Table.from_batches([batch])


def find_rows(
    data: ds.Dataset, condition: pc.Expression, columns: list[str] | None = None
) -> list[Row]:
    """The rows of a dataset for which the condition is true; columns: None: all. Raises
    OutputError, MissingFile."""
    with storage_errors("read", _place_of(data)):
        return data.to_table(columns, filter=condition).to_pylist()


def _place_of(data: ds.Dataset) -> str:
    files = getattr(data, "files", [])  # one in memory has none
    return files[0] if len(files) == 1 else f"{len(files)} files"


class TableWriter:
    """Appends tables to a Parquet file in groups of ROWS_PER_GROUP rows, whatever their sizes: so
    that the same rows give the same bytes."""

    def __init__(self, file: pq.ParquetWriter, path: str) -> None:
        """path: of the table, in errors."""
        self._file, self._path = file, path
        self._tables: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._tables.append(table)
        while sum(t.num_rows for t in self._tables) >= ROWS_PER_GROUP:
            joined = pa.concat_tables(self._tables)
            self._write_group(joined.slice(0, ROWS_PER_GROUP))
            self._tables = [joined.slice(ROWS_PER_GROUP)]

    def flush(self) -> None:
        if sum(t.num_rows for t in self._tables):
            self._write_group(pa.concat_tables(self._tables))
        self._tables = []

    def _write_group(self, table: pa.Table) -> None:
        with storage_errors("write", self._path):
            self._file.write_table(table.combine_chunks())


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file. Each page has a checksum, by which a damaged one is an error when read."""
    sink = pa.BufferOutputStream()
    rows = BYTES_PER_GROUP * table.num_rows // max(table.nbytes, 1)
    pq.write_table(
        table,
        sink,
        compression="zstd",
        write_page_checksum=True,
        row_group_size=min(max(rows, 1), ROWS_PER_GROUP),
    )
    return sink.getvalue().to_pybytes()
