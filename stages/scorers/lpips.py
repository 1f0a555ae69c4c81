"""LPIPS between consecutive key frames: perceptual distance (Zhang et al., 2018).

Computed with torchvision's AlexNet and the published weights (version 0.1): AlexNet's, and five
vectors that weight the channels of its features.
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

ALEXNET_SOURCE = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
LINEAR_SOURCE = (
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth"
)
WIDTH_PX = 320  # of the images compared: as for key_psnr and key_ssim
MIN_ALEXNET_SIDE_PX = 63  # AlexNet's layers reduce a smaller image to nothing
RGB_SHIFT = (-0.030, -0.088, -0.188)  # the published scaling of RGB in -1..1
RGB_SCALE = (0.458, 0.448, 0.450)
FEATURE_LAYERS = (1, 4, 7, 9, 11)  # of AlexNet: its five ReLUs
FEATURE_CHANNELS = (64, 192, 384, 256, 256)
IMAGES_PER_PASS = 128


@dataclass
class LpipsScorer(Scorer):
    """Mean LPIPS distance of consecutive key frames."""

    weights: str | None = None  # torchvision's AlexNet: a file or hf://…; null: off
    linear: str | None = None  # LPIPS 0.1 for AlexNet: a file or hf://…

    writes = ("key_lpips",)

    def weight_files(self) -> dict[str, tuple[str | None, str]]:
        return {"weights": (self.weights, ALEXNET_SOURCE), "linear": (self.linear, LINEAR_SOURCE)}

    def setup(self, paths: dict[str, Path], device: str) -> None:
        self._device = device
        self._net = load_lpips(paths["weights"], paths["linear"]).to(device).eval()

    def prepare(self, images: ClipImages) -> np.ndarray:
        """Returns (n, h, WIDTH_PX, 3) uint8."""
        frames = images.key_frames
        height, width = frames[0].shape[:2]
        size = (WIDTH_PX, round(height * WIDTH_PX / width))
        if min(size) < MIN_ALEXNET_SIDE_PX:
            raise ValueError(f"image too narrow for LPIPS: {width} x {height}")
        return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])

    def score(self, prepared: list[np.ndarray]) -> list[dict[str, Any]]:
        import torch

        by_shape = defaultdict(list)
        for number, frames in enumerate(prepared):
            by_shape[frames.shape].append(number)
        scores: list[dict[str, Any]] = [{} for _ in prepared]
        for (n, *_), numbers in by_shape.items():
            if n < 2:
                for number in numbers:
                    scores[number] = {"key_lpips": None}
                continue
            clips = torch.from_numpy(np.stack([prepared[number] for number in numbers]))
            clips_per_pass = max(1, IMAGES_PER_PASS // n)
            with torch.inference_mode():
                parts = [self._mean_distances(part) for part in clips.split(clips_per_pass)]
            for number, value in zip(numbers, torch.cat(parts).tolist(), strict=True):
                scores[number] = {"key_lpips": value}
        return scores

    def _mean_distances(self, frames: torch.Tensor) -> torch.Tensor:
        """frames: (N, n, h, w, 3) uint8 -> (N,) mean distance of consecutive frames."""
        if self._device == "cuda":
            frames = frames.pin_memory()
        x = frames.to(self._device, non_blocking=True).permute(0, 1, 4, 2, 3).float()
        return self._net(x / 127.5 - 1).mean(1)


def load_lpips(alexnet: Path, linear: Path) -> torch.nn.Module:
    """Returns a module: (N, n, 3, h, w) RGB in -1..1 -> (N, n - 1) LPIPS of consecutive images.

    Raises PlanError.
    """
    fix_torchvision()
    import torch
    from torchvision.models import alexnet as make_alexnet

    class LpipsDistance(torch.nn.Module):
        shift: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.features = make_alexnet(weights=None).features
            for number, channels in enumerate(FEATURE_CHANNELS):
                self.register_buffer(f"weight{number}", torch.zeros(1, channels, 1, 1))
            self.register_buffer("shift", torch.tensor(RGB_SHIFT).view(1, 3, 1, 1))
            self.register_buffer("scale", torch.tensor(RGB_SCALE).view(1, 3, 1, 1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            clips, n = images.shape[:2]
            x = (images.flatten(0, 1) - self.shift) / self.scale
            total = torch.zeros(clips, n - 1, device=x.device)
            for number, layer in enumerate(self.features):
                x = layer(x)
                if number not in FEATURE_LAYERS:
                    continue
                unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
                unit = unit.unflatten(0, (clips, n))
                weights = getattr(self, f"weight{FEATURE_LAYERS.index(number)}")
                difference = (unit[:, 1:] - unit[:, :-1]).pow(2).flatten(0, 1)
                weighted = (difference * weights).sum(1).mean((1, 2))
                total = total + weighted.unflatten(0, (clips, n - 1))
            return total

    net = LpipsDistance()
    state = {k: v for k, v in load_tensors(alexnet).items() if k.startswith("features.")}
    load_into(net.features, {k.removeprefix("features."): v for k, v in state.items()}, alexnet)
    linear_state = load_tensors(linear)
    holder = torch.nn.ParameterDict()  # with the published names and shapes, which are checked
    for number, channels in enumerate(FEATURE_CHANNELS):
        holder[f"lin{number}"] = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))
    renamed = {k.replace(".model.1.weight", ""): v for k, v in linear_state.items()}
    load_into(holder, renamed, linear)
    for number in range(len(FEATURE_CHANNELS)):
        getattr(net, f"weight{number}").copy_(holder[f"lin{number}"].data)
    return net
