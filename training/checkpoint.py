"""Checkpoints: a folder each, there whole or not at all, read without running code from it.

step-00000300/     state.json: step, settings and what else is no tensor
                   *.distcp, .metadata: tensors in PyTorch's distributed format, each rank its part
best               a link to the one with the lowest validation loss

Any number of processes reads what any other number has written; several need one file system.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from curation.errors import UserError

FORMAT = 2
TOLD = "state.json"
# what the description of a checkpoint's tensors consists of; nothing else in it is called
PLAIN = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "int64", "uint8"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class CheckpointError(UserError):
    """A checkpoint can't be written or read: which, why, what to do."""


def path_of(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir, "checkpoints", f"step-{step:08d}")


def saved(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    found = Path(run_dir, "checkpoints").glob("step-*")
    return sorted(path for path in found if path.suffix != ".part")


def save(
    run_dir: str | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    told: Mapping[str, Any],
    keep: int,
    best: bool = False,
) -> Path:
    """Writes a checkpoint; keeps the last `keep`, and the last one that was `best`. Every rank of a
    run calls this. told: plain data."""
    path, first = path_of(run_dir, step), not dist.is_initialized() or dist.get_rank() == 0
    part = path.with_suffix(".part")
    try:
        if first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            (part / TOLD).write_text(json.dumps({"format": FORMAT, **told}))
        with warnings.catch_warnings():  # a single process is no mistake
            warnings.simplefilter("ignore", UserWarning)
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(part, overwrite=True))
    except (OSError, RuntimeError, CheckpointException) as error:
        # PyTorch's own words for a full disk don't name it
        room = [
            f"{shutil.disk_usage(p).free / 1e9:.2f} GB free there; " for p in (part,) if p.is_dir()
        ]
        shutil.rmtree(part, ignore_errors=True)
        last = [str(p) for p in saved(run_dir)[-1:]] or ["none yet"]
        raise CheckpointError(
            f"{path}: {_reason(error)}; {''.join(room)}the last good checkpoint: {last[0]}"
        ) from error
    if first:
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
        _forget(path, keep, best)
    if dist.is_initialized():
        dist.barrier()
    return path


def _forget(path: Path, keep: int, best: bool) -> None:
    """Points `best` to `path` where it is the best; removes the older ones."""
    link = path.with_name("best")
    if best:
        new = path.with_name("best.part")
        new.unlink(missing_ok=True)
        new.symlink_to(path.name)
        new.replace(link)
    spared = {path, link.resolve()}
    for old in saved(path.parent.parent)[:-keep]:
        if old.resolve() not in spared:
            shutil.rmtree(old)


def _reason(error: BaseException) -> str:
    """Of several ranks' failures, the first."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))[0]
        return f"{type(first).__name__}: {first}"
    return str(error)


def told(path: str | Path) -> dict[str, Any]:
    """All that is no tensor."""
    try:
        state = json.loads(Path(path, TOLD).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path}: no such checkpoint; expected a folder that training.train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise _torn(path, error) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of training.train in format {FORMAT}")
    return state


def load_into(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills the tensors, each rank its own parts of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(dict(tensors), storage_reader=_Reader(path))
    except (OSError, RuntimeError, CheckpointException, *UNREADABLE) as error:
        raise _torn(path, error) from error


def load(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, on the CPU, in a process of its own."""
    try:
        known = _Reader(path).read_metadata().state_dict_metadata
    except (OSError, RuntimeError, *UNREADABLE) as error:
        raise _torn(path, error) from error
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in known.items()
        if name.startswith(prefix) and isinstance(about, TensorStorageMetadata)
    }
    load_into(path, tensors)
    return tensors


UNREADABLE = (
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    AssertionError,
    IndexError,
)


def _torn(path: str | Path, error: BaseException) -> CheckpointError:
    lines = (_reason(error) or type(error).__name__).strip().splitlines()
    return CheckpointError(
        f"{path}: not a whole checkpoint ({lines[0]:.200}); delete it to go on from the one before"
    )


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in PLAIN.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """PyTorch's own, which unpickles the description of the tensors with whatever it names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _Plain(io.BytesIO(Path(self.path, ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its .metadata describes no tensors")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        if any(
            Path(i.relative_path).name != i.relative_path for i in metadata.storage_data.values()
        ):
            raise pickle.UnpicklingError("it names a file outside its folder")
        return metadata
