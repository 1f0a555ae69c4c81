"""LoRA (arXiv 2106.09685): low-rank adapters of the attention's linear layers, by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from curation.atomic import atomic_path
from curation.config import ConfigError
from curation.torchvision_fix import fix_torchvision
from training.model import Presto

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of self- and cross-attention
ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name


def add_adapters(presto: Presto, rank: int) -> None:
    """Freezes the network and adds adapters, which change nothing before the first step."""
    peft = _import_peft()
    presto.requires_grad_(False)
    # alpha = rank: the product of an adapter's two matrices is added as it is
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS), presto
    )


def merge_adapters(presto: Presto) -> None:
    """Adds the adapters to the weights and removes them: the network is a plain one again."""
    from peft.tuners.lora import LoraLayer

    for parent in list(presto.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[operator]
                parent.register_module(name, child.get_base_layer())


def export_adapters(presto: Presto, folder: str | Path) -> Path:
    """Writes the adapters as diffusers does, fp32; returns the file."""
    tensors = {
        f"transformer.{name}": tensor.detach().float().contiguous()
        for name, tensor in _import_peft().get_peft_model_state_dict(presto).items()
    }
    path = Path(folder, ADAPTER_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        save_file(tensors, part)
    return path


def _import_peft() -> Any:
    fix_torchvision()
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"lora_rank needs peft, which can't be imported ({error}): pip install -e '.[lora]'"
        ) from None
    return peft
