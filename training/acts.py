"""Does segmented cross-attention bind text to time? Drawn five-act videos, and an oracle that reads
samples.

    python -m training.acts CONFIG OUT [ARM[:SEED] …] [together=4] [key=value …]

Every arm is the project's own network, training and sampling on the same videos for the same
steps; arms differ in who hears which caption. Without names, all arms run in the order of ORDER,
`together` at a time. OUT gets a folder per arm and seed, then acts.csv and the figures. What was
asked, predicted and found: docs/does-sca-work.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from annotated_types import Ge

from curation import config
from curation.config import ConfigError
from training import checkpoint
from training.acts_figures import draw_all
from training.acts_oracle import bleed, compare, see
from training.acts_videos import Play, Stage, clip_of, core, draw, play, unseen
from training.clips import Clip, Size
from training.data import generator
from training.diffusion import DiffusionConfig, loss_weight, noisy_and_target
from training.sample import open_system, sample_many
from training.system import Script, System
from training.train import VALIDATION_TIMES, TrainConfig, train


@dataclass(frozen=True)
class Arm:
    """How captions reach the frames; every arm learns from the same videos."""

    mode: str = "overlapped"
    segments: int | None = None  # as many as acts; fewer: captions of the acts inside, joined
    widen_frames: int = 1
    progressive: bool = False
    shuffled: float = 0.0  # share of training's videos whose captions are in a wrong order


ARMS = {
    "joined": Arm("single", 1),  # all captions as one text, heard by every frame
    "timed": Arm("timed"),  # the same, words and frames told their time
    "isolated": Arm("isolated"),
    "overlapped": Arm("overlapped"),
    "single": Arm("single", 0),  # the first act's caption alone
    "two": Arm("overlapped", 2),
    "three": Arm("overlapped", 3),
    "progressive": Arm("overlapped", progressive=True),
    "sequential": Arm("sequential"),
    "wide2": Arm("overlapped", widen_frames=2),
    "wide3": Arm("overlapped", widen_frames=3),
    "tent": Arm("tent"),
    "mixed": Arm("overlapped", shuffled=0.5),
}
ORDER = (
    *("joined:0", "timed:0", "isolated:0", "overlapped:0"),
    *(f"{arm}:{seed}" for seed in (1, 2) for arm in ("joined", "timed", "isolated", "overlapped")),
    *("single:0", "two:0", "three:0", "progressive:0"),
    *("sequential:0", "tent:0", "wide2:0", "wide3:0", "mixed:0"),
)


@dataclass(frozen=True)
class ActsConfig:
    stage: Stage = field(default_factory=Stage)
    train: TrainConfig = field(default_factory=TrainConfig)  # its size, mode and seed are the arm's
    videos: Annotated[int, Ge(1)] = 100_000  # of training, drawn as needed
    parts: Annotated[int, Ge(1)] = 4  # training stops so often to be tested
    tests: Annotated[int, Ge(1)] = 256  # scripts
    together: Annotated[int, Ge(1)] = 4  # arms at a time


class Videos:
    """Training's source: video `index` is drawn when it is asked for."""

    def __init__(self, stage: Stage, arm: Arm, count: int):
        self.stage, self.arm = stage, arm
        self.clip_ids: Sequence[str] = [f"act-{i:08d}" for i in range(count)]

    def __getitem__(self, index: int, /) -> Clip:
        clip = clip_of(self.stage, play(self.stage, index), self.arm.progressive)
        chance = np.random.Generator(np.random.PCG64([index, 2]))
        if chance.random() < self.arm.shuffled:
            order = chance.permutation(len(clip.sub_captions))
            clip = replace(clip, sub_captions=[clip.sub_captions[i] for i in order])
        return told(clip, self.arm)


