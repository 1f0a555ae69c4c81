"""The table of a selection: each clip with its reasons, status and split."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.policy import group_by_row

SCHEMA = records.schema(records.SELECTION)
OUTSIDE = "outside where"
OUTSIDE_BY_CAPTION = "outside where, by its caption"
OVER_LIMIT = "limit: not among the clips drawn"


def append_reasons(reasons: pa.ListArray, rows: np.ndarray, texts: np.ndarray) -> pa.ListArray:
    """The lists, with each text appended to the list of its row."""
    all_rows = np.concatenate([pc.list_parent_indices(reasons).to_numpy(), rows])
    values = pa.concat_arrays([pc.list_flatten(reasons), pa.array(texts, pa.string())])
    return group_by_row(all_rows, values, len(reasons))


def selection_table(clip_id: pa.ChunkedArray, reasons: pa.ListArray, split: pa.Array) -> pa.Table:
    """records.SELECTION: a clip without reasons is kept, and only a kept one has a split."""
    count = pc.list_value_length(reasons).to_numpy()
    texts = pa.concat_arrays([pc.list_flatten(reasons), pa.nulls(1, pa.string())])
    first = np.where(count > 0, reasons.offsets.to_numpy()[:-1], len(texts) - 1)
    rejected = pa.array(count > 0)
    columns = {
        "clip_id": clip_id,
        "status": pc.if_else(rejected, "rejected", "kept"),
        "reason": texts.take(pa.array(first)),
        "reasons": reasons,
        "split": pc.if_else(rejected, pa.scalar(None, pa.string()), split),
    }
    return pa.table(columns, schema=SCHEMA)


def reject_clips(selection: pa.Table, rows: np.ndarray, reason: str) -> pa.Table:
    """The selection, in which the clips of these rows have one more reason against them."""
    texts = np.full(len(rows), reason)
    reasons = append_reasons(selection["reasons"].combine_chunks(), rows, texts)
    return selection_table(selection["clip_id"], reasons, selection["split"])
