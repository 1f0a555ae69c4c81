from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.records import is_in_span
from stages.shots.takes import find_takes, place_clips

NO_KEYS = np.array([])


def frames(fps: float, seconds: float) -> np.ndarray:
    return np.arange(round(fps * seconds)) / fps


def test_video_without_transitions_is_one_take_of_all_frames():
    assert find_takes([], [], frames(25, 20), 20.0) == [(0.0, 20.0)]


@pytest.mark.parametrize("fps", [4, 10, 24000 / 1001, 25, 30000 / 1001, 60, 100])
def test_two_guard_frames_are_left_out_on_both_sides_of_a_cut_at_any_frame_rate(fps):
    times = frames(fps, 40)
    cut = len(times) // 2
    first, second = find_takes([times[cut]], [], times, 40.0)
    assert first == (0.0, pytest.approx(times[cut - 2]))
    assert second == (pytest.approx(times[cut + 2]), 40.0)


def test_frames_in_a_gradual_transition_belong_to_no_take():
    times = frames(25, 40)
    first, second = find_takes([], [(10.0, 11.0)], times, 40.0)
    assert first == (0.0, pytest.approx(10.0 - 2 / 25))
    assert second == (pytest.approx(11.0 + 3 / 25), 40.0)


def test_cut_inside_a_gradual_transition_is_ignored():
    times = frames(25, 40)
    assert find_takes([10.4], [(10.0, 11.0)], times, 40.0) == find_takes(
        [], [(10.0, 11.0)], times, 40.0
    )


def test_take_lies_between_a_fade_in_at_the_start_and_a_fade_out_at_the_end():
    times = frames(25, 20)
    (take,) = find_takes([], [(0.0, 1.0), (19.0, 19.96)], times, 20.0)
    assert take == (pytest.approx(1.0 + 3 / 25), pytest.approx(19.0 - 2 / 25))


def test_no_empty_take_between_cuts_closer_than_their_guard_frames():
    times = frames(25, 20)
    takes = find_takes([10.0, 10.12], [], times, 20.0)
    assert takes == [(0.0, pytest.approx(9.92)), (pytest.approx(10.2), 20.0)]


def test_video_without_frames_has_no_take():
    assert find_takes([], [], np.array([]), 0.0) == []


def test_take_exactly_as_long_as_a_clip_gives_one_clip_despite_rounding():
    times = np.cumsum(np.full(375, 0.04)) - 0.04
    end = times[-1] + 0.04  # 15.000000000000002 or 14.999999999999998
    for take_end in (15.0, end, 15.0 - 1e-9):
        assert place_clips((0.0, take_end), 15.0, 15.0, NO_KEYS, times) == [(0.0, 15.0)]


def test_take_shorter_than_a_clip_gives_no_clip():
    assert place_clips((0.0, 14.9), 15.0, 15.0, NO_KEYS, frames(25, 14.9)) == []


def test_as_many_clips_as_fit_are_placed_evenly():
    spans = place_clips((0.0, 50.0), 15.0, 15.0, NO_KEYS, frames(25, 50))
    assert spans == [pytest.approx((s, s + 15), abs=0.021) for s in (1.25, 17.5, 33.75)]


def test_larger_maximum_gives_fewer_longer_clips_that_use_up_the_take():
    assert place_clips((0.0, 50.0), 15.0, 60.0, NO_KEYS, frames(25, 50)) == [(0.0, 50.0)]
    spans = place_clips((0.0, 50.0), 15.0, 30.0, NO_KEYS, frames(25, 50))
    assert spans == [(0.0, 25.0), (25.0, 50.0)]
    assert place_clips((0.0, 20.0), 15.0, 16.0, NO_KEYS, frames(25, 20)) == [(2.0, 18.0)]


def test_clips_start_on_keyframes_where_the_take_leaves_room():
    keys = np.array([0.0, 8.0, 16.0, 24.0])
    spans = place_clips((0.0, 34.0), 15.0, 15.0, keys, frames(25, 34))
    assert spans == [(0.0, 15.0), (16.0, 31.0)]


def test_clip_is_not_moved_to_a_keyframe_without_room():
    assert place_clips((1.0, 16.0), 15.0, 15.0, np.array([0.0, 2.0]), frames(25, 20)) == [
        (1.0, 16.0)
    ]


@given(
    gaps=st.lists(st.floats(0.008, 0.3), min_size=100, max_size=800),
    clip_s=st.floats(2.0, 15.0),
    longer=st.floats(1.0, 4.0),
    key_every=st.integers(1, 250),
)
@settings(max_examples=60)
def test_clips_of_any_take_do_not_overlap_and_start_on_frames(gaps, clip_s, longer, key_every):
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    end = float(times[-1]) + 0.04
    spans = place_clips((0.0, end), clip_s, clip_s * longer, times[::key_every], times)
    assert all(clip_s - 1e-9 <= b - a <= clip_s * longer + 1e-9 for a, b in spans)
    assert all(np.min(np.abs(times - a)) == 0 for a, _ in spans)
    assert all(not is_in_span(c, a, b) for (a, b), (c, _) in pairwise(spans))
    assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= end + 2e-3)
    if longer == 1.0:
        assert len(spans) >= int(end / (clip_s + 0.3))
    assert bool(spans) == (end + 1e-3 >= clip_s)


@pytest.mark.parametrize("ticks_per_s", [1000, 15360, 90000])
@pytest.mark.parametrize("fps", [24000 / 1001, 24, 25, 30000 / 1001, 30, 60000 / 1001])
def test_no_frame_is_in_two_clips_or_past_the_take_whatever_the_clock(ticks_per_s, fps):
    times = np.round(np.arange(1200) / fps * ticks_per_s) / ticks_per_s
    for last in range(200, 1100, 7):
        take = times[17], times[last]
        spans = place_clips(take, 5.0, 10.0, NO_KEYS, times)
        assert [(a, b) for a, b in spans if is_in_span(take[1], a, b)] == []
        for one, two in pairwise(spans):
            assert not is_in_span(two[0], *one)


def test_end_of_the_last_frame_may_be_rounded_by_a_millisecond():
    times = np.round(frames(24, 15), 3)
    assert place_clips((0.0, 14.9997), 15.0, 15.0, NO_KEYS, times) == [(0.0, 15.0)]