def told(clip: Clip, arm: Arm) -> Clip:
    """The clip with the captions that the arm gives its network."""
    if arm.segments is None:
        return clip
    if arm.segments == 0:
        return replace(clip, caption=clip.sub_captions[0])
    ends = np.linspace(0, clip.duration_s, arm.segments + 1).tolist()
    spans = list(pairwise(ends))
    texts = [
        ", then ".join(
            text
            for text, (a, b) in zip(clip.sub_captions, clip.spans, strict=True)
            if min(b, end) - max(a, start) > 1e-6
        )
        for start, end in spans
    ]
    return replace(clip, spans=spans, sub_captions=texts, caption=", then ".join(texts))


def settings(cfg: ActsConfig, name: str, seed: int, out: Path) -> TrainConfig:
    arm, stage = ARMS[name], cfg.stage
    system = replace(
        cfg.train.system,
        size=Size(stage.frames, stage.side, stage.side),
        mode=arm.mode,  # type: ignore[arg-type]  # checked by its type's owner when it is used
        widen_frames=arm.widen_frames,
    )
    folder = str(out / f"{name}-{seed}")
    return replace(cfg.train, run_dir=folder, seed=seed, system=system)


def run_arm(cfg: ActsConfig, name: str, seed: int, out: Path) -> None:
    """Trains in parts and tests after each; what was done already is not done again."""
    how = settings(cfg, name, seed, out)
    source = Videos(cfg.stage, ARMS[name], cfg.videos)
    for part in range(1, cfg.parts + 1):
        step = how.steps * part // cfg.parts
        table = Path(how.run_dir, f"scripts-{step:08d}.parquet")
        if table.exists():
            continue
        train(replace(how, steps=step, save_every=step), source)
        tests = cfg.tests if part == cfg.parts else max(1, cfg.tests // 4)
        rows = list(evaluate(cfg, name, seed, how, step, tests))
        pq.write_table(pa.Table.from_pylist(rows), table)
        means = {k: np.mean([r[k] for r in rows]) for k in ("colour", "shape", "direction")}
        joint = np.mean([r["joint"] for r in rows])
        print(name, seed, step, *(f"{k} {v:.3f}" for k, v in means.items()), f"joint {joint:.3f}")


def evaluate(
    cfg: ActsConfig, name: str, seed: int, how: TrainConfig, step: int, tests: int
) -> Iterator[dict[str, Any]]:
    """One row per test script: what its sample shows, and the loss on its true video."""
    system, diffusion = open_system(checkpoint.path_of(how.run_dir, step))
    stage, arm = cfg.stage, ARMS[name]
    kept = []
    for first in range(0, tests, 64):
        plays = [play(stage, i, test=True) for i in range(first, min(tests, first + 64))]
        clips = [told(clip_of(stage, p, arm.progressive), arm) for p in plays]
        scripts = [Script.of(clip, system.cfg.mode) for clip in clips]
        sampling = replace(how.sample, seed=how.sample.seed + first)
        videos = sample_many(system, scripts, diffusion, sampling).numpy()
        kept.append(videos[:4])
        losses = held_out_loss(system, diffusion, stage, clips, scripts)
        for script, video, loss in zip(plays, videos, losses, strict=True):
            yield {
                "arm": name,
                "seed": seed,
                "step": step,
                **row(stage, script, video),
                **loss,
            }
    np.save(Path(how.run_dir, f"videos-{step:08d}.npy"), kept[0])


def row(stage: Stage, script: Play, video: np.ndarray) -> dict[str, Any]:
    seen = see(stage, video)
    right = compare(script, seen)
    new = [v for act, v in zip(script.acts, right["joint"], strict=True) if act in unseen(stage)]
    ground = right.pop("ground")
    return {
        "script": script.number,
        **{name: float(np.mean(values)) for name, values in right.items()},
        "joint_unseen": float(np.mean(new)) if new else None,
        "ground_later": float(np.mean(ground[1:])),  # no later caption tells it
        "abruptness": float(np.nanmean(seen.abruptness))
        if np.isfinite(seen.abruptness).any()
        else None,
        "lost": float(np.mean([c is None for c in seen.colours])),
        "teleports": float(np.mean(seen.teleports)),
        "path_px": seen.path_px,
        "bleed": bleed(script, seen).ravel().tolist(),
    }


@torch.no_grad()
def held_out_loss(
    system: System,
    diffusion: DiffusionConfig,
    stage: Stage,
    clips: Sequence[Clip],
    scripts: Sequence[Script],
) -> list[dict[str, float]]:
    """Training's loss at fixed times on the true videos: frames of one act, and those that turn."""
    weight = next(system.parameters())
    latents = system.codec.encode(torch.stack([c.video for c in clips]).to(weight.device))
    per_frame = torch.zeros(len(clips), latents.shape[2])
    for i in range(VALIDATION_TIMES):
        noise = torch.randn(latents.shape, generator=generator("acts", i)).to(latents)
        t = torch.full((len(clips),), 1000 * (i + 0.5) / VALIDATION_TIMES)
        noisy, target = noisy_and_target(latents, noise, t, diffusion)
        out = system(noisy.to(weight.dtype), t.to(weight.device), scripts).float()
        error = (out - target).square().mean((1, 3, 4)).cpu()
        per_frame += error * loss_weight(t, diffusion)[:, None] / VALIDATION_TIMES
    each = stage.frames // latents.shape[2]  # frames in a latent one
    inside = torch.zeros(latents.shape[2], dtype=torch.bool)
    inside[[frame // each for act in core(stage) for frame in act]] = True
    return [
        {"loss_core": x[inside].mean().item(), "loss_border": x[~inside].mean().item()}
        for x in per_frame
    ]


def truth(cfg: ActsConfig) -> list[dict[str, Any]]:
    """What the oracle says of the true videos: the line that no arm can pass."""
    plays = [play(cfg.stage, i, test=True) for i in range(cfg.tests)]
    rows = [row(cfg.stage, p, draw(cfg.stage, p)) for p in plays]
    return [{"arm": "truth", "seed": 0, "step": cfg.train.steps, **r} for r in rows]


def run_all(cfg: ActsConfig, command: Sequence[str], arms: Sequence[str], out: Path) -> None:
    """Each arm in a process of its own; one that fails does not stop the others."""
    waiting, failed = list(arms), []
    running: dict[str, subprocess.Popen] = {}
    while waiting or running:
        while waiting and len(running) < cfg.together:
            arm = waiting.pop(0)
            log = (out / f"{arm.replace(':', '-')}.log").open("w")
            args = [sys.executable, "-m", "training.acts", *command, arm]
            running[arm] = subprocess.Popen(args, stdout=log, stderr=subprocess.STDOUT)
        arm, process = next(iter(running.items()))
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            running[arm] = running.pop(arm)  # look at the next one
            continue
        del running[arm]
        print(f"{arm}: {'done' if code == 0 else f'failed, see {out}'}", flush=True)
        failed += [arm] * (code != 0)
    if failed:
        raise ConfigError(f"{', '.join(failed)} failed; the same command goes on with them")


def name_and_seed(text: str) -> tuple[str, int]:
    name, _, seed = text.partition(":")
    if name not in ARMS or not (seed or "0").isdecimal():
        raise ConfigError(f"{text!r} is no arm; expected NAME or NAME:SEED, NAME of {list(ARMS)}")
    return name, int(seed or 0)


def main(argv: Sequence[str]) -> None:
    changes = [a for a in argv if "=" in a]
    names = [a for a in argv if "=" not in a]
    if len(names) < 2 or set(argv) & {"-h", "--help"}:
        sys.exit((__doc__ or "").strip())
    out, arms = Path(names[1]), names[2:] or list(ORDER)
    try:
        cfg = config.load(ActsConfig, names[0], changes)
        pairs = [name_and_seed(arm) for arm in arms]
        out.mkdir(parents=True, exist_ok=True)
        if len(arms) == 1:
            run_arm(cfg, *pairs[0], out)
        else:
            run_all(cfg, [*names[:2], *changes], arms, out)
            draw_all(out, truth(cfg))
    except (ConfigError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
