"""Does segmented cross-attention bind text to time? Drawn five-act videos, and an oracle that reads
samples.

    python -m training.segmentation.experiment CONFIG OUT [ARM[:SEED] …] [together=4] [key=value …]

Every arm is the project's own network, training and sampling on the same videos for the same
steps; arms differ in who hears which caption. Without names, all arms run in the order of ORDER,
`together` at a time. OUT gets a folder per arm and seed, then acts.csv and the figures. What was
asked, predicted and found: docs/does-sca-work.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, pairwise, product
from pathlib import Path
from queue import Queue
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from annotated_types import Ge
from torch import Tensor

from curation import config
from curation.config import ConfigError
from training import checkpoint
from training.clips import Clip
from training.config import DiffusionConfig, Size, SystemConfig, TrainConfig
from training.data import generator
from training.diffusion import loss_weight, noisy_and_target
from training.layers import sinusoids
from training.model import Text
from training.sample import open_system, sample_many
from training.segmentation.figures import OWN, TRUTH, draw_all
from training.segmentation.oracle import bleed, compare, see
from training.segmentation.videos import (
    SECOND_PER_FRAME,
    Play,
    Stage,
    clip_of,
    core,
    draw,
    play,
    unseen,
)
from training.text_to_video import Script, System
from training.train import VALIDATION_TIMES, train


@dataclass(frozen=True)
class Arm:
    """How captions reach the frames; every arm learns from the same videos."""

    mode: str = "overlapped"
    segments: int | None = None  # as many as acts; fewer: captions of the acts inside, joined
    widen_frames: int = 1
    progressive: bool = False
    shuffled: float = 0.0  # share of training's videos whose captions are in a wrong order
    speed: float | None = None  # px per frame, where it is not the stage's
    system_class: type[System] = System


class TimedSystem(System):
    """Every frame attends to all captions; a caption's tokens carry a code of its centre's time."""

    def __init__(self, cfg: SystemConfig):
        super().__init__(replace(cfg, model=replace(cfg.model, positions="space_time")))

    def read(self, scripts: Sequence[Script]) -> Text:
        text = super().read(scripts)
        centres = [_frame_of((a + b) / 2) for script in scripts for a, b in script.spans]
        codes = sinusoids(torch.tensor(centres), text.tokens.shape[1]).to(text.tokens)
        lengths = torch.tensor([n for of_video in text.lengths for n in of_video])
        tokens = text.tokens + codes.repeat_interleave(lengths.to(codes.device), 0)
        return Text(tokens, [[sum(of_video)] for of_video in text.lengths])

    def schedules(self, scripts: Sequence[Script], frames: int) -> list[Tensor]:
        return [torch.ones(1, frames, dtype=torch.float64) for _ in scripts]


def _frame_of(time_s: float) -> float:
    """The index of the frame at this time; frame 0 covers the first SECOND_PER_FRAME seconds."""
    return time_s / SECOND_PER_FRAME - 0.5


ARMS = {
    "joined": Arm("single", 1),  # all captions as one text, heard by every frame
    # the same, with codes of their time added to words and frames
    "timed": Arm(system_class=TimedSystem),
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
    "slow": Arm("overlapped", speed=0.675),  # half as fast
}
ORDER = (
    *("joined:0", "timed:0", "isolated:0", "overlapped:0"),
    *(f"{arm}:{seed}" for seed in (1, 2) for arm in ("joined", "timed", "isolated", "overlapped")),
    *("single:0", "two:0", "three:0", "progressive:0"),
    *("sequential:0", "tent:0", "wide2:0", "wide3:0", "mixed:0", "slow:0"),
)
SHOWN, TOGETHER = 1, 64  # samples kept of each test; scripts sampled at a time
SEEDS = 10  # looked for when the arms are gathered
TOLD = ("colour", "shape", "direction", "joint")
ELSEWHERE = ("joined", "timed", "isolated", "overlapped")  # also asked for other lengths, sizes


@dataclass(frozen=True)
class ActsConfig:
    stage: Stage = field(default_factory=Stage)
    train: TrainConfig = field(default_factory=TrainConfig)  # its size, mode and seed are the arm's
    videos: Annotated[int, Ge(1)] = 100_000  # of training, drawn as needed
    parts: Annotated[int, Ge(1)] = 4  # of training; what each ends with is tested
    tests: Annotated[int, Ge(1)] = 256  # scripts; a quarter of them before the end and elsewhere
    longer: tuple[int, ...] = (6, 8, 10)  # acts that a trained network is asked for as well
    wider_px: Annotated[int, Ge(0)] = 48  # the same in a picture so wide; 0: not asked
    together: Annotated[int, Ge(1)] = 4  # arms at a time, on all GPUs in turn


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


def stage_of(cfg: ActsConfig, arm: Arm) -> Stage:
    return replace(cfg.stage, speed=arm.speed) if arm.speed else cfg.stage


def settings(cfg: ActsConfig, name: str, seed: int, out: Path) -> TrainConfig:
    arm = ARMS[name]
    system = replace(
        cfg.train.system,
        size=size_of(cfg.stage),
        mode=arm.mode,  # type: ignore[arg-type]  # checked by its type's owner when it is used
        widen_frames=arm.widen_frames,
    )
    return replace(
        cfg.train,
        run_dir=str(out / f"{name}-{seed}"),
        seed=seed,
        system=system,
        save_every=-(-cfg.train.steps // cfg.parts),
        keep_checkpoints=cfg.parts,
    )


def size_of(stage: Stage) -> Size:
    return Size(stage.frames, stage.height, stage.width)


@dataclass(frozen=True)
class Exam:
    """What a trained network is asked for."""

    test: str  # OWN, or what it never saw in training
    stage: Stage
    step: int  # of training
    scripts: int

    @property
    def table(self) -> str:
        return f"scripts-{self.step:08d}-{self.test.replace(' ', '_')}.parquet"

    @property
    def samples(self) -> str:
        return f"{self.table}.npy"


def exams(cfg: ActsConfig, name: str, how: TrainConfig) -> list[Exam]:
    """After each part of training; at its end also with more acts, so longer, and wider."""
    stage = stage_of(cfg, ARMS[name])
    few = max(1, cfg.tests // 4)
    steps = range(how.save_every, how.steps, how.save_every)
    found = [Exam(OWN, stage, step, few) for step in steps]
    found.append(Exam(OWN, stage, how.steps, cfg.tests))
    if name in ELSEWHERE:
        for acts in cfg.longer:
            frames = round(stage.frames / stage.acts * acts)
            longer = replace(stage, acts=acts, frames=frames)
            found.append(Exam(f"{acts} acts", longer, how.steps, few))
        if cfg.wider_px:
            wider = replace(stage, width=cfg.wider_px)
            found.append(Exam(f"{cfg.wider_px} px wide", wider, how.steps, few))
    return found


def run_arm(cfg: ActsConfig, name: str, seed: int, out: Path) -> None:
    """Trains, then tests; what was done already is not done again."""
    how = settings(cfg, name, seed, out)
    folder = Path(how.run_dir)
    waiting = [e for e in exams(cfg, name, how) if not (folder / e.table).exists()]
    if waiting:
        source = Videos(stage_of(cfg, ARMS[name]), ARMS[name], cfg.videos)
        train(how, source, system_class=ARMS[name].system_class)
    for exam in waiting:
        rows, videos = examine(ARMS[name], how, exam)
        whose = {"arm": name, "seed": seed, "step": exam.step, "test": exam.test}
        np.save(folder / exam.samples, videos[:SHOWN])
        pq.write_table(pa.Table.from_pylist([whose | r for r in rows]), folder / exam.table)
        means = (f"{m} {np.mean([r[m] for r in rows]):.3f}" for m in TOLD)
        print(name, seed, exam.step, exam.test, *means, flush=True)
    for done in checkpoint.saved(folder)[:-1]:
        shutil.rmtree(done)


def examine(arm: Arm, how: TrainConfig, exam: Exam) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One row per script: what its sample shows, and the loss on its true video.  The samples:
    (scripts, frames, height, width, 3) uint8."""
    system, diffusion = open_system(checkpoint.path_of(how.run_dir, exam.step), arm.system_class)
    stage, rows, sampled = exam.stage, [], []
    for first in range(0, exam.scripts, TOGETHER):
        numbers = range(first, min(exam.scripts, first + TOGETHER))
        plays = [play(stage, i, test=True) for i in numbers]
        clips = [told(clip_of(stage, p, arm.progressive), arm) for p in plays]
        scripts = [Script.of(clip, system.cfg.mode) for clip in clips]
        sampling = replace(how.sample, seed=how.sample.seed + first)
        videos = sample_many(system, scripts, diffusion, sampling, size_of(stage)).numpy()
        losses = held_out_loss(system, diffusion, stage, clips, scripts)
        sampled.append(videos)
        rows += [
            row(stage, *shown) | loss for *shown, loss in zip(plays, videos, losses, strict=True)
        ]
    return rows, np.concatenate(sampled)


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


