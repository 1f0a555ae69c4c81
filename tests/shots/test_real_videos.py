"""The labels of the real videos are consistent, whether or not the videos are on this machine."""

from __future__ import annotations

import json

import pytest

from benchmarks.real_videos import (
    LABELS,
    RealVideo,
    half_of,
    real_videos,
    training_videos,
    unseen_videos,
)

VIDEOS, TRAINING, UNSEEN = real_videos(), training_videos(), unseen_videos()
ALL = VIDEOS + TRAINING + UNSEEN


def test_no_file_is_labelled_twice():
    assert len({video.sha256 for video in ALL}) == len(ALL)


def test_a_repository_with_labels_for_training_alone_gives_no_figures():
    figures = {video.repository for video in VIDEOS if video.half == "figures"}
    assert not figures & {video.repository for video in TRAINING}


def test_no_repository_of_unseen_videos_was_used_before():
    used = {video.repository for video in VIDEOS + TRAINING}
    for name in ("footage.jsonl", "views.jsonl"):
        lines = LABELS.with_name(name).read_text().splitlines()
        used |= {json.loads(line)["repository"] for line in lines}
    assert not used & {video.repository for video in UNSEEN}


@pytest.mark.parametrize("video", ALL, ids=lambda video: video.sha256[:6])
def test_labels_of_a_video_are_in_order_and_within_its_frames(video: RealVideo):
    halves = {video.sha256: "development" for video in TRAINING}
    halves |= {video.sha256: "unseen" for video in UNSEEN}
    assert video.half == halves.get(video.sha256, half_of(video.sha256))
    frames = [cut["frame"] for cut in video.cuts]
    assert frames == sorted(set(frames))
    assert all(0 < frame < video.frames for frame in frames)
    assert {cut["kind"] for cut in video.cuts} <= {"place", "jump"}
    for span in video.gradual + video.uncertain + video.views:
        assert 0 <= span["first"] <= span["last"] < video.frames
    for span in video.gradual:
        assert not any(span["first"] < frame <= span["last"] for frame in frames)
    assert {view["kind"] for view in video.views} <= {"split", "collage", "screen"}


def test_a_take_ends_where_a_transition_or_an_uncertain_span_begins():
    labels = {
        "frames": 100,
        "cuts": [{"frame": 40, "kind": "place", "between": 2}],
        "gradual": [{"first": 60, "last": 69, "kind": "dissolve"}],
        "uncertain": [{"first": 68, "last": 79, "why": "logo"}],
        "views": [{"kind": "split", "first": 45, "last": 50}],
    }
    video = RealVideo(**{**VIDEOS[0].__dict__, **labels})
    assert video.takes == [(0, 38), (40, 60), (80, 100)]
    assert video.one_view_takes == [(0, 38), (80, 100)]
