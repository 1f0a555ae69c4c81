"""Softmax attention as two operators, each with several back ends.

`attention` takes samples of equal length (self-attention), `packed_attention` takes sequences of
different lengths laid end to end (captions without padding). Both are custom operators of PyTorch,
so that recompute policies can name them (`save_attention`) and torch.compile keeps them whole.

| back end | needs | remark (speeds: docs/measurements/training.md) |
|---|---|---|
| flash4 | compute capability 9.0, package flash-attn-4 | the fastest |
| cudnn | compute capability 8.0 | packed sequences use `flash` |
| flash | compute capability 8.0 | FlashAttention 2 of PyTorch |
| cpu | – | any floating type |
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten


def usable_backends(device: torch.device) -> list[str]:
    """The back ends that run on this device, the fastest first."""
    if device.type != "cuda":
        return ["cpu"]
    # cuDNN's backward is not deterministic
    cudnn = torch.backends.cudnn.is_available() and not torch.are_deterministic_algorithms_enabled()
    found = ["cudnn", "flash"] if cudnn else ["flash"]
    has_flash4 = torch.cuda.get_device_capability(device) >= (9, 0) and _installed(
        "flash_attn.cute.interface"
    )
    return ["flash4", *found] if has_flash4 else found


def choose_backend(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """The fastest back end for `auto`, else `wanted`. ValueError where it can't run."""
    if device.type == "cuda" and dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"attention is in {dtype}, as with precision=fp32: expected bfloat16 or float16 on a "
            "GPU; set precision=bf16, or in code cast the model or use autocast"
        )
    usable = usable_backends(device)
    if wanted != "auto" and wanted not in usable:
        hint = "; pip install flash-attn-4" if wanted == "flash4" else ""
        raise ValueError(
            f"attention back end {wanted!r} can't run on {device}: "
            f"expected auto or one of {usable}{hint}"
        )
    return usable[0] if wanted == "auto" else wanted


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent package
        return False


def save_attention(_ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Recompute policy that saves self-attention's output and log-sum-exp.

    At 79,200 tokens attention is 83 % of the arithmetic, its output a twentieth of a block's
    activations.
    """
    saved = op is torch.ops.presto.attention.default
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def save_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Recompute policy that also saves the results of products whose output is narrower than their
    input: the feed-forward's second, which takes four times the arithmetic of others for a result
    of the same size."""
    if op is aten.addmm.default and args[2].shape[0] > args[2].shape[1]:
        return CheckpointPolicy.MUST_SAVE
    return save_attention(ctx, op, *args, **kwargs)


# ---- samples of equal length


@torch.library.custom_op("presto::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / sqrt(D)) v.  q, k, v: (B, N, H, D) -> (B, N, H, D) and the log-sum-exp (B, H,
    N)."""
    if backend == "flash4":
        from flash_attn.cute.interface import _flash_attn_fwd

        out, lse, *_ = _flash_attn_fwd(q, k, v, return_lse=True)
        return out, lse
    if backend == "flash":
        out, lse = packed_attention(*_pack(q, k, v), backend)
        return out.view_as(q), _unpack_lse(lse, q)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend == "cudnn":
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        return out.transpose(1, 2).contiguous(), lse.view(q.shape[:3]).contiguous()
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out.transpose(1, 2).contiguous(), lse.contiguous()


@torch.library.custom_op("presto::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.contiguous()
    if backend == "flash4":
        return _flash4_backward(grad, q, k, v, out, lse)
    if backend == "flash":
        packed = _pack(q, k, v)
        flat = [x.flatten(0, 1) for x in (grad, out)]
        grads = _packed_backward(
            flat[0], *packed[:3], flat[1], _pack_lse(lse), *packed[3:], backend
        )
        return tuple(g.view_as(q) for g in grads)  # type: ignore[return-value]
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, q, k, v, out))
    if backend == "cudnn":
        # the random state is read only with dropout; None: bias and lengths
        state = torch.zeros((), dtype=torch.int64, device=q.device)
        grads = aten._scaled_dot_product_cudnn_attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse.unsqueeze(-1),
            state,
            state,
            None,
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            False,
        )
    else:
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse.transpose(1, 2).contiguous().transpose(1, 2), 0.0, False
        )
    return tuple(g.transpose(1, 2).contiguous() for g in grads)  # type: ignore[return-value]


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    batch, n, heads, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        (batch, heads, n), dtype=_lse_dtype(q)
    )


@_attention_backward.register_fake
def _(grad, q, k, v, out, lse, backend):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad, _lse):
    q, k, v, out, lse = ctx.saved_tensors
    return *torch.ops.presto.attention_backward(grad, q, k, v, out, lse, ctx.backend), None


attention.register_autograd(_backward, setup_context=_save)


# ---- sequences laid end to end


@torch.library.custom_op("presto::packed_attention", mutates_args=())
def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    longest: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Attention of sequence i of q to sequence i of k and v.

    q: (M, H, D), k, v: (L, H, D), sequences end to end.  cu_q, cu_k: (sequences + 1,) int32, where
    each starts.  longest: (2,) on the CPU, the most queries and the most keys of a sequence; a
    tensor, for torch.compile compiles again for other ints.  -> (M, H, D), log-sum-exp (H, M).
    """
    max_q, max_k = longest.tolist()
    if backend == "flash4":
        from flash_attn.cute.interface import _flash_attn_fwd

        out, lse, *_ = _flash_attn_fwd(
            q,
            k,
            v,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
            return_lse=True,
        )
        return out, lse
    if backend != "cpu":
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, cu_q, cu_k, max_q, max_k, 0.0, False, False
        )
        return out, lse
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=_lse_dtype(q))
    for i, j in _slices(cu_q, cu_k):
        out_i, lse_i = attention(q[None, i], k[None, j], v[None, j], backend)
        out[i], lse[:, i] = out_i[0], lse_i[0]
    return out, lse


