"""Fingerprints of clips: what is seen and what moves, four times a second, as 64 + 64 bits.

Two clips are near-duplicates when they show the same pictures at the same speed for all of the
time that they share: re-encoded, re-scaled, lightly re-graded, letterboxed or trimmed copies. Not
duplicates: clips of the same unmoved camera at other times (the picture agrees, what moves does
not), and re-timed footage (slowed down, sped up, at a drifting speed): a generator learns other
motion from it.

A picture's bits are the signs of its lowest spatial frequencies, as in a perceptual hash (C.
Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). The motion bits
are the same signs of the *change*: the mean picture of the second after a moment minus that of the
second before it, in which an unmoving background cancels. For a sign of a linear measure, the share
of differing bits is the angle between two signals over pi (M. Charikar, Similarity Estimation
Techniques from Rounding Algorithms, 2002): neither brightness nor contrast enters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from curation.video.frames import FrameProcessor, Planes, VideoInfo

TICKS_PER_S = 4
LOOK = 0.25  # ticks at least between two frames looked at: more tell a tick's mean nothing new
SIDE = 32  # cells of the stored pictures, each way, whatever the picture's shape
GRID = 16  # cells that the spatial frequencies are taken from
AROUND = 4  # ticks before and after a moment that its change compares
MOVES = 0.5  # grey levels (RMS over the grid): a change below it may as well be the encoder's
DARK = 40.0  # grey level (mean over the video) that the darkest row or column of a border is under
EVEN = 10.0  # grey levels that a border's rows differ by; the picture beside it, by more than that
EDGE = 0.02  # of the side: within it a border ends; a dark sky takes longer
THINNEST, THICKEST = 0.03, 0.4  # what a border takes of its side

CODE = np.dtype([("picture", "<u8"), ("motion", "<u8")])  # one tick
SIGNS = np.uint64(2**63 - 1)  # of the motion's bits; the highest one says whether anything moves


@dataclass
class Fingerprint(FrameProcessor):
    """Mean pictures of each quarter of a second (2 KB each: 30 MB for an hour of video)."""

    def start(self, video: VideoInfo) -> None:
        self._ticks: list[int] = []  # growing; a tick left out shows what the one before showed
        self._pictures: list[np.ndarray] = []  # (SIDE, SIDE) uint16, grey level times 256
        self._open = np.zeros((SIDE, SIDE), np.float32)  # sum over the tick under way
        self._tick, self._filled = 0, 0.0  # which tick that is, and how much of it is summed
        self._shown: np.ndarray | None = None
        self._since = 0.0
        self._rows, self._columns, self._sampled = np.zeros(1), np.zeros(1), 0  # sums of means

    def process_frame(self, t_s: float, frame: Planes) -> None:
        now = t_s * TICKS_PER_S
        if self._shown is not None:
            if now - self._since < LOOK:
                return
            self._show(self._shown, self._since, now)
        if self._shown is None or int(now) != int(self._since):
            grey = frame.y.astype(np.float32)
            self._rows = self._rows + cv2.reduce(grey, 1, cv2.REDUCE_AVG)[:, 0]
            self._columns = self._columns + cv2.reduce(grey, 0, cv2.REDUCE_AVG)[0]
            self._sampled += 1
        self._shown, self._since = _small(frame.y), now

    def bytes_of(self, start_s: float, end_s: float) -> bytes:
        """16 bytes for each tick that lies within the clip: see CODE. Empty if none does."""
        first, end = int(np.ceil(start_s * TICKS_PER_S)), int(end_s * TICKS_PER_S + 1e-6)
        if self._shown is None or end <= first:
            return b""
        ticks = np.array([*self._ticks, self._tick])
        under_way = self._open / self._filled if self._filled else self._shown
        last = (under_way * 256).astype(np.uint16)
        at = np.searchsorted(ticks, np.arange(first, end), side="right") - 1
        shown = [self._pictures[i] if i < len(self._pictures) else last for i in np.maximum(at, 0)]
        pictures = np.stack(shown).astype(np.float32) / 256
        across, down = (inside(sums / self._sampled) for sums in (self._columns, self._rows))
        return codes(pictures, across, down).tobytes()

    def _show(self, picture: np.ndarray, start: float, end: float) -> None:
        """`picture` stands on the screen from start to end (in ticks)."""
        first, last = int(start), int(end)
        for tick in sorted({first, min(first + 1, last), last}):  # those between show the same
            if tick != self._tick:
                self._close()
                self._tick = tick
            share = min(end, tick + 1) - max(start, tick)
            self._open += picture * np.float32(share)
            self._filled += share

    def _close(self) -> None:
        if self._filled > 0:
            self._ticks.append(self._tick)
            self._pictures.append((self._open * (256 / self._filled)).astype(np.uint16))
        self._open[:] = 0
        self._filled = 0.0


def _small(grey: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) float32 means of its parts; by whole numbers, which is five times as fast.

    grey: uint8. Halved as such first: that rounds by 0.3 levels, of which the mean keeps a fifth.
    """
    height, width = grey.shape
    if min(height, width) >= 4 * SIDE and not (height % 2 or width % 2):
        grey = cv2.resize(grey, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    height, width = (max(round(n / SIDE), 1) * SIDE for n in grey.shape)
    if grey.shape != (height, width):
        grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def codes(
    pictures: np.ndarray,
    across: tuple[float, float] = (0.0, 1.0),
    down: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """(T,) CODE of (T, SIDE, SIDE) grey pictures, between the borders (shares of a side)."""
    grid = _pooling(*down) @ pictures @ _pooling(*across).T
    so_far = np.concatenate([np.zeros((1, GRID, GRID)), np.cumsum(grid, axis=0, dtype=np.float64)])
    now = np.arange(len(grid))
    before, after = np.maximum(now - AROUND, 0), np.minimum(now + AROUND, len(grid))
    change = _mean(so_far, now, after) - _mean(so_far, before, np.maximum(now, 1))
    change -= change.mean((1, 2), keepdims=True)  # a change of the light is no motion
    out = np.empty(len(grid), CODE)
    out["picture"] = _signs(grid)
    moves = np.sqrt((change**2).mean((1, 2))) >= MOVES
    moves[:1] = False  # nothing before it to compare
    out["motion"] = (_signs(change) & SIGNS) | (moves.astype(np.uint64) << np.uint64(63))
    return out


def _mean(so_far: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return (so_far[end] - so_far[start]) / (end - start)[:, None, None]


def _signs(grid: np.ndarray) -> np.ndarray:
    """(T,) uint64: signs of the 64 lowest spatial frequencies of (T, GRID, GRID), lowest first."""
    waves, order = _waves()
    spectrum = (waves @ grid @ waves.T).reshape(len(grid), -1)[:, order]
    return np.ascontiguousarray(np.packbits(spectrum > 0, axis=1, bitorder="little")).view("<u8")[
        :, 0
    ]


@cache
def _waves() -> tuple[np.ndarray, np.ndarray]:
    """(9, GRID) cosines (DCT-II), and the 64 of their 81 products to take: the lowest but one."""
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


def inside(level: np.ndarray) -> tuple[float, float]:
    """Where the picture lies between black borders, as shares of the side.

    level: the mean grey level of each row (or column) of the video.
    """
    low, high = _border(level), _border(level[::-1])
    return low, 1.0 - high


def _border(level: np.ndarray) -> float:
    darkest = level.min()
    dark = level <= darkest + EVEN
    if darkest > DARK or dark.all():
        return 0.0
    border = int(np.argmin(dark))
    edge = level[border : border + 1 + int(np.ceil(EDGE * len(level)))]
    share = border / len(level)
    sharp = edge.max() > darkest + 2.5 * EVEN
    return share if THINNEST <= share <= THICKEST and sharp else 0.0