def gather(cfg: ActsConfig, out: Path) -> None:
    """acts.parquet and strips.npz: all that the arms in `out` have shown, and beside it the true
    videos with what the oracle says of them: the line that no arm can pass."""
    first = ELSEWHERE[0]  # asked for everything
    last = {e.test: e for e in exams(cfg, first, settings(cfg, first, 0, out))}
    true_rows, rows, strips = [], [], {}
    for exam in last.values():
        plays = [play(exam.stage, i, test=True) for i in range(exam.scripts)]
        videos = [draw(exam.stage, script) for script in plays]
        whose = {"arm": TRUTH, "seed": 0, "step": exam.step, "test": exam.test}
        true_rows += [whose | row(exam.stage, *shown) for shown in zip(plays, videos, strict=True)]
        strips[f"{exam.test}/{TRUTH}"] = np.stack(videos[:SHOWN])
    for arm, seed in product(ARMS, range(SEEDS)):
        for exam in exams(cfg, arm, settings(cfg, arm, seed, out)):
            folder = out / f"{arm}-{seed}"
            if (folder / exam.table).exists():
                rows += pq.read_table(folder / exam.table).to_pylist()
                if seed == 0 and exam.step == cfg.train.steps and not ARMS[arm].speed:
                    strips[f"{exam.test}/{arm}"] = np.load(folder / exam.samples)[:SHOWN]
    # the first row names the columns: true videos have no loss
    pq.write_table(pa.Table.from_pylist(rows + true_rows), out / "acts.parquet")
    np.savez_compressed(out / "strips.npz", **strips)  # type: ignore[arg-type]  # its stub