@torch.library.custom_op("presto::packed_attention_backward", mutates_args=())
def _packed_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    longest: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.contiguous()
    max_q, max_k = longest.tolist()
    if backend == "flash4":
        return _flash4_backward(
            grad,
            q,
            k,
            v,
            out,
            lse,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
        )
    if backend != "cpu":
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # read only with dropout
        return aten._flash_attention_backward(
            grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, 0.0, False, state, state
        )
    dq, dk, dv = (
        torch.empty_like(x, memory_format=torch.contiguous_format).zero_() for x in (q, k, v)
    )
    for i, j in _slices(cu_q, cu_k):
        parts = [q[None, i], k[None, j], v[None, j], out[None, i], lse[None, :, i]]
        grads = _attention_backward(grad[None, i], *parts, backend)
        dq[i], dk[j], dv[j] = (g[0] for g in grads)
    return dq, dk, dv


@packed_attention.register_fake
def _(q, k, v, cu_q, cu_k, longest, backend):
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=_lse_dtype(q))
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


@_packed_backward.register_fake
def _(grad, q, k, v, out, lse, cu_q, cu_k, longest, backend):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save_packed(ctx, inputs, output) -> None:
    q, k, v, cu_q, cu_k, longest, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k, longest)


def _backward_packed(ctx, grad, _lse):
    saved = ctx.saved_tensors
    grads = torch.ops.presto.packed_attention_backward(grad, *saved, ctx.backend)
    return *grads, None, None, None, None


packed_attention.register_autograd(_backward_packed, setup_context=_save_packed)


# ---- both


def _flash4_backward(grad, q, k, v, out, lse, **lengths) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    exact = torch.are_deterministic_algorithms_enabled()
    return _flash_attn_bwd(q, k, v, out, grad, lse, deterministic=exact, **lengths)[:3]


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _slices(cu_q: Tensor, cu_k: Tensor) -> list[tuple[slice, slice]]:
    return [
        (slice(*a), slice(*b))
        for a, b in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True)
    ]


def _pack(q: Tensor, k: Tensor, v: Tensor) -> tuple:
    """(B, N, H, D) as B sequences of equal length: the arguments of `packed_attention`."""
    lengths = [x.shape[1] for x in (q, k)]
    starts = [torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device) * n for n in lengths]
    return *(x.flatten(0, 1) for x in (q, k, v)), *starts, torch.tensor(lengths)


def _pack_lse(lse: Tensor) -> Tensor:  # (B, H, N) -> (H, B*N)
    return lse.transpose(0, 1).flatten(1).contiguous()


def _unpack_lse(lse: Tensor, like: Tensor) -> Tensor:  # (H, B*N) -> (B, H, N)
    return lse.view(like.shape[2], like.shape[0], like.shape[1]).transpose(0, 1).contiguous()
