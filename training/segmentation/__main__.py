"""Does segmented cross-attention bind captions to times? Trains small networks on drawn videos,
samples from them, and measures which events the samples show.

    python -m training.segmentation CONFIG OUT [VARIANT …] [key=value …]

The variants (training/segmentation/config.py) have the same network, videos and steps; they differ
in which captions a frame attends to, and in what the text encoder reads together. Each is trained
at every rate of `rates`, then with `seeds` seeds at its best. OUT gets results.parquet and
samples.npz, which are written whenever a run ends, then tables and figures; the same command runs
what is missing. Other settings than concurrency, rates and seeds need another OUT. Predictions and
results: docs/measurements/segmentation.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from curation.cli import Arguments, run_command
from curation.config import check_choice
from training.segmentation.config import VARIANTS, ExperimentConfig


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        run,
        argv,
        settings=ExperimentConfig,
        arguments="CONFIG OUT [VARIANT]...",
        stopped="the same command continues",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[ExperimentConfig]) -> None:
    folder, *variants = arguments.values
    for name in variants:
        check_choice("VARIANT", name, VARIANTS)
    from training.segmentation.figures import draw_all
    from training.segmentation.run import run_all

    run_all(arguments.settings, variants or list(VARIANTS), Path(folder))
    draw_all(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
