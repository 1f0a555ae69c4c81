"""Presto's network: Allegro's video transformer with segmented cross-attention.

    latents (B, C, T, H, W)      t (B,)               captions' T5 tokens (L, 4096)
            │ pos_embed            │ adaln_single              │ caption_projection
            ▼                      ▼                           ▼
    x (B, N, D) ─────────┐    temb (B, 6 D)               text (L, D)      plan (training/sca.py)
                         ▼         │                           │                 │
    ┌ Block, 32 times ─────────────┼───────────────────────────┼─────────────────┼───────┐
    │  self-attention     x + gate * attn1(modulate(x)), rotary positions on q, k │       │
    │  cross-attention    x + attn2(x, text): each frame to the captions of the plan     │
    │  feed-forward       x + gate * ff(modulate(x))                                     │
    └────────────────────────┬───────────────────────────────────────────────────────────┘
                             ▼ modulate, proj_out, unpatchify
                      prediction (B, C, T, H, W)

| symbol | meaning | 88 frames of 720 x 1280 px |
|---|---|---|
| B | samples of a batch | 1 |
| C, T, H, W | latent channels, frames, rows, columns | 4, 22, 90, 160 |
| N | tokens of a sample: T * H/2 * W/2, ordered by frame, row, column | 79,200 |
| D = heads * head_dim | width | 2304 = 24 * 96 |
| L | text tokens of all captions of a batch, end to end, without padding | about 500 |
| M | B * N, the queries of cross-attention | 79,200 |

Parameters have Allegro's names, which are also those of diffusers, so weights of Allegro and Presto
load without conversion. Formulas: Allegro (arXiv 2410.15458), PixArt's adaLN-single (arXiv
2310.00426).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from training import sca
from training.attention import attention, choose_backend, save_attention, save_products
from training.config import ModelConfig, RecomputePolicy
from training.layers import (
    Attention,
    CaptionProjection,
    FeedForward,
    PatchEmbedding,
    TimeEmbedding,
    modulate,
    position_table,
    rope_table,
    rotate,
)

POLICIES = {"attention": save_attention, "products": save_products}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Text(NamedTuple):
    """The captions of a batch without padding, end to end by sample and segment. A NamedTuple
    because FSDP (torch 2.11) finds the tensors of a module's output in tuples only."""

    tokens: Tensor  # (L, caption_channels)
    lengths: Sequence[Sequence[int]]  # tokens per sample, per segment
    kv: tuple[tuple[Tensor, Tensor], ...] | None = None  # per block K and V: Presto.cache_text


@dataclass(frozen=True)
class SequenceShard:
    """With sequence parallelism: the range of every sample's tokens that this rank computes."""

    window: tuple[int, int]
    # wraps self-attention so that it takes and returns the local tokens and attends to all
    distribute: Callable[[Attend], Attend]
    gather: Callable[[Tensor], Tensor]  # (B, local tokens, C) -> (B, all tokens, C)


