"""Checks that decide whether a model's text may become a caption. Each returns a reason or None.

They find what makes a text useless for training, not bad style. Quotations (such as text on a
sign) are removed before the language and the meaning are checked.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from curation.texts import REPLACEMENT, split_words, tfidf_cosine
from stages.captioning.conversation import Completion
from stages.captioning.form_checks import (
    control_tokens,
    cut_off,
    escapes,
    markup,
    match_reason,
    reasoning,
    reasoning_tags,
    refusal,
    remove_quotations,
    repetition,
)
from stages.captioning.language import wrong_language
from stages.captioning.segment_state import (
    PAN_BOUNDS_PX_S,
    ROLL_BOUNDS_DEG_S,
    SHAKE_BOUNDS_PX_S,
    ZOOM_BOUNDS_PER_S,
)

MAX_T5_TOKENS = 512  # what the trainer reads of one text
MIN_COPY_RATIO = 0.9  # share of words in common, in order, from which a text is a copy
MAX_STATIC_RATIO = 0.5  # to the first bounds: a camera below it in everything is certainly static
MIN_MOVING_RATIO = 2.0  # to a second bound: a camera above it certainly moves
MIN_ANSWER_CHARS, MAX_CHARS_PER_TOKEN = 1000, 16  # longer answers are not parsed
# What servers name the reason for an answer's end. Of others the text itself decides.
ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
CUT_OFF = ("length", "max_tokens", "abort", "error", "insufficient_system_resource")

TokenCount = Callable[[str], int]  # T5 tokens of a text, the end token included
Similarity = Callable[[Sequence[str]], np.ndarray]  # (N, N) similarity of N texts


@dataclass(frozen=True)
class CheckLimits:
    """The limits that a run sets."""

    min_words: int
    count_tokens: TokenCount
    max_similarity: float | None = None  # of consecutive texts; None: only copies fail
    similarity: Similarity = tfidf_cosine
    languages: Sequence[str] = ("en",)


def failed_answer(completion: Completion, max_tokens: int) -> str | None:
    """Returns why an answer can't hold a usable text, found by cheap checks; None: it may hold
    one."""
    end = (completion.finish_reason or "").lower()
    if completion.fault is not None:
        return completion.fault
    if end in CUT_OFF or (not end and completion.output_tokens >= max_tokens):
        return f"cut off: {end or 'length'}, with at most {max_tokens} tokens"
    if end == "content_filter":
        return "refusal: content filter"
    max_chars = MIN_ANSWER_CHARS + MAX_CHARS_PER_TOKEN * max_tokens
    if len(completion.text) > max_chars:
        return f"too long: {len(completion.text)} characters > {max_chars}"
    return reasoning_tags(completion.text)


def failed_check(
    text: str,
    limits: CheckLimits,
    earlier: Sequence[str] = (),
    segment: dict[str, Any] | None = None,
    is_complete: bool = False,
) -> str | None:
    """Returns the name of the first check that a text fails, with what was found; None: it passes.

    text: with its line breaks.  earlier: the sub-captions before it, in order.  segment: its
    segment's row (records.SEGMENT).  is_complete: the server stated that the answer was ended.
    """
    return (
        failed_form(text)
        or wrong_language(remove_quotations(text), limits.languages)
        or too_short(remove_quotations(text), limits.min_words)
        or cut_off(text, is_complete)
        or repetition(text)
        or too_long(text, limits.count_tokens)
        or copy(text, earlier)
        or too_similar(text, earlier, limits)
        or (contradiction(text, segment) if segment else None)
    )


def failed_form(text: str) -> str | None:
    """The checks that a single phrase must pass too."""
    return (
        empty(text)
        or garbled(text)
        or control_tokens(text)
        or reasoning(text)
        or escapes(text)
        or markup(text)
        or refusal(text)
        or prompt_injection(text)
        or boilerplate(text)
    )


def empty(text: str) -> str | None:
    return None if split_words(text) else "empty"


def garbled(text: str) -> str | None:
    """Characters that no caption has: control codes, unassigned and replacement characters."""
    odd = [c for c in text if unicodedata.category(c)[0] == "C" and c not in "\n\t"]
    odd += [REPLACEMENT] * text.count(REPLACEMENT)
    return f"garbled: {len(odd)} characters" if odd else None


_INJECTION = re.compile(
    r"\b(?:ignor\w+|disregard\w*|forget\w*|overrid\w+)\b[^.]{0,30}"
    r"\b(?:instructions?|prompts?|rules|guidelines)\b"
    r"|\bsystem prompt\b|\b(?:new|previous|prior|above|my|your) instructions\b|</?data>|‹/?data›",
    re.IGNORECASE,
)


def prompt_injection(text: str) -> str | None:
    """The text mentions instructions: the model may have obeyed text in the image."""
    return match_reason("mentions instructions", _INJECTION, remove_quotations(text))


_ORDINAL = "(?:first|second|third|fourth|fifth|last|next|previous|final)"
_BOILERPLATE = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|here (?:is|are|'s)|description|answer|caption"
    r"|output|response|title|summary|(?:part|segment) \d+)\b[^.]{0,40}[:!,]"
    r"|\bthe (?:video|clip|footage|sequence|scene) (?:begins|starts|opens|ends|concludes)\b"
    r"|\b(?:this|these|each|first|second|third|fourth|fifth|last|middle|next|previous|final)\s+"
    r"(?:frames?|images?|pictures?|video|clip|segments?|screenshots?)\b(?!\s+(?:on|hang))"
    r"|\bthe (?:images?|video|clip|segments?|captions?|screenshots?)\b(?!\s+(?:on|hang))"
    r"|(?:^|[.!?:\n])\W*(?:this|an?|another|the)\s+(?:[\w-]+\s+){0,3}"
    r"(?:video|clip|footage|animation|image|photo(?:graph)?|screenshot|series of \w+)\s+"
    r"(?:of|that|which|in which|where|show\w*|depict\w*|captur\w*|featur\w*)\b(?![^.]*\bhang)"
    rf"|\b{_ORDINAL} (?:part|stage)(?: (?:is|has|was|now|shows?|describes?)\b|\s*[:,])"
    rf"|['’]s {_ORDINAL} part\b|^\W*\w+(?: \w+)?:\s"
    r"|\bthis (?:is an? (?:\w+ )?)?(?:description|caption|passage|sentence|summary|text|example)\b"
    r"|\b(?:past|present|future) tense\b|\bin \d+ words\b|\bvideo ?clips?\b"
    r"|\b(?:key ?frames?|sub-captions?)\b|^\s*(?:[-*#]|\d+[.)])\s|\*\*|```|[{}]",
    re.IGNORECASE,
)


def boilerplate(text: str) -> str | None:
    """The text describes the video as such, or the answer, or contains markup."""
    return match_reason("boilerplate", _BOILERPLATE, remove_quotations(text))


_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def too_short(text: str, min_words: int) -> str | None:
    """The text has fewer words than the limit. In scripts without spaces two letters count as a
    word."""
    count = sum(max(1, len(_UNSPACED.findall(word)) // 2) for word in split_words(text))
    return None if count >= min_words else f"too short: {count} words < {min_words}"


def too_long(text: str, count_tokens: TokenCount) -> str | None:
    count = count_tokens(text)
    return None if count <= MAX_T5_TOKENS else f"too long: {count} T5 tokens > {MAX_T5_TOKENS}"


def copy(text: str, earlier: Sequence[str]) -> str | None:
    """Nearly the same words, in the same order, as an earlier sub-caption."""
    found = split_words(text)
    for number, other in enumerate(earlier, 1):
        ratio = SequenceMatcher(None, found, split_words(other), autojunk=False).ratio()
        if ratio >= MIN_COPY_RATIO:
            return f"copy of sub-caption {number}: {ratio:.0%} of the words"
    return None


def too_similar(text: str, earlier: Sequence[str], limits: CheckLimits) -> str | None:
    """Too similar to the sub-caption before it.

    The similarity is computed over the texts so far; the ledger's column is over all of them.
    """
    if limits.max_similarity is None or not earlier:
        return None
    found = float(limits.similarity([*earlier, text])[-1, -2])
    if found <= limits.max_similarity:
        return None
    return f"too similar to the one before: {found:.2f} > {limits.max_similarity:g}"


_MOTION_VERB = (
    r"(?:pan|tilt|zoom|track|mov|push|pull|dolli|dolly|rotat|orbit|circl|ris|descend|sweep|swivel|glid"
    r"|retreat|advanc|turn|truck|crane)(?:e?s|n?ing|p?ing|ming)?"
)
_LINK_WORDS = r"(?:(?:\w+ly|then|now|also|and|is|begins?|starts?|continues?|keeps?|to)\s+){0,4}"
_CAMERA_MOVES = re.compile(
    rf"\b(?:camera|view|shot)\s+{_LINK_WORDS}{_MOTION_VERB}\b", re.IGNORECASE
)
_STATIC = r"(?:static|still|stationary|fixed|motionless|unmoving|steady)"
_CAMERA_IS_STATIC = re.compile(
    rf"\b{_STATIC}\s+(?:camera|shot|view)\b"
    rf"|\b(?:camera|view|shot)\s+(?:remains?|stays?|is|holds?|keeps?)\s+(?:\w+ly\s+)?{_STATIC}\b",
    re.IGNORECASE,
)


def contradiction(text: str, segment: dict[str, Any]) -> str | None:
    """The text contradicts a measured camera motion that is certain."""
    plain = remove_quotations(text)
    certain, moves = certain_camera_motion(segment), _CAMERA_MOVES.search(plain)
    if certain == "static" and moves:
        return f"contradicts the measured still camera: “{moves[0]}”"
    if certain == "moving" and not moves and (static := _CAMERA_IS_STATIC.search(plain)):
        return f"contradicts the measured camera motion: “{static[0]}”"
    return None


def certain_camera_motion(segment: dict[str, Any]) -> str | None:
    """`static` or `moving`; None if the measurements are missing or too near to the bounds."""
    names = ("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake")
    values: list[Any] = [segment.get(name) for name in names]
    if None in values:
        return None
    x, y, zoom, roll, shake = values
    speeds = (math.hypot(x, y), abs(zoom), abs(roll))
    bounds = (PAN_BOUNDS_PX_S, ZOOM_BOUNDS_PER_S, ROLL_BOUNDS_DEG_S)
    if shake < MAX_STATIC_RATIO * SHAKE_BOUNDS_PX_S[0] and all(
        value < MAX_STATIC_RATIO * bound[0] for value, bound in zip(speeds, bounds, strict=True)
    ):
        return "static"
    if any(
        value > MIN_MOVING_RATIO * bound[1] for value, bound in zip(speeds, bounds, strict=True)
    ):
        return "moving"
    return None
