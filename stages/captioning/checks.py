"""Checks that decide whether a model's text may be a caption. Pure: text in, a reason or None out.

They look for what makes a text useless for training, not for style. Quoted words (read off a sign,
say) are left out where the language or the meaning is judged.
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

from curation.texts import tfidf_cosine, words
from stages.captioning.levels import PAN_PX_S, ROLL_DEG_S, SHAKE_PX_S, ZOOM_PER_S

T5_TOKENS = 512  # what the trainer reads of one text
COPIED = 0.9  # share of words in common, in order, from which a text is a copy
CERTAIN = 0.5  # a camera below this share of every bound stands still for certain
MOVING = 2.0  # and one beyond this multiple of the second bound moves for certain
LATIN = 0.9  # share of letters that English has, at least
FUNCTION_WORDS = 0.15  # share of words, at least; English prose has 0.35 to 0.55

Tokens = Callable[[str], int]  # T5 tokens of a text, the end among them
Similar = Callable[[Sequence[str]], np.ndarray]  # (N, N) similarity of N texts


@dataclass(frozen=True)
class Limits:
    """What a run asks of its texts."""

    min_words: int
    tokens: Tokens
    similarity: float | None = None  # of neighbours, at most; None: only copies are refused
    similar: Similar = tfidf_cosine


def failed(
    text: str, limits: Limits, earlier: Sequence[str] = (), segment: dict[str, Any] | None = None
) -> str | None:
    """The first check that a text fails, with what was found; None: it may stay.

    earlier: of a sub-caption, those before it, in order.  segment: the measured facts of its
    segment, a records.SEGMENT.
    """
    return (
        empty(text)
        or garbled(text)
        or refusal(text)
        or obedience(text)
        or boilerplate(text)
        or wrong_language(text)
        or too_short(text, limits.min_words)
        or too_long(text, limits.tokens)
        or copy(text, earlier)
        or too_similar(text, earlier, limits)
        or (contradiction(text, segment) if segment else None)
    )


def empty(text: str) -> str | None:
    return None if words(text) else "empty"


def garbled(text: str) -> str | None:
    """Characters that no text has: control codes, unassigned ones, half of a letter."""
    odd = [c for c in text if unicodedata.category(c)[0] == "C" or c == "\N{REPLACEMENT CHARACTER}"]
    return f"garbled: {len(odd)} characters" if odd else None


_REFUSAL = re.compile(
    r"\b(?:i'?m|i am|we are|we're)\s+(?:very\s+)?(?:sorry|unable|not able|afraid)\b"
    r"|\b(?:i|we)\s+(?:cannot|can'?t|can not|won'?t|do not|don'?t|could not|couldn'?t)\b"
    r"|\bas an ai\b|\bas a (?:large )?language model\b|\bi apologi[sz]e\b"
    r"|\b(?:cannot|can'?t) (?:assist|help) with\b",
    re.IGNORECASE,
)


def refusal(text: str) -> str | None:
    """The model speaks of itself instead of the clip."""
    return _named("refusal", _REFUSAL, unquoted(text))


_OBEDIENCE = re.compile(
    r"\b(?:ignor\w+|disregard\w*|forget\w*|overrid\w+)\b[^.]{0,30}"
    r"\b(?:instructions?|prompts?|rules|guidelines)\b"
    r"|\bsystem prompt\b|\b(?:new|previous|prior|above|my|your) instructions\b|</?data>|‹/?data›",
    re.IGNORECASE,
)


def obedience(text: str) -> str | None:
    """It speaks of instructions: words in the picture may have been taken for some."""
    return _named("speaks of instructions", _OBEDIENCE, unquoted(text))


_BOILERPLATE = re.compile(
    r"^\W*(?:sure|certainly|of course|okay|here (?:is|are)|description|answer)\b[^.]{0,40}[:!,]"
    r"|\bthe (?:video|clip|footage|sequence|scene) (?:begins|starts|opens|ends|concludes)\b"
    r"|\b(?:this|these|each|first|second|third|fourth|fifth|last|middle|next|previous|final)\s+"
    r"(?:frames?|images?|pictures?|video|clip|segments?|screenshots?)\b(?!\s+(?:on|hang))"
    r"|\bthe (?:images?|video|clip|segments?|captions?|screenshots?)\b(?!\s+(?:on|hang))"
    r"|\b(?:key ?frames?|sub-captions?)\b|^\s*(?:[-*#]|\d+[.)])\s|\*\*|```|[{}]",
    re.IGNORECASE,
)


def boilerplate(text: str) -> str | None:
    """Talk about the video or the answer, or markup, where the scene should be told."""
    return _named("boilerplate", _BOILERPLATE, unquoted(text))


_ENGLISH = frozenset(
    words(
        "the of and to in is with on at by it its as from for an are that while over into his her "
        "their this there which through along behind up down out off around across near between "
        "toward towards now still more then under above beside has been slightly he she they"
    )
)


def wrong_language(text: str) -> str | None:
    """It is not English: letters of other scripts, or too few of English's commonest words."""
    plain = unquoted(text)
    letters = [c for c in plain if c.isalpha()]
    latin = sum(c.isascii() for c in letters)
    if letters and latin < LATIN * len(letters):
        return f"wrong language: {len(letters) - latin} of {len(letters)} letters are not English"
    found = words(plain)
    common = sum(word in _ENGLISH for word in found)
    if len(found) >= 12 and common < FUNCTION_WORDS * len(found):
        return f"wrong language: {common} of {len(found)} words are common English ones"
    return None


