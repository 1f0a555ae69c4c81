"""Fingerprints of clips: content and motion four times a second, as 64 + 64 bits.

Two clips are near-duplicates when they show the same images at the same speed for all of the time
that they share: re-encoded, rescaled, lightly re-graded, letterboxed or trimmed copies. Clips of
the same static camera at other times are not (the images agree, the motion does not), nor is
re-timed footage (slowed down, sped up, at a drifting speed), whose motion differs.

An image's bits are the signs of its lowest spatial frequencies, as in a perceptual hash (C. Zauner,
Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). The motion bits are the
same signs of the *change*: the mean image of the second after a moment minus that of the second
before it, in which a static background cancels. For a sign of a linear measure, the share of
differing bits is the angle between two signals over pi (M. Charikar, Similarity Estimation
Techniques from Rounding Algorithms, 2002): it depends neither on brightness nor on contrast.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from curation.video.frames import FrameProcessor, Planes, VideoInfo
from stages.meters.small_arrays import SmallArrays

TICKS_PER_S = 4
MIN_FRAME_GAP_TICKS = 0.25  # between frames that are used: more would not change a tick's mean
SIDE = 32  # cells of the stored images, each way, whatever the frame's shape
GRID = 16  # cells that the spatial frequencies are computed from
CHANGE_TICKS = 4  # before and after a moment, whose mean images are compared
MIN_MOTION_LEVELS = 0.5  # RMS over the grid: a smaller change may be the encoder's
MAX_BORDER_LEVEL = 40.0  # mean over the video of the darkest row or column of a black border
MAX_BORDER_SPREAD = 10.0  # grey levels between the rows of a border; the image differs by more
MAX_EDGE_SHARE = 0.02  # of the side, within which a border ends; a dark sky ends more slowly
MIN_BORDER_SHARE, MAX_BORDER_SHARE = 0.03, 0.4  # of the side

CODE = np.dtype([("picture", "<u8"), ("motion", "<u8")])  # one tick
SIGNS = np.uint64(2**63 - 1)  # of the motion's bits; the highest bit is set if anything moves


@dataclass
class Fingerprint(FrameProcessor):
    """Keeps the mean image of each quarter of a second (2 kB each: 30 MB for an hour of video)."""

    def start(self, video: VideoInfo) -> None:
        self._ticks = array("q")  # increasing; a tick left out has the image of the one before
        self._images = SmallArrays()  # (SIDE, SIDE) uint16, grey level times 256
        self._sum = np.zeros((SIDE, SIDE), np.float32)  # of the current tick
        self._tick, self._summed = 0, 0.0  # the current tick, and the share of it that is summed
        self._last: np.ndarray | None = None  # the last used frame, reduced
        self._last_at = 0.0  # its time in ticks
        # Sums over the sampled frames of the mean of each row and column.
        self._rows, self._columns, self._sampled = np.zeros(1), np.zeros(1), 0

    def process_frame(self, t_s: float, frame: Planes) -> None:
        now = t_s * TICKS_PER_S
        if self._last is not None:
            if now - self._last_at < MIN_FRAME_GAP_TICKS:
                return
            self._add(self._last, self._last_at, now)
        if self._last is None or int(now) != int(self._last_at):
            luma = frame.y.astype(np.float32)
            self._rows = self._rows + cv2.reduce(luma, 1, cv2.REDUCE_AVG)[:, 0]
            self._columns = self._columns + cv2.reduce(luma, 0, cv2.REDUCE_AVG)[0]
            self._sampled += 1
        self._last, self._last_at = _reduce(frame.y), now

    def encode(self, start_s: float, end_s: float) -> bytes:
        """16 bytes for each tick that lies within the clip: see CODE. Empty if none does."""
        first, end = int(np.ceil(start_s * TICKS_PER_S)), int(end_s * TICKS_PER_S + 1e-6)
        if self._last is None or end <= first:
            return b""
        current = self._sum / self._summed if self._summed else self._last
        last = (current * 256).astype(np.uint16)
        wanted = np.arange(first, end)
        at = np.searchsorted(np.frombuffer(self._ticks, np.int64), wanted, side="right") - 1
        at[wanted >= self._tick] = len(self._ticks)
        stored = [self._images[i] if i < len(self._images) else last for i in np.maximum(at, 0)]
        images = np.stack(stored).astype(np.float32) / 256
        across, down = (image_span(sums / self._sampled) for sums in (self._columns, self._rows))
        return codes(images, across, down).tobytes()

    def _add(self, image: np.ndarray, start: float, end: float) -> None:
        """Adds an image that is shown from start to end (in ticks) to the means of the ticks."""
        first, last = int(start), int(end)
        for tick in sorted({first, min(first + 1, last), last}):  # those between show the same
            if tick != self._tick:
                self._finish_tick()
                self._tick = tick
            share = min(end, tick + 1) - max(start, tick)
            self._sum += image * np.float32(share)
            self._summed += share

    def _finish_tick(self) -> None:
        if self._summed > 0:
            self._ticks.append(self._tick)
            self._images.append((self._sum * (256 / self._summed)).astype(np.uint16))
        self._sum[:] = 0
        self._summed = 0.0


def _reduce(luma: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) float32: means of its cells, by whole factors, which is five times as fast.

    luma: uint8. Halved as uint8 first: this rounds by 0.3 levels, of which the mean keeps a fifth.
    """
    height, width = luma.shape
    if min(height, width) >= 4 * SIDE and not (height % 2 or width % 2):
        luma = cv2.resize(luma, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    height, width = (max(round(n / SIDE), 1) * SIDE for n in luma.shape)
    if luma.shape != (height, width):
        luma = cv2.resize(luma, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(luma.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def codes(
    images: np.ndarray,
    across: tuple[float, float] = (0.0, 1.0),
    down: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """(T,) CODE of (T, SIDE, SIDE) grey images, of what lies within these shares of the sides."""
    grid = _pooling(*down) @ images @ _pooling(*across).T
    sums = np.concatenate([np.zeros((1, GRID, GRID)), np.cumsum(grid, axis=0, dtype=np.float64)])
    now = np.arange(len(grid))
    before, after = np.maximum(now - CHANGE_TICKS, 0), np.minimum(now + CHANGE_TICKS, len(grid))
    change = _mean_between(sums, now, after) - _mean_between(sums, before, np.maximum(now, 1))
    change -= change.mean((1, 2), keepdims=True)  # a change of brightness is no motion
    out = np.empty(len(grid), CODE)
    out["picture"] = _signs(grid)
    moves = np.sqrt((change**2).mean((1, 2))) >= MIN_MOTION_LEVELS
    moves[:1] = False  # nothing before it to compare
    out["motion"] = (_signs(change) & SIGNS) | (moves.astype(np.uint64) << np.uint64(63))
    return out


def _mean_between(sums: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """sums: (T + 1, GRID, GRID), cumulative."""
    return (sums[end] - sums[start]) / (end - start)[:, None, None]


def _signs(grid: np.ndarray) -> np.ndarray:
    """(T,) uint64: signs of the 64 lowest spatial frequencies of (T, GRID, GRID), lowest first."""
    waves, order = _waves()
    spectrum = (waves @ grid @ waves.T).reshape(len(grid), -1)[:, order]
    bits = np.packbits(spectrum > 0, axis=1, bitorder="little")
    return np.ascontiguousarray(bits).view("<u8")[:, 0]


@cache
def _waves() -> tuple[np.ndarray, np.ndarray]:
    """(9, GRID) cosines (DCT-II), and which 64 of their 81 products count: the lowest but one."""
    frequency, cell = np.arange(9)[:, None], np.arange(GRID)[None]
    waves = np.cos(np.pi * frequency * (2 * cell + 1) / (2 * GRID))
    radius = (frequency**2 + frequency.T**2).ravel()
    return waves, np.argsort(radius, kind="stable")[1:65]


@cache
def _pooling(low: float, high: float) -> np.ndarray:
    """(GRID, SIDE): means over GRID equal pieces of the side between two shares of it."""
    edges = np.linspace(low, high, GRID + 1)[:, None] * SIDE
    cells = np.arange(SIDE)[None]
    shares = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    shares = np.maximum(shares, 0)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def image_span(levels: np.ndarray) -> tuple[float, float]:
    """The start and end of the image between black borders, as shares of the side.

    levels: the mean grey level of each row (or column) of the video.
    """
    low, high = _border(levels), _border(levels[::-1])
    return low, 1.0 - high


def _border(levels: np.ndarray) -> float:
    """Share of the black border at the start of a side, 0 for none."""
    darkest = levels.min()
    is_dark = levels <= darkest + MAX_BORDER_SPREAD
    if darkest > MAX_BORDER_LEVEL or is_dark.all():
        return 0.0
    border = int(np.argmin(is_dark))
    edge = levels[border : border + 1 + int(np.ceil(MAX_EDGE_SHARE * len(levels)))]
    share = border / len(levels)
    is_sharp = edge.max() > darkest + 2.5 * MAX_BORDER_SPREAD
    return share if MIN_BORDER_SHARE <= share <= MAX_BORDER_SHARE and is_sharp else 0.0
