"""CLIP ViT-L/14 looks at a clip's key frames: LAION's aesthetics, richness and coherence.

One pass of the network gives an embedding per key frame; all the scores come from these, and they
are kept, in `ledger/embeddings`, for whoever looks for clips that show the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.stage import PlanError
from curation.torchvision_fix import fix_torchvision
from curation.weights import fill, load
from stages.scorers.scorer import Scorer, Seen

if TYPE_CHECKING:
    import torch

GET_HEAD = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
GET_CLIP = "hf download timm/vit_large_patch14_clip_224.openai open_clip_model.safetensors"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of RGB in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
FRAMES = 256  # in one pass of the network


@dataclass
class Clip(Scorer):
    """OpenAI's CLIP ViT-L/14, in open_clip's layout, and LAION's head on it (sac+logos+ava1)."""

    weights: str | None = None  # file, or hf://OWNER/REPO@REVISION/FILE; null: off
    aesthetics: str | None = None  # the head's file; null: no aesthetics

    @property
    def writes(self) -> tuple[str, ...]:
        scores = ("richness_clip_l14", "coherence_clip_l14")
        return (*AESTHETICS, *scores) if self.aesthetics else scores

    def files(self) -> dict[str, tuple[str | None, str]]:
        files = {"weights": (self.weights, GET_CLIP)}
        return files | ({"aesthetics": (self.aesthetics, GET_HEAD)} if self.aesthetics else {})

    def setup(self, paths: dict[str, Path], device: str) -> None:
        import torch

        self._device = device
        model, self._side = vision_tower(paths["weights"])
        self._dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = model.to(device, self._dtype).eval()
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD)
        )
        self._head: Any = None
        if "aesthetics" in paths:
            self._head = aesthetics_head(paths["aesthetics"]).to(device).eval()

    def prepare(self, seen: Seen) -> np.ndarray:
        """(n, 3, side, side) uint8, as CLIP's own preparation cuts them out."""
        return np.stack([square(frame, self._side) for frame in seen.frames])

    def score(self, prepared: list[np.ndarray]) -> list[dict[str, Any]]:
        import torch

        frames = torch.from_numpy(np.concatenate(prepared))
        if self._device == "cuda":
            frames = frames.pin_memory()
        with torch.inference_mode():
            parts = [self._embed(part) for part in frames.split(FRAMES)]
            embeddings = torch.cat(parts)
            rated = self._head(embeddings)[:, 0].cpu().numpy() if self._head else None
        every = embeddings.cpu().numpy()
        ends = np.cumsum([len(p) for p in prepared])[:-1]
        ratings = [None] * len(prepared) if rated is None else np.split(rated, ends)
        return [
            judge(e, r) | {"embeddings": e.astype(np.float16)}
            for e, r in zip(np.split(every, ends), ratings, strict=True)
        ]

    def _embed(self, frames: torch.Tensor) -> torch.Tensor:
        """frames: (N, 3, side, side) uint8 -> (N, D) float32 of length 1, on the device."""
        import torch

        x = frames.to(self._device, non_blocking=True).float() / 255
        x = self._model(((x - self._mean) / self._std).to(self._dtype))
        return torch.nn.functional.normalize(x.float(), dim=-1)


AESTHETICS = ("aesthetic_laion_l14", "aesthetic_laion_l14_min")


def judge(embeddings: np.ndarray, ratings: np.ndarray | None) -> dict[str, float | None]:
    """A clip's scores. embeddings: (n, D), of length 1, one per key frame in order of time.

    Richness: how much changes from one key frame to the next, mean of 1 - cosine over the n - 1
    pairs of neighbours. Coherence: whether it still is one scene, the smallest cosine of any two.
    """
    cosines = embeddings @ embeddings.T
    n = len(embeddings)
    scores: dict[str, float | None] = {
        "richness_clip_l14": float(1 - np.diagonal(cosines, 1).mean()) if n > 1 else None,
        "coherence_clip_l14": float(cosines.min()) if n > 1 else None,
    }
    if ratings is not None:
        scores |= dict(zip(AESTHETICS, (float(ratings.mean()), float(ratings.min())), strict=True))
    return scores


def square(rgb: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (3, side, side): shorter side to `side`, bicubic, then the middle."""
    from PIL import Image  # its filter is the one that CLIP was trained with; OpenCV's is another

    height, width = rgb.shape[:2]
    scale = side / min(height, width)
    size = (max(side, int(width * scale)), max(side, int(height * scale)))
    picture = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    top, left = round((size[1] - side) / 2), round((size[0] - side) / 2)
    return picture[top : top + side, left : left + side].transpose(2, 0, 1)


def vision_tower(path: Path) -> tuple[torch.nn.Module, int]:
    """The image half of a CLIP checkpoint in open_clip's layout, and the side of its pictures.

    Its size is read off the weights. OpenAI's are of QuickGELU: with the usual GELU they load as
    well, and every score is off.
    """
    fix_torchvision()
    from open_clip.transformer import QuickGELU, VisionTransformer

    state = {
        name.removeprefix("visual."): value.float()
        for name, value in load(path).items()
        if name.startswith("visual.")
    }
    needed = ("conv1.weight", "positional_embedding", "proj")
    if not all(name in state for name in needed):
        raise PlanError(
            f"{path}: no CLIP in open_clip's layout; expected visual.conv1.weight and others; "
            f"get it with\n  {GET_CLIP}"
        )
    width, _, patch, _ = state["conv1.weight"].shape
    side = patch * round((len(state["positional_embedding"]) - 1) ** 0.5)
    model = VisionTransformer(
        image_size=side,
        patch_size=patch,
        width=width,
        layers=sum(name.endswith(".attn.in_proj_weight") for name in state),
        heads=width // 64,
        mlp_ratio=4.0,
        output_dim=state["proj"].shape[1],
        act_layer=QuickGELU,
    )
    fill(model, state, path)
    return model, side


def aesthetics_head(path: Path) -> torch.nn.Module:
    """(N, 768) embeddings of length 1 -> (N, 1) ratings. It has no activations."""
    import torch
    from torch.nn import Linear

    layers = {
        "0": Linear(768, 1024),
        "2": Linear(1024, 128),  # what lies between is dropout, for training alone
        "4": Linear(128, 64),
        "6": Linear(64, 16),
        "7": Linear(16, 1),
    }
    head = torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(OrderedDict(layers))))
    fill(head, load(path), path)
    return head
