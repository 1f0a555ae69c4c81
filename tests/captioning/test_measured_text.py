from itertools import pairwise

import pytest

from stages.captioning.colours import Colour
from stages.captioning.measured_text import write_caption, write_sub_captions
from stages.captioning.segment_state import (
    AREA_BOUNDS,
    DIRECTIONS,
    PAN_BOUNDS_PX_S,
    SegmentState,
    name_position,
    nearest_direction,
    quantize,
    quantize_segment,
)

GREY = (Colour("grey", "", 0.9, ""),)
MOTIONLESS = {
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


def states_of(*segments: dict, colours=GREY, **text) -> list[SegmentState]:
    found: list[SegmentState] = []
    for segment in segments:
        found.append(
            quantize_segment(MOTIONLESS | segment, colours, found[-1] if found else None, **text)
        )
    return found


def captions_of(*segments: dict) -> list[str]:
    return write_sub_captions(states_of(*segments))


@pytest.mark.parametrize(
    ("camera", "expected"),
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
def test_first_sub_caption_describes_the_camera_motion(camera, expected):
    assert expected in captions_of(camera)[0]


def test_first_sub_caption_gives_position_and_direction_of_the_subject():
    assert "Something small at the right moves to the left." in captions_of(WALKER)[0]


def test_subject_in_a_moving_view_moves_by_itself():
    assert "moves by itself" in captions_of(WALKER | {"camera_x": 30.0})[0]


def test_subjects_that_move_in_opposite_directions_have_no_direction():
    crossing = WALKER | {"subject_motion": 6.0, "subject_area": 0.2, "subject_x": 2.0}
    assert "this way and that" in captions_of(crossing)[0]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
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
def test_second_sub_caption_describes_the_change(before, now, expected):
    assert expected.lower() in captions_of(before, now)[1].lower()


def test_unchanged_picture_is_not_described_again():
    first, second = captions_of(
        WALKER | {"camera_x": 30.0}, WALKER | {"camera_x": 30.0, "brightness": 90}
    )
    assert "picture," in first
    assert "picture," not in second
    assert "brighter" not in second


def test_motionless_clip_gets_short_sub_captions():
    first, second, third = captions_of({}, {}, {})
    assert first == "A picture, almost all of it grey. The view stays still. Hardly anything moves."
    assert second == "Hardly anything moves or changes in the still view of the grey scene."
    assert third == "Again hardly anything moves or changes in the still view of the grey scene."


def test_slow_change_of_light_is_mentioned_once_it_has_accumulated():
    texts = captions_of(*({"brightness": 100.0 + 5 * i} for i in range(5)))
    assert ["brighter" in text for text in texts] == [False, False, False, True, False]


def test_colours_that_appear_and_disappear_are_mentioned():
    green = (Colour("green", "", 0.6, "at the bottom"), Colour("black", "", 0.4, ""))
    first = quantize_segment(MOTIONLESS, GREY, None)
    text = write_sub_captions([first, quantize_segment(MOTIONLESS, green, first)])[1]
    assert "green at the bottom and black come in." in text
    assert "The grey is gone." in text


def test_text_in_the_image_is_mentioned_when_it_appears_or_changes_and_not_when_ocr_reads_none():
    def reads(*texts: str) -> dict:
        return {"quotes": tuple((t, "at the top left") for t in texts), "ocr_lines": texts}

    shown = [reads(), reads("Goal 2"), reads("Goal 2"), reads("Goal 3"), reads()]
    texts = write_sub_captions([quantize_segment(MOTIONLESS, GREY, None, **text) for text in shown])
    assert 'at the top left it says "Goal 2".' in texts[1]
    assert "Goal" not in texts[2]
    assert 'at the top left it now says "Goal 3".' in texts[3]
    assert "Goal" not in texts[4]


def test_text_that_is_read_in_another_way_is_not_mentioned_again():
    shown = ["Brandon Castellano", "Brandon Castellamo"]
    texts = write_sub_captions(
        [
            quantize_segment(MOTIONLESS, GREY, None, quotes=((t, "at the top"),), ocr_lines=(t,))
            for t in shown
        ]
    )
    assert "Brandon" not in texts[1]


def test_missing_measurements_are_not_mentioned():
    nothing = dict.fromkeys(MOTIONLESS)
    texts = captions_of(nothing, nothing)
    assert texts[0] == "A picture, almost all of it grey."
    assert not any(word in " ".join(texts) for word in ("view", "moves", "still", "bright", "dark"))


def test_caption_summarizes_camera_subject_and_light():
    text = write_caption(
        states_of({}, {"camera_x": 30.0}, {"camera_x": 30.0} | WALKER, {"brightness": 60.0})
    )
    assert "The view first stays still, then pans to the right, then stays still." in text
    assert "then something small moves at the right, then hardly anything moves" in text
    assert "The picture gets much darker from start to end." in text


def test_caption_quotes_each_text_once():
    shown = [("Goal 2",), ("Goal 2",), ("Goal 3",)]
    quoting = [
        quantize_segment(
            MOTIONLESS, GREY, None, quotes=tuple((t, "at the top") for t in texts), ocr_lines=texts
        )
        for texts in shown
    ]
    assert write_caption(quoting).endswith('It says "Goal 2" and "Goal 3".')


def test_same_measurements_give_the_same_sub_captions():
    segments = [{}, WALKER, {"camera_x": 30.0}]
    assert captions_of(*segments) == captions_of(*segments)


def test_different_levels_give_different_sub_captions():
    segments = [{}, WALKER, WALKER | {"subject_at_x": 0.1}, {"camera_x": 30.0}, {"camera_x": -30.0}]
    assert all(a != b for a, b in pairwise(captions_of(*segments)))


def test_number_near_a_bound_keeps_its_level():
    edge = PAN_BOUNDS_PX_S[1]
    assert quantize(edge * 1.1, PAN_BOUNDS_PX_S) == 2
    assert quantize(edge * 1.1, PAN_BOUNDS_PX_S, previous=1) == 1
    assert quantize(edge * 0.9, PAN_BOUNDS_PX_S, previous=2) == 2
    assert quantize(edge * 1.3, PAN_BOUNDS_PX_S, previous=1) == 2
    assert quantize(edge * 0.7, PAN_BOUNDS_PX_S, previous=2) == 1


def test_number_far_beyond_a_bound_changes_its_level():
    assert quantize(AREA_BOUNDS[2] * 2, AREA_BOUNDS, previous=0) == 3
    assert quantize(0.0, AREA_BOUNDS, previous=3) == 0


def test_directions_follow_image_coordinates():
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    assert [nearest_direction(x, y) for x, y in around] == list(DIRECTIONS)
    assert nearest_direction(1, 0.5, previous="to the right") == "to the right"
    assert nearest_direction(1, 0.9, previous="to the right") == "down and to the right"


def test_positions_hold_near_the_edge_of_a_third():
    assert name_position(0.1, 0.1) == "at the top left"
    assert name_position(0.5, 0.5) == "in the middle"
    assert name_position(0.9, 0.5) == "at the right"
    assert name_position(0.36, 0.5, previous="at the left") == "at the left"
    assert name_position(0.5, 0.5, previous="at the left") == "in the middle"
