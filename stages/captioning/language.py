"""The language of a text, by py3langid (a naive Bayes classifier of bytes, 146 languages)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

MIN_TEXT_BYTES = 40  # UTF-8 bytes of letters; of a shorter text the language is not decided
MIN_TEXT_PROBABILITY = 0.5  # of the named languages together
MIN_SENTENCE_PROBABILITY = 0.05  # of one sentence among others: names and loan words are in it
MIN_LATIN_SHARE = 0.9  # of the letters, where all named languages are written in Latin letters

# Codes of ISO 639 with a name for prompts, and whether the language has Latin letters.
NAMES = {
    **{"ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German"},
    **{"el": "Greek", "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish"},
    **{"fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian"},
    **{"it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian"},
    **{"pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish"},
    **{"th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese"},
}
RELATED = {"ar": ("ary", "arz"), "en": ("pcm",), "no": ("nn",), "zh": ("wuu", "yue")}  # count as it
NON_LATIN = {"ar", "bn", "el", "fa", "he", "hi", "ja", "ko", "ru", "th", "uk", "zh"}


@cache
def load_identifier() -> Any:
    """Takes about a second and 30 MB, once per process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def wrong_language(text: str, languages: Sequence[str]) -> str | None:
    """Returns why the text, without quotations, is in none of the languages (codes of NAMES).

    The text as a whole and each of its sentences are checked if they are long enough.
    """
    letters = [c for c in text if c.isalpha()]
    latin = sum(unicodedata.name(c, "").startswith("LATIN") for c in letters)
    if not NON_LATIN & set(languages) and latin < MIN_LATIN_SHARE * len(letters):
        return f"wrong language: {len(letters) - latin} of {len(letters)} letters are not Latin"
    sentences = re.split(r"(?<=[.!?。！？।؟])\s*", text)
    wanted = {code for name in languages for code in (name, *RELATED.get(name, ()))}
    limits = [(text, MIN_TEXT_PROBABILITY), *((s, MIN_SENTENCE_PROBABILITY) for s in sentences)]
    for part, min_probability in limits:
        if sum(len(c.encode()) for c in part if c.isalpha()) < MIN_TEXT_BYTES:
            continue
        ranked = load_identifier().rank(part)
        named = sum(probability for code, probability in ranked if code in wanted)
        if named < min_probability:
            found, expected = ranked[0][0], format_languages(languages)
            if found in wanted:
                return (
                    f"wrong language: probability of {expected} {named:.0%} < {min_probability:.0%}"
                )
            return f"wrong language: {NAMES.get(found, found)}, not {expected}"
    return None


def format_languages(languages: Sequence[str]) -> str:
    """`English`, `English or German`."""
    return " or ".join(NAMES[code] for code in languages)
