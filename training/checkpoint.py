"""Checkpoints: one folder each, renamed into place when complete, read without running code in it.

step-00000300/     state.json: step, settings and the other data that are not tensors
                   *.distcp, .metadata: tensors in PyTorch's distributed format, from all ranks
best               a link to the checkpoint with the lowest validation loss

The number of processes may differ between writing and reading. Several processes need a shared file
system.
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
from curation.json_text import parse_object

FORMAT = 2
STATE_FILE = "state.json"
# the classes that .metadata consists of; unpickling calls no others
SAFE_CLASSES = {
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
    """A checkpoint can't be written or read."""


def folder_of_step(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir, "checkpoints", f"step-{step:08d}")


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    found = Path(run_dir, "checkpoints").glob("step-*")
    return sorted(path for path in found if path.suffix != ".part")


def save(
    run_dir: str | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: bool = False,
) -> Path:
    """Writes a checkpoint; deletes others but the last `keep` and the last `best`. Every rank of a
    run calls this. state: goes to state.json."""
    path = folder_of_step(run_dir, step)
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    part = path.with_suffix(".part")
    try:
        if is_first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            (part / STATE_FILE).write_text(json.dumps({"format": FORMAT, **state}))
        with warnings.catch_warnings():  # of having one process only
            warnings.simplefilter("ignore", UserWarning)
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(part, overwrite=True))
    except (OSError, RuntimeError, CheckpointException) as error:
        # PyTorch's message for a full disk does not mention the disk
        free = f"{shutil.disk_usage(part).free / 1e9:.2f} GB free there; " if part.is_dir() else ""
        shutil.rmtree(part, ignore_errors=True)
        last = [str(p) for p in list_checkpoints(run_dir)[-1:]] or ["none yet"]
        raise CheckpointError(
            f"{path}: {_reason(error)}; {free}the last good checkpoint: {last[0]}"
        ) from error
    if is_first:
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
        _delete_old(path, keep, best)
    if dist.is_initialized():
        dist.barrier()
    return path


def _delete_old(path: Path, keep: int, best: bool) -> None:
    """Points the link `best` to `path` if it is the best; deletes older checkpoints."""
    link = path.with_name("best")
    if best:
        new = path.with_name("best.part")
        new.unlink(missing_ok=True)
        new.symlink_to(path.name)
        new.replace(link)
    for old in list_checkpoints(path.parent.parent)[:-keep]:
        if old.resolve() not in (path, link.resolve()):
            shutil.rmtree(old)


def _reason(error: BaseException) -> str:
    """The error's message; of several ranks' failures, the first one's."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))[0]
        return f"{type(first).__name__}: {first}"
    return str(error)


def read_state(path: str | Path) -> dict[str, Any]:
    """The content of state.json."""
    try:
        state = parse_object(Path(path, STATE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path}: no such checkpoint; expected a folder that training.train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of training.train in format {FORMAT}")
    return state


def load_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills the tensors in place; each rank reads its own parts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(dict(tensors), storage_reader=_Reader(path))
    except (OSError, RuntimeError, CheckpointException, *UNREADABLE) as error:
        raise _damaged(path, error) from error


def read_tensors(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, on the CPU. For a single process."""
    try:
        known = _Reader(path).read_metadata().state_dict_metadata
    except (OSError, RuntimeError, *UNREADABLE) as error:
        raise _damaged(path, error) from error
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in known.items()
        if name.startswith(prefix) and isinstance(about, TensorStorageMetadata)
    }
    load_tensors(path, tensors)
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


def _damaged(path: str | Path, error: BaseException) -> CheckpointError:
    lines = (_reason(error) or type(error).__name__).strip().splitlines()
    return CheckpointError(
        f"{path}: damaged or incomplete ({lines[0]:.200}); delete it to resume from the one before"
    )


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in SAFE_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """FileSystemReader, but .metadata may name SAFE_CLASSES only: PyTorch's calls what it names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _SafeUnpickler(io.BytesIO(Path(self.path, ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its .metadata describes no tensors")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        if any(
            Path(i.relative_path).name != i.relative_path for i in metadata.storage_data.values()
        ):
            raise pickle.UnpicklingError("it names a file outside its folder")
        return metadata
