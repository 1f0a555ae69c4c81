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
from curation.weights import load_into, load_tensors
from stages.scorers.scorer import ClipImages, Scorer

if TYPE_CHECKING:
    import torch

RAFT_SOURCE = "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth"
MAX_LONG_SIDE_PX = 512  # of RAFT's input
REFERENCE_SIDE_PX = 320  # speeds are given for an image with this long side, as DIS's are
FLOW_UPDATES = 12  # iterations of refinement, as published
PAIRS_PER_PASS = 32


@dataclass
class RaftScorer(Scorer):
    """Mean length of RAFT's flow, px/s in an image with a long side of 320 px."""

    weights: str | None = None  # torchvision's raft_large: a file or hf://…; null: off

    writes = ("motion_raft",)
    needs_frame_pairs = True

    def weight_files(self) -> dict[str, tuple[str | None, str]]:
        return {"weights": (self.weights, RAFT_SOURCE)}

    def setup(self, paths: dict[str, Path], device: str) -> None:
        fix_torchvision()
        from torchvision.models.optical_flow import raft_large

        net = raft_large(weights=None)
        load_into(net, load_tensors(paths["weights"]), paths["weights"])
        self._device, self._net = device, net.to(device).eval()

    def prepare(self, images: ClipImages) -> tuple[np.ndarray, np.ndarray]:
        """Returns (m, 2, h, w, 3) uint8 and (m, 2), the factors from its flow in x, y to px/s."""
        pairs = images.frame_pairs
        if not pairs:
            raise ValueError("no pair of frames was stored for the clip")
        height, width = pairs[0][0].shape[:2]
        long = max(height, width)
        scale = min(1.0, MAX_LONG_SIDE_PX / long)
        size = (nearest_input_side(width * scale), nearest_input_side(height * scale))
        both = [
            [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in pair[:2]] for pair in pairs
        ]
        to_reference = REFERENCE_SIDE_PX / long * np.array([width / size[0], height / size[1]])
        return np.array(both), np.array([to_reference / pair[2] for pair in pairs], np.float32)

    def score(self, prepared: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
        import torch

        by_shape = defaultdict(list)  # a pass takes pairs of one shape
        for clip, (image_pairs, to_speed) in enumerate(prepared):
            for pair, scale in zip(image_pairs, to_speed, strict=True):
                by_shape[pair.shape].append((clip, pair, scale))
        speeds = defaultdict(list)
        with torch.inference_mode():
            for items in by_shape.values():
                for first in range(0, len(items), PAIRS_PER_PASS):
                    part = items[first : first + PAIRS_PER_PASS]
                    both = torch.from_numpy(np.stack([pair for _, pair, _ in part]))
                    to_px_s = torch.from_numpy(np.stack([scale for _, _, scale in part]))
                    found = self._speeds(both, to_px_s).tolist()
                    for (clip, _, _), speed in zip(part, found, strict=True):
                        speeds[clip].append(speed)
        return [{"motion_raft": float(np.mean(speeds[clip]))} for clip in range(len(prepared))]

    def _speeds(self, image_pairs: torch.Tensor, to_speed: torch.Tensor) -> torch.Tensor:
        """image_pairs: (N, 2, h, w, 3) uint8, to_speed: (N, 2) -> (N,) mean speed."""
        if self._device == "cuda":
            image_pairs, to_speed = image_pairs.pin_memory(), to_speed.pin_memory()
        x = image_pairs.to(self._device, non_blocking=True).permute(0, 1, 4, 2, 3).float()
        x = x / 127.5 - 1
        flow = self._net(x[:, 0], x[:, 1], num_flow_updates=FLOW_UPDATES)[-1]
        scale = to_speed.to(self._device, non_blocking=True)[:, :, None, None]
        return (flow * scale).square().sum(1).sqrt().mean((1, 2))


def nearest_input_side(side: float) -> int:
    """The nearest multiple of 8, px, and at least 128, RAFT's minimum."""
    return max(128, round(side / 8) * 8)
