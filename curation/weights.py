"""Weights: located before anything starts, and read as tensors alone, never as code.

A file of weights is named by its path, or as `hf://OWNER/REPO@REVISION/FILE` in the cache of the
Hugging Face hub. Nothing is downloaded here; the error for a missing file gives the command.
"""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from curation.json_text import parse_object
from curation.stage import PlanError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100 << 20  # the format's own limit

HUB_FILE = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def locate_weights(name: str, setting: str, source: str) -> Path:
    """Returns the file on this machine. source: its URL, or the command that downloads it.

    Raises PlanError with the setting, where the file was expected and how to get it.
    """
    if not name.startswith("hf://"):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        command = download_command(source, str(path))
        raise PlanError(f"{setting}: no file {path.absolute()}; get it with\n  {command}")
    found = HUB_FILE.fullmatch(name)
    if found is None:
        raise PlanError(
            f"{setting}: {name} is not a file of the hub; expected hf://OWNER/REPO@REVISION/FILE"
        )
    check_hub_package(setting)
    from huggingface_hub import constants, try_to_load_from_cache

    repo, revision, file = found["repo"], found["revision"] or "main", found["file"]
    cached = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    raise PlanError(
        f"{setting}: {file} of {repo}, revision {revision}, is not in {constants.HF_HUB_CACHE}; "
        f"get it with\n  hf download {repo} {file} --revision {revision}"
    )


def check_hub_package(setting: str) -> None:
    """Raises PlanError where the package that reads the hub's cache is missing."""
    if find_spec("huggingface_hub") is None:
        raise PlanError(
            f"{setting}: the package huggingface_hub is missing; pip install -e '.[models]'"
        )


def download_command(source: str, path: str) -> str:
    """Returns a command that downloads the file. source: a URL, or already a command."""
    is_url = source.startswith("https://")
    return f"curl -L --create-dirs -o {shlex.quote(path)} {source}" if is_url else source


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns a state dict on the CPU. Raises PlanError where the file is not tensors alone."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions
        raise PlanError(f"{path}: can't be read as weights: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise PlanError(f"{path}: not a state dict; expected names with their tensors")
    return state


def load_into(module: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Loads the weights. Raises PlanError, which names the differences, unless all of them fit."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    differences = [
        f"{name} {expected.get(name, 'not expected')}, in the file {given.get(name, 'missing')}"
        for name in sorted(expected.keys() | given.keys())
        if expected.get(name) != given.get(name)
    ]
    if differences:
        first = "; ".join(differences[:3])
        raise PlanError(f"{path}: other weights than expected ({len(differences)}): {first}")
    module.load_state_dict(state)


def locate_model(name: str, revision: str | None, setting: str) -> Path:
    """Returns the folder of a model that has a config.json: a path, or the hub's OWNER/REPO.

    Raises PlanError with the setting, where the model was expected and how to get it.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return _complete_model(path.resolve(), setting)
    missing = f"no {path.absolute()}/config.json"
    command = f"hf download OWNER/REPO --local-dir {name}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        check_hub_package(setting)
        from huggingface_hub import constants, try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return _complete_model(Path(cached).parent, setting)
        cache = constants.HF_HUB_CACHE
        missing += f", and {name} (revision {revision or 'main'}) is not in {cache}"
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    raise PlanError(f"{setting}: {missing}; get it with\n  {command}")


def _complete_model(folder: Path, setting: str) -> Path:
    """Returns the folder. Raises PlanError where a file is missing or cut off."""
    path = folder / "config.json"
    try:
        parse_object(path.read_bytes())
        for path in sorted(folder.glob("*.safetensors.index.json")):
            files = parse_object(path.read_bytes()).get("weight_map")
            if not isinstance(files, dict):
                raise ValueError("has no weight_map")
            for file in sorted(set(map(str, files.values()))):
                if not (folder / file).is_file():
                    raise ValueError(f"names {file}, which is missing")
        for path in sorted(folder.glob("*.safetensors")):
            _check_safetensors(path)
    except (ValueError, OSError) as error:
        raise PlanError(f"{setting}: {path}: {error}; download the model again") from None
    return folder


def _check_safetensors(path: Path) -> None:
    """Raises ValueError where the file is shorter than its header states."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError("not a file of safetensors")
        header = parse_object(file.read(header_bytes))
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    try:
        data_bytes = max((entry["data_offsets"][1] for entry in entries), default=0)
        expected, found = 8 + header_bytes + data_bytes, path.stat().st_size
    except (KeyError, TypeError, IndexError):
        raise ValueError("not a file of safetensors") from None
    if found != expected:
        raise ValueError(f"has {found} bytes, expected {expected}")
