"""A small drawn input for whole runs: short, small videos, one for each outcome."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np

from tests.support import video_files

FPS, SECONDS = 10.0, 4.0
CLIP_S = 3.0

# Settings with which small, short videos pass; the others are those of configs/local.yaml.
SETTINGS = (
    f"score.decode.clip_s={CLIP_S:g}",
    f"score.decode.max_clip_s={CLIP_S:g}",
    "score.decode.prefilter.duration_s={min: 3}",
    "score.decode.prefilter.width=null",
    "score.decode.prefilter.height=null",
    "select.policy.duration_s={min: 3}",
    "select.policy.width=null",
    "select.policy.height=null",
    "export.presto=true",
    "score.decode.key_frames.side=320",  # in larger ones text is searched for longer
    "cluster.workers=1",  # the start of a second takes longer than its share of the rows
    "cluster.memory_gib=2",
)


def scene(seed: int) -> video_files.Picture:
    """A textured object that moves before a textured background, with a swaying camera."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(30, 220, (30, 40, 3), np.uint8)
    patch = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (80, 80))
    backgrounds: dict[tuple[int, int], np.ndarray] = {}

    def picture(index: int, width: int, height: int) -> np.ndarray:
        if (width, height) not in backgrounds:
            large = cv2.resize(cells, (width + 64, height + 64), interpolation=cv2.INTER_CUBIC)
            grain = rng.normal(0, 12, large.shape)
            backgrounds[width, height] = np.clip(large + grain, 0, 255).astype(np.uint8)
        t_s = index / FPS
        x, y = 32 + int(24 * np.sin(t_s)), 32 + int(12 * np.cos(2 * t_s))
        frame = backgrounds[width, height][y : y + height, x : x + width].copy()
        side = min(80, height // 3)
        left = int((width - side) * (0.5 + 0.45 * np.sin(1.3 * t_s + seed)))
        top = int((height - side) * (0.5 + 0.3 * np.cos(0.9 * t_s)))
        frame[top : top + side, left : left + side] = patch[:side, :side]
        return frame

    return picture


def with_cut(
    first: video_files.Picture, second: video_files.Picture, at: int
) -> video_files.Picture:
    return lambda index, w, h: first(index, w, h) if index < at else second(index, w, h)


def in_less_light(picture: video_files.Picture) -> video_files.Picture:
    """All scenes have equal histograms, which two shots rarely have; this one is darker."""
    return lambda index, w, h: picture(index, w, h) // 2


def write_video(
    path: Path, picture: video_files.Picture, seconds: float = SECONDS, **changes: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"width": 320, "height": 180, "fps": FPS, "frames": round(seconds * FPS)} | changes
    options = {"preset": "ultrafast", "crf": "20", "g": "10"}
    return video_files.draw(path, picture=picture, options=options, **settings)  # type: ignore[arg-type]


def draw_small_input(folder: Path) -> dict[str, Path]:
    """Writes one video for each outcome. Returns them by name."""
    videos = {
        "kept": write_video(folder / "kept one.mp4", scene(1)),
        "two takes": write_video(
            folder / "sub" / "-two\ntakes.mp4",
            with_cut(scene(2), in_less_light(scene(3)), 40),
            8,
        ),
        "hd": write_video(folder / "ünï HD.mp4", scene(4), width=1280, height=720),
        "short": write_video(folder / "short.mp4", scene(5), 1.5),
        "static": write_video(folder / "static.mp4", lambda _, w, h: scene(6)(0, w, h)),
    }
    videos["copy"] = Path(shutil.copy(videos["kept"], folder / "sub" / "same bytes.mp4"))
    videos["no video"] = folder / "text.mp4"
    videos["no video"].write_text("not a video at all\n")
    return videos
