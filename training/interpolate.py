"""Frames between frames: what moves is moved along its way, nothing is learned.

Optical flow (DIS) both ways between neighbours; the flow from the new moment back to each of them
is estimated from both (Super SloMo, arXiv 1712.00080, eq. 4, without its network), both neighbours
are warped to the moment, and where they disagree the one that agrees with its own flow counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

# two neighbours, (H, W, 3) uint8 -> the picture at each of some moments between them, 0..1
Between = Callable[[np.ndarray, np.ndarray, list[float]], Iterator[np.ndarray]]


def resampled(frames: np.ndarray, count: int, between: Between | None = None) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (count, H, W, 3): `count` moments evenly over the same time. Frame i is
    what is seen in the middle of the i-th of equal parts; before the first and after the last of
    them nothing moves. between: another way to make pictures, a learned one for example."""
    between = between or along_flow
    at = np.clip((np.arange(count) + 0.5) * len(frames) / count - 0.5, 0, len(frames) - 1)
    out = np.empty((count, *frames.shape[1:]), np.uint8)
    left = np.minimum(at.astype(int), len(frames) - 2) if len(frames) > 1 else np.zeros(count, int)
    for i in np.unique(left):
        wanted = np.flatnonzero(left == i)
        new = [n for n in wanted if 1e-6 < at[n] - i < 1 - 1e-6]
        for n in wanted:
            out[n] = frames[round(at[n])]
        pictures = between(frames[i], frames[i + 1], [at[n] - i for n in new]) if new else iter(())
        for n, picture in zip(new, pictures, strict=True):
            out[n] = picture
    return out


def along_flow(first: np.ndarray, second: np.ndarray, moments: list[float]) -> Iterator[np.ndarray]:
    """Motion-compensated pictures between two, (H, W, 3) uint8."""
    there, back = flow(first, second), flow(second, first)
    # how badly each neighbour's flow leads to a pixel that leads back
    off_there, off_back = _disagreement(there, back), _disagreement(back, there)
    for t in moments:
        to_first = -(1 - t) * t * there + t * t * back
        to_second = (1 - t) ** 2 * there - t * (1 - t) * back
        one, two = warped(first, to_first), warped(second, to_second)
        trust_one = (1 - t) * np.exp(-warped(off_there, to_first))
        trust_two = t * np.exp(-warped(off_back, to_second))
        share = (trust_one / (trust_one + trust_two + 1e-6))[..., None]
        yield np.rint(share * one + (1 - share) * two).clip(0, 255).astype(np.uint8)


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(H, W, 2) px: where each pixel of the first lies in the second, less its own place."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second)]
    return dis.calc(grey[0], grey[1], None)  # type: ignore[call-overload]


def warped(picture: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The picture as seen from pixels that look `by` away, fp32."""
    rows, columns = np.indices(by.shape[:2], np.float32)
    return cv2.remap(
        picture.astype(np.float32),
        columns + by[..., 0].astype(np.float32),
        rows + by[..., 1].astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _disagreement(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(H, W) px: how far from where it began a pixel ends that goes there and back."""
    return np.linalg.norm(there + warped(back, there), axis=-1)
