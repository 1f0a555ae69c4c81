"""Kinds of bad answers, each in several forms, and prose that resembles them."""

import json
import time

import numpy as np
import pytest

from stages.captioning.checks import CheckLimits, failed_answer, failed_check
from stages.captioning.conversation import Completion
from stages.captioning.form_checks import (
    control_tokens,
    cut_off,
    escapes,
    markup,
    reasoning,
    refusal,
    repetition,
)
from stages.captioning.language import wrong_language
from stages.captioning.measured_text import write_caption, write_sub_captions
from stages.captioning.t5_tokens import estimate_t5_tokens
from tests.captioning.test_measured_text import MOTIONLESS, states_of

LIMITS = CheckLimits(min_words=8, count_tokens=estimate_t5_tokens)
GOOD = "A woman in a green coat walks along the wet street and stops at a bakery."

BAD = {
    "cut off": [
        "A woman in a green coat walks along the wet street and stops at the",
        "A woman in a green coat walks along the wet street and sto",
        "A woman in a green coat walks along the wet street, stops,",
        "A woman in a green coat walks along the wet street and then...",
        "A woman in a green coat walks along the wet street (near the bakery.",
    ],
    "repetition": [
        " ".join([GOOD] * 6),
        GOOD + " The camera follows her. " + GOOD,
        GOOD + " She walks and walks and walks and walks and walks and walks.",
        GOOD + " It is very very very very very bright.",
        "The red car and the blue car and the red car and the blue car and the red car pass by.",
        GOOD + " The sky is aaaaaaaaaaaaaaah.",
        "A dog runs left. A dog runs right. A dog runs up. A dog runs left and a dog runs right "
        "and a dog runs up and a dog runs right and a dog runs left and a dog runs up on the left.",
    ],
    "reasoning": [
        f"<think>The woman walks.</think> {GOOD}",
        f"The woman walks, so I write that.</think> {GOOD}",
        f"[THINK] {GOOD}",
        f"Let me describe the clip. {GOOD}",
        "First, I need to identify what the frames contain, then describe how they change.",
        "The user wants a caption of 40 to 80 words about the woman in the green coat.",
        f"Okay, so the clip has a woman in it. {GOOD}",
        f"Step 1: identify the woman. Step 2: describe. {GOOD}",
        f"analysisThe woman walks to a bakery.assistantfinal{GOOD}",
        f"analysis: {GOOD}",
        f"We need to write one caption that fits the frames. {GOOD}",
    ],
    "control tokens": [
        f"{GOOD}<|im_end|>",
        f"[INST] {GOOD} [/INST]",
        f"{GOOD}</s>",
        f"<image> {GOOD}",
        f"<|channel|>final<|message|>{GOOD}",
        f"{GOOD} <｜end▁of▁sentence｜>",
        f"<<SYS>> {GOOD}",
        f"{GOOD}<end_of_turn>",
        f"A▁woman▁walks. {GOOD}",
        f"{GOOD} <0x0A>",
        f"{GOOD}\nUser: And what now?",
    ],
    "escapes": [
        f"{GOOD}\\nThe camera follows her.",
        "A woman walks into a caf\\u00e9 and sits down at a small table near the window.",
        "A woman walks into a cafu00e9 and sits down at a small table near the window.",
        "A sign has the words &quot;Open now&quot; on it, and a woman walks to the door.",
        "A woman%20walks along the wet street and stops at a small bakery on the corner.",
        "A woman walks into a cafÃ© and sits down at a small table near the window.",
        'A sign has the words \\"Open\\" on it, and a woman walks to the door of the shop.',
    ],
    "refusal": [
        "I'm sorry, but the frames are too dark to write a description of them.",
        "I cannot view the frames that were sent, so there is no description of them.",
        "Please provide the image so that a description of the clip can be written.",
        "There was no image attached to the message, so nothing can be described here.",
        "Unfortunately, the frames are black and contain nothing that could be described.",
        "As an AI, it is only possible to describe what the frames contain in general terms.",
        "The images were not provided, so the answer has to remain empty for the moment.",
        "Unable to describe people who may be identified by their faces in these scenes.",
        "My apologies: the description of this scene goes against the content policy.",
        "If you share the frames again, a description of the clip is possible.",
        "This request can't be completed because of its subject, which is a person.",
        "Could you upload the video once more so that it can be described in detail?",
    ],
    "markup": [
        f"<script>alert(1)</script> {GOOD}",
        f'A sign reads "<img src=x onerror=alert(1)>". {GOOD}',
        f"| time | caption |\n|---|---|\n| 0 | {GOOD} |",
        f"{GOOD} See [the page](http://example.com).",
        f"![woman](a.png) {GOOD}",
        f"# Part 1\n{GOOD}",
        f"{GOOD}\n- She stops.\n- She looks up.",
        f"```text\n{GOOD}\n```",
        '=HYPERLINK("http://example.com", "A woman walks along the wet street to a bakery")',
        "+1 woman walks along the wet street and stops at a small bakery on the corner.",
        "@SUM(A1:A9) women walk along the wet street and stop at a small bakery.",
        "-2+3 women walk along the wet street and stop at a small bakery on the corner.",
        f"{GOOD} $(touch /tmp/x)",
        f"{GOOD} `touch x`",
        f"{GOOD} The file is ../../etc/passwd.",
        f"{GOOD} The file is /etc/passwd on the disk.",
        f"{GOOD} More is at https://example.com/page.",
        f"{GOOD} Its speed is $\\sqrt{{2}}$.",
        f"{GOOD} Its speed is $v_0 t^2$.",
        f'{{"caption": "{GOOD}"}}',
        f"**Bold** {GOOD}",
        f"javascript:alert(1) {GOOD}",
    ],
    "wrong language": [
        f"{GOOD} Sie trägt eine schwere Tasche und geht langsam an der Bäckerei vorbei.",
        f"{GOOD} 灯光照在她的脸上，她沿着潮湿的街道走向面包店，然后停下来看着窗户。",
        "En kvinde i en grøn frakke går ned ad den våde gade til bageren på hjørnet.",
        "Kobieta w zielonym płaszczu idzie mokrą ulicą i zatrzymuje się przy piekarni.",
    ],
    "garbled": [
        "A woman walks along the wet str\ufffd\ufffdt and stops at a small bakery there.",
        "A woman\u202e walks along the wet street and stops at a small bakery there.",
    ],
    "boilerplate": [
        f"Sure! Here is the caption: {GOOD}",
        f"Caption: {GOOD}",
    ],
}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in BAD.items() for text in texts]
)
def test_bad_text_fails_by_its_kind(kind, text):
    found = failed_check(text, LIMITS)
    assert found is not None
    assert found.partition(":")[0] == kind
    assert not set("<>`\x1b\u202e\n") & set(found)