def run_all(cfg: ActsConfig, command: Sequence[str], arms: Sequence[str], out: Path) -> None:
    """Each arm in a process of its own; one that fails does not stop the others."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    gpus: Queue[str] = Queue()
    for gpu in islice(cycle(visible.split(",")), cfg.together):
        gpus.put(gpu)

    def run(arm: str) -> bool:
        gpu = gpus.get()
        args = [sys.executable, "-m", "training.segmentation.experiment", *command, arm]
        env = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        with (out / f"{arm.replace(':', '-')}.log").open("w") as log:
            done = subprocess.run(args, stdout=log, stderr=subprocess.STDOUT, env=env)
        gpus.put(gpu)
        print(f"{arm}: {'failed, see ' + log.name if done.returncode else 'done'}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(cfg.together) as pool:
        well = list(pool.map(run, arms))
    if not all(well):
        failed = ", ".join(arm for arm, ok in zip(arms, well, strict=True) if not ok)
        raise ConfigError(f"{failed} failed; the same command goes on with them")


def name_and_seed(text: str) -> tuple[str, int]:
    name, _, seed = text.partition(":")
    if name not in ARMS or not (seed or "0").isdecimal():
        raise ConfigError(f"{text!r} is no arm; expected NAME or NAME:SEED, NAME of {list(ARMS)}")
    return name, int(seed or 0)


def main(argv: Sequence[str]) -> None:
    changes = [a for a in argv if "=" in a]
    names = [a for a in argv if "=" not in a]
    if len(names) < 2 or set(argv) & {"-h", "--help"}:
        config.usage(__doc__, argv)
    out, arms = Path(names[1]), names[2:] or list(ORDER)
    try:
        cfg = config.load(ActsConfig, names[0], changes)
        pairs = [name_and_seed(arm) for arm in arms]
        out.mkdir(parents=True, exist_ok=True)
        if len(arms) == 1:
            run_arm(cfg, *pairs[0], out)
        else:
            run_all(cfg, [*names[:2], *changes], arms, out)
            gather(cfg, out)
            draw_all(out)
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main(sys.argv[1:])
