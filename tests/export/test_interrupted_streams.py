"""Streams whose picture size changes or whose time stamps jump: takes, and the exported clips as
an independent reader decodes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.video.reader import MPEG_CLOCK_S, Clock, Reader
from stages.shots.takes import find_takes
from tests.support import ffmpeg, video_files

FRAMES, FPS = 40, 25.0
PART_S = FRAMES / FPS
SMALL, LARGE, NARROW = (160, 96), (320, 192), (128, 96)
X264 = {"preset": "ultrafast", "crf": "12", "g": "10", "bf": "2"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "b": "2M", "g": "10"}
CODECS = {
    "vp9.webm": ("libvpx-vp9", VP9),
    "h264.ts": ("libx264", X264),
    "h264.mkv": ("libx264", X264),
    "h264.flv": ("libx264", X264),
    "hevc.ts": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=10:log-level=none"}),
    "mpeg2.ts": ("mpeg2video", {"g": "10", "qscale": "2"}),
}


def draw_parts(folder: Path, kind: str, sizes: list[tuple[int, int]]) -> list[Path]:
    """A part of FRAMES numbered frames per size, in a container with parameter sets in the
    stream."""
    codec, options = CODECS[kind]
    suffix = "webm" if codec == "libvpx-vp9" else "ts"
    return [
        video_files.draw(
            folder / f"{number}.{suffix}",
            frames=FRAMES,
            fps=FPS,
            width=width,
            height=height,
            codec=codec,
            options=options,
            picture=lambda index, w, h, first=number * FRAMES: video_files.numbered(
                first + index, w, h
            ),
        )
        for number, (width, height) in enumerate(sizes)
    ]


def read(path: Path) -> Reader:
    with Reader(str(path)) as reader:
        for _ in reader.frames():
            pass
    return reader


def assert_clip_shows_part(reader: Reader, number: int, size: tuple[int, int]) -> None:
    """The frames of a part, but for its last two, at their own size."""
    start_s, end_s = number * PART_S, (number + 1) * PART_S - 2 / FPS
    clip = Path(reader.path).with_name("clip.mp4")
    path, times_jump = Path(reader.path), bool(reader.time_jumps)
    result = video_files.extract(path, start_s, end_s, clip, FRAMES - 2, times_jump)
    assert (result.width, result.height) == size
    numbers = [video_files.number_of(frame) for frame in ffmpeg.decode(clip, *size)]
    assert numbers == list(range(number * FRAMES, (number + 1) * FRAMES - 2))


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize(
    "sizes", [[LARGE, SMALL], [SMALL, LARGE, SMALL], [NARROW, LARGE]], ids=["down", "up", "aspect"]
)
@pytest.mark.parametrize("kind", CODECS)
def test_take_ends_where_the_picture_size_changes_and_clips_keep_their_size(tmp_path, kind, sizes):
    path = video_files.spliced(tmp_path / f"joined.{kind}", *draw_parts(tmp_path, kind, sizes))
    reader = read(path)
    changes_s = [number * PART_S for number in range(1, len(sizes))]
    assert reader.breaks_s == pytest.approx(changes_s, abs=0.002)
    assert reader.end_s == pytest.approx(len(sizes) * PART_S, abs=0.042)
    takes = find_takes(reader.breaks_s, [], reader.times_s, reader.end_s, guard_frames=0)
    assert [reader.size_at(start_s) for start_s, _ in takes] == sizes
    for number, size in enumerate(sizes):
        assert_clip_shows_part(reader, number, size)


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize("gap_s", [8.0, 9 * 3600.0])
@pytest.mark.parametrize("kind", CODECS)
def test_take_ends_at_a_gap_and_durations_count_what_is_shown(tmp_path, kind, gap_s):
    parts = draw_parts(tmp_path, kind, [SMALL] * 3)
    path = video_files.spliced(tmp_path / f"joined.{kind}", *parts, gap_s=gap_s)
    reader = read(path)
    assert reader.breaks_s == pytest.approx([PART_S, 2 * PART_S], abs=0.002)
    assert [by_s for _, by_s in reader.time_jumps] == pytest.approx([gap_s] * 2, abs=0.05)
    assert reader.end_s == pytest.approx(3 * PART_S, abs=0.042)
    assert reader.packets.times_s == pytest.approx(reader.times_s, abs=0.002)
    for number in range(3):
        assert_clip_shows_part(reader, number, SMALL)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_frame_that_is_shown_for_two_seconds_ends_no_take(tmp_path, name):
    times_s = [i / FPS + (2.0 if i >= 20 else 0.0) for i in range(40)]
    reader = read(video_files.draw(tmp_path / name, times_s=times_s))
    assert reader.breaks_s == []
    assert reader.times_s == pytest.approx(times_s, abs=0.002)


def test_slow_frame_rate_is_no_gap(tmp_path):
    times_s = [4.0 * i for i in range(8)]
    reader = read(video_files.draw(tmp_path / "a.mp4", times_s=times_s, fps=0.25))
    assert reader.breaks_s == []
    assert reader.end_s == pytest.approx(32.0)


def test_take_ends_where_time_stamps_begin_again(tmp_path):
    parts = draw_parts(tmp_path, "h264.ts", [SMALL] * 2)
    reader = read(video_files.joined(tmp_path / "joined.ts", *parts))
    assert reader.breaks_s == pytest.approx([PART_S])
    assert [by_s for _, by_s in reader.time_jumps] == pytest.approx([-PART_S])
    assert reader.end_s == pytest.approx(2 * PART_S, abs=0.042)


@pytest.mark.parametrize("start_s", [MPEG_CLOCK_S - 0.8, 2 * MPEG_CLOCK_S - 0.8])
def test_take_goes_on_where_the_clock_of_mpeg_wraps(tmp_path, start_s):
    times_s = [start_s + i / FPS for i in range(40)]
    path = video_files.draw(
        tmp_path / "a.ts", times_s=times_s, muxer={"avoid_negative_ts": "disabled"}
    )
    reader = read(path)
    assert reader.breaks_s == []
    assert reader.times_s == pytest.approx([i / FPS for i in range(40)], abs=0.002)


def test_step_back_by_the_clock_of_mpeg_is_a_wrap():
    clock = Clock(1 / FPS)
    stamps_s = [5.0, 5.04, 5.08 - MPEG_CLOCK_S, 5.12 - MPEG_CLOCK_S]
    assert [clock.read(t_s) for t_s in stamps_s] == pytest.approx([0, 0.04, 0.08, 0.12])
    assert [by_s for _, by_s in clock.jumps] == pytest.approx([-MPEG_CLOCK_S])
