"""Optical flow by RAFT (Teed and Deng, 2020; torchvision's raft_large) at a clip's key frames.

The decode pass stores the pairs of frames: a key frame and the frame
`score.decode.key_frames.pair_gap_s` later, close enough that fast objects are still matched.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from curation.torchvision_fix import fix_torchvision
from curation.weights import fill, load
from stages.scorers.scorer import Scorer, Seen

if TYPE_CHECKING:
    import torch

GET_RAFT = "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth"
LONG_SIDE = 512  # px at most, of the pictures that RAFT sees
UNIT = 320  # px: speeds are told for a picture with this long side, as DIS's are
UPDATES = 12  # rounds of refinement, as published
PAIRS = 32  # in one pass of the network


@dataclass
class Raft(Scorer):
    """Mean length of RAFT's flow, px/s in a picture 320 px wide."""

    weights: str | None = None  # torchvision's raft_large: file or hf://…; null: off

    writes = ("motion_raft",)
    reads_pairs = True

    def files(self) -> dict[str, tuple[str | None, str]]:
        return {"weights": (self.weights, GET_RAFT)}

    def setup(self, paths: dict[str, Path], device: str) -> None:
        fix_torchvision()
        from torchvision.models.optical_flow import raft_large

        net = raft_large(weights=None)
        fill(net, load(paths["weights"]), paths["weights"])
        self._device, self._net = device, net.to(device).eval()

    def prepare(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """(m, 2, h, w, 3) uint8, sides multiples of 8; (m, 2) what turns its flow into px/s."""
        pairs = seen.pairs
        if not pairs:
            raise ValueError("no two frames of the clip lie a gap apart")
        height, width = pairs[0][0].shape[:2]
        long = max(height, width)
        scale = min(1.0, LONG_SIDE / long)
        size = (fit(width * scale), fit(height * scale))
        both = [
            [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in pair[:2]] for pair in pairs
        ]
        shown = UNIT / long * np.array([width / size[0], height / size[1]])
        return np.array(both), np.array([shown / pair[2] for pair in pairs], np.float32)

    def score(self, prepared: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
        import torch

        by_shape = defaultdict(list)  # pairs of the same shape go together
        for clip, (pictures, to_speed) in enumerate(prepared):
            for pair, scale in zip(pictures, to_speed, strict=True):
                by_shape[pair.shape].append((clip, pair, scale))
        speeds = defaultdict(list)
        with torch.inference_mode():
            for items in by_shape.values():
                for first in range(0, len(items), PAIRS):
                    part = items[first : first + PAIRS]
                    both = torch.from_numpy(np.stack([pair for _, pair, _ in part]))
                    to_px_s = torch.from_numpy(np.stack([scale for _, _, scale in part]))
                    found = self._speeds(both, to_px_s).tolist()
                    for (clip, _, _), speed in zip(part, found, strict=True):
                        speeds[clip].append(speed)
        return [{"motion_raft": float(np.mean(speeds[clip]))} for clip in range(len(prepared))]

    def _speeds(self, pictures: torch.Tensor, to_speed: torch.Tensor) -> torch.Tensor:
        """pictures: (N, 2, h, w, 3) uint8, to_speed: (N, 2) -> (N,) mean speed."""
        if self._device == "cuda":
            pictures, to_speed = pictures.pin_memory(), to_speed.pin_memory()
        x = pictures.to(self._device, non_blocking=True).permute(0, 1, 4, 2, 3).float()
        x = x / 127.5 - 1
        flow = self._net(x[:, 0], x[:, 1], num_flow_updates=UPDATES)[-1]
        scale = to_speed.to(self._device, non_blocking=True)[:, :, None, None]
        return (flow * scale).square().sum(1).sqrt().mean((1, 2))


def fit(side: float) -> int:
    """The nearest multiple of 8, and no less than RAFT takes."""
    return max(128, round(side / 8) * 8)
