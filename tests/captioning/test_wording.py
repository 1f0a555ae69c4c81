from itertools import pairwise

import pytest

from stages.captioning.colours import Colour
from stages.captioning.levels import (
    AREA,
    DIRECTIONS,
    PAN_PX_S,
    Look,
    direction,
    level,
    look,
    place,
)
from stages.captioning.wording import overall, sub_captions

GREY = (Colour("grey", "", 0.9, ""),)
STILL = {
    "brightness": 120.0,
    "camera_x": 0.0,
    "camera_y": 0.0,
    "camera_zoom": 0.0,
    "camera_roll": 0.0,
    "camera_shake": 0.0,
    "subject_motion": 0.05,
    "subject_area": 0.0,
    "subject_x": None,
    "subject_y": None,
    "subject_at_x": None,
    "subject_at_y": None,
}
WALKER = {  # one thing that walks to the left, at the right
    "subject_motion": 0.6,
    "subject_area": 0.02,
    "subject_x": -30.0,
    "subject_y": 0.0,
    "subject_at_x": 0.9,
    "subject_at_y": 0.5,
}


def looks(*segments: dict, colours=GREY, **text) -> list[Look]:
    found: list[Look] = []
    for segment in segments:
        found.append(look(STILL | segment, colours, found[-1] if found else None, **text))
    return found


def told(*segments: dict) -> list[str]:
    return sub_captions(looks(*segments))


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ({}, "The view stays still."),
        ({"camera_x": 6.0}, "The view pans slowly to the right."),
        ({"camera_x": -30.0}, "The view pans to the left."),
        ({"camera_y": -80.0}, "The view tilts quickly up."),
        ({"camera_y": 20.0, "camera_x": 20.0}, "The view moves down and to the right."),
        ({"camera_zoom": 0.1}, "The view closes in."),
        ({"camera_zoom": -0.03}, "The view draws back slowly."),
        ({"camera_roll": 8.0}, "The view turns clockwise."),
        ({"camera_roll": -8.0}, "The view turns anticlockwise."),
        ({"camera_shake": 8.0}, "The view shakes a little."),
        ({"camera_x": 30.0, "camera_shake": 30.0}, "The view pans to the right, shaking strongly."),
        ({"camera_x": 30.0, "camera_zoom": 0.1}, "The view pans to the right and closes in."),
    ],
)
def test_the_first_text_says_what_the_view_does(camera, words):
    assert words in told(camera)[0]


def test_the_first_text_says_where_something_moves_and_which_way():
    assert "Something small at the right moves to the left." in told(WALKER)[0]


def test_what_moves_in_a_moving_view_moves_by_itself():
    assert "moves by itself" in told(WALKER | {"camera_x": 30.0})[0]


def test_things_that_move_against_each_other_have_no_direction():
    crossing = WALKER | {"subject_motion": 6.0, "subject_area": 0.2, "subject_x": 2.0}
    assert "this way and that" in told(crossing)[0]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"camera_x": 30.0}, "the view starts to pan to the right"),
        ({"camera_x": 30.0}, {}, "comes to rest"),
        ({"camera_x": 30.0}, {"camera_x": 80.0}, "keeps panning to the right, faster than before"),
        ({"camera_x": 80.0}, {"camera_x": 30.0}, "slower than before"),
        ({"camera_x": 30.0}, {"camera_x": -30.0}, "the view now pans to the left"),
        ({"camera_shake": 30.0}, {}, "steadies"),
        ({}, WALKER, "something small at the right starts to move to the left"),
        (WALKER, {}, "the movement dies down"),
        (WALKER, WALKER | {"subject_at_x": 0.1}, "the movement is now at the left"),
        (WALKER, WALKER | {"subject_x": 30.0}, "goes to the right"),
        (WALKER, WALKER | {"subject_x": -90.0, "subject_motion": 1.8}, "gets faster"),
        (WALKER, WALKER | {"subject_area": 0.1, "subject_motion": 3.0}, "takes up more of the pic"),
        (WALKER, WALKER | {"subject_motion": 0.9, "subject_area": 0.03}, "gets a little stronger"),
        ({}, {"brightness": 140.0}, "the picture gets a little brighter"),
        ({"brightness": 160.0}, {"brightness": 60.0}, "the picture gets much darker"),
    ],
)
def test_the_second_text_says_what_is_different_now(before, now, words):
    assert words.lower() in told(before, now)[1].lower()


def test_what_has_not_changed_is_not_told_again():
    first, second = told(WALKER | {"camera_x": 30.0}, WALKER | {"camera_x": 30.0, "brightness": 90})
    assert "picture," in first
    assert "picture," not in second
    assert "brighter" not in second


