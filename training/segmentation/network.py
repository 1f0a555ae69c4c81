"""The network of the segmentation experiment: the trainer's, with a dense cross-attention.

All variants have the same network and get the same captions; they differ in two masks and in time
codes (VARIANTS in training/segmentation/config.py). Captions are short sequences of words, so
cross-attention computes the logits of all frames and all words, and masks or biases them. With the
weights of training/sca.py's schedules it returns what the trainer's cross-attention does
(tests/training/test_segmentation.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attention import choose_backend
from training.codecs import PixelCodec
from training.config import ModelConfig, PixelConfig
from training.layers import TextLayer, modulate, position_sinusoids, position_table, rope_table
from training.model import Block, Presto, compute_dtype, self_attention
from training.segmentation.config import TextConfig, Variant
from training.segmentation.videos import END, PADDING, WORDS, Videos

# Prompt Relay's default: a weight of 1e-3 two frames outside a caption's span
RELAY_SLOPE = math.log(1e3) / 2**2  # per squared frame
NEVER = -1e3  # frames; the span of a caption that no frame attends to
MASKED = -1e4  # logit


@dataclass(frozen=True)
class Prompts:
    """The captions of B videos, with their times in frames."""

    tokens: Tensor  # (B, S, CAPTION_TOKENS)
    spans: Tensor  # (B, S, 2) first frame of each caption, and the frame after its last
    one_caption: Tensor  # (B,) bool: all captions are one text for the whole video
    offset: Tensor  # (B,) frames, of the time codes

    @classmethod
    def of(cls, videos: Videos, device: torch.device | str = "cpu") -> Prompts:
        starts = torch.from_numpy(videos.starts).float().to(device)
        spans = torch.stack([starts[:, :-1], starts[:, 1:]], 2)
        tokens = torch.from_numpy(videos.tokens()).to(device)
        whole = torch.zeros(len(tokens), dtype=torch.bool, device=device)
        return cls(tokens, spans, whole, torch.zeros(len(tokens), device=device))

    def with_shifted_borders(self, frames: Tensor) -> Prompts:
        """All borders between captions moved by `frames` (B,), but not out of the video; the first
        and the last caption keep a frame."""
        end = self.spans[:, -1:, 1]
        borders = (self.spans[:, 1:, 0] + frames[:, None]).clamp(min=1)
        borders = torch.minimum(borders, end - 1)
        starts = torch.cat([torch.zeros_like(end), borders, end], 1)
        return replace(self, spans=torch.stack([starts[:, :-1], starts[:, 1:]], 2))

    def dropped(self, which: Tensor) -> Prompts:
        """Returns the prompts without the words of the samples `which` (B,); each caption's END
        stays."""
        words = (self.tokens != END) & which[:, None, None]
        return replace(self, tokens=self.tokens.masked_fill(words, PADDING))

    def caption_of_token(self) -> Tensor:
        """(B, S * CAPTION_TOKENS)"""
        captions, length = self.tokens.shape[1:]
        number = torch.arange(captions, device=self.tokens.device).repeat_interleave(length)
        return number * ~self.one_caption[:, None]

    def effective_spans(self) -> Tensor:
        """(B, S, 2): the spans; with one caption the first has the whole video's."""
        whole = torch.full_like(self.spans, NEVER)
        whole[:, 0, 0], whole[:, 0, 1] = 0, self.spans[:, -1, 1]
        return torch.where(self.one_caption[:, None, None], whole, self.spans)


class Plan(NamedTuple):
    """Which words the frames attend to. A frame's result is a weighted mean over up to K captions;
    where it attends to many as one text, K is 1."""

    bias: Tensor  # (K, B, T, L) 0 or MASKED
    weight: Tensor  # (K, B, T)
    distance: Tensor | None  # (B, T, L) squared frames to the caption's span


def make_plan(prompts: Prompts, frames: int, attends: str) -> Plan:
    caption, spans = prompts.caption_of_token(), prompts.effective_spans()
    is_word = prompts.tokens.flatten(1) != PADDING
    if attends in ("all", "near"):
        allowed = is_word[None, :, None].expand(-1, -1, frames, -1)
        weight = torch.ones(allowed.shape[:3], device=caption.device)
    else:
        weights = frame_weights(spans, frames, 1 if attends == "widened" else 0)
        # the captions that a frame attends to come first: one, with overlap up to two
        most = 2 if attends == "widened" else 1
        weight, number = (x[:, :most].movedim(1, 0) for x in weights.sort(1, descending=True))
        allowed = (number[..., None] == caption[:, None]) & is_word[:, None]
    bias = torch.where(allowed, 0.0, MASKED)
    distance = None
    if attends == "near":
        centre = torch.arange(frames, device=spans.device) + 0.5
        start, end = (x.gather(1, caption)[:, None] for x in spans.unbind(2))
        outside = torch.maximum(start - centre[:, None], centre[:, None] - end)
        distance = outside.clamp(0, -NEVER).square()
    return Plan(bias, weight, distance)


def frame_weights(spans: Tensor, frames: int, widen_frames: int) -> Tensor:
    """(B, S, frames): training/sca.py's schedule `overlapped`; with widen_frames 0 `isolated`."""
    centre = torch.arange(frames, device=spans.device) + 0.5
    start, end = spans[..., :1] - widen_frames, spans[..., 1:] + widen_frames
    covers = ((start <= centre) & (centre < end)).float()
    return covers / covers.sum(1, keepdim=True)