class Block(nn.Module):
    """Self-attention over all tokens, segmented cross-attention to the captions, feed-forward."""

    recompute_policy: RecomputePolicy = "all"  # see Presto.set_recompute_policy

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.attn1 = Attention(cfg.width, cfg.num_attention_heads, cfg.width)
        self.attn2 = Attention(cfg.width, cfg.num_attention_heads, cfg.cross_attention_dim)
        self.ff = FeedForward(cfg.width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, cfg.width) / cfg.width**0.5)

    def forward(self, x, temb, rope, text, plan, attend, backend):
        """x: (B, N, D).  temb: (B, 6 D).  rope: see `rope_table`.  text: (L, D), or its K and V.
        plan: sca.Plan.  attend: self-attention.  backend: of cross-attention."""
        args = (x, temb, rope, text, plan, attend, backend)
        if self.recompute_policy == "all" or not torch.is_grad_enabled():
            return self.compute(*args)
        extra: dict[str, Any] = {}
        if self.recompute_policy != "nothing":
            policy = POLICIES[self.recompute_policy]
            extra["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(
            self.compute, *args, use_reentrant=False, preserve_rng_state=False, **extra
        )

    def keys_values(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn2.keys_values(captions)

    def compute(self, x, temb, rope, text, plan, attend, backend):
        table = (self.scale_shift_table + temb.unflatten(-1, (6, -1))).unsqueeze(2)  # (B, 6, 1, D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.unbind(1)
        h = modulate(x, shift_a, scale_a)
        k, v = self.attn1.keys_values(h)
        q = rotate(self.attn1.split(self.attn1.to_q(h)), *rope)
        h = attend(q, rotate(k, *rope), v).flatten(2)
        x = x + gate_a * self.attn1.to_out[0](h)
        # as in Allegro: no norm, no modulation, no gate, no positions around cross-attention
        h = self.cross_attention(x, text, plan, backend)
        x = x + self.attn2.to_out[0](h).view_as(x)
        return x + gate_m * self.ff(modulate(x, shift_m, scale_m))

    def cross_attention(self, x, text, plan, backend):
        """(M, D), before the output projection."""
        q = self.attn2.split(self.attn2.to_q(x)).flatten(0, 1)
        k, v = text if isinstance(text, tuple) else self.attn2.keys_values(text)
        return sca.segmented_attention(q, k, v, plan, backend).flatten(1)


class Presto(nn.Module):
    """model(latents, t, text, schedules) -> the prediction, of the latents' shape."""

    block_class: type[Block] = Block

    def __init__(self, cfg: ModelConfig | None = None):
        """cfg: None for Allegro's."""
        super().__init__()
        self.cfg = cfg = cfg or ModelConfig()
        if cfg.attention_head_dim % 6:
            raise ValueError(
                f"attention_head_dim {cfg.attention_head_dim}: expected a multiple of 6 "
                "(pairs on three axes)"
            )
        self.is_compiled = False
        self.attention = "auto"  # back end: see training/attention.py
        # with sequence parallelism: a sample's number of tokens -> this rank's part
        self.shard_sequence: Callable[[int], SequenceShard] | None = None
        self.rope_dtype = torch.float32  # bfloat16 rounds angles as Allegro's code does
        self.pos_embed = PatchEmbedding(cfg.in_channels, cfg.width, cfg.patch_size)
        self.adaln_single = TimeEmbedding(cfg.width)
        self.caption_projection = CaptionProjection(cfg.caption_channels, cfg.width)
        self.transformer_blocks = nn.ModuleList(
            self.block_class(cfg) for _ in range(cfg.num_layers)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, cfg.width) / cfg.width**0.5)
        self.proj_out = nn.Linear(cfg.width, cfg.patch_size**2 * cfg.out_channels)

    def forward(
        self, latents: Tensor, t: Tensor, text: Text, schedules: Sequence[Tensor]
    ) -> Tensor:
        """latents: (B, C, T, H, W).  t: (B,) in 0..1000.  schedules: per sample (segments, T), see
        sca.schedule."""
        x, grid = self.patchify(latents)
        if self.cfg.positions == "space":
            x = x + position_table(self.cfg.width, grid, x.device).to(x.dtype)
        shard = self.shard_sequence(x.shape[1]) if self.shard_sequence else None
        first, last = shard.window if shard else (0, x.shape[1])
        x = x[:, first:last].contiguous()  # torch.compile would compile again for a slice's strides
        backend = choose_backend(self.attention, x.device, compute_dtype(x))
        if any(w.shape[1] != grid[0] for w in schedules):
            found = next(w.shape[1] for w in schedules if w.shape[1] != grid[0])
            raise ValueError(f"the schedule has {found} frames, the latents have {grid[0]}")
        plan = sca.make_plan(
            schedules,
            text.lengths,
            grid[1] * grid[2],
            (first, last),
            x.device,
            torch.promote_types(x.dtype, torch.float32),
        )
        rope = tuple(
            y[first:last]
            for y in rope_table(
                self.cfg.attention_head_dim, grid, self.cfg.scales, x.device, self.rope_dtype
            )
        )
        attend: Attend = partial(self_attention, backend=backend)
        if shard:
            attend = shard.distribute(attend)
        embedded, temb = self.adaln_single(t)
        if text.kv:
            texts: Sequence[Any] = text.kv
            if self.is_compiled:
                _mark_dynamic_sizes([x for block in text.kv for x in block], plan)
        else:
            captions = self.caption_projection(text.tokens)
            if self.is_compiled:
                captions = _with_two_tokens(captions)
                _mark_dynamic_sizes([captions], plan)
            texts = [captions] * len(self.blocks)
        for block, block_text in zip(self.blocks, texts, strict=True):
            x = block(x, temb, rope, block_text, plan, attend, backend)
        shift, scale = (self.scale_shift_table + embedded[:, None]).unsqueeze(2).unbind(1)
        x = self.proj_out(modulate(x, shift, scale))
        return self.unpatchify(shard.gather(x) if shard else x, grid)

    def patchify(self, latents: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """(B, C, T, H, W) -> (B, tokens, D) and the token grid (T, H / patch, W / patch)."""
        batch, channels, frames, *size = latents.shape
        if channels != self.cfg.in_channels or any(n % self.cfg.patch_size for n in size):
            raise ValueError(
                f"latents {tuple(latents.shape)}: expected (batch, {self.cfg.in_channels}, frames, "
                f"height, width), height and width multiples of {self.cfg.patch_size}"
            )
        x = self.pos_embed.proj(latents.transpose(1, 2).flatten(0, 1))
        grid = (frames, x.shape[2], x.shape[3])
        return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1]), grid

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        p = self.cfg.patch_size
        x = x.unflatten(1, grid).unflatten(-1, (p, p, self.cfg.out_channels))  # b t h w p q c
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)

    @property
    def blocks(self) -> list[Block]:
        return [b for b in self.transformer_blocks if isinstance(b, Block)]

    def cache_text(self, text: Text) -> Text:
        """K and V of every block, for sampling: text does not depend on t."""
        captions = self.caption_projection(text.tokens)
        if self.is_compiled:
            captions = _with_two_tokens(captions)
        return text._replace(kv=tuple(b.keys_values(captions) for b in self.blocks))

    def set_recompute_policy(self, policy: RecomputePolicy) -> None:
        """Sets which activations of a block are kept for backward; it computes the others again.

        nothing: the block's input only.  attention: also self-attention's output (twice the memory
        of `nothing`).  products: also the feed-forward's output (three times).  all: all of them
        (about 25 times).
        """
        for block in self.blocks:
            block.recompute_policy = policy

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Compiles one block for all: seconds, not minutes. Activation checkpointing is inside the
        compiled function, FSDP's hooks, which gather parameters, are outside."""
        self.is_compiled = True
        for block in self.blocks:
            block.forward = torch.compile(block.forward, backend=backend)  # type: ignore[method-assign]

    def reset_parameters(self) -> None:
        """Initializes as PixArt does: each block is nearly the identity, cross-attention and the
        network's output are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.constant_(cast(Tensor, module.bias), 0)
        time = self.adaln_single
        mlp = time.emb.timestep_embedder
        for linear in (mlp.linear_1, mlp.linear_2, time.linear):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.normal_(self.scale_shift_table, std=self.cfg.width**-0.5)
        for block in self.blocks:
            nn.init.zeros_(cast(nn.Linear, block.attn2.to_out[0]).weight)
            nn.init.normal_(block.scale_shift_table, std=self.cfg.width**-0.5)


def _with_two_tokens(captions: Tensor) -> Tensor:
    """The captions with two tokens at least: for a size of 1 torch.compile would make another
    graph."""
    return nn.functional.pad(captions, (0, 0, 0, 1)) if len(captions) == 1 else captions


def _mark_dynamic_sizes(texts: Sequence[Tensor], plan: sca.Plan) -> None:
    """Marks the sizes that depend on the captions, so that torch.compile makes one graph for all of
    them."""
    for tensor in (*texts, *plan._replace(longest=texts[0])):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def self_attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """`attention` without the log-sum-exp."""
    return attention(q, k, v, backend)[0]


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with x: autocast's, or x's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def forward_flops(cfg: ModelConfig, grid: tuple[int, int, int], text_tokens: float) -> float:
    """Floating-point operations of one sample's forward; a training step does three times as many.

    2 per weight and token, 4 N L D per attention.  grid: tokens along t, h, w.  text_tokens: those
    that a frame attends to on average. Recomputation is not counted.
    """
    n, d = grid[0] * grid[1] * grid[2], cfg.width
    patches = 2 * n * d * cfg.patch_size**2 * (cfg.in_channels + cfg.out_channels)
    # self-attention, cross-attention's Q and output, feed-forward
    linear = 2 * n * d * d * (4 + 2 + 8)
    return patches + cfg.num_layers * (linear + 4 * n * n * d + 4 * n * text_tokens * d)


def activation_bytes(cfg: ModelConfig, grid: tuple[int, int, int], policy: str | None) -> float:
    """About the memory of one sample's activations in fp32: those that the recompute policy keeps,
    and those of one block. policy: None without gradients."""
    kept = {None: 0, "nothing": 1, "attention": 2, "products": 3, "all": 25}[policy]
    return 4 * math.prod(grid) * cfg.width * (kept * cfg.num_layers + 16)
