"""Finds gradual transitions with a small convolutional network over space and time.

`benchmarks/transition_network` trains it and exports it to ONNX. It reads a colour image of each
frame, 64 x 36 px, and gives the probability that the frame is part of a gradual transition.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

MODEL = Path(__file__).parent / "models" / "gradual.onnx"
MIN_FRAME_STEP_S = 0.03  # between two frames that it reads: at most 33 a second
CHUNK = 320  # frames whose probabilities one run of the network gives
CONTEXT = 64  # frames that a run also reads before and after those
MIN_FRAME_PROBABILITY = 0.5  # of every frame of a transition


class GradualNetwork:
    """Finds the gradual transitions of one video. `add` takes its frames in order.

    Runs the network once for each CHUNK of frames. Holds at most CHUNK + 2 * CONTEXT, 3 MB.
    """

    def __init__(self) -> None:
        self._session = load_session()
        self._frames: list[np.ndarray] = []  # the last ones; earlier ones are dropped
        self._decided = 0  # how many of `_frames` already have a probability
        self._times_s: list[float] = []  # of all frames that were read
        self._probabilities: list[np.ndarray] = []  # of the same frames, one array for each run

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
        `min_peak_probability`. Called once, after the last frame.
        """
        if len(self._frames) > self._decided:
            self._decide(len(self._frames) - self._decided)
        probabilities = np.concatenate([*self._probabilities, np.zeros(0, np.float32)])
        is_likely = np.concatenate([[False], probabilities >= MIN_FRAME_PROBABILITY, [False]])
        edges = np.flatnonzero(np.diff(is_likely.astype(np.int8)))
        return [
            (self._times_s[first], self._times_s[stop - 1])
            for first, stop in zip(edges[::2], edges[1::2], strict=True)
            if probabilities[first:stop].max() >= min_peak_probability
        ]

    def _decide(self, count: int) -> None:
        """Computes the probabilities of the next `count` frames; drops those not needed later."""
        start, stop = self._decided, self._decided + count
        (result,) = self._session.run(None, {"frames": np.stack(self._frames)})
        self._probabilities.append(result[start:stop])
        del self._frames[: max(0, stop - CONTEXT)]
        self._decided = min(stop, CONTEXT)


@cache
def load_session() -> Any:
    """The onnxruntime.InferenceSession of MODEL, which uses one thread; read once per process."""
    import onnxruntime  # takes 0.1 s, so only a process that runs the detector imports it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