class DenseBlock(Block):
    """A block whose cross-attention computes all logits."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.slope_log = nn.Parameter(torch.zeros(cfg.num_attention_heads))  # variant `relative`

    def cross_attention(self, x, text, plan, backend):
        """text: (B, L, D).  plan: Plan."""
        q = self.attn2.split(self.attn2.to_q(x)).transpose(1, 2)
        k, v = (y.transpose(1, 2) for y in self.attn2.keys_values(text))  # (B, heads, L, head_dim)
        logits = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
        logits = logits.unflatten(2, (plan.bias.shape[2], -1))  # (B, heads, T, tokens, L)
        if plan.distance is not None:
            slope = RELAY_SLOPE * self.slope_log.exp()[:, None, None, None]
            logits = logits - slope * plan.distance[:, None, :, None]
        shares = [
            (logits + bias[:, None, :, None]).softmax(-1) * weight[:, None, :, None, None]
            for bias, weight in zip(plan.bias, plan.weight, strict=True)
        ]
        shares = sum(shares[1:], shares[0]).flatten(2, 3)
        return (shares.to(v.dtype) @ v).transpose(1, 2).flatten(2)


class DensePresto(Presto):
    block_class = DenseBlock


class WordEncoder(nn.Module):
    """A transformer over words with rotary positions, which depend on distances alone."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.word = nn.Embedding(len(WORDS) + 2, cfg.width)
        self.layers = nn.ModuleList(TextLayer(cfg.width, cfg.heads) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)

    def forward(self, tokens: Tensor, caption: Tensor, separate: bool) -> Tensor:
        """tokens, caption: (B, L) -> (B, L, width).  separate: words attend to those of their own
        caption only."""
        is_word = tokens != PADDING
        allowed = is_word[:, None] | torch.eye(tokens.shape[1], dtype=torch.bool).to(tokens.device)
        if separate:
            allowed = allowed & (caption[:, None] == caption[:, :, None])
        positions = is_word.cumsum(1) - 1

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            q, k = rotate_pairs(q, positions).to(v.dtype), rotate_pairs(k, positions).to(v.dtype)
            mask = allowed[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

        x = self.word(tokens)
        for layer in self.layers:
            x = layer(x, attend)
        return self.norm(x)


def rotate_pairs(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864).  x: (B, heads, L, D).  positions: (B, L)."""
    half = x.shape[-1] // 2
    speed = 10000 ** -(torch.arange(half, device=x.device) / half)
    angle = positions[:, None, :, None] * speed
    a, b = x.float().split(half, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Network(nn.Module):
    """network(latents, t, prompts) -> the prediction, of the latents' shape."""

    def __init__(self, variant: Variant, model: ModelConfig, text: TextConfig):
        super().__init__()
        self.variant = variant
        self.codec = PixelCodec(PixelConfig(frames=1, side=4))
        channels = self.codec.cfg.channels
        cfg = replace(
            model,
            in_channels=channels,
            out_channels=channels,
            patch_size=1,
            caption_channels=text.width,
            cross_attention_dim=model.width,
        )
        self.text = WordEncoder(text)
        self.presto = DensePresto(cfg)
        self.presto.reset_parameters()

    def forward(self, latents: Tensor, t: Tensor, prompts: Prompts) -> Tensor:
        presto, variant = self.presto, self.variant
        x, grid = presto.patchify(latents)
        width = presto.cfg.width
        x = x + position_table(width, grid, x.device).to(x.dtype)
        words = self.text(prompts.tokens.flatten(1), prompts.caption_of_token(), variant.separate)
        if variant.time_codes:
            frame, caption = time_codes(prompts, grid[0], width, words.shape[2])
            x = x + frame.repeat_interleave(grid[1] * grid[2], 1).to(x.dtype)
            words = words + caption.gather(
                1, prompts.caption_of_token()[..., None].expand(-1, -1, words.shape[2])
            ).to(words.dtype)
        plan = make_plan(prompts, grid[0], variant.attends)
        backend = choose_backend("auto", x.device, compute_dtype(x))
        rope = rope_table(
            presto.cfg.attention_head_dim, grid, presto.cfg.scales, x.device, torch.float32
        )
        embedded, temb = presto.adaln_single(t)
        captions = presto.caption_projection(words)
        attend = partial(self_attention, backend=backend)
        for block in presto.blocks:
            x = block(x, temb, rope, captions, plan, attend, backend)
        shift, scale = (presto.scale_shift_table + embedded[:, None]).unsqueeze(2).unbind(1)
        return presto.unpatchify(presto.proj_out(modulate(x, shift, scale)), grid)


def time_codes(prompts: Prompts, frames: int, *widths: int) -> tuple[Tensor, Tensor]:
    """Sinusoids of absolute times, of two values each: (B, frames, widths[0]) twice the frame's
    centre, (B, S, widths[1]) start and end of each caption."""
    centre = torch.arange(frames, device=prompts.spans.device) + 0.5 + prompts.offset[:, None]
    spans = prompts.effective_spans() + prompts.offset[:, None, None]

    def code(times: Tensor, width: int) -> Tensor:
        return position_sinusoids(times.flatten(), width // 2).view(*times.shape[:-1], -1)

    pairs = torch.stack([centre, centre], 2)
    return code(pairs, widths[0]), code(spans, widths[1])