def test_a_clip_in_which_nothing_changes_says_so_briefly():
    first, second, third = told({}, {}, {})
    assert first == "A picture, almost all of it grey. The view stays still. Hardly anything moves."
    assert second == "Hardly anything moves or changes in the still view of the grey scene."
    assert third == "Again hardly anything moves or changes in the still view of the grey scene."


def test_a_slow_drift_of_light_is_told_once_it_has_added_up():
    texts = told(*({"brightness": 100.0 + 5 * i} for i in range(5)))
    assert ["brighter" in text for text in texts] == [False, False, False, True, False]


def test_a_colour_that_comes_in_and_one_that_leaves_are_told():
    green = (Colour("green", "", 0.6, "at the bottom"), Colour("black", "", 0.4, ""))
    first = look(STILL, GREY, None)
    text = sub_captions([first, look(STILL, green, first)])[1]
    assert "green at the bottom and black come in." in text
    assert "The grey is gone." in text


def test_text_is_told_when_it_appears_changes_and_leaves():
    def reads(*texts: str) -> dict:
        return {"texts": tuple((t, "at the top left") for t in texts), "read": texts}

    shown = [reads(), reads("Goal 2"), reads("Goal 2"), reads("Goal 3"), reads()]
    texts = sub_captions([look(STILL, GREY, None, **text) for text in shown])
    assert 'at the top left it says "Goal 2".' in texts[1]
    assert "Goal" not in texts[2]
    assert 'at the top left it now says "Goal 3".' in texts[3]
    assert 'the text "Goal 3" is gone.' in texts[4]


def test_text_that_was_only_read_differently_is_neither_new_nor_gone():
    shown = ["Brandon Castellano", "Brandon Castellamo"]
    texts = sub_captions(
        [look(STILL, GREY, None, texts=((t, "at the top"),), read=(t,)) for t in shown]
    )
    assert "Brandon" not in texts[1]


def test_where_more_is_written_than_was_read_nothing_is_said_to_be_gone():
    page = look(STILL, GREY, None, texts=(("Policy", "at the top"),), read=("Policy",))
    assert "gone" not in sub_captions([page, look(STILL, GREY, page, dense=True)])[1]


def test_what_was_not_measured_is_not_spoken_of():
    nothing = dict.fromkeys(STILL)
    texts = told(nothing, nothing)
    assert texts[0] == "A picture, almost all of it grey."
    assert not any(word in " ".join(texts) for word in ("view", "moves", "still", "bright", "dark"))


def test_the_overall_text_tells_the_course_of_each_thing():
    text = overall(looks({}, {"camera_x": 30.0}, {"camera_x": 30.0} | WALKER, {"brightness": 60.0}))
    assert "The view first stays still, then pans to the right, then stays still." in text
    assert "then something small moves at the right, then hardly anything moves" in text
    assert "The picture gets much darker from start to end." in text


def test_the_overall_text_quotes_each_text_once():
    shown = [("Goal 2",), ("Goal 2",), ("Goal 3",)]
    quoting = [
        look(STILL, GREY, None, texts=tuple((t, "at the top") for t in texts), read=texts)
        for texts in shown
    ]
    assert overall(quoting).endswith('It says "Goal 2" and "Goal 3".')


def test_the_same_measurements_give_the_same_words():
    segments = [{}, WALKER, {"camera_x": 30.0}]
    assert told(*segments) == told(*segments)


def test_texts_differ_wherever_the_words_for_the_measurements_do():
    segments = [{}, WALKER, WALKER | {"subject_at_x": 0.1}, {"camera_x": 30.0}, {"camera_x": -30.0}]
    assert all(a != b for a, b in pairwise(told(*segments)))


def test_a_number_beside_a_bound_keeps_the_word_it_had():
    edge = PAN_PX_S[1]
    assert level(edge * 1.1, PAN_PX_S) == 2
    assert level(edge * 1.1, PAN_PX_S, before=1) == 1
    assert level(edge * 0.9, PAN_PX_S, before=2) == 2
    assert level(edge * 1.3, PAN_PX_S, before=1) == 2
    assert level(edge * 0.7, PAN_PX_S, before=2) == 1


def test_a_number_far_over_several_bounds_gets_its_own_word():
    assert level(AREA[2] * 2, AREA, before=0) == 3
    assert level(0.0, AREA, before=3) == 0


def test_directions_are_those_of_the_picture():
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    assert [direction(x, y) for x, y in around] == list(DIRECTIONS)
    assert direction(1, 0.5, before="to the right") == "to the right"
    assert direction(1, 0.9, before="to the right") == "down and to the right"


def test_places_are_those_of_the_picture_and_hold_near_an_edge():
    assert place(0.1, 0.1) == "at the top left"
    assert place(0.5, 0.5) == "in the middle"
    assert place(0.9, 0.5) == "at the right"
    assert place(0.36, 0.5, before="at the left") == "at the left"
    assert place(0.5, 0.5, before="at the left") == "in the middle"