@pytest.mark.parametrize(
    "text",
    [
        'A sign on the wall reads "Please provide your ticket", and people walk past it.',
        "Now, the dog turns around and walks back to the man, who strokes its head.",
        "First, the boy lifts the box; then he carries it up the stairs to the door.",
        "He reads the message on his phone and can't help laughing about it on the bench.",
        "Two men walk back and forth, back and forth, in front of a café with 24/7 in lights.",
        "A van with “www.bakery.com” on its side passes; its price list reads “$5 and $10”.",
        "The woman’s face cannot be seen, and the picture on the wall is not in focus.",
        "A coal mine at dawn: the camera – about 2 m above the ground – moves over the rails.",
        "At 20% of its height, the tower has a clock; the clock's hands don't move at all.",
        "Warning lights flash on the roof of the truck as it reverses slowly into the yard.",
        "The man stays seated and/or leans on the left-hand side of a red, well-worn armchair.",
        "A very, very long train passes the station from left to right in the pouring rain.",
        "Guests eat tempura and sashimi at an izakaya in Shinjuku, Tōkyō, next to a window.",
        "A teacher writes 2 + 2 on the board and turns to the class, which raises its hands.",
    ],
)
def test_prose_that_resembles_a_bad_text_passes(text):
    assert failed_check(text, LIMITS) is None


