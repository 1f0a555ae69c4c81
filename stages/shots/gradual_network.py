"""Finds gradual transitions with a small convolutional network over space and time.

`benchmarks/transition_network` trains it and exports it to ONNX. It reads a colour image of each
frame, 64 x 36 px, and gives the probability that the frame is part of a gradual transition. It does
not run where the picture changes too little within a second to hold one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

MODEL = Path(__file__).parent / "models" / "gradual.onnx"
MIN_FRAME_STEP_S = 0.03  # between two frames that it reads: at most 33 a second
CHUNK = 768  # frames whose probabilities one run of the network gives, at most
CONTEXT = 96  # frames that a run also reads before and after those, of 127 that have an influence
GRID = (16, 9)  # parts of the image, whose mean colours are compared
COMPARED_OFFSETS = (8, 16, 32)  # frames between two that are compared
# Least mean difference of their parts, as a share of their contrast and NOISE_LEVELS. In the
# development half, labelled transitions have 0.17 or more, and those of `benchmarks/edits.py` 0.18;
# dissolves within a still view may have less, and the network finds none of those.
MIN_CHANGE = 0.1
NOISE_LEVELS = 4.0  # grey levels
MARGIN = 16  # frames before and after those with MIN_CHANGE that still get a probability
MIN_FRAME_PROBABILITY = 0.5  # of every frame of a transition
# A picture of one colour at an end of a transition, as black after a fade, is no part of it: at
# least this many frames, in which no channel has a larger range
MIN_PLAIN_FRAMES = 4
MAX_PLAIN_RANGE = 6  # grey levels


class GradualNetwork:
    """Finds the gradual transitions of one video. `add` takes its frames in order.

    Runs the network on CHUNK frames at a time, or on parts of them. Holds at most CHUNK + 2 *
    CONTEXT, 7 MB.
    """

    def __init__(self) -> None:
        self._session = load_session()
        self._frames: list[np.ndarray] = []  # the last ones; earlier ones are dropped
        self._decided = 0  # how many of `_frames` already have a probability
        self._times_s: list[float] = []  # of all frames that were read
        # of the same frames, one array for each run
        self._probabilities: list[np.ndarray] = []
        self._is_plain: list[np.ndarray] = []  # whether a likely frame has one colour

    def add(self, t_s: float, yuv: np.ndarray) -> None:
        """yuv: (36, 64, 3) uint8, Y, Cb, Cr. Skips a frame within MIN_FRAME_STEP_S of the last."""
        if self._times_s and t_s - self._times_s[-1] < MIN_FRAME_STEP_S:
            return
        self._times_s.append(t_s)
        self._frames.append(yuv)
        if len(self._frames) == self._decided + CHUNK + CONTEXT:
            self._decide(CHUNK)

    def spans(self, min_peak_probability: float) -> list[tuple[float, float]]:
        """Times of the first and the last frame of each gradual transition, in order.

        A transition is a run of frames of at least MIN_FRAME_PROBABILITY, of which one has at least
        `min_peak_probability`, and one more than one colour. Called once, after the last frame.
        """
        if len(self._frames) > self._decided:
            self._decide(len(self._frames) - self._decided)
        probabilities = np.concatenate([*self._probabilities, np.zeros(0, np.float32)])
        is_plain = np.concatenate([*self._is_plain, np.zeros(0, bool)])
        found = []
        for first, stop in _likely_spans(probabilities):
            if is_plain[first:stop].all():  # it shows no shot, as the black after a fade
                probabilities[first:stop] = 0
            elif probabilities[first:stop].max() >= min_peak_probability:
                start, end = _without_plain_ends(is_plain[first:stop])
                found.append((self._times_s[first + start], self._times_s[first + end]))
                probabilities[first:stop] = 0
        self._others = probabilities
        return found

    def other_frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (T,) of the frames that were read, and their probabilities (T,), 0 in transitions
        that `spans` returned before, and in runs of pictures of one colour."""
        return np.array(self._times_s), self._others

    def _decide(self, count: int) -> None:
        """Computes the probabilities of the next `count` frames; drops those not needed later."""
        start, stop = self._decided, self._decided + count
        frames, probabilities = np.stack(self._frames), np.zeros(count, np.float32)
        changing = start + np.flatnonzero(relative_change(frames)[start:stop] >= MIN_CHANGE)
        is_gap = np.diff(changing) > 2 * (MARGIN + CONTEXT)
        for part in np.split(changing, np.flatnonzero(is_gap) + 1) if len(changing) else []:
            first = max(start, part[0] - MARGIN)
            end = min(stop, part[-1] + 1 + MARGIN)
            read = slice(max(0, first - CONTEXT), end + CONTEXT)
            (result,) = self._session.run(None, {"frames": frames[read]})
            found = result[first - read.start : end - read.start]
            probabilities[first - start : end - start] = found
        likely = np.flatnonzero(probabilities >= MIN_FRAME_PROBABILITY)
        ranges = np.ptp(frames[start + likely], axis=(1, 2))  # (likely frames, channels)
        is_plain = np.zeros(count, bool)
        is_plain[likely] = (ranges <= MAX_PLAIN_RANGE).all(1)
        self._probabilities.append(probabilities)
        self._is_plain.append(is_plain)
        del self._frames[: max(0, stop - CONTEXT)]
        self._decided = min(stop, CONTEXT)


def _likely_spans(probabilities: np.ndarray) -> list[tuple[int, int]]:
    """The spans [first, stop) of frames with at least MIN_FRAME_PROBABILITY.  (T,)"""
    is_likely = np.concatenate([[False], probabilities >= MIN_FRAME_PROBABILITY, [False]])
    edges = np.flatnonzero(np.diff(is_likely.astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _without_plain_ends(is_plain: np.ndarray) -> tuple[int, int]:
    """The first and the last frame of a span, after its plain frames at either end, but for the one
    next to the others.  is_plain: (T,), of the span; not all are plain."""
    others = np.flatnonzero(~is_plain)
    first, last = 0, len(is_plain) - 1
    if others[0] >= MIN_PLAIN_FRAMES:
        first = int(others[0]) - 1
    if last - others[-1] >= MIN_PLAIN_FRAMES:
        last = int(others[-1]) + 1
    return first, last


def relative_change(frames: np.ndarray) -> np.ndarray:
    """frames: (T, 36, 64, 3) uint8. Returns (T,), how much the picture changes around each frame:
    the largest mean difference between the GRID of two frames COMPARED_OFFSETS apart, half of it
    before and half after, as a share of the contrast of the GRID's luma and NOISE_LEVELS."""
    count = len(frames)
    lines = frames.reshape(-1, *frames.shape[2:])  # below each other
    grid = cv2.resize(lines, (GRID[0], count * GRID[1]), interpolation=cv2.INTER_AREA)
    grid = grid.reshape(count, -1)
    contrast = grid[:, ::3].std(1) + NOISE_LEVELS
    changes = []
    for offset in COMPARED_OFFSETS:
        before = np.maximum(np.arange(count) - offset // 2, 0)
        after = np.minimum(np.arange(count) + offset // 2, count - 1)
        difference = cv2.absdiff(grid[before], grid[after])
        mean = cv2.reduce(difference, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[:, 0]
        changes.append(mean / np.maximum(contrast[before], contrast[after]))
    return np.max(changes, axis=0)


@cache
def load_session() -> Any:
    """The onnxruntime.InferenceSession of MODEL, which uses one thread; read once per process."""
    import onnxruntime  # takes 0.1 s, so only a process that runs the detector imports it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Plans of the memory for each number of frames: with them a run takes 7 % longer, and 100 MB
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
