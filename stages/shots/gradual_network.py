"""The network that finds gradual transitions.

A small convolutional network over space and time (`benchmarks/transition_network/network.py`), in
ONNX. It reads the colour images of all frames, 64 x 36 px, and gives each the probability that it
is part of a gradual transition.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

MODEL = Path(__file__).parent / "models" / "gradual.onnx"
SAMPLE_S = 0.03  # between two frames that it reads: every frame up to 33 a second
CHUNK = 320  # frames that one run decides
CONTEXT = 64  # frames that a run reads before and after those
MIN_PROBABILITY = 0.5  # of every frame of a transition


class GradualNetwork:
    """Frames are decided while they come; the last CHUNK + 2 * CONTEXT are kept, 3 MB."""

    def __init__(self) -> None:
        self._session = load_session()
        self._frames: list[np.ndarray] = []  # the last ones
        self._decided = 0  # of those
        self._times_s: list[float] = []
        self._probabilities: list[np.ndarray] = []

    def add(self, t_s: float, yuv: np.ndarray) -> None:
        """yuv: (36, 64, 3) uint8, Y, Cb and Cr."""
        if self._times_s and t_s - self._times_s[-1] < SAMPLE_S:
            return
        self._times_s.append(t_s)
        self._frames.append(yuv)
        if len(self._frames) == self._decided + CHUNK + CONTEXT:
            self._decide(CHUNK)

    def spans(self, min_probability: float) -> list[tuple[float, float]]:
        """Times of the first and the last frame of each gradual transition: frames in a row from
        MIN_PROBABILITY on, the likeliest from `min_probability` on. Ends the pass.
        """
        if len(self._frames) > self._decided:
            self._decide(len(self._frames) - self._decided)
        probabilities = np.concatenate([*self._probabilities, np.zeros(0, np.float32)])
        is_likely = np.concatenate([[False], probabilities >= MIN_PROBABILITY, [False]])
        edges = np.flatnonzero(np.diff(is_likely.astype(np.int8)))
        return [
            (self._times_s[first], self._times_s[stop - 1])
            for first, stop in zip(edges[::2], edges[1::2], strict=True)
            if probabilities[first:stop].max() >= min_probability
        ]

    def _decide(self, count: int) -> None:
        """Decides the next `count` frames, and drops those that no later one needs."""
        start, stop = self._decided, self._decided + count
        (result,) = self._session.run(None, {"frames": np.stack(self._frames)})
        self._probabilities.append(result[start:stop])
        del self._frames[: max(0, stop - CONTEXT)]
        self._decided = min(stop, CONTEXT)


@cache
def load_session() -> Any:
    """The network on one thread, read once per process."""
    import onnxruntime  # takes 0.1 s: only where the detector runs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
