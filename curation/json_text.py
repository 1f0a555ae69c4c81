"""JSON from files and servers, which may be cut off or made to harm."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

HASH = "content_sha256"  # the key of `with_hash`


def parse_json(text: str | bytes) -> Any:
    """Returns the value. Raises ValueError if it is not valid JSON or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Returns the object. Raises ValueError if it is not a JSON object."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def with_hash(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its own hash, which `parse_hashed` checks."""
    return {**content, HASH: _content_hash(content)}


def parse_hashed(text: str | bytes) -> dict[str, Any]:
    """Returns the object that `with_hash` got. Raises ValueError if it has another hash; objects of
    older versions have none."""
    found = parse_object(text)
    recorded = found.pop(HASH, None)
    if recorded not in (None, _content_hash(found)):
        raise ValueError("its content does not have the hash that was stored with it")
    return found


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def replace_non_finite(value: Any) -> Any:
    """The value with NaN and infinity replaced by None, at any depth: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return value
