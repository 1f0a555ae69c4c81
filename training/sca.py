"""Segmented cross-attention: which latent frames attend to which captions.

A *schedule* is a matrix (segments x latent frames) of weights; each frame's weights sum to 1. All
variants of the paper are such matrices, computed by one function:

    y[t] = sum over segments s of weights[s, t] * softmax(q[t] k[s]ᵀ / sqrt(D)) v[s]

In cross-attention a query's result does not depend on other queries, so this equals the released
loop, which computes overlapping windows of frames and averages where they overlap. That loop is
wrong for a frame in three windows; this is not.
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


def segment_starts(
    spans: Sequence[tuple[float, float]], frames: int, rounding: Rounding = "nearest"
) -> list[int]:
    """The latent frame at which each segment starts, and `frames`: segments + 1 numbers.

    spans: start and end of each segment, s, without gaps. The time from the first start to the last
    end is divided evenly into latent frames. `floor` rounds as the release does: five equal
    segments of 22 frames start at 0, 4, 8, 13, 17; with `nearest` at 0, 4, 9, 13, 18.
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
    # 1e-6 of a frame: a start at the edge of a frame stays there in spite of rounding
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

    overlapped: each segment is widened by `widen_frames` on both sides; a frame in several windows
        attends to their captions with equal weight. The paper's choice.
    isolated: a frame attends to the caption of its own segment.
    sequential: a frame of segment i attends to captions 1 to i with equal weight. The paper names
        this variant without a definition; this one is for ablations.
    single: all frames attend to one caption; `spans` has one element.
    tent: between the centres of two segments, a frame attends to both captions, with weights that
        change linearly with its distance to the centres.
    """
    if mode == "single" and len(spans) != 1:
        raise ValueError(f"mode single takes one caption for the whole clip, got {len(spans)}")
    starts = segment_starts(spans, frames, rounding)
    t = np.arange(frames)
    if mode == "tent":
        centres = [(a + b - 1) / 2 for a, b in pairwise(starts)]
        rows = [np.interp(t, centres, row) for row in np.eye(len(centres))]
        return torch.from_numpy(np.stack(rows))
    windows = list(pairwise(starts))
    if mode == "overlapped":
        windows = [(a - widen_frames, b + widen_frames) for a, b in windows]
    elif mode == "sequential":
        windows = [(a, frames) for a, _ in windows]
    covers = np.array([(a <= t) & (t < b) for a, b in windows], dtype=np.float64)
    return torch.from_numpy(covers / covers.sum(0))


class Plan(NamedTuple):
    """A batch's schedules as arguments of one call of `packed_attention`; all blocks share it.

    The queries are the M tokens in their order, each for the first caption that it attends to, then
    E extra queries: n - 1 for a token that attends to n captions. Consecutive queries for the same
    caption are one sequence.

    Every batch has the same fields, and no size is 0 or 1, for torch.compile would make another
    graph for a field that is None and for such a size.
    """

    keys: Tensor  # (K,): the text tokens that each sequence attends to, end to end
    cu_q: Tensor  # (sequences + 1,) int32: where each sequence's queries start
    cu_k: Tensor  # (sequences + 1,) int32: where its keys start
    longest: Tensor  # (2,) on the CPU: the most queries and the most keys of a sequence
    shared: Tensor  # (S,): the tokens that have extra queries
    first_weight: Tensor  # (S, 1, 1): the weight of their first caption
    extra: Tensor  # (E,): the token of each extra query, as its index in `shared`
    extra_weight: Tensor  # (E, 1, 1): the weight of its caption


def make_plan(
    schedules: Sequence[Tensor],
    lengths: Sequence[Sequence[int]],
    tokens_per_frame: int,
    window: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """schedules: per sample (segments, frames); the number of segments may differ.  lengths: text
    tokens of each caption.

    window: the range of a sample's tokens on this rank, not always whole frames. Tokens after the
    last frame are padding and attend to what the last frame attends to.  dtype: of the average,
    fp32 or wider.
    """
    weights = _joined(schedules, lengths)
    first, last = window or (0, weights.shape[2] * tokens_per_frame)
    frame_of = np.minimum(np.arange(first, last) // tokens_per_frame, weights.shape[2] - 1)
    caption, weight = _captions_of_tokens(weights, [len(s) for s in schedules], frame_of)
    is_shared = caption[1] >= 0
    level, token = np.nonzero(caption[1:] >= 0)
    by_caption = np.argsort(caption[1:][level, token], kind="stable")
    level, token = level[by_caption] + 1, token[by_caption]

    query_caption = np.concatenate([caption[0], caption[level, token]])
    starts = np.union1d(np.flatnonzero(np.diff(query_caption, prepend=-1)), len(is_shared))
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
        extra=put((np.cumsum(is_shared) - 1)[token]),
        extra_weight=put(weight[level, token], dtype)[:, None, None],
    )


def _captions_of_tokens(
    weights: np.ndarray, segments: Sequence[int], frame_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n, M), n >= 2: the captions, numbered through the batch, that each token attends to, then
    -1; and their weights.

    weights: (samples, segments, frames).  segments: their number in each sample.  frame_of: the
    frame of each of a sample's tokens.
    """
    most = max(2, int((weights > 0).sum(1).max()))
    # (samples, most, frames): the segments that a frame attends to come first, in order
    order = np.argsort(weights <= 0, axis=1, kind="stable")[:, :most]
    weight = np.take_along_axis(weights, order, 1)
    first_caption = np.cumsum([0, *segments[:-1]])[:, None, None]
    caption = np.where(weight > 0, order + first_caption, -1)
    caption, weight = (
        x[:, :, frame_of].swapaxes(0, 1).reshape(most, -1) for x in (caption, weight)
    )
    # where fewer than two tokens are shared, others attend to their caption again, with weight 0
    single = np.flatnonzero(caption[1] < 0)
    lacking = single[: max(0, len(single) + 2 - caption.shape[1])]
    caption[1, lacking] = caption[0, lacking]
    return caption, weight


