"""Trains the networks of the segmentation experiment, samples test videos and measures them."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from curation import config
from curation.atomic import atomic_path, write_atomic
from curation.config import ConfigError
from curation.errors import UserError
from curation.json_text import parse_object
from training.diffusion import (
    NUM_TIMESTEPS,
    denoising_loss,
    guided,
    sample_latents,
    sample_timesteps,
)
from training.segmentation.config import VARIANTS, ExperimentConfig
from training.segmentation.figures import AS_TRAINED, ONE_CAPTION, TRUTH
from training.segmentation.network import Network, Prompts
from training.segmentation.oracle import judge
from training.segmentation.videos import KINDS, Videos, make_videos, render

BETAS = (0.9, 0.95)
LOSS_LEVELS = 8  # noise levels of the test loss
TRAINING, TEST, BORDERS = range(3)  # keys of random numbers
SAMPLING_BATCH = 64
RESULTS, SAMPLES, SETTINGS = "results.parquet", "samples.npz", "settings.json"
# settings on which the result of no run depends
MAY_CHANGE = ("concurrency:", "mixed_seeds:", "rates:", "seeds:")
Kind = Literal["sweep", "final", "mixed"]


@dataclass(frozen=True)
class Run:
    kind: Kind  # sweep: chooses the rate; mixed: half of the clips have one caption
    variant: str
    rate: float  # learning rate
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.variant}:{self.rate:g}:{self.seed}"

    def steps(self, cfg: ExperimentConfig) -> int:
        return cfg.sweep_steps if self.kind == "sweep" else cfg.steps


class Test(NamedTuple):
    """Videos to be sampled."""

    name: str
    videos: int
    events: int
    shifted_frames: int = 0  # of the borders, in a random direction per video
    one_caption: bool = False


def list_tests(cfg: ExperimentConfig, is_last: bool = True) -> list[Test]:
    few = max(1, cfg.test_videos // 4)
    if not is_last:
        return [Test(AS_TRAINED, few, cfg.events)]
    return [
        Test(AS_TRAINED, cfg.test_videos, cfg.events),
        *(Test(f"{n} events", few, n) for n in cfg.more_events),
        *(Test(f"borders off by {n}", few, cfg.events, n) for n in cfg.shifted_frames),
        Test(ONE_CAPTION, few, cfg.events, one_caption=True),
    ]


def train(cfg: ExperimentConfig, run: Run, device: torch.device) -> Iterator[tuple[int, Network]]:
    """Yields the step and the network with averaged weights, every `cfg.test_every` steps and after
    the last. Runs of a seed get the same videos and the same noise, whatever their variant."""
    torch.manual_seed(run.seed)
    with device:
        network = Network(VARIANTS[run.variant], cfg.model, cfg.text)
    averaged = copy.deepcopy(network).requires_grad_(False).eval()
    if cfg.compile:
        network.presto.compile_blocks()
    weights: list[Tensor] = list(network.parameters())
    averages: list[Tensor] = list(averaged.parameters())
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(weights, run.rate, BETAS, weight_decay=0.01, fused=fused)
    rng = torch.Generator(device).manual_seed(run.seed)
    for step in range(run.steps(cfg)):
        latents, prompts = training_batch(cfg, run, step, network)
        t = sample_timesteps(cfg.batch, cfg.diffusion, rng)
        noise = torch.randn(latents.shape, generator=rng, device=device)
        with autocast(device):
            predict = partial(network, prompts=prompts)
            loss = denoising_loss(predict, latents, noise, t, cfg.diffusion).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, cfg.max_norm)
        for group in optimizer.param_groups:
            group["lr"] = run.rate * min(1.0, (step + 1) / max(1, cfg.warmup_steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(cfg.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        if (step + 1) % cfg.test_every == 0 or step + 1 == run.steps(cfg):
            yield step + 1, averaged


def training_batch(
    cfg: ExperimentConfig, run: Run, step: int, network: Network
) -> tuple[Tensor, Prompts]:
    device = next(network.parameters()).device
    videos = make_videos(cfg.batch, cfg.events, TRAINING, run.seed, step)
    rng = np.random.Generator(np.random.PCG64([TRAINING, run.seed, step, 1]))
    draws = torch.from_numpy(rng.random((3, cfg.batch), dtype=np.float32)).to(device)
    one_caption = draws[1] < (0.5 if run.kind == "mixed" else 0.0)
    room = (cfg.timeline_events - cfg.events) * videos.frames / cfg.events
    prompts = replace(Prompts.of(videos, device), one_caption=one_caption, offset=draws[2] * room)
    latents = network.codec.encode(render(videos, device))
    return latents, prompts.dropped(draws[0] < cfg.drop_captions)


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def sample(network: Network, prompts: Prompts, cfg: ExperimentConfig) -> Tensor:
    """(B, frames, height, width, 3) uint8"""
    device = prompts.tokens.device
    rng = torch.Generator(device).manual_seed(cfg.sample.seed)
    frames = int(prompts.spans[0, -1, 1])
    shape = (len(prompts.tokens), network.codec.cfg.channels, frames, 4, 8)
    noise = torch.randn(shape, generator=rng, device=device)
    unconditional = prompts.dropped(torch.ones_like(prompts.one_caption))
    predict = guided(
        partial(network, prompts=prompts),
        partial(network, prompts=unconditional),
        cfg.sample.guidance,
        cfg.sample.guidance_interval,
    )
    with autocast(device):
        return network.codec.decode(sample_latents(predict, noise, cfg.sample, cfg.diffusion, rng))


@torch.no_grad()
def test_loss(network: Network, videos: Videos, prompts: Prompts, cfg: ExperimentConfig) -> Tensor:
    """(B,): training's loss on the true videos, at fixed noise levels."""
    device = prompts.tokens.device
    latents = network.codec.encode(render(videos, device))
    rng = torch.Generator(device).manual_seed(cfg.sample.seed)
    losses = []
    for i in range(LOSS_LEVELS):
        noise = torch.randn(latents.shape, generator=rng, device=device)
        t = torch.full((len(latents),), NUM_TIMESTEPS * (i + 0.5) / LOSS_LEVELS, device=device)
        with autocast(device):
            predict = partial(network, prompts=prompts)
            losses.append(denoising_loss(predict, latents, noise, t, cfg.diffusion))
    return torch.stack(losses).mean(0)


