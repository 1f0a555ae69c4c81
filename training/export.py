"""Exports a checkpoint's averaged weights as safetensors that Allegro's tools and diffusers read.

python -m training.export CHECKPOINT FOLDER

Adapters (lora_rank) are merged into the weights, and are also in FOLDER/lora, in diffusers' format.
"""

from __future__ import annotations

from curation.cli import Arguments, check_command_line, run_command

if __name__ == "__main__":  # before torch is imported: wrong arguments are refused at once
    check_command_line(__doc__, arguments="CHECKPOINT FOLDER")

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from curation import config
from training import checkpoint
from training.config import SystemConfig
from training.lora import add_adapters, export_adapters, merge_adapters
from training.text_to_video import System
from training.weights import export_presto


def load_averaged_system(path: str | Path, adapters: str | Path = "") -> System:
    """A checkpoint's system with the averaged weights, on the CPU, in fp32; adapters are merged.
    adapters: folder for a file of their own."""
    settings = checkpoint.read_state(path)["settings"]
    with torch.device("meta"):
        system = System(config.build(SystemConfig, settings["system"], str(path)))
        if rank := settings.get("lora_rank", 0):
            add_adapters(system.presto, rank)
    # weights that are not trained have no average
    state = checkpoint.read_tensors(path, "system.") if rank else {}
    state |= checkpoint.read_tensors(path, "ema.")
    state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    system.load_state_dict(state, assign=True)
    if rank and adapters:
        print(export_adapters(system.presto, adapters))
    if rank:
        merge_adapters(system.presto)
    return system


def main(argv: Sequence[str]) -> None:
    run_command(__doc__, run, argv, arguments="CHECKPOINT FOLDER", user_errors=(OSError,))


def run(arguments: Arguments) -> None:
    checkpoint_path, folder = arguments.values
    system = load_averaged_system(checkpoint_path, adapters=Path(folder, "lora"))
    export_presto(system.presto, folder)
    print(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
