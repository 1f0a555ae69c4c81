"""Times on a CUDA device, and its speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch


def milliseconds(work: Callable[[], object], repeats: int = 5, warm: int = 1) -> float:
    """Median over `repeats` by CUDA events, after `warm` runs."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def peak_flops() -> float:
    """FLOPs per second of a bf16 product of two 8192 x 8192 matrices."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / milliseconds(lambda: a @ b, 20, warm=5) * 1e3
