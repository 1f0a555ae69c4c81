"""The settings of the Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass
class ClusterSettings:
    """Fields are the settings under `cluster:`."""

    address: str | None = None  # null: this machine alone; "auto", "HOST:PORT" or "ray://HOST:PORT"
    workers: Annotated[int, Ge(1)] | None = None  # maximum of CPU workers; null: one per free CPU
    memory_gib: Annotated[float, Gt(0), Le(1e6)] = 4.0  # limit of the child process of one worker
