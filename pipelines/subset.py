"""The settings select.where, select.limit and select.balance: what they may name."""

from __future__ import annotations

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
    """Raises SqlError, ConfigError, PlanError."""
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


def inside_where(chosen: SelectSettings, clips: pa.Table) -> pa.ChunkedArray | None:
    """Whether each clip fulfils select.where; None without a condition. Raises SqlError."""
    if chosen.where is None:
        return None
    known = (*WHERE_COLUMNS, *CAPTION_COLUMNS)
    named = clips.select([n for n in clips.column_names if n in known])
    return condition_values(named, chosen.where, NAME)
