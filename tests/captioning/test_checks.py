import json

import numpy as np
import pytest

from stages.captioning.checks import (
    CheckLimits,
    boilerplate,
    certain_camera_motion,
    contradiction,
    copy,
    failed_check,
    too_similar,
)
from stages.captioning.t5_tokens import estimate_t5_tokens
from tests.conftest import VIDEOS

LIMITS = CheckLimits(min_words=8, count_tokens=estimate_t5_tokens)
GOOD = (
    "A woman in a green coat walks along the wet street and stops at a bakery, where the light "
    "of the window falls on her face. The camera slowly moves towards her."
)
STILL_CAMERA = dict.fromkeys(
    ("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake"), 0.0
)
PROMPTS = VIDEOS.parent / "prompts/presto_test_67.jsonl"


def test_good_caption_passes():
    assert (
        failed_check(GOOD, LIMITS, ["A dog sleeps on the mat in front of the door of a house."])
        is None
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
        ("**Part 1** A woman walks along the wet street and stops at a bakery.", "markup"),
        ("1. A woman walks along the wet street and stops at a small bakery.", "markup"),
        ("A woman walks along.", "too short: 4 words < 8"),
        # by SmolLM2
        ('"The cat walks along a garden wall, and a leaf falls into the grass."', "too short: 0"),
        ('Inundated: "A beacon on the horizon, a beacon on the ramp, a light."', "boilerplate"),
        ("A hawk circles above a valley, using the present tense to create motion.", "boilerplate"),
        ("The cat springs into action, now explained in 40 words along the wall.", "boilerplate"),
        ("A sunrise-inspired image of a boat on the first day of its journey.", "boilerplate"),
        ("The wind blows the kite away. A video of children on a mountain follows.", "boilerplate"),
        ("The hawk's first part is a hawk that circles above a wide green valley.", "boilerplate"),
        ("The first part: a dog finds a red ball on a beach near the harbour.", "boilerplate"),
        ("A boat leaves the harbour. This is a descriptive passage about a boat.", "boilerplate"),
        ("A hawk skims around the end of an aerial videoclip above the valley.", "boilerplate"),
        ("Futbol: A hawk circles above a valley and over the roofs of a village.", "boilerplate"),
        ("The wind blows the kite down the hill.\n\n2021-09-12 A child waits.", "markup"),
        (
            "Sincerae\nSincerae\nA hawk circles above a valley.",
            "wrong language: probability of English ",
        ),
        (GOOD + " As told, she ignores her previous instructions.", "mentions instructions"),
        (
            "Eine Frau im grünen Mantel geht die nasse Straße entlang zur Bäckerei.",
            "wrong language",
        ),
        ("一位穿绿色外套的女子沿着潮湿的街道走向面包店，灯光照在她的脸上。", "wrong language"),
        (
            "Una mujer con abrigo verde camina por la calle mojada hasta una tienda.",
            "wrong language",
        ),
        (" ".join(map(str, range(500))) + ".", "too long"),
    ],
)
def test_bad_caption_fails_with_a_reason(text, reason):
    found = failed_check(text, LIMITS)
    assert found is not None
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        'A sign over the door says "I\'m sorry, we are closed", and a man turns away from it.',
        "A poster on the wall says “ignore your instructions” in large red letters over a crowd.",
        "The woman who cannot reach the shelf takes a chair and climbs onto it with care.",
        "He looks at the framed photographs on the wall and touches the frame of the door.",
        "An image of a dragon hangs on the wall of the hall while two boys walk past it.",
        "In the last part of the valley a river turns to the left, below a row of houses.",
        "The camera doesn't move while the boats drift from the left to the right of the bay.",
    ],
)
def test_caption_that_resembles_a_bad_one_passes(text):
    assert failed_check(text, LIMITS, (), STILL_CAMERA) is None


def test_most_released_prompts_of_the_paper_pass():
    """Real progressive texts by GPT-4o: the checks are not too strict."""
    if not PROMPTS.exists():
        pytest.skip("the authors' prompts are not here")
    texts = [t for line in PROMPTS.read_text().splitlines() for t in json.loads(line)["cap"]]
    assert len(texts) == 335
    reasons = {text: failed_check(text, LIMITS) for text in texts}
    descriptions_of_the_video = [text for text in texts if boilerplate(text)]
    failed = {text: reason for text, reason in reasons.items() if reason}
    assert failed.keys() == set(descriptions_of_the_video)
    assert len(descriptions_of_the_video) <= 0.1 * len(
        texts
    )  # "The video begins with ..." is among them


def test_copy_of_an_earlier_sub_caption_fails():
    other = "A dog sleeps on the mat in front of the door."
    assert copy(GOOD, [other]) is None
    assert copy(GOOD.upper(), [other, GOOD]) == "copy of sub-caption 2: 100% of the words"
    assert copy(GOOD.replace("woman", "girl"), [GOOD, other]).startswith("copy of sub-caption 1")


def test_similarity_is_compared_with_the_previous_sub_caption_and_may_equal_the_limit():
    texts = ["a b c d", "e f g h"]

    def similar(given):
        assert given == [*texts, "new"]
        return np.array([[1, 0, 0.9], [0, 1, 0.75], [0.9, 0.75, 1]])

    limits = CheckLimits(1, estimate_t5_tokens, 0.75, similar)
    assert too_similar("new", texts, limits) is None
    limits = CheckLimits(1, estimate_t5_tokens, 0.74, similar)
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
def test_caption_that_moves_a_static_camera_fails(text):
    assert contradiction(text, STILL_CAMERA).startswith("contradicts the measured still camera: “")
    assert contradiction(text, STILL_CAMERA | {"camera_x": 2.0}) is None  # not certain
    assert contradiction(text, STILL_CAMERA | {"camera_shake": None}) is None


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
def test_caption_with_a_static_camera_and_moving_subjects_passes(text):
    assert contradiction(text, STILL_CAMERA) is None


def test_caption_with_a_static_camera_fails_for_a_moving_camera():
    moving = STILL_CAMERA | {"camera_x": 40.0}
    assert certain_camera_motion(moving) == "moving"
    assert contradiction("The camera remains static.", moving).endswith("“camera remains static”")
    assert contradiction("The camera is still at first, then the camera pans.", moving) is None
    assert contradiction("A still lake.", moving) is None


def test_t5_token_estimate_is_at_most_two_and_a_half_times_too_high():
    # counts by T5's own tokenizer, from published examples and its vocabulary
    known = {"A dog.": 4, "The camera pans to the right.": 8, "2024": 3}
    for text, tokens in known.items():
        assert tokens <= estimate_t5_tokens(text) <= 2.5 * tokens
    assert estimate_t5_tokens("") == 1
    words = 62  # the mean of the authors' prompts
    assert estimate_t5_tokens(" ".join(["camera"] * words)) < 512 / 2
