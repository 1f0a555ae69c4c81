"""The learned detector on pieces of the labelled takes, joined with exactly known transitions."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from curation.video.frames import Planes, VideoInfo
from curation.video.planes import chroma_image
from curation.video.reader import Reader
from stages.shots import cut_features
from stages.shots.boosted_trees import BoostedTrees
from stages.shots.detector import Transitions
from stages.shots.frame_view import FrameView
from stages.shots.gradual_network import (
    CHUNK,
    MIN_CHANGE,
    GradualNetwork,
    load_session,
    relative_change,
)
from stages.shots.hard_cuts import MODELS
from stages.shots.learned import LearnedDetector, merge, select_cuts
from tests.support.paths import VIDEOS

FPS = 25.0
PLACES = (
    "take_highway_traffic_static_720p.mp4",
    "take_robot_arm_fridge_720p.mp4",
    "take_jackal_corridor_handheld_1080p.mp4",
)
real = pytest.mark.skipif(
    not (VIDEOS / "labels.csv").is_file(), reason=f"no labelled videos at {VIDEOS}"
)


@cache
def take(name: str) -> list[Planes]:
    """The first 100 frames, all in one size."""
    frames = []
    with Reader(str(VIDEOS / name)) as reader:
        for _, planes in reader.frames():
            luma = cv2.resize(planes.y, (320, 180), interpolation=cv2.INTER_AREA)
            frames.append(Planes(luma, chroma=chroma_image(planes)))
            if len(frames) == 100:
                break
    return frames


def mix(a: Planes, b: Planes, share: float) -> Planes:
    """share: 0 gives a, 1 gives b."""
    parts = []
    for x, y in ((a.y, b.y), (a.chroma, b.chroma)):
        assert x is not None
        assert y is not None
        parts.append(cv2.addWeighted(x, 1 - share, y, share, 0))
    return Planes(parts[0], chroma=parts[1])


def detect(frames: list[Planes], times_s: np.ndarray | None = None) -> Transitions:
    return run(LearnedDetector(), frames, times_s)


def run(
    detector: LearnedDetector, frames: list[Planes], times_s: np.ndarray | None = None
) -> Transitions:
    detector.setup()
    detector.start(VideoInfo(1280, 720, FPS, 320, 180))
    times_s = np.arange(len(frames)) / FPS if times_s is None else times_s
    for t_s, frame in zip(times_s, frames, strict=True):
        detector.process_frame(float(t_s), frame)
    return detector.transitions()


@real
@pytest.mark.parametrize("name", PLACES)
def test_single_take_has_no_transition(name):
    assert detect(take(name)) == Transitions([], [])


@real
@pytest.mark.parametrize("shown", [1, 2, 3], ids=["once", "twice", "three times"])
def test_hard_cut_is_found_at_its_frame_also_where_frames_are_repeated(shown):
    frames = take(PLACES[0])[:60] + take(PLACES[1])[:60]
    found = detect([frame for frame in frames for _ in range(shown)])
    assert found == Transitions([60 * shown / FPS], [])


@real
@pytest.mark.parametrize("length", [12, 30])
def test_dissolve_between_two_places_is_found_where_it_is(length):
    before, after = take(PLACES[0]), take(PLACES[2])
    blend = [mix(before[40 + i], after[i], (i + 1) / (length + 1)) for i in range(length)]
    found = detect([*before[:40], *blend, *after[length:]])
    assert found.cuts_s == []
    [(start_s, end_s)] = found.gradual
    assert start_s <= (40 + length / 3) / FPS
    assert (40 + 2 * length / 3) / FPS <= end_s <= (40 + 2 * length) / FPS


def cut_and_dissolve() -> list[Planes]:
    """100 frames of one place, 40 of another, a dissolve of 12, and 48 of a third."""
    before, after = take(PLACES[0])[:40], take(PLACES[2])
    blend = [mix(before[28 + i], after[i], (i + 1) / 13) for i in range(12)]
    return [*take(PLACES[1]), *before, *blend, *after[12:60]]


@real
def test_changes_with_too_low_a_probability_are_scores_of_the_clips_that_hold_them():
    unsure = LearnedDetector(cut_probability=1.0, gradual_probability=1.0)
    assert run(unsure, cut_and_dissolve()) == Transitions([], [])
    before_both, cut, dissolve, after_both = (
        unsure.score(start / FPS, end / FPS)
        for start, end in ((0, 90), (90, 130), (130, 160), (170, 200))
    )
    assert cut["cut_probability"] >= 0.5
    assert dissolve["gradual_probability"] >= 0.8
    for clip in (before_both, after_both):
        assert clip["cut_probability"] < 0.3
        assert clip["gradual_probability"] < 0.5


@pytest.mark.parametrize(
    ("probabilities", "cuts"),
    [
        ([0.0, 0.3, 0.4, 0.0], [2]),  # a mixed frame
        ([0.0, 0.3, 0.1, 0.0], []),
        ([0.2, 0.2, 0.2, 0.0], [0]),  # two mixed frames
        ([0.3, 0.9, 0.3, 0.0], [1]),  # a clear cut takes the pairs next to it
        ([0.3, 0.0, 0.0, 0.3], []),  # too far apart
    ],
)
def test_pairs_next_to_each_other_are_one_cut_if_their_probabilities_add_up(probabilities, cuts):
    pairs_s = np.arange(4) / FPS
    is_cut, together = select_cuts(pairs_s, np.array(probabilities), 0.5)
    assert np.flatnonzero(is_cut).tolist() == cuts
    assert together[0] == pytest.approx(min(1, sum(probabilities[:3])))


@real
def test_found_cuts_and_transitions_give_the_clips_next_to_them_no_probability():
    detector = LearnedDetector()
    found = run(detector, cut_and_dissolve())
    [cut_s], [(start_s, end_s)] = found.cuts_s, found.gradual
    frame_s = 1 / FPS
    for clip_s in ((0, cut_s - frame_s), (cut_s, start_s), (end_s + frame_s, 200 / FPS)):
        scores = detector.score(*clip_s)
        assert scores["cut_probability"] < 0.3
        assert scores["gradual_probability"] < 0.5


@real
def test_wipe_between_two_places_is_found():
    before, after = take(PLACES[1]), take(PLACES[0])
    wiped = []
    for i in range(20):
        frame = mix(before[40 + i], after[i], 0.0)
        for old, new in ((frame.y, after[i].y), (frame.chroma, after[i].chroma)):
            edge = round(old.shape[1] * (i + 1) / 21)
            old[:, :edge] = new[:, :edge]
        wiped.append(frame)
    found = detect([*before[:40], *wiped, *after[20:80]])
    assert any(a < 60 / FPS and b > 40 / FPS for a, b in found.gradual)


@real
def test_frames_of_another_size_midway_are_compared_all_the_same():
    small = [
        Planes(cv2.resize(frame.y, (160, 120)), chroma=frame.chroma)
        for frame in take(PLACES[1])[:40]
    ]
    assert detect([*take(PLACES[0])[:40], *small]).cuts_s == [40 / FPS]


@real
def test_detector_memory_does_not_grow_with_the_video():
    detector = LearnedDetector()
    detector.setup()
    detector.start(VideoInfo(1280, 720, FPS, 320, 180))
    frames = take(PLACES[2])
    sizes = []
    for number in range(2500):
        detector.process_frame(number / FPS, frames[number % 100])
        sizes.append(len(detector._gradual._frames) + len(detector._cuts._pictures))
    assert max(sizes) < 1100


def test_a_video_of_one_frame_or_of_one_colour_has_no_transition():
    grey = Planes(np.full((180, 320), 90, np.uint8))
    assert detect([]) == Transitions([], [])
    assert detect([grey]) == Transitions([], [])
    assert detect([grey] * 200) == Transitions([], [])


def test_trees_give_the_probability_of_the_leaf_that_each_of_them_reaches():
    names = cut_features.FEATURES
    trees = BoostedTrees(MODELS / "cut.npz", names)
    with np.load(MODELS / "cut.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    features = np.random.default_rng(0).normal(0, 20, (50, len(names))).astype(np.float32)
    for row, probability in zip(features, trees.probability(features), strict=True):
        odds = float(arrays["baseline"])
        for tree in range(len(arrays["feature"])):
            node = 0
            while arrays["feature"][tree, node] >= 0:
                goes_left = row[arrays["feature"][tree, node]] <= arrays["threshold"][tree, node]
                node = arrays["left" if goes_left else "right"][tree, node]
            odds += arrays["value"][tree, node]
        assert probability == pytest.approx(1 / (1 + np.exp(-odds)), rel=1e-4)


def test_trees_of_other_features_are_refused():
    with pytest.raises(ValueError, match="other features"):
        BoostedTrees(MODELS / "cut.npz", cut_features.COLOUR_FEATURES)


def test_cuts_within_a_gradual_transition_are_its_own_and_a_short_one_at_a_cut_is_the_cut():
    assert merge([2.0, 7.0], [(1.5, 2.5), (4.0, 5.0)]) == Transitions(
        [7.0], [(1.5, 2.5), (4.0, 5.0)]
    )
    assert merge([2.0], [(1.9, 2.1)]) == Transitions([2.0], [])


@real
def test_a_long_video_is_decided_in_parts_as_it_is_decided_at_once():
    frames = [FrameView(0.0, frame).yuv for frame in take(PLACES[0]) + take(PLACES[1])]
    share = np.linspace(0, 1, 30)[:, None, None, None]
    dissolve = [*(frames[99] * (1 - share) + frames[100] * share).astype(np.uint8)]
    video = [*frames[:100], *dissolve, *frames[100:], *frames[:100]] * 5
    assert len(video) > 2 * CHUNK
    (at_once,) = load_session().run(None, {"frames": np.array(video)})
    network = GradualNetwork()
    for number, yuv in enumerate(video):
        network.add(number / FPS, yuv)
    spans = network.spans(0.8)
    in_parts = np.concatenate(network._probabilities)
    assert in_parts.shape == at_once.shape
    assert np.mean(abs(in_parts - at_once) > 0.05) < 0.01
    for number in range(5):
        first_s = (330 * number + 100) / FPS
        assert any(a <= first_s + 0.8 and b >= first_s + 0.4 for a, b in spans)


@real
@pytest.mark.parametrize("still", [CHUNK // 2, 2 * CHUNK + 50])
def test_a_dissolve_after_a_still_scene_is_found_where_it_is(still):
    first, second = (FrameView(0.0, take(place)[0]).yuv.astype(float) for place in PLACES[:2])
    video = [first] * still
    video += [first * (1 - share) + second * share for share in np.linspace(0, 1, 30)]
    video += [second] * still
    noise = np.random.default_rng(0).normal(0, 1, (8, *first.shape))
    network = GradualNetwork()
    for number, frame in enumerate(video):
        network.add(number / FPS, np.clip(frame + noise[number % 8], 0, 255).astype(np.uint8))
    [(start_s, end_s)] = network.spans(0.8)
    assert start_s * FPS == pytest.approx(still, abs=8)
    assert end_s * FPS == pytest.approx(still + 30, abs=8)


def test_the_change_of_a_picture_is_relative_to_its_contrast():
    bright = np.random.default_rng(0).integers(0, 256, (36, 64, 3), np.uint8)
    bright = np.repeat(np.repeat(bright[:9, :16], 4, axis=0), 4, axis=1)
    for picture in (bright, bright // 16):  # fades to black
        fade = [(picture * share).astype(np.uint8) for share in np.linspace(1, 0, 40)]
        change = relative_change(np.array([*[picture] * 80, *fade, *fade[-1:] * 80]))
        assert change[60:140].min() < MIN_CHANGE < change[90:110].min()
        assert change[:60].max() == change[140:].max() == 0


def test_the_network_reads_at_most_33_frames_a_second():
    network = GradualNetwork()
    for number in range(600):
        network.add(number / 120, np.zeros((36, 64, 3), np.uint8))
    assert network.spans(0.9) == []
    assert len(network._times_s) == 150
