"""Pure functions on texts: similarity, joining, and cleaning text of unknown origin."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emoji are misspelt without them
MAX_ERROR_CHARS = 2000
_WORD = re.compile(r"\w+(?:'\w+)?")


def split_words(text: str) -> list[str]:
    """Returns the words and numbers in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def tfidf_cosine(texts: Sequence[str]) -> np.ndarray:
    """Returns the (N, N) cosines between the TF-IDF vectors of N texts, 0..1.

    The vector of text d has, for each word w, tf(w, d) * idf(w), where tf is how often w is in d
    and idf(w) = ln((1 + N) / (1 + n_w)) + 1 with n_w the number of texts that hold w (the smoothed
    form: a word that is in all texts has weight 1, so that equal texts have cosine 1). A text
    without words has cosine 0 with every text, also with itself.
    """
    counts = [Counter(split_words(text)) for text in texts]
    holders = Counter(word for count in counts for word in count)
    column = {word: i for i, word in enumerate(sorted(holders))}
    vectors = np.zeros((len(texts), len(column)))
    for row, count in zip(vectors, counts, strict=True):
        for word, times in count.items():
            row[column[word]] = times * (math.log((1 + len(texts)) / (1 + holders[word])) + 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return np.clip(unit @ unit.T, 0.0, 1.0)


def max_adjacent_similarity(texts: Sequence[str]) -> float | None:
    """Returns the largest TF-IDF cosine between adjacent texts, 0..1; None of fewer than two."""
    return max_adjacent(tfidf_cosine(texts))


def max_adjacent(similarity: np.ndarray) -> float | None:
    """Returns the largest similarity between adjacent texts. similarity: (N, N), in order."""
    adjacent = np.diagonal(similarity, offset=1)
    return float(np.max(adjacent)) if len(adjacent) else None


def join_words(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def format_sentence(text: str) -> str:
    """Returns the text with a capital at its start and a full stop at its end."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode the text. A file name or an argument with other bytes has lone
    surrogates in their place."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_outside_text(text: str, max_chars: int) -> str:
    """Returns text of unknown origin so that Parquet, JSON, pages and terminals can hold it.

    U+FFFD stands for each lone surrogate, control character (newline and tab excepted), invisible
    formatting character (bidirectional controls; not JOINERS) and unassigned or private character.
    Text longer than `max_chars` ends in an ellipsis; what is cut off costs nothing.
    """
    if len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if _is_safe(c) else REPLACEMENT for c in text.replace("\r\n", "\n"))


def _is_safe(c: str) -> bool:
    return (
        c.isprintable()
        or c in "\n\t"
        or c in JOINERS
        or unicodedata.category(c) == "Zs"  # spaces of other widths
    )


def sanitize_text(text: str, max_chars: int) -> str:
    """Returns text of unknown origin as one short line that is safe inside quotes and markup.

    Control and invisible characters (bidirectional marks too) become spaces, runs of spaces one.
    Double quotes become single ones; angle brackets and ampersands become similar characters
    without a meaning in markup. Text longer than `max_chars` ends in an ellipsis.
    """
    plain = unicodedata.normalize("NFKC", text)
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in plain)
    plain = plain.translate(_INERT)
    plain = " ".join(plain.split())
    return plain if len(plain) <= max_chars else plain[: max_chars - 1].rstrip() + "…"


_INERT = str.maketrans({'"': "'", "“": "'", "”": "'", "<": "‹", ">": "›", "&": "+", "`": "'"})
