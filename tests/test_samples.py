"""The drawn samples that `make curate` starts with lead to what they promise."""

from __future__ import annotations

import os

import pyarrow.parquet as pq
import pytest

from pipelines import samples
from tests.whole_run import ended, start

# name: what becomes of its clips, in order of time: kept, or the first reason's score
PROMISED = {
    "take_dusk_pan.mp4": ["kept", "kept"],
    "take_steady_camera.mp4": ["kept"],
    "two_takes_one_cut.mp4": ["kept", "duration_s"],
    "dissolve.mp4": ["duration_s", "duration_s"],
    "slides.mp4": ["still_share"],
    "zoom_over_a_still.mp4": ["fake_motion"],
    "short.mp4": ["duration_s"],
    "copy_at_lower_quality.mp4": ["duplicate"],
    "small_picture.mp4": ["width"],
    "broken.mp4": [],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_sample_is_kept_or_rejected_for_what_was_drawn_into_it(tmp_path):
    samples.draw(tmp_path / "in")
    assert sorted(os.listdir(tmp_path / "in")) == sorted(PROMISED)
    run = start("curate", f"input={tmp_path}/in", f"output={tmp_path}/out")
    assert ended(run, 800).code == 0
    fates: dict[str, list[str]] = {name: [] for name in PROMISED}
    clips = pq.read_table(tmp_path / "out/clips.parquet").to_pylist()
    for clip in sorted(clips, key=lambda clip: (clip["video"], clip["start_s"])):
        fate = "kept" if clip["status"] == "kept" else clip["reason"].split()[0]
        fates[os.path.basename(clip["video"])].append(fate)
    assert fates == PROMISED
    videos = pq.read_table(tmp_path / "out/videos.parquet").to_pylist()
    failed = {os.path.basename(v["video"]): v["error"] for v in videos if v["status"] == "failed"}
    assert failed.keys() == {"broken.mp4"}
    assert failed["broken.mp4"].startswith("truncated")
