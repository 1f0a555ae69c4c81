"""Several processes, started by torchrun: parameters lie sharded over all of them (FSDP2), and a
sample's tokens over `sequence` of them (Ulysses).

Ranks of one sequence group see the same sample, noise and t, for these hang on the sample's number
alone (training/data.py). Self-attention trades tokens for heads: each rank attends with a part of
the heads over all tokens (DeepSpeed-Ulysses, arXiv 2309.14509); all else needs no neighbour.
Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from curation.config import ConfigError
from training.model import Attend, Presto, Shard

LOST = timedelta(minutes=10)  # a rank that says nothing for so long stops the run


@dataclass(frozen=True)
class World:
    device: torch.device
    rank: int = 0
    size: int = 1
    sequence: int = 1  # ranks that share one sample's tokens
    group: Any = None  # of these ranks

    @property
    def replica(self) -> int:
        """Which part of a batch this rank works on, with the others of its sequence group."""
        return self.rank // self.sequence

    @property
    def replicas(self) -> int:
        return self.size // self.sequence

    @property
    def first(self) -> bool:
        """Writes and prints what is the same on all ranks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return dist.is_initialized()

    def mean(self, value: float) -> float:
        """Over all ranks."""
        return self.total(value) / self.size

    def total(self, value: float) -> float:
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def join(sequence: int = 1) -> World:
    """This process's place among those of torchrun; the only one where there is no torchrun."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        if sequence > 1:
            raise ConfigError(
                f"sequence_ranks is {sequence}: expected {sequence} processes or a multiple; "
                f"start with torchrun --nproc-per-node {sequence} -m training.train CONFIG"
            )
        return World(torch.device("cuda" if cuda else "cpu"))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size % sequence:
        raise ConfigError(
            f"sequence_ranks is {sequence}, torchrun started {size} processes: "
            "expected a multiple of it"
        )
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo beside nccl: what checkpoints tell each other stays off the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LOST)
    group = dist.new_subgroups(sequence)[0] if sequence > 1 else None
    return World(device, rank, size, sequence, group)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def spread(presto: Presto, text: nn.Module | None, world: World, bf16: bool) -> None:
    """Shards parameters over all ranks, block by block, and each sample's tokens over its group.

    Masters, gradients' sums and the optimizer's state stay fp32; with `bf16` what is gathered for
    computing is bf16. presto and text: the same values on every rank.
    """
    if not world.sharded:
        return
    heads = presto.cfg.num_attention_heads
    if heads % world.sequence:
        raise ConfigError(
            f"sequence_ranks is {world.sequence}: expected a divisor of the network's {heads} heads"
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    # inputs are not cast: t and positions need their fp32; autocast sees to the products
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in presto.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "keys_values")
    # it warns of changing the network's output in place, which nobody does
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    fully_shard(presto, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(presto, "cache_text")
    if text is not None:
        fully_shard(text, mesh=mesh, mp_policy=policy)
    if world.sequence > 1:
        presto.across = partial(_shard, world)


def local(tensors: Any) -> list[Tensor]:
    """This rank's part of each."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def _shard(world: World, tokens: int) -> Shard:
    """This rank's range of a sample's tokens, of any number: ranges may differ by one."""
    cuts = [tokens * i // world.sequence for i in range(world.sequence + 1)]
    sizes = [b - a for a, b in pairwise(cuts)]
    if not min(sizes):
        raise ConfigError(f"{tokens} tokens are too few for sequence_ranks {world.sequence}")
    place = world.rank % world.sequence

    def gather(x: Tensor) -> Tensor:
        return _Gather.apply(x, sizes, place, world.group)

    window = (cuts[place], cuts[place + 1])

    def attend(inner: Attend) -> Attend:
        # no function of its own: the compiler would take each for a new one
        return partial(_attend, inner, sizes, place, world.group)

    return Shard(window, attend, gather)


def _attend(
    inner: Attend, sizes: list[int], place: int, group: Any, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """q, k, v: (B, tokens here, H, D) -> the same; all tokens and H / ranks heads in between."""
    ranks, mine = len(sizes), [sizes[place]] * len(sizes)
    x = torch.stack([q, k, v]).unflatten(3, (ranks, -1))  # 3 b n ranks h d
    x = x.permute(3, 2, 0, 1, 4, 5).flatten(0, 1).contiguous()
    x = collectives.all_to_all_single_autograd(x, sizes, mine, group)  # tokens 3 b h d
    x = inner(*(part.transpose(0, 1).contiguous() for part in x.unbind(1)))
    x = x.transpose(0, 1).contiguous()
    x = collectives.all_to_all_single_autograd(x, mine, sizes, group)
    return x.unflatten(0, (ranks, -1)).permute(2, 1, 0, 3, 4).flatten(2, 3)


class _Gather(torch.autograd.Function):
    """(B, tokens here, C) -> (B, all tokens, C) on every rank of the group.

    Backward: every rank of the group has computed the same loss from all tokens, so this rank's
    part of the gradient is whole already; it is multiplied by the number of ranks because FSDP
    takes the mean over all ranks where the group's parts have to be added.
    """

    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int], place: int, group: Any) -> Tensor:
        ctx.window = slice(sum(sizes[:place]), sum(sizes[: place + 1]))
        ctx.ranks = len(sizes)
        padded = nn.functional.pad(x, (0, 0, 0, max(sizes) - x.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group)
        return torch.cat([p[:, :n] for p, n in zip(parts, sizes, strict=True)], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0][:, ctx.window] * ctx.ranks, None, None, None