def run_test(
    cfg: ExperimentConfig, test: Test, network: Network | None, device: torch.device
) -> tuple[pa.Table, np.ndarray]:
    """A row per video and event, and the first video's frames. network: None judges drawn videos
    instead of samples: the true ones, with the borders that the prompts give."""
    tables, first = [], np.empty(0)
    for start in range(0, test.videos, SAMPLING_BATCH):
        count = min(SAMPLING_BATCH, test.videos - start)
        videos = make_videos(count, test.events, TEST, start, test.events)
        prompts = test_prompts(test, videos, device)
        if network is None:
            lengths = prompts.spans.diff(dim=2)[..., 0].long().cpu().numpy()
            frames, loss = render(replace(videos, lengths=lengths), device), None
        else:
            frames = sample(network, prompts, cfg)
            loss = test_loss(network, videos, prompts, cfg).cpu().numpy()
        tables.append(rows_of(videos, judge(videos, frames), loss, start))
        first = frames[0].cpu().numpy() if not start else first
    return pa.concat_tables(tables), first


def test_prompts(test: Test, videos: Videos, device: torch.device) -> Prompts:
    prompts = Prompts.of(videos, device)
    if test.one_caption:
        return replace(prompts, one_caption=torch.ones_like(prompts.one_caption))
    if not test.shifted_frames:
        return prompts
    rng = np.random.Generator(np.random.PCG64([BORDERS, test.shifted_frames]))
    signs = rng.choice([-1.0, 1.0], size=len(prompts.tokens)).astype(np.float32)
    return prompts.with_shifted_borders(torch.from_numpy(signs).to(device) * test.shifted_frames)


