"""Several processes, started by torchrun: parameters are sharded over all of them (FSDP2), and the
tokens of a sample over groups of `sequence_ranks` (Ulysses).

The ranks of a sequence group process the same sample, noise and timestep, which depend only on the
sample's number (training/data.py). In self-attention they exchange tokens for heads: each rank
computes a part of the heads over all tokens (DeepSpeed-Ulysses, arXiv 2309.14509). No other layer
communicates. Without torchrun there is one process, and nothing is sharded.
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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from curation.config import ConfigError
from training.model import Attend, Presto, SequenceShard

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # a rank that hangs for so long stops the run


@dataclass(frozen=True)
class World:
    device: torch.device
    rank: int = 0
    size: int = 1
    sequence_ranks: int = 1  # ranks that share one sample's tokens
    group: Any = None  # the process group of these ranks

    @property
    def replica(self) -> int:
        """The data-parallel index: ranks of a sequence group have the same one."""
        return self.rank // self.sequence_ranks

    @property
    def replicas(self) -> int:
        return self.size // self.sequence_ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and prints what all ranks have."""
        return self.rank == 0

    @property
    def is_first_of_replica(self) -> bool:
        """Whether this rank writes what its sequence group has."""
        return self.rank % self.sequence_ranks == 0

    @property
    def is_distributed(self) -> bool:
        return dist.is_initialized()

    def mean(self, value: float) -> float:
        """Over all ranks."""
        return self.sum(value) / self.size

    def sum(self, value: float) -> float:
        """Over all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()


def init_distributed(sequence_ranks: int = 1) -> World:
    """Joins the processes that torchrun started, if any, and returns this one's ranks. ConfigError
    where their number does not fit `sequence_ranks`."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        if sequence_ranks > 1:
            raise ConfigError(
                f"sequence_ranks is {sequence_ranks}: expected as many processes or a multiple; "
                f"start with torchrun --nproc-per-node {sequence_ranks} -m training.train CONFIG"
            )
        return World(torch.device("cuda" if cuda else "cpu"))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size % sequence_ranks:
        raise ConfigError(
            f"sequence_ranks is {sequence_ranks}, torchrun started {size} processes: "
            "expected a multiple of sequence_ranks"
        )
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo as well as nccl: checkpoints exchange their metadata on the CPU
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT
        )
    group = None
    if sequence_ranks > 1:
        group, _ = dist.new_subgroups(sequence_ranks, timeout=COLLECTIVE_TIMEOUT)
    return World(device, rank, size, sequence_ranks, group)


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard_model(
    presto: Presto, text: nn.Module | None, world: World, bf16: bool, shard_ranks: int = 0
) -> None:
    """Shards the parameters over all ranks, block by block, and the tokens of each sample over its
    sequence group. Does nothing without torchrun.

    shard_ranks: parameters are sharded over groups of so many consecutive ranks, and each group has
    them all (HSDP); 0: one group.

    Parameters, reduced gradients and the optimizer's state stay fp32; with `bf16` the parameters
    are gathered in bf16. presto and text: initialized to the same values on every rank.
    """
    if not world.is_distributed:
        return
    shard_tokens(presto, world)
    if shard_ranks and world.size % shard_ranks:
        raise ConfigError(
            f"shard_ranks is {shard_ranks}, torchrun started {world.size} processes: expected a "
            "multiple of it"
        )
    mesh = _device_mesh(world, shard_ranks)
    # inputs are not cast: timesteps and positions need fp32; autocast casts for the products
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in presto.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "keys_values")
    # FSDP warns against changing the network's output in place, which no code here does
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    fully_shard(presto, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(presto, "cache_text")
    if text is not None:
        fully_shard(text, mesh=mesh, mp_policy=policy)


def _device_mesh(world: World, shard_ranks: int) -> DeviceMesh:
    """All ranks; with `shard_ranks` (world size / shard_ranks, shard_ranks). init_device_mesh would
    give the groups of two dimensions PyTorch's own timeout, 30 minutes."""
    kind = world.device.type
    if not shard_ranks:
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    ranks = torch.arange(world.size).view(-1, shard_ranks)
    groups = [
        dist.new_subgroups_by_enumeration(listed.tolist(), timeout=COLLECTIVE_TIMEOUT)[0]
        for listed in (ranks.T, ranks)
    ]
    return DeviceMesh.from_group(groups, kind, ranks, mesh_dim_names=("replicate", "shard"))


def shard_tokens(presto: Presto, world: World) -> None:
    """Shards the tokens of each sample over its sequence group. ConfigError where the network's
    heads do not divide."""
    heads, sequence_ranks = presto.cfg.num_attention_heads, world.sequence_ranks
    if heads % sequence_ranks:
        raise ConfigError(
            f"sequence_ranks is {sequence_ranks}: expected a divisor of the network's {heads} heads"
        )
    if sequence_ranks > 1:
        presto.shard_sequence = partial(_sequence_shard, world)


def local_parts(tensors: Any) -> list[Tensor]:
    """This rank's part of each tensor."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def _sequence_shard(world: World, tokens: int) -> SequenceShard:
    """This rank's range of a sample's tokens. The lengths of the ranges differ by one at most."""
    ranks = world.sequence_ranks
    starts = [tokens * i // ranks for i in range(ranks + 1)]
    sizes = [b - a for a, b in pairwise(starts)]
    if not min(sizes):
        raise ConfigError(
            f"sequence_ranks is {ranks}, but a sample has {tokens} tokens: expected one for each "
            "rank at least; lower sequence_ranks"
        )
    index = world.rank % ranks

    def gather(x: Tensor) -> Tensor:
        return _Gather.apply(x, sizes, index, world.group)

    def distribute(attend: Attend) -> Attend:
        # a partial, for torch.compile compiles again for each new function object
        return partial(_exchange_and_attend, attend, sizes, index, world.group)

    return SequenceShard((starts[index], starts[index + 1]), distribute, gather)


def _exchange_and_attend(
    attend: Attend, sizes: list[int], index: int, group: Any, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """q, k, v: (B, local tokens, H, D) -> the same; `attend` gets all tokens, H / ranks heads."""
    ranks, mine = len(sizes), [sizes[index]] * len(sizes)
    x = torch.stack([q, k, v]).unflatten(3, (ranks, -1))  # 3 b n ranks h d
    x = x.permute(3, 2, 0, 1, 4, 5).flatten(0, 1).contiguous()
    x = collectives.all_to_all_single_autograd(x, sizes, mine, group)  # tokens 3 b h d
    x = attend(*(part.transpose(0, 1).contiguous() for part in x.unbind(1)))
    x = x.transpose(0, 1).contiguous()
    x = collectives.all_to_all_single_autograd(x, mine, sizes, group)
    return x.unflatten(0, (ranks, -1)).permute(2, 1, 0, 3, 4).flatten(2, 3)


class _Gather(torch.autograd.Function):
    """(B, local tokens, C) -> (B, all tokens, C) on every rank of the group.

    Backward: every rank of the group has computed the same loss from all tokens, so its part of the
    gradient is complete. It is multiplied by the number of ranks because FSDP averages over all
    ranks, where the parts of a group have to be added.
    """

    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int], index: int, group: Any) -> Tensor:
        ctx.window = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
        ctx.ranks = len(sizes)
        padded = nn.functional.pad(x, (0, 0, 0, max(sizes) - x.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group)
        return torch.cat([p[:, :n] for p, n in zip(parts, sizes, strict=True)], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0][:, ctx.window] * ctx.ranks, None, None, None
