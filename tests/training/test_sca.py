import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sca import make_plan, reference, schedule, segment_starts, segmented_attention


def equal_spans(segments: int, length_s: float = 15.0) -> list[tuple[float, float]]:
    return [(length_s * i / segments, length_s * (i + 1) / segments) for i in range(segments)]


def random_inputs(
    frames: int, per_frame: int, lengths, heads=2, dim=6, seed=0, dtype=torch.float64
):
    """q (B, frames * per_frame, H, D) and packed k, v, with gradients."""
    rng = torch.Generator().manual_seed(seed)
    text = sum(sum(of_sample) for of_sample in lengths)
    shapes = [(len(lengths), frames * per_frame), (text,), (text,)]
    return [
        torch.randn(*s, heads, dim, dtype=dtype, generator=rng).requires_grad_() for s in shapes
    ]


def fast(q, k, v, schedules, lengths, per_frame, window=None):
    how = make_plan(
        schedules, lengths, per_frame, window, dtype=torch.promote_types(q.dtype, torch.float32)
    )
    return segmented_attention(q.flatten(0, 1), k, v, how, "cpu").view_as(q)


def softmax_attention(q, k, v):
    weights = (torch.einsum("nhd,lhd->hnl", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("hnl,lhd->nhd", weights, v)


def published_loop(x, captions, to_q, to_k, to_v, to_out, frames, per_frame, heads):
    """The release's cross-attention, restated from its description: windows cut by `floor` and
    widened by one frame, each projected on its own (Q and output), joined from left to right; where
    a window overlaps those joined before, over the width by which the first two windows do, both
    are averaged after the output projection.
    """
    count = len(captions)
    cuts = [int(frames * i / count) for i in range(count + 1)]
    windows = [(max(a - 1, 0), min(b + 1, frames)) for a, b in itertools.pairwise(cuts)]
    overlap = (windows[0][1] - windows[1][0]) * per_frame
    joined = None
    for (a, b), caption in zip(windows, captions, strict=True):
        q, k, v = x[a * per_frame : b * per_frame] @ to_q, caption @ to_k, caption @ to_v
        q, k, v = (y.unflatten(-1, (heads, -1)) for y in (q, k, v))
        y = softmax_attention(q, k, v).flatten(1) @ to_out
        if joined is None:
            joined = y
            continue
        both = (joined[-overlap:] + y[:overlap]) / 2
        joined = torch.cat([joined[:-overlap], both, y[overlap:]])
    return joined


def both_ways(frames: int, segments: int):
    """The published loop and ours on the same float64 numbers; ours projects Q and the output
    once."""
    torch.manual_seed(segments)
    per_frame, heads, width = 3, 2, 12
    to_q, to_k, to_v, to_out = torch.randn(4, width, width, dtype=torch.float64) / width**0.5
    x = torch.randn(frames * per_frame, width, dtype=torch.float64)
    lengths = [3 + i % 4 for i in range(segments)]
    captions = [torch.randn(n, width, dtype=torch.float64) for n in lengths]
    theirs = published_loop(x, captions, to_q, to_k, to_v, to_out, frames, per_frame, heads)
    text = torch.cat(captions)
    q, k, v = (
        (y @ w).unflatten(-1, (heads, -1)) for y, w in ((x, to_q), (text, to_k), (text, to_v))
    )
    weights = schedule(equal_spans(segments), frames, rounding="floor")
    ours = fast(q[None], k, v, [weights], [lengths], per_frame)[0].flatten(1) @ to_out
    return theirs, ours


def test_22_frames_with_5_captions_equal_the_released_loop():
    theirs, ours = both_ways(22, 5)
    assert (theirs - ours).abs().max() < 1e-14


def test_a_frame_in_three_windows_is_averaged_correctly():
    weights = schedule(equal_spans(6), 10, rounding="floor")
    assert (weights > 0).sum(0).max() == 3
    assert torch.allclose(weights[weights[:, 5] > 0, 5], torch.full((3,), 1 / 3).double())
    lengths = [[2, 3, 4, 2, 5, 3]]
    q, k, v = random_inputs(10, 3, lengths)
    want = reference(q, k, v, [weights], lengths, 3)
    assert (fast(q, k, v, [weights], lengths, 3) - want).abs().max() < 1e-14
    theirs, ours = both_ways(10, 6)
    assert theirs.shape != ours.shape or (theirs - ours).abs().max() > 1e-3


def test_segments_start_at_rounded_times_or_as_in_the_release():
    assert segment_starts(equal_spans(5), 22, "floor") == [0, 4, 8, 13, 17, 22]
    assert segment_starts(equal_spans(5), 22, "nearest") == [0, 4, 9, 13, 18, 22]
    late = [(2.0, 4.0), (4.0, 12.0), (12.0, 22.0)]  # a time line that starts at 2 s
    assert segment_starts(late, 10) == [0, 1, 5, 10]


@given(st.integers(1, 12), st.integers(1, 40))
def test_floor_rounding_equals_integer_division(segments, frames):
    want = [frames * i // segments for i in range(segments + 1)]
    assert segment_starts(equal_spans(segments, 15.0), frames, "floor") == want


def test_floor_rounding_matches_released_windows():
    weights = schedule(equal_spans(5), 22, rounding="floor")
    windows = [(int(r.nonzero()[0]), int(r.nonzero()[-1]) + 1) for r in weights]
    assert windows == [(0, 5), (3, 9), (7, 14), (12, 18), (16, 22)]


def test_each_mode_gives_a_frame_the_captions_that_its_name_states():
    spans = equal_spans(3)
    assert schedule(spans, 3, "isolated").tolist() == torch.eye(3).tolist()
    third = pytest.approx([1 / 3] * 3)
    assert schedule(spans, 3, "sequential")[:, 2].tolist() == third
    assert schedule(spans, 3, "sequential")[:, 0].tolist() == [1, 0, 0]
    assert schedule([(0, 15)], 3, "single").tolist() == [[1, 1, 1]]
    assert schedule(spans, 9, widen_frames=0).tolist() == schedule(spans, 9, "isolated").tolist()
    with pytest.raises(ValueError, match="one caption for the whole clip, got 3"):
        schedule(spans, 3, "single")


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
    st.integers(1, 40),
    st.sampled_from(["overlapped", "isolated", "sequential"]),
    st.integers(0, 3),
)
def test_every_frame_s_weights_sum_to_one(lengths_s, frames, mode, widen):
    ends = [sum(lengths_s[: i + 1]) for i in range(len(lengths_s))]
    weights = schedule(list(zip([0.0, *ends], ends, strict=False)), frames, mode, "nearest", widen)
    assert weights.shape == (len(lengths_s), frames)
    assert torch.allclose(weights.sum(0), torch.ones(frames, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["overlapped", "isolated"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_caption_in_all_segments_is_plain_cross_attention(mode, dtype):
    q, k, v = random_inputs(22, 16, [[7]], dtype=dtype)
    plain = fast(q, k, v, [schedule([(0, 15)], 22, "single")], [[7]], 16)
    weights = schedule(equal_spans(5), 22, mode)
    same = fast(q, k.repeat(5, 1, 1), v.repeat(5, 1, 1), [weights], [[7] * 5], 16)
    assert torch.equal(plain, same)
    assert torch.allclose(plain[0].double(), softmax_attention(q[0], k, v).double(), atol=3e-2)


def test_a_caption_s_gradient_comes_from_its_window_only():
    weights = schedule(equal_spans(5), 22)
    q, k, v = random_inputs(22, 2, [[3] * 5])
    attended = fast(q, k, v, [weights], [[3] * 5], 2)
    (grad,) = torch.autograd.grad(
        attended[0, 5 * 2 : 8 * 2].sum(), v
    )  # frames 5..7: the second segment's own
    assert [bool(g.any()) for g in grad.view(5, -1)] == [False, True, False, False, False]


@pytest.mark.parametrize("mode", ["overlapped", "sequential", "isolated"])
def test_samples_with_different_schedules_equal_the_reference_with_gradients(mode):
    lengths = [[3, 5, 2, 4, 6], [7, 2], [1], [2] * 9]
    schedules = [schedule(equal_spans(len(n)), 8, mode) for n in lengths]
    q, k, v = random_inputs(8, 3, lengths)
    ours, want = fast(q, k, v, schedules, lengths, 3), reference(q, k, v, schedules, lengths, 3)
    assert (ours - want).abs().max() < 1e-14
    grad = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad(y, (q, k, v), grad) for y in (ours, want)), strict=True):
        assert (a - b).abs().max() < 1e-13


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10**6))
def test_any_weights_equal_the_reference(segments, frames, seed):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(segments, frames, dtype=torch.float64, generator=rng)
    weights *= torch.rand(segments, frames, generator=rng) < 0.5
    weights[seed % segments] += weights.sum(0) == 0  # each frame attends to some caption
    weights /= weights.sum(0)
    lengths = [[1 + (seed + i) % 4 for i in range(segments)]]
    q, k, v = random_inputs(frames, 2, lengths, seed=seed)
    want = reference(q, k, v, [weights], lengths, 2)
    assert (fast(q, k, v, [weights], lengths, 2) - want).abs().max() < 1e-13


def test_sequence_shards_of_incomplete_frames_equal_the_unsharded_result():
    lengths, per_frame, frames = [[3, 4, 5, 2, 3], [6, 2, 4]], 5, 11
    schedules = [schedule(equal_spans(len(n)), frames) for n in lengths]
    q, k, v = random_inputs(frames, per_frame, lengths)
    unsharded = fast(q, k, v, schedules, lengths, per_frame)
    cuts = [0, 7, 18, 41, 55]
    shards = [
        fast(q[:, a:b], k, v, schedules, lengths, per_frame, (a, b))
        for a, b in itertools.pairwise(cuts)
    ]
    # not to the bit: a CPU's matrix product may treat the last rows of an odd block in another way
    assert (torch.cat(shards, 1) - unsharded).abs().max() < 1e-14


def test_padding_after_the_last_frame_changes_no_frame():
    weights, lengths = schedule(equal_spans(5), 6), [[3, 4, 5, 2, 3]]
    q, k, v = random_inputs(6, 4, lengths)
    padded = torch.cat([q, torch.ones_like(q[:, :3])], 1)
    unsharded = fast(q, k, v, [weights], lengths, 4)
    assert (
        fast(padded, k, v, [weights], lengths, 4, (0, 27))[:, :24] - unsharded
    ).abs().max() < 1e-14


def test_invalid_schedules_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"segment 1 ends at 5 s and segment 2 starts at 6 s"):
        schedule([(0, 5), (6, 9)], 8)
    with pytest.raises(ValueError, match="segment 2 ends at 5 s, before"):
        schedule([(0, 5), (5, 5)], 8)
    weights = schedule(equal_spans(2), 8)
    with pytest.raises(ValueError, match="caption 1 has no tokens"):
        make_plan([weights], [[3, 0]], 2)
    with pytest.raises(ValueError, match="3 captions for a schedule of 2 segments"):
        make_plan([weights], [[3, 1, 1]], 2)
    with pytest.raises(ValueError, match="sum to 1"):
        make_plan([weights * 0.9], [[3, 1]], 2)
    with pytest.raises(ValueError, match="0 or more"):
        make_plan([torch.tensor([[1.5], [-0.5]])], [[3, 1]], 2)
