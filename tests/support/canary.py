"""A key that stands in for the user's, and a search for it in everything that a run writes."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping

import pyarrow.parquet as pq

CANARY = "canary-4f1d0c9e7b"  # of the environment of all runs of the tests


def files_with_canary(files: Mapping[str, bytes]) -> list[str]:
    """The names of files that hold it, also inside tables and archives."""
    key = CANARY.encode()
    return [name for name, data in files.items() if any(key in part for part in _contents(data))]


def _contents(data: bytes) -> Iterator[bytes]:
    yield data
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        yield repr((table.to_pylist(), table.schema.metadata)).encode()
    if data[:2] == b"\x1f\x8b":
        yield zlib.decompress(data, 31)
    if data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                opened = tar.extractfile(member)
                yield opened.read() if opened else b""