def _joined(schedules: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> np.ndarray:
    """The schedules as (samples, segments, frames), with zeros for the segments that a sample
    lacks, two segments at least. ValueError where they are invalid."""
    if len(schedules) != len(lengths):
        raise ValueError(f"{len(schedules)} schedules for the captions of {len(lengths)} samples")
    frames = schedules[0].shape[1]
    joined = np.zeros((len(schedules), max(2, *map(len, schedules)), frames))
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
                "an empty caption has the tokens of '' (T5: its end token)"
            )
        joined[number, :segments] = weights.cpu().numpy()  # FSDP moves the arguments to the GPU
    valid = (joined >= 0).all((1, 2)) & (abs(joined.sum(1) - 1) <= 1e-5).all(1)
    if not valid.all():
        raise ValueError(
            f"sample {valid.argmin()}: each frame's weights must be 0 or more and sum to 1"
        )
    return joined


def segmented_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, backend: str) -> Tensor:
    """q: (M, H, D), the tokens of all samples end to end.  k, v: (L, H, D), all captions end to end
    -> (M, H, D)."""
    queries = torch.cat([q, _repeat_rows(take_rows(q, plan.shared), plan.extra)])
    k, v = _repeat_rows(k, plan.keys), _repeat_rows(v, plan.keys)
    both = packed_attention(queries, k, v, plan.cu_q, plan.cu_k, plan.longest, backend)[0]
    out, extra = both.split([len(q), len(plan.extra)])
    mean = take_rows(out, plan.shared) * plan.first_weight
    mean = mean.index_add(0, plan.extra, extra * plan.extra_weight)
    return out.index_copy(0, plan.shared, mean.to(out.dtype))


def _repeat_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]; rows may repeat, and their gradients are summed in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide).index_select(0, rows).to(x.dtype)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows,) = ctx.saved_tensors
        return grad.new_zeros((ctx.size, *grad.shape[1:])).index_copy(0, rows, grad), None


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] for distinct rows. Its gradient is a copy; index_select's is an atomic addition."""
    return _TakeRows.apply(x, rows)


def reference(q: Tensor, k: Tensor, v: Tensor, schedules, lengths, tokens_per_frame: int) -> Tensor:
    """The formula at the top of this file, term by term, as a reference for tests. Slow.

    q: (B, frames * tokens_per_frame, H, D).  k, v: (L, H, D), all captions end to end.
    """
    out, start = torch.zeros_like(q), 0
    for sample, (weights, of_sample) in enumerate(zip(schedules, lengths, strict=True)):
        for row, length in zip(weights, of_sample, strict=True):
            keys, values = k[start : start + length], v[start : start + length]
            logits = torch.einsum("nhd,lhd->hnl", q[sample], keys) / math.sqrt(q.shape[-1])
            attended = torch.einsum("hnl,lhd->nhd", logits.softmax(-1), values)
            share = row.to(q).repeat_interleave(tokens_per_frame)
            out = out.index_add(
                0, torch.tensor([sample], device=q.device), (attended * share[:, None, None])[None]
            )
            start += length
    return out
