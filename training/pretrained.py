"""The parts of Allegro that are never trained: its video VAE and T5.

Both load their weights when they are first used, so a run on cached latents and texts
(training/precompute.py) needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from curation.config import ConfigError
from curation.torchvision_fix import fix_torchvision
from training.config import AllegroConfig, BytesConfig, PixelConfig, Size, T5Config
from training.model import Text
from training.text_encoder import CutCaptions
from training.weights import BadWeights

REPOSITORY = "rhymes-ai/Allegro"
_vaes: dict[AllegroConfig, Any] = {}  # the last one used


class AllegroCodec:
    """Allegro's video VAE; its weights load when they are first needed. Tile by tile, a clip at a
    time, in the precision of the settings, also where the caller computes under autocast."""

    def __init__(self, cfg: AllegroConfig):
        self.cfg = cfg

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, 2, 4, T / 4, H / 8, W / 8) fp32: mean and log-variance."""
        self.cfg.latent_size(Size(*video.shape[1:4]))
        vae = _vae(self.cfg).to(video.device)
        x = video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with torch.autocast(video.device.type, enabled=False):
            posterior = vae.encode(x).latent_dist
        scale = vae.config.scaling_factor
        return torch.stack([posterior.mean * scale, posterior.logvar + 2 * math.log(scale)], 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, t, h, w) -> (B, 4 t, 8 h, 8 w, 3) uint8. On a GPU two runs may differ in the last
        bits, unless torch.use_deterministic_algorithms is set."""
        shown = [n * by for n, by in zip(latents.shape[2:], self.cfg.shrinks, strict=True)]
        self.cfg.latent_size(Size(*shown))
        vae = _vae(self.cfg).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False), _fastest_kernels():
            x = vae.decode(latents.float() / vae.config.scaling_factor).sample  # B T C H W
        return ((x.movedim(2, -1).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class T5Encoder:
    """T5's encoder; its weights load when they are first needed. Captions are cleaned as in
    Allegro's code."""

    def __init__(self, cfg: T5Config):
        self.cfg = cfg
        self.cut = CutCaptions(cfg.max_tokens, "tokens", "system.text.max_tokens")

    @torch.no_grad()
    def __call__(self, captions: Sequence[Sequence[str]]) -> Text:
        """captions: per sample, per segment. The tokens have no padding."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer, encoder = _t5(self.cfg.t5, device)
        if encoder.config.d_model != self.cfg.width:
            raise BadWeights(
                f"{self.cfg.t5}: its text encoder is {encoder.config.d_model} wide, "
                f"text.width is {self.cfg.width}"
            )
        lengths, tokens = [], []
        for texts in captions:
            cleaned = [clean_caption(text) for text in texts]
            for text, ids in zip(texts, tokenizer(cleaned).input_ids, strict=True):
                self.cut.check(text, len(ids))
            read = tokenizer(
                cleaned,
                padding=True,
                truncation=True,
                max_length=self.cfg.max_tokens,
                return_tensors="pt",
            ).to(device)
            out = encoder(read.input_ids, attention_mask=read.attention_mask)[0]
            lengths.append(read.attention_mask.sum(1).tolist())
            tokens += [row[:n] for row, n in zip(out, lengths[-1], strict=True)]
        return Text(torch.cat(tokens), lengths)


@lru_cache(maxsize=4096)
def clean_caption(text: str) -> str:
    """Cleans a caption for T5 as Allegro and Presto do, with diffusers' code, twice: lower case,
    one kind of quotes and of dashes, without HTML, addresses, file names and brackets."""
    fix_torchvision()
    from diffusers import AllegroPipeline

    for package, module in (("beautifulsoup4", "bs4"), ("ftfy", "ftfy")):
        if find_spec(module) is None:
            raise ConfigError(
                f"captions for T5 are cleaned with {package}, which is not installed: "
                f"pip install {package}"
            )
    for _ in range(2):
        text = AllegroPipeline._clean_caption(cast(Any, AllegroPipeline), text)
    return text


def _vae(cfg: AllegroConfig) -> Any:
    if cfg not in _vaes:
        _require(cfg.allegro, "vae")
        fix_torchvision()
        from diffusers import AutoencoderKLAllegro

        _vaes.clear()
        _vaes[cfg] = prepare_vae(_load(AutoencoderKLAllegro, cfg.allegro, "vae"), cfg)
    return _vaes[cfg]


def prepare_vae(vae: Any, cfg: AllegroConfig) -> Any:
    """Sets up diffusers' VAE: tiles, precision and, where there is a GPU, compilation of encoder
    and decoder, each at its first tile."""
    vae.enable_tiling()  # encode and decode need it
    vae.enable_slicing()  # tiling holds one clip
    vae.kernel, vae.stride = cfg.tile, cfg.stride
    overlaps = [tile - step for tile, step in zip(cfg.tile, cfg.stride, strict=True)]
    vae.tile_overlap_t, vae.tile_overlap_h, vae.tile_overlap_w = overlaps
    for network in (vae.encoder, vae.decoder):
        if cfg.precision == "bf16":
            _convert_to_bf16(network)
        if torch.cuda.is_available():
            network.compile()
    return vae.eval().requires_grad_(False)


def _convert_to_bf16(network: Any) -> None:
    """Weights in bf16, channels last. Tiles enter and leave in fp32, in which they are blended."""
    network.to(torch.bfloat16)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        if weight.ndim in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.ndim])
    network.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(), *args[1:]))
    network.register_forward_hook(lambda _, args, out: out.float())


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """cuDNN measures its kernels at the first tile and uses the fastest. Not for encoding, whose
    latents are kept and should not depend on the measurement."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = before or not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        cudnn.benchmark = before


@lru_cache(maxsize=1)
def _t5(folder: str, device: torch.device) -> tuple[Any, Any]:
    _require(folder, "text_encoder", "tokenizer")
    fix_torchvision()
    from transformers import AutoTokenizer, T5EncoderModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = _load(AutoTokenizer, folder, "tokenizer")
    encoder = _load(T5EncoderModel, folder, "text_encoder", dtype=dtype)
    return tokenizer, encoder.to(device).eval().requires_grad_(False)


def free_memory() -> None:
    """Frees the device's memory of codec and text encoder. The codec moves to the CPU, because
    another object would be compiled again; the text encoder loads again when it is used."""
    for vae in _vaes.values():
        vae.to("cpu")
    _t5.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(kind: Any, folder: str, part: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(Path(folder, part), local_files_only=True, **options)
    except Exception as error:  # these libraries raise many types for a damaged file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BadWeights(
            f"{Path(folder, part)} can't be read ({reason[0]:.200}); download it again: "
            f"{download_command(folder, part)}"
        ) from error


def check_weights(part: PixelConfig | AllegroConfig | BytesConfig | T5Config) -> None:
    """Raises BadWeights where the weights of a codec or text encoder are missing."""
    if isinstance(part, AllegroConfig):
        _require(part.allegro, "vae")
    elif isinstance(part, T5Config):
        _require(part.t5, "text_encoder", "tokenizer")


def _require(folder: str, *parts: str) -> None:
    missing = [part for part in parts if not Path(folder, part).is_dir()]
    if missing:
        raise BadWeights(
            f"{folder}: no {' and no '.join(f'{part}/' for part in missing)} in it; expected a "
            f"folder of Allegro's weights; get them: {download_command(folder, *missing)}"
        )


def download_command(folder: str, *parts: str) -> str:
    """The command that downloads parts of Allegro to a folder."""
    wanted = " ".join(f"'{part}/*'" for part in parts)
    return f"hf download {REPOSITORY} --include {wanted} --local-dir {folder}"
