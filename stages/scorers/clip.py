"""Scores from CLIP ViT-L/14 embeddings of the key frames: aesthetics, richness and coherence.

One pass of the network gives an embedding per key frame. All scores come from the embeddings, which
are stored in `ledger/embeddings` for the selection of semantic duplicates.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.stage import PlanError
from curation.torchvision_fix import fix_torchvision
from curation.weights import load_into, load_tensors
from stages.scorers.scorer import ClipImages, Scorer

if TYPE_CHECKING:
    import torch

HEAD_SOURCE = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
CLIP_SOURCE = "hf download timm/vit_large_patch14_clip_224.openai open_clip_model.safetensors"
RGB_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of RGB in 0..1
RGB_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGES_PER_PASS = 256


@dataclass
class ClipScorer(Scorer):
    """OpenAI's CLIP ViT-L/14 in open_clip's layout, and LAION's head (sac+logos+ava1)."""

    weights: str | None = None  # a file, or hf://OWNER/REPO@REVISION/FILE; null: off
    aesthetics: str | None = None  # file of the head; null: no aesthetics

    @property
    def writes(self) -> tuple[str, ...]:
        scores = ("richness_clip_l14", "coherence_clip_l14")
        return (*AESTHETICS, *scores) if self.aesthetics else scores

    def weight_files(self) -> dict[str, tuple[str | None, str]]:
        files = {"weights": (self.weights, CLIP_SOURCE)}
        return files | ({"aesthetics": (self.aesthetics, HEAD_SOURCE)} if self.aesthetics else {})

    def setup(self, paths: dict[str, Path], device: str) -> None:
        import torch

        self._device = device
        model, self._side = load_image_encoder(paths["weights"])
        self._dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = model.to(device, self._dtype).eval()
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (RGB_MEAN, RGB_STD)
        )
        self._head: Any = None
        if "aesthetics" in paths:
            self._head = load_aesthetics_head(paths["aesthetics"]).to(device).eval()

    def prepare(self, images: ClipImages) -> np.ndarray:
        """Returns (n, 3, side, side) uint8."""
        return np.stack([resize_and_crop(image, self._side) for image in images.key_frames])

    def score(self, prepared: list[np.ndarray]) -> list[dict[str, Any]]:
        import torch

        frames = torch.from_numpy(np.concatenate(prepared))
        if self._device == "cuda":
            frames = frames.pin_memory()
        with torch.inference_mode():
            parts = [self._embed(part) for part in frames.split(IMAGES_PER_PASS)]
            embeddings = torch.cat(parts)
            rated = self._head(embeddings)[:, 0].cpu().numpy() if self._head else None
        every = embeddings.cpu().numpy()
        ends = np.cumsum([len(p) for p in prepared])[:-1]
        ratings = [None] * len(prepared) if rated is None else np.split(rated, ends)
        return [
            scores_from_embeddings(e, r) | {"embeddings": e.astype(np.float16)}
            for e, r in zip(np.split(every, ends), ratings, strict=True)
        ]

    def _embed(self, frames: torch.Tensor) -> torch.Tensor:
        """frames: (N, 3, side, side) uint8 -> (N, D) float32 of length 1, on the device."""
        import torch

        x = frames.to(self._device, non_blocking=True).float() / 255
        x = self._model(((x - self._mean) / self._std).to(self._dtype))
        return torch.nn.functional.normalize(x.float(), dim=-1)


AESTHETICS = ("aesthetic_laion_l14", "aesthetic_laion_l14_min")


def scores_from_embeddings(
    embeddings: np.ndarray, ratings: np.ndarray | None
) -> dict[str, float | None]:
    """A clip's scores. embeddings: (n, D), of length 1, one per key frame in order of time.

    Richness is the change between consecutive key frames: the mean of 1 - cosine over the n - 1
    pairs. Coherence is how far the clip remains one scene: the smallest cosine of any two. Both are
    None for one key frame.
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


def resize_and_crop(rgb: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (3, side, side): shorter side to `side`, bicubic, then the centre."""
    from PIL import Image  # CLIP was trained with its bicubic filter; OpenCV's differs

    height, width = rgb.shape[:2]
    scale = side / min(height, width)
    size = (max(side, int(width * scale)), max(side, int(height * scale)))
    resized = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    top, left = round((size[1] - side) / 2), round((size[0] - side) / 2)
    return resized[top : top + side, left : left + side].transpose(2, 0, 1)


def load_image_encoder(path: Path) -> tuple[torch.nn.Module, int]:
    """Returns the image encoder of a CLIP checkpoint in open_clip's layout, and its input side, px.

    Its sizes are read from the weights. OpenAI's weights need QuickGELU: they also load with the
    usual GELU, but then every score is wrong. Raises PlanError.
    """
    fix_torchvision()
    from open_clip.transformer import QuickGELU, VisionTransformer

    state = {
        name.removeprefix("visual."): value.float()
        for name, value in load_tensors(path).items()
        if name.startswith("visual.")
    }
    needed = ("conv1.weight", "positional_embedding", "proj")
    if not all(name in state for name in needed):
        raise PlanError(
            f"{path}: not a CLIP in open_clip's layout; expected visual.conv1.weight and others; "
            f"get it with\n  {CLIP_SOURCE}"
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
    load_into(model, state, path)
    return model, side


def load_aesthetics_head(path: Path) -> torch.nn.Module:
    """Returns a module: (N, 768) embeddings of length 1 -> (N, 1) ratings, without activations."""
    import torch
    from torch.nn import Linear

    layers = {
        "0": Linear(768, 1024),
        "2": Linear(1024, 128),  # between the layers is dropout, for training alone
        "4": Linear(128, 64),
        "6": Linear(64, 16),
        "7": Linear(16, 1),
    }
    head = torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(OrderedDict(layers))))
    load_into(head, load_tensors(path), path)
    return head
