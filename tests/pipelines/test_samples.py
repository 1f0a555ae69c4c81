"""The drawn samples of `make curate` are kept and rejected according to their names."""

from __future__ import annotations

import os
import re

import pyarrow.parquet as pq
import pytest

from pipelines import samples
from tests.support.whole_run import start, wait_for_end

SHORT = r"[\d.]+ s < 15 s$"
# name: how its clips end, in order of time: kept, or how the first reason begins
EXPECTED = {
    "take_dusk_pan.mp4": ["kept", "kept"],
    "take_steady_camera.mp4": ["kept"],
    "two_takes_one_cut.mp4": ["kept", SHORT],
    "dissolve.mp4": [SHORT, SHORT],
    "slides.mp4": [f"{SHORT}|static_share"] * 7,  # most of the large changes count as cuts
    "zoom_over_a_still.mp4": ["ken_burns_share"],
    "short.mp4": [SHORT],
    "copy_at_lower_quality.mp4": ["duplicate of"],
    "small_picture.mp4": ["width"],
    "broken.mp4": [],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_sample_is_kept_or_rejected_as_its_name_states(tmp_path):
    samples.draw(tmp_path / "in")
    assert sorted(os.listdir(tmp_path / "in")) == sorted(EXPECTED)
    run = start("curate", f"input={tmp_path}/in", f"output={tmp_path}/out")
    assert wait_for_end(run, 800).exit_code == 0
    fates: dict[str, list[str]] = {name: [] for name in EXPECTED}
    clips = pq.read_table(tmp_path / "out/clips.parquet").to_pylist()
    for clip in sorted(clips, key=lambda clip: (clip["video"], clip["start_s"])):
        fates[os.path.basename(clip["video"])].append(clip["reason"] or clip["status"])
    for name, expected in EXPECTED.items():
        assert len(fates[name]) == len(expected), (name, fates[name])
        assert all(map(re.match, expected, fates[name])), (name, fates[name])
    videos = pq.read_table(tmp_path / "out/videos.parquet").to_pylist()
    failed = {os.path.basename(v["video"]): v["error"] for v in videos if v["status"] == "failed"}
    assert failed.keys() == {"broken.mp4"}
    assert failed["broken.mp4"].startswith("truncated")
