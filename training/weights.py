"""Reads and writes safetensors of Allegro, diffusers and Presto.

A folder holds `config.json` and either one `.safetensors` file or several with an index, as
`save_pretrained` of diffusers writes it. The original Allegro's config.json has more fields. A
published pipeline has them in the subfolder transformer/, which is also found.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from curation import config
from curation.atomic import atomic_path, write_atomic
from curation.config import ConfigError
from curation.errors import UserError
from curation.json_text import parse_object
from training.config import ModelConfig
from training.model import Presto

WEIGHTS = "diffusion_pytorch_model.safetensors"
# fields of config.json that change the network, with the only value that is implemented here
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
    "patch_size_t": 1,
    "double_self_attention": False,
    "only_cross_attention": False,
    "use_linear_projection": False,
}


class BadWeights(UserError):
    """A folder of weights can't be read."""


def transformer_folder(path: str | Path) -> Path:
    """The folder with the transformer's config.json: `path` or its subfolder transformer/."""
    for folder in (Path(path), Path(path, "transformer")):
        if (folder / "config.json").is_file():
            known = _read_object(folder / "config.json")
            if "num_layers" in known:
                return folder
    raise BadWeights(
        f"{path}: no transformer's config.json here or in transformer/; expected a folder of "
        f"Allegro, Presto or diffusers; get it: hf download rhymes-ai/Allegro --include "
        f"'transformer/*' --local-dir {path}"
    )


def _read_object(path: Path, part: str | None = None) -> dict[str, Any]:
    """Returns the object in a JSON file. part: a key whose value must be an object, too."""
    try:
        found = parse_object(path.read_bytes())
        if part is not None and not isinstance(found.get(part), dict):
            raise ValueError(f"has no {part}")
        return found
    except ValueError as error:
        raise BadWeights(f"{path}: {error}; download it again") from None


def read_config(folder: str | Path) -> ModelConfig:
    """Reads config.json, with diffusers' names or the original's (`sample_size_t`,
    `sample_size`)."""
    path = transformer_folder(folder) / "config.json"
    found: dict[str, Any] = _read_object(path)
    for name, only in FIXED.items():
        if found.get(name, only) != only:
            raise BadWeights(f"{path}: {name} is {found[name]!r}; only {only!r} is supported")
    names = {f.name for f in fields(ModelConfig)}
    try:
        if "sample_size" in found and "sample_height" not in found:
            size = found["sample_size"]
            size = size if isinstance(size, list) else [size, size]
            found["sample_height"], found["sample_width"] = size
        if "sample_size_t" in found and "sample_frames" not in found:
            found["sample_frames"] = found["sample_size_t"]
        known = {k: v for k, v in found.items() if k in names and v is not None}
        return config.build(ModelConfig, known, str(path))
    except ConfigError as error:
        raise BadWeights(f"{error}; download it again") from None
    except ValueError:
        raise BadWeights(
            f"{path}: sample_size is {size!r:.80}; expected a number or two; download it again"
        ) from None


def load_presto(folder: str | Path) -> Presto:
    """The network with its weights, on the CPU, in fp32."""
    with torch.device("meta"):
        model = Presto(read_config(folder))
    load_weights(model.to_empty(device="cpu"), folder)
    return model


@torch.no_grad()
def load_weights(model: Presto, folder: str | Path) -> None:
    """Copies the folder's weights into the network, one tensor at a time."""
    found = read_config(folder)
    folder = transformer_folder(folder)
    for name in ("num_attention_heads", "attention_head_dim", "patch_size"):
        value, expected = getattr(found, name), getattr(model.cfg, name)
        if value != expected:
            raise BadWeights(
                f"{folder}: its {name} is {value}, the network's is {expected}; "
                f"set system.model.{name}={value}"
            )
    state, files = model.state_dict(), tensor_files(folder)
    try:
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        _check(folder, shapes, state)
        for file in files:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no dict)
                    state[name].copy_(opened.get_tensor(name))
    except BadWeights:
        raise
    except Exception as error:  # safetensors has its own exception for a damaged file
        raise BadWeights(f"{file}: {error}; download it again") from error


def tensor_files(folder: Path) -> list[Path]:
    """The folder's safetensors file, or those that its index lists."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = _read_object(indexes[0], "weight_map")["weight_map"].values()
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise BadWeights(f"{indexes[0]}: names a file outside its folder")
        files = [folder / name for name in sorted(set(names))]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) > 1:
            raise BadWeights(f"{folder}: {len(files)} safetensors files and no index: expected one")
    if not files:
        raise BadWeights(f"{folder}: no .safetensors file")
    return files


def export_presto(model: Presto, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes a folder that diffusers' AllegroTransformer3DModel reads; complete files only."""
    folder = Path(folder)
    if model.cfg.positions != "relative":
        raise BadWeights(
            f"model.positions is {model.cfg.positions}; diffusers' network has relative ones only"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.index.json")):
        raise BadWeights(f"{folder} already holds weights in several files: export to a new folder")
    state = {
        name: t.detach().to("cpu", dtype).contiguous() for name, t in model.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as part:
        save_file(state, part, metadata={"format": "pt"})
    fixed = {
        k: v for k, v in FIXED.items() if not k.startswith(("double", "only", "use", "norm_type"))
    }
    content = {"_class_name": "AllegroTransformer3DModel", **asdict(model.cfg), **fixed}
    write_atomic(folder / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def _check(folder: Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected if name not in shapes]
    problems += [f"unknown {name}" for name in shapes if name not in expected]
    problems += [
        f"{name} is {shapes[name]}, expected {tuple(t.shape)}"
        for name, t in expected.items()
        if name in shapes and shapes[name] != t.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BadWeights(
            f"{folder}: {'; '.join(problems[:5])}{more}; expected weights of a network with these "
            "settings (system.model), or of its config.json"
        )
