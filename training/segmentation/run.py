"""Trains the variants of the segmentation experiment, samples test videos and measures them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curation.config import ConfigError
from training import checkpoint
from training.clips import Clip
from training.config import DiffusionConfig, Size, TrainConfig
from training.data import seeded_generator
from training.diffusion import loss_weight, noisy_and_target
from training.sample import load_system, sample_many
from training.segmentation.config import ExperimentConfig, VideoConfig
from training.segmentation.figures import AS_TRAINED, TRUTH
from training.segmentation.oracle import compare, confusion, observe
from training.segmentation.variants import (
    MAIN,
    VARIANTS,
    TrainingVideos,
    Variant,
    with_segments,
)
from training.segmentation.videos import (
    EventVideo,
    make_video,
    render,
    single_event_frames,
    to_clip,
    unseen_events,
)
from training.text_to_video import Prompt, System
from training.train import VALIDATION_TIMESTEPS, train

STORED_SAMPLES = 1  # of each test
SAMPLING_BATCH = 64  # videos sampled at a time
MAX_SEEDS = 10  # that the results are collected from
PRINTED = ("colour", "shape", "direction", "joint")


def video_config(cfg: ExperimentConfig, variant: Variant) -> VideoConfig:
    return replace(cfg.video, speed=variant.speed) if variant.speed else cfg.video


def train_config(cfg: ExperimentConfig, name: str, seed: int, out: Path) -> TrainConfig:
    variant = VARIANTS[name]
    system = replace(
        cfg.train.system,
        size=size_of(cfg.video),
        mode=variant.mode,
        widen_frames=variant.widen_frames,
    )
    return replace(
        cfg.train,
        run_dir=str(out / f"{name}-{seed}"),
        seed=seed,
        system=system,
        save_every=-(-cfg.train.steps // cfg.tests),
        keep_checkpoints=cfg.tests,
    )


def size_of(cfg: VideoConfig) -> Size:
    return Size(cfg.frames, cfg.height, cfg.width)


@dataclass(frozen=True)
class Test:
    """Videos to be sampled from a checkpoint."""

    name: str  # AS_TRAINED, or in what the videos differ from those of training
    video: VideoConfig
    step: int  # of training
    videos: int

    @property
    def table(self) -> str:
        return f"results-{self.step:08d}-{self.name.replace(' ', '_')}.parquet"

    @property
    def samples(self) -> str:
        return f"{self.table}.npy"


def list_tests(cfg: ExperimentConfig, name: str, train_cfg: TrainConfig) -> list[Test]:
    """`cfg.tests` of them during training; at its end, for MAIN, also longer and wider videos."""
    video = video_config(cfg, VARIANTS[name])
    few, last = max(1, cfg.test_videos // 4), train_cfg.steps
    steps = range(train_cfg.save_every, last, train_cfg.save_every)
    found = [Test(AS_TRAINED, video, step, few) for step in steps]
    found.append(Test(AS_TRAINED, video, last, cfg.test_videos))
    if name in MAIN:
        for events in cfg.more_events:
            frames = round(video.frames / video.events * events)
            longer = replace(video, events=events, frames=frames)
            found.append(Test(f"{events} events", longer, last, few))
        if cfg.wider_px:
            wider = replace(video, width=cfg.wider_px)
            found.append(Test(f"{cfg.wider_px} px wide", wider, last, few))
    return found


def run_variant(cfg: ExperimentConfig, name: str, seed: int, out: Path) -> None:
    """Trains, then runs the tests that have no results yet."""
    variant, train_cfg = VARIANTS[name], train_config(cfg, name, seed, out)
    folder = Path(train_cfg.run_dir)
    tests = [t for t in list_tests(cfg, name, train_cfg) if not (folder / t.table).exists()]
    if tests:
        source = TrainingVideos(video_config(cfg, variant), variant, cfg.training_videos)
        train(train_cfg, source, system_class=variant.system_class)
    for test in tests:
        rows, samples = run_test(variant, train_cfg, test)
        run = {"variant": name, "seed": seed, "step": test.step, "test": test.name}
        np.save(folder / test.samples, samples[:STORED_SAMPLES])
        pq.write_table(pa.Table.from_pylist([run | r for r in rows]), folder / test.table)
        means = (f"{m} {np.mean([r[m] for r in rows]):.3f}" for m in PRINTED)
        print(name, seed, test.step, test.name, *means, flush=True)
    for older in checkpoint.list_checkpoints(folder)[:-1]:
        shutil.rmtree(older)


def run_test(
    variant: Variant, train_cfg: TrainConfig, test: Test
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One row per video: the oracle's measures of its sample, and the loss of the true video. The
    samples: (videos, frames, height, width, 3) uint8."""
    path = checkpoint.folder_of_step(train_cfg.run_dir, test.step)
    system, diffusion = load_system(path, variant.system_class)
    cfg, rows, samples = test.video, [], []
    for first in range(0, test.videos, SAMPLING_BATCH):
        numbers = range(first, min(test.videos, first + SAMPLING_BATCH))
        videos = [make_video(cfg, i, test=True) for i in numbers]
        clips = [with_segments(to_clip(cfg, v, variant.progressive), variant) for v in videos]
        prompts = [Prompt.of(clip, system.cfg.mode) for clip in clips]
        sampling = replace(train_cfg.sample, seed=train_cfg.sample.seed + first)
        sampled = sample_many(system, prompts, diffusion, sampling, size_of(cfg)).numpy()
        losses = held_out_loss(system, diffusion, cfg, clips, prompts)
        samples.append(sampled)
        rows += [
            measure(cfg, video, sample) | loss
            for video, sample, loss in zip(videos, sampled, losses, strict=True)
        ]
    return rows, np.concatenate(samples)


