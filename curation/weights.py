"""Weights: found on this machine before anything starts, and read as tensors alone, never as code.

A file of weights is named by its path, or as `hf://OWNER/REPO@REVISION/FILE`: then it is looked for
in the cache of the Hugging Face hub. Nothing is downloaded here; what is missing is said with the
command that gets it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from curation.stage import PlanError

if TYPE_CHECKING:
    import torch

HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def located(name: str, what: str, get: str) -> Path:
    """The file on this machine. what: whose weights; get: the URL of a file that is not there, or
    the command for it.

    Raises PlanError with what is missing, where it was looked for and how to get it.
    """
    if not name.startswith("hf://"):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise PlanError(
            f"{what}: no file {path.absolute()}; get it with\n  {command(get, str(path))}"
        )
    found = HUB.fullmatch(name)
    if found is None:
        raise PlanError(
            f"{what}: {name} is no file of a hub; expected hf://OWNER/REPO@REVISION/FILE"
        )
    from huggingface_hub import constants, try_to_load_from_cache

    repo, revision, file = found["repo"], found["revision"] or "main", found["file"]
    cached = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    raise PlanError(
        f"{what}: {file} of {repo}, revision {revision}, is not in {constants.HF_HUB_CACHE}; "
        f"get it with\n  hf download {repo} {file} --revision {revision}"
    )


def command(get: str, to: str) -> str:
    """What gets a file. get: its URL, or already a command."""
    url = get.startswith("https://")
    return f"curl -L --create-dirs -o {shlex.quote(to)} {get}" if url else get


def load(path: Path) -> dict[str, torch.Tensor]:
    """A state dict on the CPU. Raises PlanError for a file that holds anything but tensors."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own
        raise PlanError(f"{path}: can't be read as weights: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise PlanError(f"{path}: holds no weights; expected names with their tensors")
    return state


def fill(module: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Loads the weights, all and no others. Raises PlanError naming what differs."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [
        f"{name} {wanted.get(name, 'not expected')}, in the file {given.get(name, 'missing')}"
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    if wrong:
        raise PlanError(
            f"{path}: other weights than expected ({len(wrong)}): {'; '.join(wrong[:3])}"
        )
    module.load_state_dict(state)


def model_folder(name: str, revision: str | None, what: str) -> Path:
    """The folder of a whole model (config.json beside its weights): a path, or a hub's OWNER/REPO.

    Raises PlanError with what is missing, where it was looked for and how to get it.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    places, get = f"no {path.absolute()}/config.json", f"hf download OWNER/REPO --local-dir {name}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import constants, try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
        places += f", and {name} (revision {revision or 'main'}) is not in {constants.HF_HUB_CACHE}"
        get = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    raise PlanError(f"{what}: {places}; get it with\n  {get}")
