"""Segmented cross-attention: which frame listens to which caption, as data.

A *schedule* is a matrix (segments x latent frames) of weights; each frame's weights sum to 1. All
variants of the paper are such matrices, and one attention function serves them all:

    y[t] = sum over segments s of weights[s, t] * softmax(q[t] k[s]ᵀ / sqrt(D)) v[s]

A query meets no other query in cross-attention, so this equals the released loop, which cuts the
frames into windows and averages where windows overlap; it also holds where that loop goes wrong (a
frame in three windows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.attention import packed_attention
from training.config import Mode, Rounding


def cut_points(
    spans: Sequence[tuple[float, float]], frames: int, rounding: Rounding = "nearest"
) -> list[int]:
    """Where segments start and end, in latent frames: segments + 1 numbers from 0 to `frames`.

    spans: start and end of each segment, s, one after the other without a gap. The clip's time
    line, from the first start to the last end, is spread evenly over the latent frames. `floor` is
    what the release does with five equal segments: 0, 4, 8, 13, 17, 22 of 22 frames; `nearest`
    gives 0, 4, 9, 13, 18, 22.
    """
    if not spans or frames < 1:
        raise ValueError(f"a schedule needs a segment and a frame, got {len(spans)} and {frames}")
    start, end = spans[0][0], spans[-1][1]
    for number, (left, right) in enumerate(spans, 1):
        if not right > left:
            raise ValueError(
                f"segment {number} ends at {right} s, before or where it starts ({left} s)"
            )
    for number, (one, two) in enumerate(pairwise(spans), 1):
        if abs(one[1] - two[0]) > 1e-3:
            raise ValueError(
                f"segment {number} ends at {one[1]} s and segment {number + 1} starts at {two[0]} s"
                ": expected segments that follow each other without gap or overlap"
            )
    inner = [(s - start) / (end - start) * frames for s, _ in spans[1:]]
    # 1e-6 of a frame: a cut that lies on a frame's edge stays there whatever the division rounds to
    shift = 0.5 if rounding == "nearest" else 1e-6
    return [0, *(math.floor(x + shift) for x in inner), frames]


def schedule(
    spans: Sequence[tuple[float, float]],
    frames: int,
    mode: Mode = "overlapped",
    rounding: Rounding = "nearest",
    widen_frames: int = 1,
) -> Tensor:
    """Weights (segments, frames), float64; each column sums to 1. Times of `spans` in s.

    overlapped: each segment widened by `widen_frames` on both sides, plain mean where windows meet
    (the paper's
        choice).  isolated: each frame hears its own segment's caption.
    sequential: segment i hears captions 1..i with equal weight. The paper names this variant
    without giving its
        rule; this reading of it is ours, for ablations.
    single: one caption for the whole clip; `spans` then holds one.
    tent: between the centres of two segments a frame hears both, the nearer one more (linear).
    """
    if mode == "single" and len(spans) != 1:
        raise ValueError(f"mode single takes one caption for the whole clip, got {len(spans)}")
    cuts = cut_points(spans, frames, rounding)
    t = np.arange(frames)
    if mode == "tent":
        centres = [(a + b - 1) / 2 for a, b in pairwise(cuts)]
        rows = [np.interp(t, centres, row) for row in np.eye(len(centres))]
        return torch.from_numpy(np.stack(rows))
    windows = list(pairwise(cuts))
    if mode == "overlapped":
        windows = [(a - widen_frames, b + widen_frames) for a, b in windows]
    elif mode == "sequential":
        windows = [(a, frames) for a, _ in windows]
    covers = np.array([(a <= t) & (t < b) for a, b in windows], dtype=np.float64)
    return torch.from_numpy(covers / covers.sum(0))


class Plan(NamedTuple):
    """A batch's schedules as one call of `packed_attention`; computed once, used by every block.

    Its queries are the M tokens in their order, each with the first caption that it attends to, and
    then E extra ones: a token that attends to n captions has n - 1 of them. Queries that follow
    each other and attend to the same caption are one sequence.

    Every batch has the same fields, and no size is 0 or 1: torch.compile makes a graph of its own
    for a field that is None and for such a size.
    """

    keys: Tensor  # (K,): the text tokens of each sequence, end to end
    cu_q: Tensor  # (sequences + 1,) int32: where each sequence's queries start
    cu_k: Tensor  # (sequences + 1,) int32: where its keys start
    longest: Tensor  # (2,) on the CPU: the most queries and the most keys of a sequence
    shared: Tensor  # (S,): the tokens that have extra queries
    first_weight: Tensor  # (S, 1, 1): of the first caption of each of them
    slot: Tensor  # (E,): where the token of an extra query lies in `shared`
    weight: Tensor  # (E, 1, 1): of its caption


def plan(
    schedules: Sequence[Tensor],
    lengths: Sequence[Sequence[int]],
    tokens_per_frame: int,
    window: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """schedules: per sample (segments, frames); samples may differ in segments.  lengths: text
    tokens of each caption.

    window: the range of a sample's tokens that lie here (a sequence shard, not always whole frames;
    past the last frame lies padding, which hears what the last frame hears).  dtype: of the
    average, fp32 or wider.
    """
    weights = _checked(schedules, lengths)
    frames = weights.shape[2]
    first, last = window or (0, frames * tokens_per_frame)
    frame_of = np.minimum(np.arange(first, last) // tokens_per_frame, frames - 1)
    depth = max(2, int((weights > 0).sum(1).max()))
    # (samples, depth, frames): the segments that a frame attends to, in order, and their weights
    order = np.argsort(weights <= 0, axis=1, kind="stable")[:, :depth]
    share = np.take_along_axis(weights, order, 1)
    offsets = np.cumsum([0, *(len(s) for s in schedules[:-1])])[:, None, None]
    # (depth, M): each token's captions in order and their weights; -1 where there is none
    caption, weight = (
        x[:, :, frame_of].swapaxes(0, 1).reshape(depth, -1)
        for x in (np.where(share > 0, order + offsets, -1), share)
    )
    # where fewer than two tokens are shared, others attend to their caption again with weight 0
    single = np.flatnonzero(caption[1] < 0)
    lacking = single[: max(0, len(single) + 2 - caption.shape[1])]
    caption[1, lacking] = caption[0, lacking]
    is_shared = caption[1] >= 0
    level, token = np.nonzero(caption[1:] >= 0)
    by_caption = np.argsort(caption[1:][level, token], kind="stable")
    level, token = level[by_caption] + 1, token[by_caption]

    query_caption = np.concatenate([caption[0], caption[level, token]])
    starts = np.union1d(np.flatnonzero(np.diff(query_caption, prepend=-1)), caption.shape[1])
    text = np.array([n for of_sample in lengths for n in of_sample])
    sizes = text[query_caption[starts]]
    ends = np.cumsum(sizes)
    first_keys = (np.cumsum(text) - text)[query_caption[starts]]
    keys = np.arange(ends[-1]) + np.repeat(first_keys - ends + sizes, sizes)
    most_queries = np.diff(starts, append=len(query_caption)).max()

    def put(array: np.ndarray, kind: torch.dtype = torch.int64) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, kind)

    return Plan(
        keys=put(keys),
        cu_q=put(np.append(starts, len(query_caption)), torch.int32),
        cu_k=put(np.append(0, ends), torch.int32),
        longest=torch.tensor([most_queries, sizes.max()]),
        shared=put(np.flatnonzero(is_shared)),
        first_weight=put(weight[0, is_shared], dtype)[:, None, None],
        slot=put((np.cumsum(is_shared) - 1)[token]),
        weight=put(weight[level, token], dtype)[:, None, None],
    )


def _checked(schedules: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> np.ndarray:
    """(samples, most segments, 2 or more, frames): zeros for the segments that a sample lacks."""
    if len(schedules) != len(lengths):
        raise ValueError(f"{len(schedules)} schedules for the captions of {len(lengths)} samples")
    frames = schedules[0].shape[1]
    together = np.zeros((len(schedules), max(2, *map(len, schedules)), frames))
    for number, (weights, of_sample) in enumerate(zip(schedules, lengths, strict=True)):
        segments = len(weights)
        if segments != len(of_sample):
            raise ValueError(
                f"sample {number}: {len(of_sample)} captions for a schedule of {segments} segments"
            )
        if weights.shape[1] != frames:
            raise ValueError(
                f"sample {number} has {weights.shape[1]} latent frames, sample 0 {frames}"
            )
        if min(of_sample) < 1:
            raise ValueError(
                f"sample {number}: caption {list(of_sample).index(min(of_sample))} has no tokens; "
                "an empty caption is what the encoder makes of '' (T5: its end mark)"
            )
        together[number, :segments] = weights.cpu().numpy()  # FSDP moves what it is given
    right = (together >= 0).all((1, 2)) & (abs(together.sum(1) - 1) <= 1e-5).all(1)
    if not right.all():
        raise ValueError(
            f"sample {right.argmin()}: each frame's weights must be 0 or more and sum to 1"
        )
    return together


def segmented_attention(q: Tensor, k: Tensor, v: Tensor, how: Plan, backend: str) -> Tensor:
    """q: (M, H, D), the tokens of all samples end to end.  k, v: (L, H, D), all captions end to end
    -> (M, H, D)."""
    queries = torch.cat([q, repeat(take(q, how.shared), how.slot)])
    k, v = repeat(k, how.keys), repeat(v, how.keys)
    both = packed_attention(queries, k, v, how.cu_q, how.cu_k, how.longest, backend)[0]
    out, extra = both.split([len(q), len(how.slot)])
    mean = take(out, how.shared) * how.first_weight
    mean = mean.index_add(0, how.slot, extra * how.weight)
    return out.index_copy(0, how.shared, mean.to(out.dtype))


def repeat(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] for rows that may come again: their gradients are summed in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide).index_select(0, rows).to(x.dtype)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows,) = ctx.saved_tensors
        return grad.new_zeros((ctx.size, *grad.shape[1:])).index_copy(0, rows, grad), None


def take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] for rows that differ from each other: its gradient is a copy, where index_select's
    adds atomically."""
    return _Take.apply(x, rows)


def reference(q: Tensor, k: Tensor, v: Tensor, schedules, lengths, tokens_per_frame: int) -> Tensor:
    """The definition, term by term: what every fast path is tested against. Slow; gradients flow.

    q: (B, frames * tokens_per_frame, H, D).  k, v: (L, H, D), all captions end to end.
    """
    out, at = torch.zeros_like(q), 0
    for sample, (weights, of_sample) in enumerate(zip(schedules, lengths, strict=True)):
        for row, length in zip(weights, of_sample, strict=True):
            keys, values = k[at : at + length], v[at : at + length]
            logits = torch.einsum("nhd,lhd->hnl", q[sample], keys) / math.sqrt(q.shape[-1])
            heard = torch.einsum("hnl,lhd->nhd", logits.softmax(-1), values)
            share = row.to(q).repeat_interleave(tokens_per_frame)
            out = out.index_add(
                0, torch.tensor([sample], device=q.device), (heard * share[:, None, None])[None]
            )
            at += length
    return out
