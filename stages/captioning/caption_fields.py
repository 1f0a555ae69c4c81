"""The fields of a sub-caption with caption.structured: what a model's answer has, and its checks.

Pure. The fields are stored with the text. They are not trained on, and no later request has them.
"""

from __future__ import annotations

from typing import Any

from curation.records import FIELD_NAMES
from curation.texts import clean_outside_text, split_words
from stages.captioning.checks import contradiction, failed_form
from stages.captioning.conversation import CAPTION_SCHEMA, find_json_value

MAX_FIELD_WORDS, MAX_FIELD_CHARS = 40, 400

STRUCTURED_SCHEMA: dict[str, Any] = CAPTION_SCHEMA | {
    "properties": {name: {"type": "string"} for name in ("caption", *FIELD_NAMES)},
    "required": ["caption", *FIELD_NAMES],
}


def parse_fields(answer: str) -> dict[str, str]:
    """Returns name -> text of each field of an answer; empty where the answer lacks it. Line breaks
    are kept."""
    found = {name: find_json_value(answer, name) for name in FIELD_NAMES}
    return {
        name: clean_outside_text(text, MAX_FIELD_CHARS + 1).strip() if isinstance(text, str) else ""
        for name, text in found.items()
    }


def failed_field(fields: dict[str, str], segment: dict[str, Any] | None) -> str | None:
    """Returns the name of the first field that fails a check, and the check; None: all pass.

    segment: its segment's row (records.SEGMENT).
    """
    for name, text in fields.items():
        reason = failed_form(text) or _too_long(text)
        if reason is None and segment and name == "camera":
            reason = contradiction(f"The camera {text}", segment)
        if reason is not None:
            return f"field {name} {reason}"
    return None


def _too_long(text: str) -> str | None:
    count = len(split_words(text))
    if count > MAX_FIELD_WORDS:
        return f"too long: {count} words > {MAX_FIELD_WORDS}"
    return (
        f"too long: more than {MAX_FIELD_CHARS} characters" if len(text) > MAX_FIELD_CHARS else None
    )
