"""Damage that a decoder hides: where it is found, and that intact files have none."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from curation.stage import RunContext
from curation.video.reader import Reader, damaged_spans
from stages.decode_pass import DecodePass
from tests.support import video_files
from tests.support.small_input import scene

FPS, GOP, FRAMES = 25, 25, 100
X264 = {"preset": "veryfast", "g": str(GOP), "bf": "2", "sc_threshold": "0"}
X265 = {"preset": "ultrafast", "x265-params": f"keyint={GOP}:scenecut=0:log-level=none"}
CODECS = {
    "h264.mp4": ("libx264", X264),
    "h264.ts": ("libx264", X264),
    "hevc.mp4": ("libx265", X265),
    "hevc.ts": ("libx265", X265),
    "mpeg4.mp4": ("mpeg4", {"g": str(GOP)}),
    "mpeg2.ts": ("mpeg2video", {"g": str(GOP)}),
    "vp9.webm": ("libvpx-vp9", {"g": str(GOP), "deadline": "realtime", "cpu-used": "8"}),
    "av1.mkv": ("libsvtav1", {"g": str(GOP), "preset": "12"}),
}


def draw(path: Path, kind: str) -> Path:
    codec, options = CODECS[kind]
    return video_files.draw(
        path, frames=FRAMES, width=160, height=96, codec=codec, options=options, picture=scene(1)
    )


def read(path: Path) -> Reader:
    with Reader(str(path)) as reader:
        for _ in reader.frames():
            pass
    return reader


def overwrite_packet(path: Path, number: int) -> float:
    """Replaces the second half of a packet by random bytes. Returns its time, s."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        packets = [p for p in file.demux(stream) if p.size]
        packet = packets[number]
        start, size = packet.pos, packet.size
        start_pts = min(p.pts for p in packets)
        t_s = float((packet.pts - start_pts) * packet.time_base)
    data = bytearray(path.read_bytes())
    half = start + size // 2
    data[half : start + size] = random.Random(number).randbytes(start + size - half)
    path.write_bytes(data)
    return t_s


def drop_transport_packets(path: Path, first: int, last: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: first * 188] + data[last * 188 :])


@pytest.mark.parametrize("kind", CODECS)
def test_intact_file_has_no_damage(tmp_path, kind):
    assert read(draw(tmp_path / f"a.{kind}", kind)).damaged == []


@pytest.mark.parametrize("kind", ["h264.mp4", "mpeg4.mp4"])
def test_damage_lasts_until_the_next_keyframe(tmp_path, kind):
    path = draw(tmp_path / f"a.{kind}", kind)
    t_s = overwrite_packet(path, GOP + 2)
    [(start_s, end_s)] = read(path).damaged
    assert t_s - 3 / FPS <= start_s <= t_s + 1e-3
    assert end_s == pytest.approx(2 * GOP / FPS, abs=1e-3)


@pytest.mark.parametrize("kind", ["h264.ts", "hevc.ts", "mpeg2.ts"])
def test_lost_packets_of_a_transport_stream_are_damage(tmp_path, kind):
    path = draw(tmp_path / f"a.{kind}", kind)
    middle = path.stat().st_size // 188 // 2
    drop_transport_packets(path, middle, middle + 3)
    damaged = read(path).damaged
    assert damaged
    assert damaged[0][0] > 0.5
    assert damaged[-1][1] < 3.5


@pytest.mark.parametrize("kind", ["h264.ts", "hevc.ts"])
def test_missing_reference_frame_is_damage(tmp_path, kind):
    """A packet that is left out of the file: nothing else is wrong with it."""
    source, path = draw(tmp_path / f"a.{kind}", kind), tmp_path / "b.mkv"
    with av.open(str(source)) as file, av.open(str(path), "w") as out:
        stream = file.streams.video[0]
        track = out.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in file.demux(stream) if p.size):
            if number != GOP + 1:
                packet.stream = track
                out.mux(packet)
    [(start_s, end_s)] = read(path).damaged
    assert GOP / FPS < start_s < 1.5 * GOP / FPS
    assert end_s == pytest.approx(2 * GOP / FPS, abs=1e-3)


def test_end_of_a_truncated_file_is_damage(tmp_path):
    path = draw(tmp_path / "a.ts", "h264.ts")
    with av.open(str(path)) as file:
        keyframe = [p for p in file.demux(video=0) if p.is_keyframe][-1]
    path.write_bytes(path.read_bytes()[: keyframe.pos + keyframe.size // 2])
    [(start_s, end_s)] = read(path).damaged
    assert start_s == pytest.approx(3 * GOP / FPS, abs=1e-3)
    assert end_s == math.inf


def test_spans_begin_at_the_earliest_frame_that_is_decoded_after_the_damage():
    times_s = np.array([0.0, 3, 1, 2, 4, 7, 5, 6, 8])  # I P B B, four times
    is_key = np.array([True, False, False, False, True, False, False, False, True])
    assert damaged_spans(times_s, is_key, [1], []) == [(1.0, 4.0)]
    assert damaged_spans(times_s, is_key, [0, 3], []) == [(0.0, 4.0)]
    assert damaged_spans(times_s, is_key, [2, 4], []) == [(1.0, 8.0)]
    assert damaged_spans(times_s, is_key, [8], []) == [(8.0, math.inf)]
    assert damaged_spans(times_s, is_key, [5], [2.0]) == [(2.0, 4.0), (5.0, 8.0)]
    assert damaged_spans(times_s, is_key, [], []) == []


def test_files_that_are_read_at_the_same_time_do_not_get_each_others_damage(tmp_path):
    good, bad = (draw(tmp_path / f"{name}.mp4", "h264.mp4") for name in ("good", "bad"))
    for number in (GOP + 2, GOP + 5, GOP + 8):
        overwrite_packet(bad, number)
    assert read(bad).damaged
    with ThreadPoolExecutor(4) as pool:
        readers = list(pool.map(read, [good, bad] * 8))
    assert [bool(reader.damaged) for reader in readers] == [False, True] * 8


def test_score_is_the_damaged_share_of_the_clip(tmp_path):
    path = draw(tmp_path / "a.mp4", "h264.mp4")
    t_s = overwrite_packet(path, GOP + 2)
    stage = DecodePass(clip_s=1.0, max_clip_s=1.0)
    stage.setup(RunContext(str(tmp_path)))
    with Reader(str(path)) as reader:
        stage._process_frames(reader)
        stage._detector.transitions()  # the scores of clips come after it
        shares = [
            stage._score_clip({"sha256": "", "transfer": None}, reader, 0, (float(s), s + 1.0))[
                "damaged_share"
            ]
            for s in range(4)
        ]
    assert shares == [0, pytest.approx(2.0 - t_s, abs=3 / FPS), 0, 0]
