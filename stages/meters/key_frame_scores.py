"""Scores of a clip from its key frames: colourfulness, screens, difference of consecutive ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from curation import measures
from curation.images import decode_image
from stages.meters.screen import screen_share

KEY_FRAME_SCORES = ("key_psnr", "key_ssim", "colourfulness", "screen_share")  # columns of a clip
COMPARED_WIDTH = 320  # px
SSIM_SIDE = 11  # px: the window of SSIM; a smaller image has none


def key_frame_scores(jpegs: Sequence[bytes]) -> dict[str, float | None]:
    """jpegs: the key frames of a clip, in order. None where there is nothing to compare."""
    decoded = [_decode_reduced(jpeg) for jpeg in jpegs]
    images = [_at_compared_width(bgr) for bgr in decoded]
    pairs = list(pairwise(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY) for bgr in images))
    compared = [pair for pair in pairs if min(pair[0].shape) >= SSIM_SIDE]
    return {
        "colourfulness": _mean([measures.colourfulness(bgr) for bgr in images]),
        "key_psnr": _mean([measures.psnr(*pair) for pair in pairs]),
        "key_ssim": _mean([measures.ssim(*pair) for pair in compared]),
        "screen_share": _mean(
            [screen_share(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)) for bgr in decoded]
        ),
    }


def _decode_reduced(jpeg: bytes) -> np.ndarray:
    """(h, w, 3) BGR, at half size where that is wide enough: it takes a third of the time."""
    bgr = decode_image(jpeg, "key frame", cv2.IMREAD_REDUCED_COLOR_2)
    if bgr.shape[1] < COMPARED_WIDTH:
        bgr = decode_image(jpeg, "key frame")
    return bgr


def _at_compared_width(bgr: np.ndarray) -> np.ndarray:
    size = (COMPARED_WIDTH, max(1, round(bgr.shape[0] * COMPARED_WIDTH / bgr.shape[1])))
    return cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
