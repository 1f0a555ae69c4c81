"""Pure measures on texts: how alike they are, and making text read from a picture harmless."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+(?:'\w+)?")


def words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation dropped."""
    return _WORD.findall(text.lower())


def tfidf_cosine(texts: Sequence[str]) -> np.ndarray:
    """(N, N) cosine between the TF-IDF vectors of N texts, 0..1.

    The vector of text d has, for each word w, tf(w, d) * idf(w), where tf is how often w is in d
    and idf(w) = ln((1 + N) / (1 + n_w)) + 1 with n_w the number of texts that hold w (the smoothed
    form: a word that all texts share still weighs 1, so equal texts have cosine 1). A text without
    words is unlike any, itself too.
    """
    counts = [Counter(words(text)) for text in texts]
    holders = Counter(word for count in counts for word in count)
    place = {word: i for i, word in enumerate(sorted(holders))}
    vectors = np.zeros((len(texts), len(place)))
    for row, count in zip(vectors, counts, strict=True):
        for word, times in count.items():
            row[place[word]] = times * (math.log((1 + len(texts)) / (1 + holders[word])) + 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return np.clip(unit @ unit.T, 0.0, 1.0)


def neighbour_similarity(texts: Sequence[str]) -> float | None:
    """Largest TF-IDF cosine between neighbouring texts, 0..1; None of fewer than two."""
    return largest_neighbour(tfidf_cosine(texts))


def largest_neighbour(similarity: np.ndarray) -> float | None:
    """Of the (N, N) similarity of N texts in order, the largest between neighbours."""
    beside = np.diagonal(similarity, offset=1)
    return float(np.max(beside)) if len(beside) else None


def joined(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def sentence(text: str) -> str:
    """With a capital at its start and a full stop at its end."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def harmless(text: str, max_chars: int) -> str:
    """Text of unknown origin as one short line.

    Control and invisible characters (bidirectional marks too) become blanks, runs of blanks one;
    double quotes become single ones, so that it stays inside the quotes it is put in; what is
    longer than `max_chars` ends in an ellipsis. Angle brackets and ampersands become look-alikes
    without a meaning in markup.
    """
    plain = unicodedata.normalize("NFKC", text)
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in plain)
    plain = plain.translate(_INERT)
    plain = " ".join(plain.split())
    return plain if len(plain) <= max_chars else plain[: max_chars - 1].rstrip() + "…"


_INERT = str.maketrans({'"': "'", "“": "'", "”": "'", "<": "‹", ">": "›", "&": "+", "`": "'"})
