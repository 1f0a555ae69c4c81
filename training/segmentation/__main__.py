"""Does segmented cross-attention bind captions to times? Trains small networks on drawn videos of
five events, samples from them, and measures which events the samples show.

    python -m training.segmentation CONFIG OUT [NAME[:SEED] …] [key=value …]

All variants (training/segmentation/variants.py) use the trainer's own network, training and
sampling, on the same videos for the same number of steps; they differ in which frames attend to
which captions. Without names, all of RUNS run, `concurrency` at a time. OUT gets a folder per
variant and seed, then results.csv and the figures. Hypotheses and results:
docs/measurements/segmentation.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from curation.cli import Arguments, run_command
from training.segmentation.config import ExperimentConfig


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        lambda arguments: run(arguments, argv),
        argv,
        settings=ExperimentConfig,
        arguments="CONFIG OUT [RUN]...",
        stopped="the same command continues",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[ExperimentConfig], argv: Sequence[str]) -> None:
    from training.segmentation.figures import draw_all
    from training.segmentation.run import collect_results, run_all, run_variant
    from training.segmentation.variants import RUNS, parse_run

    folder, *names = arguments.values
    cfg, out, runs = arguments.settings, Path(folder), names or list(RUNS)
    parsed = [parse_run(name) for name in runs]
    out.mkdir(parents=True, exist_ok=True)
    if len(runs) == 1:
        run_variant(cfg, *parsed[0], out)
    else:
        run_all(cfg, [a for a in argv if a not in names], runs, out)
        collect_results(cfg, out)
        draw_all(out)


if __name__ == "__main__":
    main(sys.argv[1:])
