"""Tiny random weights of the real models as files: their scores have no meaning."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from curation.torchvision_fix import fix_torchvision

HEAD_SHAPES = {  # of sac+logos+ava1-l14-linearMSE.pth, as published
    "layers.0.weight": (1024, 768),
    "layers.0.bias": (1024,),
    "layers.2.weight": (128, 1024),
    "layers.2.bias": (128,),
    "layers.4.weight": (64, 128),
    "layers.4.bias": (64,),
    "layers.6.weight": (16, 64),
    "layers.6.bias": (16,),
    "layers.7.weight": (1, 16),
    "layers.7.bias": (1,),
}
LINEAR_SHAPES = {  # of LPIPS 0.1 for AlexNet, as published
    f"lin{number}.model.1.weight": (1, channels, 1, 1)
    for number, channels in enumerate((64, 192, 384, 256, 256))
}


def save_tiny_clip(folder: Path) -> tuple[torch.nn.Module, Path]:
    """Returns a CLIP with QuickGELU, as OpenAI's, with embeddings of 768 numbers, and its file."""
    fix_torchvision()
    from open_clip import CLIP

    torch.manual_seed(0)
    model = CLIP(
        embed_dim=768,
        vision_cfg={"image_size": 56, "layers": 2, "width": 128, "patch_size": 14},
        text_cfg={"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1},
        quick_gelu=True,
    )
    torch.nn.init.normal_(model.visual.conv1.weight, std=0.1)
    path = folder / "clip.safetensors"
    save_file(model.state_dict(), path)
    return model.eval(), path


def save_tiny_head(folder: Path) -> Path:
    torch.manual_seed(1)
    path = folder / "head.pth"
    torch.save({name: 0.1 * torch.randn(shape) for name, shape in HEAD_SHAPES.items()}, path)
    return path


def save_random_lpips(folder: Path) -> tuple[Path, Path]:
    """Returns files of AlexNet (all feature layers and one other) and of LPIPS's linear weights."""
    fix_torchvision()
    from torchvision.models import alexnet

    torch.manual_seed(2)
    with torch.device("meta"):
        names = alexnet(weights=None).features.state_dict()
    state = {f"features.{name}": 0.05 * torch.randn(v.shape) for name, v in names.items()}
    save_file(state | {"classifier.6.bias": torch.zeros(1000)}, folder / "alexnet.safetensors")
    torch.save({n: torch.rand(shape) for n, shape in LINEAR_SHAPES.items()}, folder / "linear.pth")
    return folder / "alexnet.safetensors", folder / "linear.pth"


def save_random_raft(folder: Path) -> tuple[torch.nn.Module, Path]:
    fix_torchvision()
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(3)
    model = raft_large(weights=None).eval()
    torch.save(model.state_dict(), folder / "raft.pth")
    return model, folder / "raft.pth"
