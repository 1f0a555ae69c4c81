"""Checkpoints: one file each, there whole or not at all, read without running code from it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


class CheckpointError(Exception):
    """A checkpoint can't be written or read: which, why, what to do."""


def path_of(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir, "checkpoints", f"step-{step:08d}.pt")


def saved(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(Path(run_dir, "checkpoints").glob("step-*.pt"))


def save(
    run_dir: str | Path, step: int, state: dict[str, Any], keep: int, best: bool = False
) -> Path:
    """Writes a checkpoint; keeps the last `keep` and, as best.pt, the last one that was `best`."""
    path = path_of(run_dir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        part.unlink(missing_ok=True)
        last = [str(p) for p in saved(run_dir)[-1:]] or ["none yet"]
        raise CheckpointError(f"{path}: {error}; the last good checkpoint: {last[0]}") from error
    os.replace(part, path)
    if best:
        link = path.with_name("best.part")
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, path.with_name("best.pt"))
    for old in saved(run_dir)[:-keep]:
        old.unlink()
    return path


def load(path: str | Path) -> dict[str, Any]:
    """On the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; expected a checkpoint of training.train"
        ) from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a whole checkpoint ({str(error).splitlines()[0]:.200}); "
            "delete it to go on from the one before"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of training.train in format {FORMAT}")
    return state
