"""A frame as the learned detector keeps it: small images and numbers, a few kilobytes."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from curation.video.frames import Planes
from curation.video.planes import reduce_plane
from stages.shots.change import SmallFrame, small_frame

WIDTH, HEIGHT = 64, 36  # px, of the colour image, whatever the picture's shape
GRID = (16, 9)  # blocks of the colour image
BINS = 16  # of a histogram, for each of luma and the two chroma channels
# (1, 256, 3) uint8: from the difference of two hues, which lie on a circle of 180, to their
# distance; saturation and value stay as they are
_DISTANCE = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
_DISTANCE[0, :180, 0] = np.minimum(np.arange(180), 180 - np.arange(180))


class FrameView:
    """t_s: seconds from the video's first frame."""

    def __init__(self, t_s: float, frame: Planes) -> None:
        self.t_s = t_s
        self.small: SmallFrame = small_frame(t_s, frame.y)
        luma = _shrink(frame.y)
        chroma = frame.chroma
        if chroma is None:
            chroma = np.full((HEIGHT, WIDTH, 2), 128, np.uint8)
        # (HEIGHT, WIDTH, 3) uint8: Y, Cb, Cr, full range
        self.yuv = cv2.merge([luma, chroma])

    @cached_property
    def hsv(self) -> np.ndarray:
        """(HEIGHT, WIDTH, 3) uint8: hue 0..179, saturation, value."""
        y, cb, cr = cv2.split(self.yuv)
        bgr = cv2.cvtColor(cv2.merge([y, cr, cb]), cv2.COLOR_YCrCb2BGR)
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)

    @cached_property
    def histogram(self) -> np.ndarray:
        """(3 * BINS,) float32: cumulative histograms of Y, Cb and Cr, each ending with 1."""
        counts = [cv2.calcHist([self.yuv], [c], None, [BINS], [0, 256]) for c in range(3)]
        shares = np.concatenate(counts).reshape(3, BINS) / np.float32(WIDTH * HEIGHT)
        return shares.cumsum(axis=1).ravel()

    @cached_property
    def blocks(self) -> np.ndarray:
        """(3 * 16 * 9,) float32: means of Y, Cb and Cr over GRID."""
        small = cv2.resize(self.yuv, GRID, interpolation=cv2.INTER_AREA)
        return small.transpose(2, 0, 1).ravel().astype(np.float32)

    @cached_property
    def flat_share(self) -> float:
        """Share of the small luma within a grey level of its most common one."""
        counts = cv2.calcHist([self.small.luma], [0], None, [256], [0, 256]).ravel()
        top = int(counts.argmax())
        return float(counts[max(0, top - 1) : top + 2].sum()) / self.small.luma.size


def _shrink(luma: np.ndarray) -> np.ndarray:
    """(h, w) -> (HEIGHT, WIDTH); halved first where it is no whole factor, which is faster."""
    height, width = luma.shape
    by = width // WIDTH
    if luma.shape == (by * HEIGHT, by * WIDTH):
        return reduce_plane(luma, by)
    if (height % HEIGHT or width % WIDTH) and height >= 2 * HEIGHT and width >= 2 * WIDTH:
        luma = reduce_plane(luma, 2)
    return cv2.resize(luma, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def picture_step(a: FrameView, b: FrameView) -> float:
    """Mean difference of two frames in grey levels; 0 where they show the same picture: a repeated
    frame differs by codec noise only.
    """
    step = cv2.norm(a.yuv, b.yuv, cv2.NORM_L1) * (1 / a.yuv.size)
    return 0.0 if step < 0.2 and cv2.norm(a.yuv, b.yuv, cv2.NORM_INF) <= 12 else step


def hsv_difference(a: FrameView, b: FrameView) -> tuple[float, float, float]:
    """Mean difference of hue, saturation and value; their mean is PySceneDetect's content score."""
    difference = cv2.LUT(cv2.absdiff(a.hsv, b.hsv), _DISTANCE)
    hue, saturation, value, _ = cv2.mean(difference)
    return hue, saturation, value
