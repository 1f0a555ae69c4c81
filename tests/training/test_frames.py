"""The readers of a clip's frames: decord returns what PyAV returns."""

from __future__ import annotations

import importlib.util
from itertools import islice

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from curation.config import ConfigError
from tests.export.test_display import MATRICES, draw
from tests.export.test_extraction import write_video
from tests.support.drawn_clips import dataset, row
from tests.support.video_files import extract
from training.clips import BadData, ShardedClips
from training.config import Size
from training.data import LocalBatch, stream_batches
from training.frames import sample_frames

FAST = {"crf": "8", "preset": "ultrafast"}


def write(kind, path):
    """Writes a video whose frames differ."""
    if kind == "edit list":  # stored frames that are not shown
        source = write_video(path.with_name("source.mp4"), params=FAST | {"bf": "3"})
        for tenths in range(10, 40):
            if extract(source, 1.0, 1.0 + tenths / 25, path).hidden_frames:
                return path
        raise AssertionError("no span has hidden frames")
    if kind == "variable frame rate":
        times_ms = [40 * i + 9 * (i % 3) + 120 for i in range(60)]
        return write_video(path, frames=60, times_ms=times_ms, params=FAST)
    if kind == "ten bits":
        return write_video(path, frames=60, pix_fmt="yuv420p10le", params=FAST)
    if kind == "b-frames":
        return write_video(path, frames=60, params=FAST | {"bf": "3"})
    return draw(path, size=(160, 96), matrix=MATRICES[kind], options=FAST)


@pytest.mark.parametrize(
    "kind",
    ["b-frames", "variable frame rate", "edit list", "ten bits", "90", "180", "mirrored"],
)
@pytest.mark.parametrize("frames", [1, 10, 88])
def test_decord_samples_the_frames_that_pyav_samples(tmp_path, kind, frames):
    pytest.importorskip("decord")
    path = write(kind, tmp_path / "clip.mp4")
    with av.open(str(path)) as file:
        shown = list(file.decode(video=0))
    clip_s, count = float(shown[-1].time - shown[0].time) + 0.04, len(shown)
    width, height = (96, 160) if kind == "90" else (160, 96)
    mean = {}
    for size in (Size(frames, height, width), Size(frames, 48, 80)):
        by_pyav, by_decord = (
            sample_frames(path.read_bytes(), clip_s, count, size, reader).numpy().astype(int)
            for reader in ("pyav", "decord")
        )
        mean[size.height] = np.abs(by_pyav - by_decord).mean()
    assert mean[height] == 0
    next_frames = np.abs(by_pyav[1:] - by_pyav[:-1]).mean((1, 2, 3))
    assert mean[48] < 0.6 * min(next_frames[next_frames > 0], default=9)


def test_reading_processes_read_with_decord(tmp_path):
    pytest.importorskip("decord")
    folder, size = dataset(tmp_path, [row(i) for i in range(3)]), Size(10, 96, 160)
    by_pyav, by_decord = (
        [
            (batch.clips[0].clip_id, batch.video)
            for batch in islice(stream_batches(source, LocalBatch(1), 0, 0, workers=1), 3)
        ]
        for reader in ("pyav", "decord")
        for source in [ShardedClips(folder, "train", size, reader=reader)]
    )
    for (clip_id, video), (same_id, same_video) in zip(by_pyav, by_decord, strict=True):
        assert clip_id == same_id
        assert torch.equal(video, same_video)


def test_decord_reports_a_clip_that_can_not_be_decoded(tmp_path):
    pytest.importorskip("decord")
    path = write_video(tmp_path / "clip.mp4", frames=60, params=FAST)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 2000] = bytes(byte ^ 0x55 for byte in data[start : start + 2000])
    for damaged in (b"", bytes(data[:3000]), bytes(data)):
        with pytest.raises(BadData, match="its mp4 can't be decoded"):
            sample_frames(damaged, 2.4, 60, Size(60, 96, 160), "decord")


@pytest.mark.skipif(importlib.util.find_spec("decord") is not None, reason="decord is installed")
def test_missing_decord_is_reported_with_the_extra_to_install(tmp_path):
    folder = dataset(tmp_path, [row(0)])
    with pytest.raises(ConfigError, match=r"data\.reader is decord.*pip install -e '\.\[decord\]'"):
        ShardedClips(folder, "train", Size(), reader="decord")
