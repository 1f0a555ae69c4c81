"""The parts of Allegro that are never trained: its video codec and T5.

Both are settings that know their weights and load them when they are first asked, so a run on
latents and texts computed ahead (training/precompute.py) needs neither.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from curation.torchvision_fix import fix_torchvision
from training.clips import Size
from training.model import Text
from training.weights import BadWeights

# the codec works on tiles that overlap: frames, rows, columns, and from one tile to the next
TILE, STRIDE = (24, 320, 320), (16, 200, 240)
SHRINKS = (4, 8, 8)
NAMES = ("frames", "height", "width")
REPOSITORY = "rhymes-ai/Allegro"


@dataclass(frozen=True)
class Allegro:
    """Allegro's video VAE: 4 x 8 x 8 pixels become 4 numbers."""

    allegro: str  # folder of Allegro: vae/ in it

    channels = 4

    def latent_size(self, size: Size) -> tuple[int, int, int]:
        """Latent frames, rows and columns. ValueError for sizes that its tiles don't fill:
        diffusers would leave the rest black, without a word."""
        wanted = (size.frames, size.height, size.width)
        for name, n, tile, step in zip(NAMES, wanted, TILE, STRIDE, strict=True):
            if n < tile or (n - tile) % step:
                near = [tile + step * (max(0, (n - tile) // step) + i) for i in (0, 1)]
                raise ValueError(
                    f"system.size.{name} is {n}: Allegro's codec takes {tile} and then steps of "
                    f"{step}; the nearest are {near[0]} and {near[1]}"
                )
        frames, rows, columns = (n // by for n, by in zip(wanted, SHRINKS, strict=True))
        return frames, rows, columns

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, 2, 4, T / 4, H / 8, W / 8) fp32: mean and log-variance."""
        self.latent_size(Size(*video.shape[1:4]))
        vae = _vae(self.allegro, video.device)
        x = video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        scale = vae.config.scaling_factor
        return torch.stack([posterior.mean * scale, posterior.logvar + 2 * math.log(scale)], 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, t, h, w) -> (B, 4 t, 8 h, 8 w, 3) uint8, tile by tile."""
        shown = [n * by for n, by in zip(latents.shape[2:], SHRINKS, strict=True)]
        self.latent_size(Size(*shown))
        vae = _vae(self.allegro, latents.device)
        x = vae.decode(latents.float() / vae.config.scaling_factor).sample  # B T C H W
        return ((x.movedim(2, -1).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def weights_digest(self) -> str | None:
        return digest(Path(self.allegro, "vae"))


@dataclass(frozen=True)
class T5:
    """T5's encoder, v1.1 XXL for Allegro. Captions are read as Allegro's code reads them, in lower
    case, but not cleaned of HTML."""

    t5: str  # folder of Allegro: text_encoder/ and tokenizer/ in it
    width: Annotated[int, Ge(1)] = 4096
    max_tokens: Annotated[int, Ge(1)] = 512  # of a caption; the rest is not read

    @torch.no_grad()
    def __call__(self, captions: Sequence[Sequence[str]]) -> Text:
        """Of each sample, of each segment; no padding in what comes back."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer, encoder = _t5(self.t5, device)
        if encoder.config.d_model != self.width:
            raise BadWeights(
                f"{self.t5}: its text encoder is {encoder.config.d_model} wide, "
                f"text.width says {self.width}"
            )
        lengths, tokens = [], []
        for texts in captions:
            plain = [" ".join(text.lower().split()) for text in texts]
            read = tokenizer(
                plain,
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(device)
            out = encoder(read.input_ids, attention_mask=read.attention_mask)[0]
            of_sample = read.attention_mask.sum(1).tolist()
            lengths.append(of_sample)
            tokens += [row[:n] for row, n in zip(out, of_sample, strict=True)]
        return Text(torch.cat(tokens), lengths)

    def weights_digest(self) -> str | None:
        return digest(Path(self.t5, "text_encoder"))


@lru_cache(maxsize=1)
def _vae(folder: str, device: torch.device) -> Any:
    _require(folder, "vae")
    fix_torchvision()
    from diffusers import AutoencoderKLAllegro

    vae: Any = _opened(AutoencoderKLAllegro, folder, "vae")
    vae.enable_tiling()  # without it, it can do nothing
    vae.kernel, vae.stride = TILE, STRIDE
    overlaps = [tile - step for tile, step in zip(TILE, STRIDE, strict=True)]
    vae.tile_overlap_t, vae.tile_overlap_h, vae.tile_overlap_w = overlaps
    return vae.to(device).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _t5(folder: str, device: torch.device) -> tuple[Any, Any]:
    _require(folder, "text_encoder", "tokenizer")
    fix_torchvision()
    from transformers import AutoTokenizer, T5EncoderModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = _opened(AutoTokenizer, folder, "tokenizer")
    encoder = _opened(T5EncoderModel, folder, "text_encoder", dtype=dtype)
    return tokenizer, encoder.to(device).eval().requires_grad_(False)


def release() -> None:
    """Gives the memory of codec and text encoder back; they load again when they are asked."""
    _vae.cache_clear()
    _t5.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _opened(kind: Any, folder: str, part: str, **how: Any) -> Any:
    try:
        return kind.from_pretrained(Path(folder, part), local_files_only=True, **how)
    except Exception as error:  # whatever these libraries raise on a damaged file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BadWeights(
            f"{Path(folder, part)} can't be read ({reason[0]:.200}); get it again: "
            f"{command(folder, part)}"
        ) from error


def _require(folder: str, *parts: str) -> None:
    missing = [part for part in parts if not Path(folder, part).is_dir()]
    if missing:
        raise BadWeights(
            f"{folder}: no {' and no '.join(f'{part}/' for part in missing)} in it, where "
            f"Allegro's weights were looked for; get them: {command(folder, *missing)}"
        )


def command(folder: str, *parts: str) -> str:
    """That downloads parts of Allegro to a folder."""
    wanted = " ".join(f"'{part}/*'" for part in parts)
    return f"hf download {REPOSITORY} --include {wanted} --local-dir {folder}"


def digest(folder: Path) -> str | None:
    """Tells one folder of weights from another without reading gigabytes: configuration, and each
    file's size, first and last MiB. None where there is none."""
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    if not folder.is_dir() or not all(file.is_file() for file in files):
        return None
    found = hashlib.sha256()
    for file in files:
        size, most = file.stat().st_size, 1 << 20
        with file.open("rb") as opened:
            found.update(f"{file.name}:{size}:".encode() + opened.read(most))
            opened.seek(max(0, size - most))
            found.update(opened.read(most))
    return found.hexdigest()[:16]