def rows_of(
    videos: Videos, judged: dict[str, np.ndarray], loss: np.ndarray | None, start: int
) -> pa.Table:
    count, events = videos.lengths.shape
    of_video = {"video": np.arange(start, start + count), "order": judged.pop("order")}
    if loss is not None:
        of_video["loss"] = loss.astype(np.float64)
    columns = {name: pa.array(values.repeat(events)) for name, values in of_video.items()}
    columns.setdefault("loss", pa.nulls(count * events, pa.float64()))
    columns |= {
        "event": pa.array(np.tile(np.arange(events), count)),
        "frames": pa.array(videos.lengths.ravel()),
        "kind": pa.array(np.array(KINDS)[videos.kinds.ravel()]),
    }
    columns |= {name: pa.array(values.ravel()) for name, values in judged.items()}
    return pa.table(columns)


Executed = tuple[pa.Table, dict[str, np.ndarray], float]


def execute(cfg: ExperimentConfig, run: Run) -> Executed:
    """The rows of a run's tests, the first sample of each of its last tests, and its seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # threads that wait would take the cores of the other runs
    start, tables, samples = time.perf_counter(), [], {}
    for step, network in train(cfg, run, device):
        trained_s = time.perf_counter() - start
        is_last = run.kind != "sweep" and step == run.steps(cfg)
        for test in list_tests(cfg, is_last):
            rows, first = run_test(cfg, test, network, device)
            tables.append(labelled(rows, run, step, test.name))
            print(f"{run.name} {trained_s:.0f} s: {summary(tables[-1])}", flush=True)
            if is_last:
                samples[f"{test.name}/{run.variant}"] = first
    return pa.concat_tables(tables), samples, time.perf_counter() - start


def labelled(rows: pa.Table, run: Run, step: int, test: str) -> pa.Table:
    labels = {"run": run.kind, "variant": run.variant, "rate": run.rate, "seed": run.seed}
    labels |= {"step": step, "test": test}
    for number, (name, value) in enumerate(labels.items()):
        rows = rows.add_column(number, name, pa.array([value] * len(rows)))
    return rows


def true_rows(cfg: ExperimentConfig) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """The oracle's rows of the true videos, and their frames."""
    run, tables, samples = Run("final", TRUTH, 0.0, 0), [], {}
    for test in list_tests(cfg):
        if not test.one_caption:
            rows, first = run_test(cfg, test, None, torch.device("cpu"))
            tables.append(labelled(rows, run, 0, test.name))
            samples[f"{test.name}/{TRUTH}"] = first
    return pa.concat_tables(tables), samples


class Results:
    """The rows and samples of all finished runs in a folder."""

    def __init__(self, cfg: ExperimentConfig, out: Path):
        self.folder = out
        self.samples: dict[str, np.ndarray] = {}
        if (out / RESULTS).exists():
            self.rows = pq.read_table(out / RESULTS)
            with np.load(out / SAMPLES) as stored:
                self.samples = dict(stored)
        else:
            self.rows, self.samples = true_rows(cfg)

    def add(self, rows: pa.Table, samples: dict[str, np.ndarray]) -> None:
        self.rows = pa.concat_tables([self.rows, rows])
        self.samples = samples | self.samples  # the first seed's
        with atomic_path(self.folder / SAMPLES) as part, part.open("wb") as file:
            np.savez_compressed(file, **self.samples)  # type: ignore[arg-type]  # its stub
        with atomic_path(self.folder / RESULTS) as part:
            pq.write_table(self.rows, part, compression="zstd")

    def finished(self) -> set[Run]:
        found = self.rows.group_by(["run", "variant", "rate", "seed"]).aggregate([])
        return {Run(*row.values()) for row in found.to_pylist()}

    def best_rate(self, cfg: ExperimentConfig, variant: str) -> float | None:
        """The rate with the lowest loss of the test videos at the end of the sweep; None where runs
        are missing. A single rate needs none."""
        if len(cfg.rates) == 1:
            return cfg.rates[0]
        field = pc.field
        last = (field("run") == "sweep") & (field("step") == cfg.sweep_steps)
        rows = self.rows.filter(last & (field("variant") == variant))
        found = rows.group_by("rate").aggregate([("loss", "mean")]).to_pylist()
        losses = {row["rate"]: row["loss_mean"] for row in found}
        if not losses.keys() >= set(cfg.rates):
            return None
        return min(cfg.rates, key=lambda r: losses[r] if math.isfinite(losses[r]) else math.inf)


