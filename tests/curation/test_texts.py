import math

import numpy as np
import pytest

from curation.texts import harmless, joined, neighbour_similarity, sentence, tfidf_cosine


def direct_cosine(texts: list[str], a: int, b: int) -> float:
    """The documented formula, written out for one pair."""
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


def test_the_cosines_are_those_of_the_documented_formula():
    texts = ["a red car moves left", "the red car stops", "it is a night it is", "a red car"]
    expected = [[direct_cosine(texts, i, j) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(tfidf_cosine(texts), expected, atol=1e-12)


def test_equal_texts_are_alike_and_texts_without_a_common_word_are_not():
    cosine = tfidf_cosine(["The sky, BLUE!", "the sky blue", "rain falls"])
    assert cosine[0, 1] == pytest.approx(1.0)
    assert cosine[0, 2] == 0.0


def test_a_text_without_words_is_like_nothing():
    assert tfidf_cosine(["...", "..."]).tolist() == [[0, 0], [0, 0]]


def test_the_likest_pair_of_neighbours_counts_and_others_do_not():
    assert neighbour_similarity(["a b", "c d", "a b"]) == 0.0
    assert neighbour_similarity(["a b", "c d", "c d"]) == pytest.approx(1.0)


def test_one_text_has_no_neighbour():
    assert neighbour_similarity(["alone"]) is None


def test_a_list_reads_as_a_person_writes_it():
    assert [joined(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_a_sentence_begins_with_a_capital_and_ends_with_one_stop():
    assert [sentence(" it moves "), sentence('it says "A".'), sentence("")] == [
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
def test_text_from_a_picture_loses_markup_quotes_and_control_characters(hostile):
    text = harmless(hostile, 60)
    assert not set(text) & set('<>&"`')
    assert text.isprintable()
    assert len(text) <= 60


def test_long_text_is_cut_and_says_so():
    assert harmless("word " * 40, 12) == "word word w…"


def test_plain_text_of_any_script_stays_as_it_is():
    assert harmless("Café 東京 Привет 42%", 40) == "Café 東京 Привет 42%"