def too_short(text: str, min_words: int) -> str | None:
    count = len(words(text))
    return None if count >= min_words else f"too short: {count} words < {min_words}"


def too_long(text: str, tokens: Tokens) -> str | None:
    count = tokens(text)
    return None if count <= T5_TOKENS else f"too long: {count} T5 tokens > {T5_TOKENS}"


def t5_tokens_at_most(text: str) -> int:
    """An estimate of T5's tokens that errs upwards, for where its tokenizer is not at hand.

    A piece per three letters of a word (English words are on average 1.3 pieces, rare ones one per
    three to four letters), one per digit and per other character, and the end of the text. A text
    of 100 words comes out at about 200, and is about 130.
    """
    pieces = 1
    for run in re.findall(r"[^\W\d_]+|[^\s]", text):
        pieces += math.ceil(len(run) / 3) if run.isascii() else len(run.encode()) // 2 + 1
    return pieces


def copy(text: str, earlier: Sequence[str]) -> str | None:
    """It says what an earlier sub-caption said, nearly word for word."""
    own = words(text)
    for number, other in enumerate(earlier, 1):
        ratio = SequenceMatcher(None, own, words(other), autojunk=False).ratio()
        if ratio >= COPIED:
            return f"copy of sub-caption {number}: {ratio:.0%} of the words"
    return None


def too_similar(text: str, earlier: Sequence[str], limits: Limits) -> str | None:
    """It is too much like the sub-caption before it. Of the texts so far, as the column of the
    ledger is of all."""
    if limits.similarity is None or not earlier:
        return None
    found = float(limits.similar([*earlier, text])[-1, -2])
    if found <= limits.similarity:
        return None
    return f"too similar to the one before: {found:.2f} > {limits.similarity:g}"


_GOES = (
    r"(?:pan|tilt|zoom|track|mov|push|pull|dolli|dolly|rotat|orbit|circl|ris|descend|sweep|swivel|glid"
    r"|retreat|advanc|turn|truck|crane)(?:e?s|n?ing|p?ing|ming)?"
)
_LINKS = r"(?:(?:\w+ly|then|now|also|and|is|begins?|starts?|continues?|keeps?|to)\s+){0,4}"
_MOVES = re.compile(rf"\b(?:camera|view|shot)\s+{_LINKS}{_GOES}\b", re.IGNORECASE)
_NO_MOVE = r"(?:static|still|stationary|fixed|motionless|unmoving|steady)"
_STANDS = re.compile(
    rf"\b{_NO_MOVE}\s+(?:camera|shot|view)\b"
    rf"|\b(?:camera|view|shot)\s+(?:remains?|stays?|is|holds?|keeps?)\s+(?:\w+ly\s+)?{_NO_MOVE}\b",
    re.IGNORECASE,
)


def contradiction(text: str, segment: dict[str, Any]) -> str | None:
    """It says of the camera what was measured otherwise, where the measure leaves no doubt."""
    plain = unquoted(text)
    certain = camera_for_certain(segment)
    if certain == "still" and (found := _MOVES.search(plain)):
        return f"contradicts the measured still camera: “{found[0]}”"
    if certain == "moving" and (found := _STANDS.search(plain)) and not _MOVES.search(plain):
        return f"contradicts the measured camera motion: “{found[0]}”"
    return None


def camera_for_certain(segment: dict[str, Any]) -> str | None:
    """`still` or `moving` where a segment's measures leave no doubt."""
    names = ("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake")
    values: list[Any] = [segment.get(name) for name in names]
    if None in values:
        return None
    x, y, zoom, roll, shake = values
    found = (math.hypot(x, y), abs(zoom), abs(roll))
    bounds = (PAN_PX_S, ZOOM_PER_S, ROLL_DEG_S)
    if shake < CERTAIN * SHAKE_PX_S[0] and all(
        value < CERTAIN * bound[0] for value, bound in zip(found, bounds, strict=True)
    ):
        return "still"
    if any(value > MOVING * bound[1] for value, bound in zip(found, bounds, strict=True)):
        return "moving"
    return None


_QUOTED = re.compile(
    r"\"[^\"]{0,300}\"|“[^”]{0,300}”|(?<!\w)'[^']{1,300}'(?!\w)|‘[^’]{0,300}’(?!\w)"
)


def unquoted(text: str) -> str:
    """The text without what it quotes."""
    return _QUOTED.sub(" ", text)


def _named(name: str, pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return f"{name}: “{found[0].strip()[:60]}”" if found else None
