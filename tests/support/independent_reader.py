"""Numbered pictures, and a reader of them that shares no code with the project: Debian's ffmpeg."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np

BITS = 10
SQUARE_PIXELS = "scale=iw*sar:ih,setsar=1"
CORNERS = ((220, 40, 40), (40, 200, 40), (40, 60, 220), (220, 210, 40))  # of the rows, RGB


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """RGB (h, w, 3): a pattern that drifts, four corner colours, and the index as a row of black
    and white blocks."""
    y, x = (np.float32(place / height) for place in np.ogrid[:height, :width])
    picture = np.empty((height, width, 3), np.uint8)
    for c in range(3):
        picture[..., c] = 128 + 50 * np.sin(9 * x + index / 40 + c) * np.cos(7 * y + c)
    side, block = height // 5, width // 2 // BITS
    places = [
        (s, t) for s in (slice(side), slice(-side, None)) for t in (slice(side), slice(-side, None))
    ]
    for place, colour in zip(places, CORNERS, strict=True):
        picture[place] = colour
    for bit in range(BITS):
        left = width // 4 + bit * block
        picture[height // 12 : height // 6, left : left + block] = 235 if index >> bit & 1 else 20
    return picture


def number_of(picture: np.ndarray) -> int:
    """The index of a picture that is shown upright."""
    height, width = picture.shape[:2]
    middles = [round(width / 4 + (bit + 0.5) * (width // 2 // BITS)) for bit in range(BITS)]
    return sum(int(picture[height // 8, x].mean() > 128) << bit for bit, x in enumerate(middles))


def corners_of(picture: np.ndarray) -> np.ndarray:
    """(4, 3): the mean colour at each corner, in the order of CORNERS."""
    side = min(picture.shape[:2]) // 10
    ends = (slice(2, side), slice(-side, -2))
    return np.array([picture[y, x].mean((0, 1)) for y in ends for x in ends])


def shown_frames(path: Path, filters: str = SQUARE_PIXELS) -> np.ndarray:
    """(T, H, W, 3) RGB: every frame as ffmpeg shows it, in square pixels."""
    return _shown_frames(path, f"{filters},format=rgb24", path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # a test compares one source with several clips
def _shown_frames(path: Path, filters: str, _: int) -> np.ndarray:
    options = ["-vsync", "passthrough", "-vf", filters, "-f", "image2pipe", "-c:v", "ppm"]
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", path, *options, "-"]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    head = data[: data.index(b"255") + 4]  # of each picture: P6, width and height, 255
    width, height = map(int, head.split()[1:3])
    pictures = np.frombuffer(data, np.uint8).reshape(-1, len(head) + height * width * 3)
    return pictures[:, len(head) :].reshape(-1, height, width, 3)


def probe_stream(path: Path) -> dict[str, str]:
    """What ffprobe prints of the video stream."""
    options = ["-select_streams", "v:0", "-show_streams", "-of", "json"]
    command = ["ffprobe", "-v", "error", *options, path]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    return json.loads(printed)["streams"][0]
