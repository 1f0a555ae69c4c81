"""LPIPS between neighbouring key frames: how different two pictures look (Zhang et al., 2018).

Own code over torchvision's AlexNet; the weights are the published ones (version 0.1): AlexNet's,
and five vectors that say what each channel of its features counts.
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

GET_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
GET_LINEAR = (
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth"
)
WIDTH = 320  # px, of the pictures compared: as for key_psnr and key_ssim
LEAST_SIDE = 63  # px: AlexNet makes nothing of less
SHIFT = (-0.030, -0.088, -0.188)  # the published scaling of RGB in -1..1
SCALE = (0.458, 0.448, 0.450)
AFTER = (1, 4, 7, 9, 11)  # of AlexNet's layers: its five ReLUs
CHANNELS = (64, 192, 384, 256, 256)
PAIRS = 128  # in one pass of the network


@dataclass
class Lpips(Scorer):
    """Distance of neighbouring key frames as AlexNet's features see it."""

    weights: str | None = None  # torchvision's AlexNet: file or hf://…; null: off
    linear: str | None = None  # LPIPS's own, version 0.1, of AlexNet: file or hf://…

    writes = ("key_lpips",)

    def files(self) -> dict[str, tuple[str | None, str]]:
        return {"weights": (self.weights, GET_ALEXNET), "linear": (self.linear, GET_LINEAR)}

    def setup(self, paths: dict[str, Path], device: str) -> None:
        self._device = device
        self._net = distance(paths["weights"], paths["linear"]).to(device).eval()

    def prepare(self, seen: Seen) -> np.ndarray:
        """(n, h, WIDTH, 3) uint8."""
        height, width = seen.frames[0].shape[:2]
        size = (WIDTH, round(height * WIDTH / width))
        if min(size) < LEAST_SIDE:
            raise ValueError(f"too narrow a picture for LPIPS: {width} x {height}")
        return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in seen.frames])

    def score(self, prepared: list[np.ndarray]) -> list[dict[str, Any]]:
        import torch

        by_shape = defaultdict(list)
        for place, frames in enumerate(prepared):
            by_shape[frames.shape].append(place)
        scores: list[dict[str, Any]] = [{} for _ in prepared]
        for (n, *_), places in by_shape.items():
            if n < 2:
                for place in places:
                    scores[place] = {"key_lpips": None}
                continue
            together = torch.from_numpy(np.stack([prepared[p] for p in places]))
            with torch.inference_mode():
                parts = [self._of(part) for part in together.split(max(1, PAIRS // n))]
            for place, value in zip(places, torch.cat(parts).tolist(), strict=True):
                scores[place] = {"key_lpips": value}
        return scores

    def _of(self, frames: torch.Tensor) -> torch.Tensor:
        """frames: (N, n, h, w, 3) uint8 -> (N,) mean distance of neighbours."""
        if self._device == "cuda":
            frames = frames.pin_memory()
        x = frames.to(self._device, non_blocking=True).permute(0, 1, 4, 2, 3).float()
        return self._net(x / 127.5 - 1).mean(1)


def distance(alexnet: Path, linear: Path) -> torch.nn.Module:
    """A module: (N, n, 3, h, w) RGB in -1..1 -> (N, n - 1) LPIPS of neighbours."""
    fix_torchvision()
    import torch
    from torchvision.models import alexnet as network

    class Distance(torch.nn.Module):
        shift: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.features = network(weights=None).features
            for number, channels in enumerate(CHANNELS):
                self.register_buffer(f"count{number}", torch.zeros(1, channels, 1, 1))
            self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
            self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            clips, n = pictures.shape[:2]
            x = (pictures.flatten(0, 1) - self.shift) / self.scale
            total = torch.zeros(clips, n - 1, device=x.device)
            for at, layer in enumerate(self.features):
                x = layer(x)
                if at not in AFTER:
                    continue
                unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
                unit = unit.unflatten(0, (clips, n))
                counts = getattr(self, f"count{AFTER.index(at)}")
                between = (unit[:, 1:] - unit[:, :-1]).pow(2).flatten(0, 1)
                weighted = (between * counts).sum(1).mean((1, 2))
                total = total + weighted.unflatten(0, (clips, n - 1))
            return total

    net = Distance()
    state = {k: v for k, v in load(alexnet).items() if k.startswith("features.")}
    fill(net.features, {k.removeprefix("features."): v for k, v in state.items()}, alexnet)
    counts = load(linear)
    holder = torch.nn.ParameterDict()  # the published names, shapes checked against them
    for number, channels in enumerate(CHANNELS):
        holder[f"lin{number}"] = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))
    fill(holder, {k.replace(".model.1.weight", ""): v for k, v in counts.items()}, linear)
    for number in range(len(CHANNELS)):
        getattr(net, f"count{number}").copy_(holder[f"lin{number}"].data)
    return net
