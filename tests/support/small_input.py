"""A small drawn input for whole runs: a few seconds a video, small pictures, one of each fate."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np

from tests.support import video_files

FPS, SECONDS = 10.0, 4.0
CLIP_S = 3.0

# What makes small and short videos pass; everything else is configs/local.yaml.
SETTINGS = (
    f"score.decode.clip_s={CLIP_S:g}",
    f"score.decode.max_clip_s={CLIP_S:g}",
    "score.decode.prefilter.duration_s={min: 3}",
    "score.decode.prefilter.width=null",
    "score.decode.prefilter.height=null",
    "select.policy.duration_s={min: 3}",
    "select.policy.width=null",
    "select.policy.height=null",
    "cluster.workers=2",
    "cluster.memory_gib=2",
)


def scene(seed: int) -> video_files.Picture:
    """A textured place in colour; a textured thing walks through it, past a camera that sways."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(30, 220, (30, 40, 3), np.uint8)
    thing = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (80, 80))
    places: dict[tuple[int, int], np.ndarray] = {}

    def picture(index: int, width: int, height: int) -> np.ndarray:
        if (width, height) not in places:
            large = cv2.resize(cells, (width + 64, height + 64), interpolation=cv2.INTER_CUBIC)
            grain = rng.normal(0, 12, large.shape)
            places[width, height] = np.clip(large + grain, 0, 255).astype(np.uint8)
        t_s = index / FPS
        x, y = 32 + int(24 * np.sin(t_s)), 32 + int(12 * np.cos(2 * t_s))
        frame = places[width, height][y : y + height, x : x + width].copy()
        side = min(80, height // 3)
        left = int((width - side) * (0.5 + 0.45 * np.sin(1.3 * t_s + seed)))
        top = int((height - side) * (0.5 + 0.3 * np.cos(0.9 * t_s)))
        frame[top : top + side, left : left + side] = thing[:side, :side]
        return frame

    return picture


def cut(first: video_files.Picture, second: video_files.Picture, at: int) -> video_files.Picture:
    return lambda index, w, h: first(index, w, h) if index < at else second(index, w, h)


def video(
    path: Path, picture: video_files.Picture, seconds: float = SECONDS, **how: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {"width": 320, "height": 180, "fps": FPS, "frames": round(seconds * FPS)} | how
    options = {"preset": "ultrafast", "crf": "20", "g": "10"}
    return video_files.draw(path, picture=picture, options=options, **described)  # type: ignore[arg-type]


def draw_small_input(folder: Path) -> dict[str, Path]:
    """One video of each fate, by name."""
    drawn = {
        "kept": video(folder / "kept one.mp4", scene(1)),
        "two takes": video(folder / "sub" / "-two\ntakes.mp4", cut(scene(2), scene(3), 40), 8),
        "hd": video(folder / "ünï HD.mp4", scene(4), width=1280, height=720),
        "short": video(folder / "short.mp4", scene(5), 1.5),
        "still": video(folder / "still.mp4", lambda _, w, h: scene(6)(0, w, h)),
    }
    drawn["copy"] = Path(shutil.copy(drawn["kept"], folder / "sub" / "same bytes.mp4"))
    drawn["no video"] = folder / "text.mp4"
    drawn["no video"].write_text("not a video at all\n")
    return drawn
