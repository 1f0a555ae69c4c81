"""Tables that are distributed by ranges of a key come back in order, whole."""

import numpy as np
import pyarrow as pa
import pytest

from curation import partitions
from curation.partitions import MAX_RANGES, hash_bounds, last_by_key, scratch_partitions


@pytest.mark.parametrize("buffer_bytes", [1, 10_000, 1 << 20])
def test_ranges_hold_the_last_row_of_each_key_in_order(monkeypatch, buffer_bytes):
    monkeypatch.setattr(partitions, "BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(partitions, "ROWS_PER_RANGE", 100)
    rng = np.random.default_rng(0)
    keys = [f"{v:08x}" for v in rng.integers(0, 2**32, 700)]
    drawn = [keys[i] for i in rng.integers(0, 700, 2000)]
    table = pa.table({"clip_id": drawn, "n": range(2000), "text": [[k] * 2 for k in drawn]})
    pieces = [table.slice(start, 30) for start in range(0, 2000, 30)]
    names = {"numbers": ["clip_id", "n"], "texts": ["clip_id", "text"]}
    with scratch_partitions("clip_id", hash_bounds(700)) as parts:
        parts.write(pieces, names)
        assert len(parts) == 7
        numbers, texts = (
            pa.concat_tables([parts.read(name, i, table.schema) for i in range(7)])
            for name in names
        )
        empty = parts.read("nothing", 3, table.schema)
    last = dict(zip(drawn, range(2000), strict=True))
    assert numbers.to_pylist() == [{"clip_id": k, "n": last[k]} for k in sorted(last)]
    assert texts["text"].to_pylist() == [[k] * 2 for k in sorted(last)]
    assert empty.num_rows == 0
    assert last_by_key(table, "clip_id").num_rows == len(last)


def test_number_of_ranges_is_limited():
    assert len(hash_bounds(0)) == 0
    assert len(hash_bounds(10**9)) == MAX_RANGES - 1
