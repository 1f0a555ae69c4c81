import math

import numpy as np
import pytest

from curation.texts import (
    clean_outside_text,
    format_sentence,
    join_words,
    max_adjacent_similarity,
    sanitize_text,
    tfidf_cosine,
)


def direct_cosine(texts: list[str], a: int, b: int) -> float:
    """The documented formula for one pair."""
    bags = [text.split() for text in texts]
    words = sorted({word for bag in bags for word in bag})
    total = len(texts)

    def weight(bag: list[str], word: str) -> float:
        holders = sum(word in other for other in bags)
        return bag.count(word) * (math.log((1 + total) / (1 + holders)) + 1)

    one = [weight(bags[a], word) for word in words]
    other = [weight(bags[b], word) for word in words]
    dot = sum(x * y for x, y in zip(one, other, strict=True))
    return dot / math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))


def test_tfidf_cosine_follows_the_documented_formula():
    texts = ["a red car moves left", "the red car stops", "it is a night it is", "a red car"]
    expected = [[direct_cosine(texts, i, j) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(tfidf_cosine(texts), expected, atol=1e-12)


def test_cosine_is_1_of_equal_texts_and_0_without_a_common_word():
    cosine = tfidf_cosine(["The sky, BLUE!", "the sky blue", "rain falls"])
    assert cosine[0, 1] == pytest.approx(1.0)
    assert cosine[0, 2] == 0.0


def test_text_without_words_has_cosine_0_with_every_text():
    assert tfidf_cosine(["...", "..."]).tolist() == [[0, 0], [0, 0]]


def test_only_adjacent_texts_are_compared():
    assert max_adjacent_similarity(["a b", "c d", "a b"]) == 0.0
    assert max_adjacent_similarity(["a b", "c d", "c d"]) == pytest.approx(1.0)


def test_one_text_has_no_adjacent_text():
    assert max_adjacent_similarity(["alone"]) is None


def test_words_are_joined_with_commas_and_and():
    assert [join_words(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_sentence_begins_with_a_capital_and_ends_with_one_full_stop():
    assert [
        format_sentence(" it moves "),
        format_sentence('it says "A".'),
        format_sentence(""),
    ] == [
        "It moves.",
        'It says "A".',
        "",
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "a\x00b\x1b[31mred\r\nnew line\u2028",
        "\u202egnp.exe\u202c\u200b",
        "&lt;b&gt; \uff1cb\uff1e",
    ],
)
def test_sanitized_text_has_no_markup_quotes_or_control_characters(hostile):
    text = sanitize_text(hostile, 60)
    assert not set(text) & set('<>&"`')
    assert text.isprintable()
    assert len(text) <= 60


def test_long_text_is_shortened_and_ends_in_an_ellipsis():
    assert sanitize_text("word " * 40, 12) == "word word w…"


def test_sanitizing_keeps_plain_text_of_any_script():
    assert sanitize_text("Café 東京 Привет 42%", 40) == "Café 東京 Привет 42%"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A dog\n\truns – “Café”, 100 %. 犬\u3000👩\u200d🚀", None),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("nul\0 esc\x1b[2J bell\x07 c1\x9b", "nul\ufffd esc\ufffd[2J bell\ufffd c1\ufffd"),
        ("bidi \u202eevil\u2066", "bidi \ufffdevil\ufffd"),
        ("tag \U000e0041 private \ue000 line\u2028", "tag \ufffd private \ufffd line\ufffd"),
        ("lines\r\nof two", "lines\nof two"),
        ("x" * 101, "x" * 99 + "…"),
    ],
)
def test_outside_text_keeps_what_prose_needs_and_nothing_unsafe(text, cleaned):
    found = clean_outside_text(text, 100)
    assert found == (text if cleaned is None else cleaned)
    assert clean_outside_text(found, 100) == found
    found.encode()
