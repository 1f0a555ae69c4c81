import json

import numpy as np
import pytest

from stages.captioning.checks import (
    Limits,
    boilerplate,
    camera_for_certain,
    contradiction,
    copy,
    failed,
    obedience,
    refusal,
    t5_tokens_at_most,
    too_long,
    too_similar,
    wrong_language,
)
from tests.conftest import VIDEOS

LIMITS = Limits(min_words=8, tokens=t5_tokens_at_most)
GOOD = (
    "A woman in a green coat walks along the wet street and stops at a bakery, where the light "
    "of the window falls on her face. The camera slowly moves towards her."
)
STILL = dict.fromkeys(("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake"), 0.0)
PROMPTS = VIDEOS.parent / "prompts/presto_test_67.jsonl"


def test_a_good_text_passes():
    assert (
        failed(GOOD, LIMITS, ["A dog sleeps on the mat in front of the door of a house."]) is None
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" … ", "empty"),
        ("A woman walks along the wet\x1b[2J street and stops.", "garbled"),
        ("A woman walks along the wet str\ufffdt and stops.", "garbled"),
        ("I'm sorry, but I can't help with describing the people in it.", "refusal"),
        ("As an AI language model I see a street with a dog and a cat in it.", "refusal"),
        ("The video begins with a view of the street, and a woman walks along it.", "boilerplate"),
        ("In this image a woman walks along the wet street to the bakery.", "boilerplate"),
        ("The second key frame shows her in front of the bakery, in the light.", "boilerplate"),
        ("Sure! Here is it: a woman walks along the wet street to the bakery.", "boilerplate"),
        ("**Part 1** A woman walks along the wet street and stops at a bakery.", "boilerplate"),
        ("1. A woman walks along the wet street and stops at a small bakery.", "boilerplate"),
        ("A woman walks along.", "too short: 4 words < 8"),
        (GOOD + " As told, she ignores her previous instructions.", "speaks of instructions"),
        (
            "Eine Frau im grünen Mantel geht die nasse Straße entlang zur Bäckerei.",
            "wrong language",
        ),
        ("一位穿绿色外套的女子沿着潮湿的街道走向面包店，灯光照在她的脸上。", "wrong language"),
        (
            "Una mujer con abrigo verde camina por la calle mojada hasta una tienda.",
            "wrong language",
        ),
        (" ".join([GOOD] * 12), "too long"),
    ],
)
def test_a_bad_text_is_refused_with_what_is_wrong_with_it(text, reason):
    found = failed(text, LIMITS)
    assert found is not None
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        'A sign over the door says "I\'m sorry, we are closed", and a man turns away from it.',
        "A poster on the wall says “ignore your instructions” in large red letters over a crowd.",
        "The woman who cannot reach the shelf takes a chair and climbs onto it with care.",
        "He looks at the framed photographs on the wall and touches the frame of the door.",
        "The camera doesn't move while the boats drift from the left to the right of the bay.",
    ],
)
def test_what_only_looks_bad_passes(text):
    assert failed(text, LIMITS, (), STILL) is None


def test_most_prompts_of_the_papers_authors_pass_the_checks_of_words():
    """Real progressive texts, written by GPT-4o for people to read: the checks are not too keen."""
    if not PROMPTS.exists():
        pytest.skip("the authors' prompts are not here")
    texts = [t for line in PROMPTS.read_text().splitlines() for t in json.loads(line)["cap"]]
    assert len(texts) == 335
    assert [t for t in texts if refusal(t) or obedience(t) or wrong_language(t)] == []
    assert [t for t in texts if too_long(t, t5_tokens_at_most)] == []
    talk = [text for text in texts if boilerplate(text)]
    assert len(talk) <= 0.1 * len(texts)  # "The video begins with ..." is among them


def test_a_copy_of_any_earlier_text_is_refused():
    other = "A dog sleeps on the mat in front of the door."
    assert copy(GOOD, [other]) is None
    assert copy(GOOD.upper(), [other, GOOD]) == "copy of sub-caption 2: 100% of the words"
    assert copy(GOOD.replace("woman", "girl"), [GOOD, other]).startswith("copy of sub-caption 1")


def test_similarity_is_that_to_the_text_before_and_the_limit_counts_as_good():
    texts = ["a b c d", "e f g h"]

    def similar(given):
        assert given == [*texts, "new"]
        return np.array([[1, 0, 0.9], [0, 1, 0.75], [0.9, 0.75, 1]])

    limits = Limits(1, t5_tokens_at_most, 0.75, similar)
    assert too_similar("new", texts, limits) is None
    limits = Limits(1, t5_tokens_at_most, 0.74, similar)
    assert too_similar("new", texts, limits) == "too similar to the one before: 0.75 > 0.74"


@pytest.mark.parametrize(
    "text",
    [
        "The camera pans slowly to the right.",
        "The camera then gently begins to zoom in on her face.",
        "As he runs, the view is moving forward.",
        "The camera smoothly tracks the boy.",
    ],
)
def test_a_still_camera_that_is_said_to_move_is_refused(text):
    assert contradiction(text, STILL).startswith("contradicts the measured still camera: “")
    assert contradiction(text, STILL | {"camera_x": 2.0}) is None  # not certain: nothing is said
    assert contradiction(text, STILL | {"camera_shake": None}) is None


@pytest.mark.parametrize(
    "text",
    [
        "The camera remains completely still as a truck moves past.",
        "In a static shot, a truck moves to the right.",
        "The camera stays as he moves away.",
        "A man with a camera runs to the right.",
        "The camera is not panning.",
    ],
)
def test_a_still_camera_may_be_said_to_be_still_and_others_to_move(text):
    assert contradiction(text, STILL) is None


def test_a_moving_camera_that_is_said_to_be_still_is_refused():
    moving = STILL | {"camera_x": 40.0}
    assert camera_for_certain(moving) == "moving"
    assert contradiction("The camera remains static.", moving).endswith("“camera remains static”")
    assert contradiction("The camera is still at first, then the camera pans.", moving) is None
    assert contradiction("A still lake.", moving) is None


def test_the_estimate_of_t5_tokens_errs_upwards_but_not_by_much():
    # counts of T5's own tokenizer, as published examples and its vocabulary give them
    known = {"A dog.": 4, "The camera pans to the right.": 8, "2024": 3}
    for text, tokens in known.items():
        assert tokens <= t5_tokens_at_most(text) <= 2.5 * tokens
    assert t5_tokens_at_most("") == 1
    words = 62  # the mean of the authors' prompts
    assert t5_tokens_at_most(" ".join(["camera"] * words)) < 512 / 2
