"""Files as version 0.1.0 wrote them, out of today's: its names, and no schema version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.json_text import parse_hashed
from curation.renames import COLUMNS

OLD_COLUMNS = {new: old for old, new in COLUMNS.items()}
OLD_STAGES = {"decode": "watch", "ocr": "text"}
SETTINGS = (Path(__file__).parent / "settings_0.1.0.txt").read_text().split()


def with_old_names(value: Any) -> Any:
    """Rows with the old names of columns, also in the texts of reasons."""
    if isinstance(value, dict):
        return {OLD_COLUMNS.get(k, k): with_old_names(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(with_old_names, value))
    if isinstance(value, str):
        value = value.replace("failed the prefilter", "below the gate")
        for new, old in OLD_COLUMNS.items():
            value = value.replace(f"{new} ", f"{old} ")
    return value


def old_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(old_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(OLD_COLUMNS.get(f.name, f.name), old_type(f.type)) for f in kind])
    return kind


def make_old(out: Path) -> None:
    """Turns the scored videos of an output into those of version 0.1.0."""
    for part in (out / "ledger/videos").iterdir():
        table = pq.read_table(part)
        schema = pa.schema([(f.name, old_type(f.type)) for f in table.schema])
        rows = with_old_names(table.to_pylist())
        pq.write_table(pa.Table.from_pylist(rows, schema), part)
    path = out / "ledger/videos.settings.json"
    recorded = {OLD_STAGES[name]: of for name, of in parse_hashed(path.read_bytes()).items()}
    path.write_text(json.dumps(recorded))
