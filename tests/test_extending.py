"""Follows docs/extending.md to the letter in a copy of the packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from tests.support import small_input
from tests.support.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
PACKAGES = ("curation", "stages", "pipelines", "training", "configs")
CODE = re.compile(r"(?:(New file|In) `([^`]+)`:\n\n)?```(\w+)\n(.*?)```", re.DOTALL)


def follow(page: str, root: Path) -> list[str]:
    """Writes the new files, inserts the other blocks after their first line, returns commands."""
    commands, path = [], root
    for action, name, language, block in CODE.findall(page):
        if language == "sh":
            commands.append(block)
            continue
        path = root / name if name else path  # a block without a file belongs to the one before
        if action == "New file":
            assert not path.exists(), name
            path.write_text(block)
            continue
        first, added = block.split("\n", 1)
        text = path.read_text()
        assert text.count(f"{first}\n") == 1, f"{path.name} has no line {first!r}"
        path.write_text(text.replace(f"{first}\n", f"{first}\n{added}"))
    return commands


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, extended as on the page, after its commands ran."""
    root = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, root / package)
    light, dark = small_input.scene(1), small_input.scene(2)

    def picture(index: int, width: int, height: int) -> np.ndarray:
        return light(index, width, height) if index < 160 else dark(index, width, height) // 3

    hd = {"width": 1280, "height": 720}
    small_input.write_video(root / "videos" / "two_takes.mp4", picture, 32, **hd)
    small_input.write_video(root / "videos" / "one_frame.mp4", light, 0.1, **hd)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for command in follow(PAGE, root):
        done = subprocess.run(
            ["bash", "-ec", command], cwd=root, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (root / "printed.txt").write_text(done.stdout)
    return root


def clips(copy: Path) -> list[dict]:
    rows = pq.read_table(copy / "out" / "extended" / "clips.parquet").to_pylist()
    return sorted(rows, key=lambda row: (row["video"], row["start_s"]))


def test_the_new_detector_finds_the_cut_and_no_other_detector_runs(copy):
    videos = pq.read_table(copy / "out" / "extended" / "videos.parquet").to_pylist()
    cuts = {Path(row["video"]).stem: row["cuts_s"] for row in videos}
    assert cuts == {"two_takes": [pytest.approx(16.0)], "one_frame": None}


def test_the_new_meter_measures_every_clip_and_names_why_it_could_not(copy):
    one_frame, *two_takes = clips(copy)
    assert one_frame["flicker"] is None
    assert dict(one_frame["null_reasons"])["flicker"] == "not decoded"
    assert len(two_takes) == 2
    assert all(0 < clip["flicker"] < 10 for clip in two_takes)


def test_the_new_scorer_rates_clips_and_the_new_captioner_writes_them(copy):
    _, light, dark = clips(copy)
    for clip in (light, dark):
        assert clip["status"] == "kept", clip["reason"]
        assert abs(clip["warmth"]) < 255
        assert clip["captioner"] == "plain"
    assert light["caption"].startswith("The brightness is 1")
    assert light["warmth"] != dark["warmth"]


def test_the_new_objective_trains(copy):
    assert "2 clips" in (copy / "printed.txt").read_text()
