import math

import pytest
import torch

from training.attention import (
    attention,
    choose_backend,
    packed_attention,
    usable_backends,
)

CUDA = torch.cuda.is_available()
HERE = usable_backends(torch.device("cuda" if CUDA else "cpu"))
on_gpu = [
    pytest.param(
        name,
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(name not in HERE or not CUDA, reason=f"{name} can't run here"),
        ],
    )
    for name in ("flash4", "cudnn", "flash")
]


def exact(q, k, v):
    """Float64 softmax attention; (B, N, H, D)."""
    q, k, v = (x.double() for x in (q, k, v))
    logits = torch.einsum("bnhd,blhd->bhnl", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhnl,blhd->bnhd", logits.softmax(-1), v), logits.logsumexp(-1)


def off(got, want) -> float:
    """Relative distance; NaN never passes a comparison with it."""
    return ((got.double() - want).norm() / want.norm()).item()


def dense_case(device, dtype, n=700, dim=96):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, n, 3, dim, device=device, dtype=dtype).requires_grad_() for _ in "qkv"
    )
    return q, k, v, torch.randn(2, n, 3, dim, device=device, dtype=dtype)


def packed_case(device, dtype, dim=96):
    torch.manual_seed(1)
    of_q, of_k = [300, 1, 129, 64], [77, 5, 1, 512]
    q = torch.randn(sum(of_q), 3, dim, device=device, dtype=dtype).requires_grad_()
    k, v = (
        torch.randn(sum(of_k), 3, dim, device=device, dtype=dtype).requires_grad_() for _ in "kv"
    )
    starts = [torch.tensor([0, *n]).cumsum(0).to(device, torch.int32) for n in (of_q, of_k)]
    return q, k, v, torch.randn_like(q), of_q, of_k, starts


def longest(of_q, of_k):
    return torch.tensor([max(of_q), max(of_k)])


def check_dense(backend, device, dtype, bound, **size):
    q, k, v, grad = dense_case(device, dtype, **size)
    out, lse = attention(q, k, v, backend)
    want, want_lse = exact(q, k, v)
    assert off(out, want) < bound
    assert (lse.double() - want_lse).abs().max() < 10 * bound
    got_grads = torch.autograd.grad(out, (q, k, v), grad)
    want_grads = torch.autograd.grad(want, (q, k, v), grad.double())
    for got, right in zip(got_grads, want_grads, strict=True):
        assert off(got, right.double()) < 2 * bound


def check_packed(backend, device, dtype, bound, **size):
    q, k, v, grad, of_q, of_k, starts = packed_case(device, dtype, **size)
    out, _ = packed_attention(q, k, v, *starts, longest(of_q, of_k), backend)
    pieces = zip(q.split(of_q), k.split(of_k), v.split(of_k), strict=True)
    want = torch.cat([exact(a[None], b[None], c[None])[0][0] for a, b, c in pieces])
    assert off(out, want) < bound
    got_grads = torch.autograd.grad(out, (q, k, v), grad)
    want_grads = torch.autograd.grad(want, (q, k, v), grad.double())
    for got, right in zip(got_grads, want_grads, strict=True):
        assert off(got, right.double()) < 2 * bound


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_attention_on_a_cpu_equals_the_formula_with_gradients(dtype, bound):
    check_dense("cpu", "cpu", dtype, bound, n=70, dim=12)
    check_packed("cpu", "cpu", dtype, bound, dim=12)


@pytest.mark.parametrize("backend", on_gpu)
def test_every_back_end_on_a_gpu_equals_the_formula_with_gradients(backend):
    check_dense(backend, "cuda", torch.bfloat16, 1e-2)


@pytest.mark.parametrize("backend", on_gpu)
def test_every_back_end_on_a_gpu_separates_packed_sequences(backend):
    check_packed(backend, "cuda", torch.bfloat16, 1e-2)


@pytest.mark.parametrize("backend", on_gpu)
def test_a_query_s_output_on_a_gpu_does_not_depend_on_other_queries(backend):
    q, k, v, _, _, _, starts = packed_case("cuda", torch.bfloat16)
    single = starts[0][[0, -1]], starts[1][[0, 1]]
    k, v = k[:77], v[:77]
    plain, _ = packed_attention(q, k, v, *single, longest([len(q)], [77]), backend)
    keys = torch.arange(5, device="cuda", dtype=torch.int32) * 77
    parts, _ = packed_attention(
        q, k.repeat(4, 1, 1), v.repeat(4, 1, 1), starts[0], keys, longest([300], [77]), backend
    )
    assert torch.equal(plain, parts)


def test_the_custom_operators_pass_pytorch_s_checks():
    q, k, v, _ = dense_case("cpu", torch.float32, n=9, dim=12)
    torch.library.opcheck(attention, (q, k, v, "cpu"))
    q, k, v, _, of_q, of_k, starts = packed_case("cpu", torch.float32, dim=12)
    torch.library.opcheck(packed_attention, (q, k, v, *starts, longest(of_q, of_k), "cpu"))


def test_an_unavailable_back_end_is_refused_with_the_available_ones():
    with pytest.raises(
        ValueError,
        match=r"'flash4' can't run on cpu: expected auto or one of \['cpu'\]; pip install",
    ):
        choose_backend("flash4", torch.device("cpu"), torch.float32)
    assert choose_backend("auto", torch.device("cpu"), torch.float64) == "cpu"


def test_fp32_on_a_gpu_is_refused_with_the_setting_to_change():
    with pytest.raises(
        ValueError, match=r"is in torch\.float32, as with precision=fp32: .*; set precision=bf16"
    ):
        choose_backend("auto", torch.device("cuda"), torch.float32)
