"""The settings select.where, select.limit and select.balance: what they may name."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa

from curation import records
from curation.config import check_choice
from curation.ledger import VIDEO_COLUMNS
from curation.records import CAPTION_SCORES
from curation.sql import SqlError, condition_values
from curation.stage import PlanError
from pipelines.settings import SelectSettings

NAME = "select.where"
EMBEDDINGS = "embeddings"
NO_SQL = ("fingerprint", "overlay_mask", "starts_on_keyframe", "borders")
CAPTION_COLUMNS = ("caption", "sub_captions", "captioner", *CAPTION_SCORES)
_TYPES = {c.name: c.type for c in (*records.VIDEO, *records.CAPTION, *records.CLIP)}
_OF_CLIPS = [c.name for c in records.CLIP if c.name not in (*NO_SQL, *CAPTION_SCORES)]
WHERE_COLUMNS = tuple(dict.fromkeys([*_OF_CLIPS, *VIDEO_COLUMNS]))


def check_subset(chosen: SelectSettings, has_embeddings: bool) -> None:
    """Checks the three settings. Raises SqlError, ConfigError, PlanError."""
    if chosen.where is not None:
        reads_captions(chosen.where)
    if chosen.balance == EMBEDDINGS:
        if not has_embeddings:
            raise PlanError(
                "select.balance=embeddings needs the clips' embeddings, and there are none\n"
                "  fix: longtake score with score.models.clip.weights (docs/models.md), which "
                "decodes no video again, or balance a column"
            )
    elif chosen.balance is not None:
        check_choice("select.balance", chosen.balance, [*_balanced_columns(), EMBEDDINGS])


def _balanced_columns() -> list[str]:
    return [name for name in WHERE_COLUMNS if not pa.types.is_nested(_TYPES[name])]


def reads_captions(where: str) -> bool:
    """Whether the condition names a column of captions. Raises SqlError where it is not valid."""
    try:
        condition_values(_empty(WHERE_COLUMNS), where, NAME)
    except SqlError:
        condition_values(_empty((*WHERE_COLUMNS, *CAPTION_COLUMNS)), where, NAME)
        return True
    return False


def _empty(names: tuple[str, ...]) -> pa.Table:
    return pa.schema([(name, _TYPES[name]) for name in names]).empty_table()


def with_captions(clips: pa.Table, captioned: pa.Table) -> pa.Table:
    """The clips with the caption columns of the same rows."""
    clips = clips.drop_columns([n for n in CAPTION_COLUMNS if n in clips.column_names])
    for name in CAPTION_COLUMNS:
        clips = clips.append_column(name, captioned[name])
    return clips


def where_columns(chosen: SelectSettings) -> list[str]:
    """The columns of a clip that select.where may read."""
    condition = (chosen.where or "").lower()
    if "*" in condition:
        return list(WHERE_COLUMNS)
    return [name for name in WHERE_COLUMNS if name.lower() in condition]


def inside_where(chosen: SelectSettings, tables: Iterable[pa.Table]) -> list[pa.ChunkedArray]:
    """Whether each clip of each table fulfils select.where; empty without a condition.

    A condition with a subquery is about all tables together. Raises SqlError.
    """
    if chosen.where is None:
        return []
    known = (*WHERE_COLUMNS, *CAPTION_COLUMNS)
    named = (clips.select([n for n in clips.column_names if n in known]) for clips in tables)
    if "select" not in chosen.where.lower():
        return [condition_values(clips, chosen.where, NAME) for clips in named]
    parts = list(named)
    values = condition_values(pa.concat_tables(parts), chosen.where, NAME)
    ends = np.cumsum([0, *(part.num_rows for part in parts)])
    return [values.slice(a, b - a) for a, b in pairwise(ends.tolist())]
