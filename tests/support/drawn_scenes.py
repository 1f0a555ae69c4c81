"""Draws films with NumPy: textured scenes, moving cameras and objects, noise, transitions.

Luma only.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import cv2
import numpy as np

SIZE = (180, 320)  # height, width of the reduced planes
Frames = list[np.ndarray]  # each (180, 320) float32, 0..255


def texture(seed: int, height: int = 400, width: int = 1200) -> np.ndarray:
    """(height, width) float32, 20..235, with detail at every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for scale in (2, 4, 8, 16, 32, 64):
        grain = rng.standard_normal((height // scale + 2, width // scale + 2)).astype(np.float32)
        image += scale**0.8 * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = np.percentile(image, [1, 99])
    return np.clip((image - low) / (high - low), 0, 1) * 215 + 20


def scene(
    seed: int,
    frames: int,
    camera: Callable[[int], tuple[float, float]] = lambda i: (0.0, 0.0),
    square: Callable[[int], tuple[float, float]] | None = None,
    square_side: int = 50,
) -> Frames:
    """A view of a texture, in which a square with its own texture may move.

    camera, square: position (x, y) in px at frame i.
    """
    world, body = texture(seed), texture(seed + 1000, square_side, square_side)
    body = 255 - body if body.mean() > world.mean() else body
    height, width = SIZE
    film = []
    for i in range(frames):
        x, y = camera(i)
        to_view = np.array([[1, 0, -440 - x], [0, 1, -110 - y]], float)
        view = cv2.warpAffine(world, to_view, (width, height), borderMode=cv2.BORDER_REFLECT)
        if square:
            left, top = (round(v) for v in square(i))
            margin = np.pad(view, square_side)  # room for the square to enter and leave
            top, left = np.clip((top, left), -square_side, SIZE) + square_side
            margin[top : top + square_side, left : left + square_side] = body
            view = margin[square_side:-square_side, square_side:-square_side]
        film.append(view)
    return film


def dissolved(before: Frames, after: Frames, length: int) -> Frames:
    """`before`, a dissolve of `length` frames, then `after`."""
    share = (np.arange(length) + 1) / (length + 1)
    middle = [
        (1 - s) * a + s * b for s, a, b in zip(share, before[-length:], after[:length], strict=True)
    ]
    return before[:-length] + middle + after[length:]


def plain(level: float, frames: int) -> Frames:
    return [np.full(SIZE, level, np.float32)] * frames


def with_noise(frames: Frames, levels: float = 3.0, seed: int = 0) -> list[np.ndarray]:
    """8-bit frames with sensor noise of that many grey levels."""
    rng = np.random.default_rng(seed)
    return [
        np.clip(f + levels * rng.standard_normal(f.shape, np.float32), 0, 255).astype(np.uint8)
        for f in frames
    ]


def encoded(frames: list[np.ndarray], crf: int = 34, key_every: int = 60) -> list[np.ndarray]:
    """Encodes with x264 at a low bit rate and decodes; a keyframe every `key_every` frames."""
    height, width = frames[0].shape
    grey = np.full((height // 2, width), 128, np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        stream.options |= {"g": str(key_every)}
        for luma in frames:
            image = av.VideoFrame.from_ndarray(np.vstack([luma, grey]), format="yuv420p")
            output.mux(stream.encode(image))
        output.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as source:
        return [
            np.frombuffer(f.planes[0], np.uint8)
            .reshape(-1, f.planes[0].line_size)[:height, :width]
            .copy()
            for f in source.decode(video=0)
        ]
