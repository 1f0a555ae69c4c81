"""Checkpoints: one folder each, renamed into place when complete, read without running code in it.

step-00000300/     state.json: step, settings and the other data that are not tensors
                   *.distcp, .metadata: tensors in PyTorch's distributed format, from all ranks
                   *.sha256: hashes of the other files, which `sha256sum -c` can check too
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from curation.atomic import sync_folder, write_atomic
from curation.checksums import changed_files, file_sha256, format_checksums, parse_checksums
from curation.errors import UserError
from curation.json_text import parse_object

FORMAT, WITHOUT_HASHES = 3, 2
STATE_FILE = "state.json"
MAX_HASHING_THREADS = 8  # of one rank
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


def last_checkpoint(run_dir: str | Path) -> Path | None:
    """The last complete checkpoint that the first rank finds. On a network file system others may
    not see it yet, and would resume from another step."""
    names = [path.name for path in list_checkpoints(run_dir)[-1:]] or [""]
    if dist.is_initialized():
        dist.broadcast_object_list(names)
    return Path(run_dir, "checkpoints", names[0]) if names[0] else None


def save(
    run_dir: str | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: bool = False,
) -> Path:
    """Writes a checkpoint; deletes others but the last `keep` and the last `best`. Every rank of a
    run calls this; where one of them fails, all raise its error. state: goes to state.json."""
    path = folder_of_step(run_dir, step)
    part = path.with_suffix(".part")
    rank, ranks = _rank_and_world_size()

    def remove_unfinished() -> None:
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)

    def write_state_and_hashes() -> None:
        if rank == 0:
            write_atomic(part / STATE_FILE, json.dumps({"format": FORMAT, **state}), durable=True)
        _write_hashes(part)

    def publish() -> None:
        if rank != 0:
            return
        lost = [r for r in range(ranks) if not (part / f"rank-{r}.sha256").exists()]
        if lost:
            raise OSError(f"files of rank {lost[0]} are not there: all hosts must share run_dir")
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
        sync_folder(path.parent)
        _delete_old(path, keep, best)

    try:
        _on_all_ranks(remove_unfinished)
        with _as_raised():
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(part, overwrite=True))
        _on_all_ranks(write_state_and_hashes)
        _on_all_ranks(publish)
    except Exception as error:
        # PyTorch's message for a full disk does not mention the disk
        folder = part.parent
        free = ""
        if folder.is_dir():
            free = f"{shutil.disk_usage(folder).free / 1e9:.2f} GB free there; "
        remove_unfinished()
        last = [str(p) for p in list_checkpoints(run_dir)[-1:]] or ["none yet"]
        raise CheckpointError(
            f"{path}: {_describe(error)}; {free}the last good checkpoint: {last[0]}"
        ) from error
    return path


def _on_all_ranks(work: Callable[[], None]) -> None:
    """Calls `work` and waits until all ranks have. Where it raises on one rank, all ranks raise its
    error: they would wait for this rank in their next exchange."""
    errors: list[Exception | None] = [None]
    try:
        work()
    except Exception as error:
        errors = [error]
    if dist.is_initialized():
        own, errors = errors[0], [None] * dist.get_world_size()
        dist.all_gather_object(errors, own)
    for found in filter(None, errors):
        raise found


@contextmanager
def _as_raised() -> Iterator[None]:
    """Raises what a rank raised, of several the first one's. PyTorch wraps it, Ctrl-C too."""
    try:
        with warnings.catch_warnings():  # of having one process only
            warnings.simplefilter("ignore", UserWarning)
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def _rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _write_hashes(folder: Path) -> None:
    """Writes rank-N.sha256: the hashes of the files that this rank N wrote."""
    rank, _ = _rank_and_world_size()
    names = [path.name for path in folder.glob(f"__{rank}_*.distcp")]
    if rank == 0:
        names += [STATE_FILE, ".metadata"]
    found = _hash_files(folder, names)
    lines = format_checksums({name: sha256 for name, sha256 in found.items() if sha256})
    write_atomic(folder / f"rank-{rank}.sha256", lines, durable=True)


def _check_hashes(folder: Path, names: Collection[str] = ()) -> None:
    """Checks the hashes of the named files, or of this rank's share of all files. Raises
    ValueError, OSError."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.glob("rank-*.sha256")):
        hashes |= parse_checksums(path.read_bytes())
    if not hashes:
        if parse_object((folder / STATE_FILE).read_bytes()).get("format") == WITHOUT_HASHES:
            return
        raise ValueError("it has no hashes: rank-*.sha256")
    rank, ranks = _rank_and_world_size()
    files = {path.name for path in folder.iterdir() if path.suffix != ".sha256"}
    chosen = sorted(names or files | hashes.keys())
    share = chosen if names else chosen[rank::ranks]
    found = _hash_files(folder, share)
    for name, what in changed_files({n: hashes.get(n) for n in share}, found.get).items():
        raise ValueError(f"{name} {what}")


def _hash_files(folder: Path, names: Sequence[str]) -> dict[str, str | None]:
    with ThreadPoolExecutor(MAX_HASHING_THREADS) as pool:
        hashes = pool.map(lambda name: file_sha256(folder / name), names)
        return dict(zip(names, hashes, strict=True))


def _delete_old(path: Path, keep: int, best: bool) -> None:
    """Points the link `best` to `path` if it is the best; deletes older checkpoints."""
    link = path.with_name("best")
    if best:
        new = path.with_name("best.part")
        new.unlink(missing_ok=True)
        new.symlink_to(path.name)
        new.replace(link)
    for old in list_checkpoints(path.parent.parent)[:-keep]:
        if old.resolve() != link.resolve():
            shutil.rmtree(old)


def read_state(path: str | Path) -> dict[str, Any]:
    """The content of state.json."""
    try:
        state = parse_object(Path(path, STATE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path}: no such checkpoint; expected a folder that training.train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if state.get("format") not in (FORMAT, WITHOUT_HASHES):
        raise CheckpointError(f"{path}: not a checkpoint of training.train in format {FORMAT}")
    try:
        _check_hashes(Path(path), [STATE_FILE])
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return state


def load_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills the tensors in place; each rank reads its own parts."""
    try:
        with _as_raised():
            dcp.load(dict(tensors), storage_reader=_Reader(path))
    except Exception as error:
        raise _unreadable(path, error) from error


def read_tensors(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, on the CPU. For a single process."""
    try:
        known = _Reader(path).read_metadata().state_dict_metadata
    except Exception as error:
        raise _unreadable(path, error) from error
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in known.items()
        if name.startswith(prefix) and isinstance(about, TensorStorageMetadata)
    }
    load_tensors(path, tensors)
    return tensors


DAMAGE = (  # others are errors of the storage, of memory or of another rank
    FileNotFoundError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    AssertionError,
    IndexError,
)


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    what = f"{_describe(error).splitlines()[0]:.200}"
    if not isinstance(error, DAMAGE):
        return CheckpointError(f"{path}: can't be read ({what})")
    return CheckpointError(
        f"{path}: damaged or incomplete ({what}); delete it to resume from the one before"
    )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in SAFE_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """FileSystemReader, but .metadata may name SAFE_CLASSES only: PyTorch's calls what it names.
    The ranks share the work of checking the hashes of all files."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        _check_hashes(Path(self.path))
        return super().read_data(plan, planner)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        _check_hashes(Path(self.path), [".metadata"])
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
