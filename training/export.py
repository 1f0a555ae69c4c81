"""The averaged network of a checkpoint as safetensors that Allegro's tools and diffusers read.

python -m training.export CHECKPOINT FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from curation import config
from curation.config import ConfigError
from training import checkpoint
from training.checkpoint import CheckpointError
from training.config import SystemConfig
from training.text_to_video import System
from training.weights import BadWeights, export


def averaged(path: str | Path, system_class: type[System] = System) -> System:
    """The averaged network of a checkpoint, on the CPU, in fp32."""
    known = checkpoint.told(path)["settings"]
    with torch.device("meta"):
        system = system_class(config.build(SystemConfig, known["system"], str(path)))
    averages = checkpoint.load(path, "ema.")
    state = {name.removeprefix("ema."): t for name, t in averages.items()}
    system.load_state_dict(state, assign=True)
    return system


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        config.usage(__doc__, argv)
    try:
        export(averaged(argv[0]).presto, argv[1])
    except (ConfigError, CheckpointError, BadWeights, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(argv[1])


if __name__ == "__main__":
    main(sys.argv[1:])
