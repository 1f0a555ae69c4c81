"""The console command `longtake`: `longtake NAME …` is `python -m MODULE …`.

Nothing but the module of the given name is imported, so that a mistyped name is refused at once.
"""

from __future__ import annotations

import difflib
import os
import runpy
import sys

# name -> module, and what it does
COMMANDS = {
    "curate": ("pipelines.curate", "all phases: raw videos in, a dataset out"),
    "score": ("pipelines.score", "the first phase: decodes and scores the videos"),
    "select": ("pipelines.select", "applies a policy to the scores, in seconds"),
    "caption": ("pipelines.caption", "writes the captions of kept clips"),
    "export": ("pipelines.export", "writes shards, tables and report"),
    "status": ("pipelines.status", "prints what a run has done, and whether it still runs"),
    "verify": ("pipelines.verify", "checks every file of an output for damage, names the fix"),
    "plan": ("pipelines.plan", "checks the settings, estimates what a run keeps and costs"),
    "show": ("pipelines.show", "the funnel, scores and rules of an output; its clips, by SQL"),
    "diff": ("pipelines.diff", "the clips that another output or policy gains and loses, by rule"),
    "browse": (
        "pipelines.browse",
        "a local page: plays, filters and flags clips, tries thresholds",
    ),
    "audit": ("pipelines.browse.audit", "the policy's precision, by a sample that people mark"),
    "calibrate": ("pipelines.calibrate", "converts a threshold of one score to one of another"),
    "split": ("pipelines.split", "turns a prompt into five progressive sub-captions"),
    "draw-samples": ("pipelines.samples", "draws sample videos to curate"),
    "precompute": ("training.precompute", "writes the latent cache of a dataset"),
    "train": ("training.train", "trains Presto on a dataset"),
    "sample": ("training.sample", "samples videos from captions"),
    "evaluate": ("training.evaluate", "measures sampled videos"),
    "export-weights": ("training.export", "exports a checkpoint for Allegro's tools and diffusers"),
    "segmentation": ("training.segmentation", "the experiment on segmented cross-attention"),
}


def usage() -> str:
    lines = [f"  {name:15} {what}" for name, (_, what) in COMMANDS.items()]
    text = "\n".join(lines)
    return (
        f"longtake COMMAND [argument …] [key=value …]\n\n{text}\n\n"
        "longtake COMMAND --help describes a command and lists its settings.\n"
        "Those that train, sample or precompute need the extra `train` of the package; `browse` "
        "and `audit` need the extra `browse`."
    )


def main() -> None:
    """Runs a command with the arguments after its name. Raises SystemExit."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        try:
            print(usage(), flush=True)
        except BrokenPipeError:  # as of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "longtake --help lists them"
        sys.exit(f"UsageError: {name!r:.60} is not a command; {hint}")
    sys.argv[:2] = [f"longtake {name}"]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