def test_texts_of_the_measured_captioner_have_a_good_form():
    rng = np.random.default_rng(0)
    for _ in range(100):
        segments = [
            {name: float(rng.normal(0, 30) * (rng.random() < 0.5)) for name in MOTIONLESS}
            | {"brightness": float(rng.uniform(0, 255))}
            for _ in range(5)
        ]
        quotes = (("Goal 2 - 1", "at the top"),) if rng.random() < 0.5 else ()
        states = states_of(*segments, quotes=quotes)
        for text in (*write_sub_captions(states), write_caption(states)):
            for check in (control_tokens, reasoning, escapes, markup, refusal, repetition):
                assert check(text) is None, text
            assert cut_off(text, False) is wrong_language(text, ["en"]) is None, text


def test_full_stop_may_be_missing_where_the_server_states_that_the_answer_ended():
    text = GOOD.removesuffix(".")
    assert failed_check(text, LIMITS).startswith("cut off: ")
    assert failed_check(text, LIMITS, is_complete=True) is None
    assert failed_check(f"{text} and the", LIMITS, is_complete=True).startswith("cut off: ")


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (Completion(GOOD, 9, 30, "length"), "cut off"),
        (Completion(GOOD, 9, 30, "MAX_TOKENS"), "cut off"),
        (Completion(GOOD, 9, 30, "abort"), "cut off"),
        (Completion(GOOD, 9, 400), "cut off"),
        (Completion(GOOD, 9, 30, "content_filter"), "refusal"),
        (Completion("x" * 100_000, 9, 30, "stop"), "too long"),
        (Completion(f'<think>{{"caption": "draft"}}</think>{{"caption": "{GOOD}"}}'), "reasoning"),
        (Completion(GOOD, 9, 400, "stop"), None),
        (Completion(GOOD, 9, 30, "a new reason"), None),
    ],
)
def test_answer_is_refused_before_its_text_is_parsed(completion, reason):
    found = failed_answer(completion, 400)
    assert found == reason or found.startswith(f"{reason}: ")


@pytest.mark.parametrize(
    ("text", "languages", "passes"),
    [
        ("Eine Frau im grünen Mantel geht die nasse Straße entlang zur Bäckerei.", ["de"], True),
        ("Eine Frau im grünen Mantel geht die nasse Straße entlang zur Bäckerei.", ["en"], False),
        (GOOD, ["de"], False),
        (GOOD, ["de", "en"], True),
        ("一位穿绿色外套的女子沿着潮湿的街道走向面包店，灯光照在她的脸上。", ["zh"], True),
        ("Женщина в зелёном пальто идёт по мокрой улице к булочной на углу.", ["ru"], True),
        ("Женщина в зелёном пальто идёт по мокрой улице к булочной на углу.", ["en", "de"], False),
        ("Die Katze.", ["en"], True),  # too short to decide
    ],
)
def test_language_is_one_of_those_that_the_user_names(text, languages, passes):
    limits = CheckLimits(1, estimate_t5_tokens, languages=languages)
    assert (failed_check(text, limits) is None) == passes


@pytest.mark.parametrize(
    "char", ["{", "<", "(", "a", "'a", "the ", "no images ", "$a", '{"a":[', "\\"]
)
def test_hostile_text_of_the_largest_size_costs_little(char):
    text = (char * 8000)[:7400]
    started_s = time.process_time()
    assert failed_check(text, LIMITS) is not None
    assert failed_check(json.dumps({"caption": text}), LIMITS) is not None
    assert time.process_time() - started_s < 2.0
