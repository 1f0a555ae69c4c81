"""Frame interpolation by optical flow, without a learned model.

The flow between neighbouring frames is computed in both directions (DIS). From both, the flow from
the new time to each neighbour is estimated (Super SloMo, arXiv 1712.00080, eq. 4, without its
network), and both neighbours are warped to that time. Their mean is weighted by how well the flows
of the two directions agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np


def resample_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (count, H, W, 3): `count` frames evenly over the same time. A frame
    shows the middle of its part of the time; before the first and after the last middle of the
    given frames the picture does not change."""
    position = (np.arange(count) + 0.5) * len(frames) / count - 0.5
    position = np.clip(position, 0, len(frames) - 1)
    out = np.empty((count, *frames.shape[1:]), np.uint8)
    left = np.minimum(position.astype(int), max(0, len(frames) - 2))
    for i in np.unique(left):
        of_pair = np.flatnonzero(left == i)
        for n in of_pair:
            out[n] = frames[round(position[n])]
        between = [n for n in of_pair if 1e-6 < position[n] - i < 1 - 1e-6]
        if between:
            times = [position[n] - i for n in between]
            new = interpolate_by_flow(frames[i], frames[i + 1], times)
            for n, frame in zip(between, new, strict=True):
                out[n] = frame
    return out


def interpolate_by_flow(
    first: np.ndarray, second: np.ndarray, times: list[float]
) -> Iterator[np.ndarray]:
    """Motion-compensated frames at `times` between two, 0..1; (H, W, 3) uint8."""
    forward, backward = optical_flow(first, second), optical_flow(second, first)
    forward_error = _inconsistency(forward, backward)
    backward_error = _inconsistency(backward, forward)
    for t in times:
        to_first = -(1 - t) * t * forward + t * t * backward
        to_second = (1 - t) ** 2 * forward - t * (1 - t) * backward
        from_first, from_second = warp(first, to_first), warp(second, to_second)
        first_weight = (1 - t) * np.exp(-warp(forward_error, to_first))
        second_weight = t * np.exp(-warp(backward_error, to_second))
        share = (first_weight / (first_weight + second_weight + 1e-6))[..., None]
        mean = share * from_first + (1 - share) * from_second
        yield np.rint(mean).clip(0, 255).astype(np.uint8)


def optical_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(H, W, 2) px: the displacement of each pixel from the first frame to the second, by DIS."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    return dis.calc(grey[0], grey[1], None)  # type: ignore[call-overload]


def warp(picture: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """fp32: each pixel of the result is the picture at that pixel plus its displacement."""
    rows, columns = np.indices(displacement.shape[:2], np.float32)
    return cv2.remap(
        picture.astype(np.float32),
        columns + displacement[..., 0].astype(np.float32),
        rows + displacement[..., 1].astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _inconsistency(one_way: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(H, W) px: how far from its start a pixel ends that follows both flows."""
    return np.linalg.norm(one_way + warp(back, one_way), axis=-1)