def measure(cfg: VideoConfig, video: EventVideo, frames: np.ndarray) -> dict[str, Any]:
    """What the oracle measures in `frames`, which should show `video`."""
    found = observe(cfg, frames)
    correct = compare(video, found)
    joint = zip(video.events, correct["joint"], strict=True)
    unseen = [value for event, value in joint if event in unseen_events(cfg)]
    background = correct.pop("background")
    abruptness = [a for a in found.abruptness if np.isfinite(a)]
    return {
        "video": video.number,
        **{name: float(np.mean(values)) for name, values in correct.items()},
        "joint_unseen": float(np.mean(unseen)) if unseen else None,
        # only the first caption describes the background
        "background_later": float(np.mean(background[1:])),
        "abruptness": float(np.mean(abruptness)) if abruptness else None,
        "no_object": float(np.mean([c is None for c in found.colours])),
        "jumps": float(np.mean(found.jumps)),
        "path_px": found.path_px,
        "confusion": confusion(video, found).ravel().tolist(),
    }


@torch.no_grad()
def held_out_loss(
    system: System,
    diffusion: DiffusionConfig,
    cfg: VideoConfig,
    clips: Sequence[Clip],
    prompts: Sequence[Prompt],
) -> list[dict[str, float]]:
    """Training's loss on the true videos at fixed timesteps: in frames of one event and in those of
    transitions."""
    weight = next(system.parameters())
    latents = system.codec.encode(torch.stack([c.video for c in clips]).to(weight.device))
    per_frame = torch.zeros(len(clips), latents.shape[2])
    for i in range(VALIDATION_TIMESTEPS):
        noise = torch.randn(latents.shape, generator=seeded_generator("events", i)).to(latents)
        t = torch.full((len(clips),), 1000 * (i + 0.5) / VALIDATION_TIMESTEPS)
        noisy, target = noisy_and_target(latents, noise, t, diffusion)
        out = system(noisy.to(weight.dtype), t.to(weight.device), prompts).float()
        error = (out - target).square().mean((1, 3, 4)).cpu()
        per_frame += error * loss_weight(t, diffusion)[:, None] / VALIDATION_TIMESTEPS
    frames_per_latent = cfg.frames // latents.shape[2]
    single = torch.zeros(latents.shape[2], dtype=torch.bool)
    single[[f // frames_per_latent for event in single_event_frames(cfg) for f in event]] = True
    return [
        {"loss_single_event": x[single].mean().item(), "loss_transition": x[~single].mean().item()}
        for x in per_frame
    ]


def collect_results(cfg: ExperimentConfig, out: Path) -> None:
    """Writes results.parquet and samples.npz: the results of all variants in `out`, and those of
    the true videos (variant TRUTH), which no variant can exceed."""
    first = MAIN[0]  # has all tests
    last = {t.name: t for t in list_tests(cfg, first, train_config(cfg, first, 0, out))}
    true_rows, rows, samples = [], [], {}
    for test in last.values():
        videos = [make_video(test.video, i, test=True) for i in range(test.videos)]
        rendered = [render(test.video, video) for video in videos]
        run = {"variant": TRUTH, "seed": 0, "step": test.step, "test": test.name}
        true_rows += [
            run | measure(test.video, *pair) for pair in zip(videos, rendered, strict=True)
        ]
        samples[f"{test.name}/{TRUTH}"] = np.stack(rendered[:STORED_SAMPLES])
    for name, seed in product(VARIANTS, range(MAX_SEEDS)):
        for test in list_tests(cfg, name, train_config(cfg, name, seed, out)):
            folder = out / f"{name}-{seed}"
            if (folder / test.table).exists():
                rows += pq.read_table(folder / test.table).to_pylist()
                if seed == 0 and test.step == cfg.train.steps and not VARIANTS[name].speed:
                    samples[f"{test.name}/{name}"] = np.load(folder / test.samples)
    # the first row defines the columns: true videos have no loss
    pq.write_table(pa.Table.from_pylist(rows + true_rows), out / "results.parquet")
    np.savez_compressed(out / "samples.npz", **samples)  # type: ignore[arg-type]  # its stub


def run_all(cfg: ExperimentConfig, command: Sequence[str], runs: Sequence[str], out: Path) -> None:
    """Each run in a process of its own; one that fails does not stop the others."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    gpus: Queue[str] = Queue()
    for gpu in islice(cycle(visible.split(",")), cfg.concurrency):
        gpus.put(gpu)

    def run(name: str) -> bool:
        gpu = gpus.get()
        args = [sys.executable, "-m", "training.segmentation", *command, name]
        env = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        with (out / f"{name.replace(':', '-')}.log").open("w") as log:
            done = subprocess.run(args, stdout=log, stderr=subprocess.STDOUT, env=env)
        gpus.put(gpu)
        print(f"{name}: {'failed, see ' + log.name if done.returncode else 'done'}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(cfg.concurrency) as pool:
        succeeded = list(pool.map(run, runs))
    if not all(succeeded):
        failed = ", ".join(name for name, ok in zip(runs, succeeded, strict=True) if not ok)
        raise ConfigError(f"{failed} failed; the same command runs what is missing")