def next_runs(cfg: ExperimentConfig, results: Results, variants: Sequence[str]) -> list[Run]:
    """The runs that are missing and can start, the most important first: the sweep, then a seed of
    all variants after the other."""
    found: list[Run] = []
    if len(cfg.rates) > 1:
        found = [Run("sweep", variant, rate, 0) for variant in variants for rate in cfg.rates]
    best = {variant: results.best_rate(cfg, variant) for variant in variants}
    kinds: list[tuple[Kind, int]] = [("final", cfg.seeds), ("mixed", cfg.mixed_seeds)]
    for kind, seeds in kinds:
        found += [
            Run(kind, variant, rate, seed)
            for seed in range(1, 1 + seeds)
            for variant, rate in best.items()
            # without times, a clip with one caption is like the others
            if rate is not None and (kind == "final" or VARIANTS[variant].has_times)
        ]
    finished = results.finished()
    return [run for run in found if run not in finished]


def check_settings(cfg: ExperimentConfig, out: Path) -> None:
    """Records the settings in a new folder. Raises ConfigError where the folder has others."""
    path, made_with = out / SETTINGS, config.as_dict(cfg)
    if not path.exists():
        write_atomic(path, json.dumps(made_with, indent=1))
        return
    try:
        recorded = parse_object(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; give another OUT") from None
    defaults = config.as_dict(ExperimentConfig())  # of settings that an older version did not have
    changed = config.differences(config.merged(defaults, recorded), made_with)
    if refused := [line for line in changed if not line.startswith(MAY_CHANGE)]:
        raise ConfigError(f"{out} has runs of other settings ({'; '.join(refused)}); give another")


class RunsFailed(UserError):
    """Runs of the experiment raised, or their processes died."""


def execute_in_process(cfg: ExperimentConfig, run: Run) -> Executed:
    """`execute` in a process of its own, so that its death ends no other run. Raises
    BrokenProcessPool where it dies."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(execute, cfg, run).result()


def run_all(cfg: ExperimentConfig, variants: Sequence[str], out: Path) -> None:
    """Runs what is missing in `out`, `cfg.concurrency` at a time. A run that fails does not stop
    the others. Raises RunsFailed at the end, which names them; ConfigError where `out` has runs of
    other settings."""
    out.mkdir(parents=True, exist_ok=True)
    check_settings(cfg, out)
    results = Results(cfg, out)
    results.add(results.rows[:0], {})
    failed: list[str] = []
    started: set[Run] = set()
    pending: dict[Future[Executed], Run] = {}
    with ThreadPoolExecutor(cfg.concurrency) as threads:
        while True:
            waiting = [r for r in next_runs(cfg, results, variants) if r not in started]
            for run in waiting[: cfg.concurrency - len(pending)]:
                started.add(run)
                pending[threads.submit(execute_in_process, cfg, run)] = run
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                run = pending.pop(future)
                if error := future.exception():
                    failed.append(run.name)
                    print(f"{run.name} failed: {_describe(error)}", flush=True)
                    continue
                rows, samples, seconds = future.result()
                results.add(rows, samples if run.kind == "final" else {})
                print(f"{run.name} done in {seconds:.0f} s", flush=True)
    if failed:
        raise RunsFailed(f"{', '.join(failed)} failed; the same command runs what is missing")


def _describe(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process died, perhaps for lack of memory: lower concurrency or batch"
    return "".join(traceback.format_exception(error))


def summary(rows: pa.Table) -> str:
    """Returns a line with the means of one test."""
    measures = ("joint", "colour", "direction", "other", "order", "loss")
    means = (f"{m} {np.mean(rows[m].to_numpy()):.4g}" for m in measures)
    return f"step {rows['step'][0]} {rows['test'][0]}: {', '.join(means)}"
