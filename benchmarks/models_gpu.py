"""What the scorers with weights do on one GPU: the stages' own code, random weights at full size.

    python -m benchmarks.models_gpu [--clips 768]

Three parts. *On the device alone*: inputs made ready beforehand, so it is what the GPU gives at
most; the share of its peak is FLOPs over time over a bf16 product 8192^3 of the same run. *Through
the stage*: `Models` on rows with JPEG key frames (768 x 432) on disk, read and decoded by its
threads; with 4 workers, four processes on the one GPU as `gpus: 0.25` has it. *TransNetV2*:
likelihoods beside those of the CPU, and `DecodePass` with it in its isolated child.
Pictures are drawn with texture (zeros would run faster); the scores mean nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.gpu_time import milliseconds, peak_flops
from curation.isolate import Isolated
from curation.stage import Row, RunContext, StageSequence
from curation.storage import Folder
from curation.torchvision_fix import fix_torchvision
from stages.decode_pass import DecodePass
from stages.scorers import clip as clip_stage
from stages.scorers.clip import ClipScorer
from stages.scorers.lpips import FEATURE_CHANNELS, LpipsScorer
from stages.scorers.models import VIDEOS_PER_CALL, Models
from stages.scorers.raft import RaftScorer
from stages.shots import transnet
from tests.support import zoo
from tests.support.small_input import scene

KEY_FRAMES = 5
PATIENCE_S = 150  # for the workers
TOKENS, WIDTH, LAYERS = 257, 1024, 24  # of CLIP ViT-L/14 at 224 px


def counted(work: Callable[[], object]) -> int:
    """FLOPs of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def clip_flops() -> float:
    """Of one frame: products of 12 D^2 weights a layer, attention, the patches' embedding."""
    products = 2 * TOKENS * 12 * WIDTH**2 * LAYERS
    attention = 4 * TOKENS**2 * WIDTH * LAYERS
    return products + attention + 2 * (TOKENS - 1) * 3 * 14 * 14 * WIDTH


def write_weights(folder: Path) -> dict[str, str]:
    """Random weights of the published sizes, as files that the stages load."""
    from safetensors.torch import save_file

    fix_torchvision()
    from open_clip.transformer import QuickGELU, VisionTransformer
    from torchvision.models import alexnet
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    tower = VisionTransformer(224, 14, WIDTH, LAYERS, 16, 4.0, output_dim=768, act_layer=QuickGELU)
    save_file(
        {f"visual.{k}": v for k, v in tower.state_dict().items()}, folder / "clip.safetensors"
    )
    shapes = {"0": (1024, 768), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
    head = {f"layers.{n}.weight": torch.randn(s) / s[1] ** 0.5 for n, s in shapes.items()}
    head |= {f"layers.{n}.bias": torch.zeros(s[0]) for n, s in shapes.items()}
    torch.save(head, folder / "head.pth")
    torch.save(alexnet(weights=None).state_dict(), folder / "alexnet.pth")
    lin = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(FEATURE_CHANNELS)}
    torch.save(lin, folder / "linear.pth")
    torch.save(raft_large(weights=None).state_dict(), folder / "raft.pth")
    names = {"clip": "clip.safetensors", "head": "head.pth", "alexnet": "alexnet.pth"}
    names |= {"linear": "linear.pth", "raft": "raft.pth"}
    return {name: str(folder / file) for name, file in names.items()}


def picture(seed: int, width: int = 768, height: int = 432) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (height // 24, width // 24, 3), np.uint8)
    large = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + rng.normal(0, 6, large.shape), 0, 255).astype(np.uint8)


def write_rows(folder: Path, clips: int) -> list[Row]:
    """Videos of two clips each, every key frame a file of its own; 64 pictures take turns."""
    ledger = Folder(str(folder))
    (folder / "key_frames").mkdir(parents=True)
    jpegs = []
    for seed in range(64):
        done, jpeg = cv2.imencode(".jpg", picture(seed), [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert done
        jpegs.append(jpeg.tobytes())
    rows: list[Row] = []
    for clip in range(clips):
        segments = []
        for n in range(KEY_FRAMES):
            names = [f"key_frames/{clip}_{n}{end}.jpg" for end in ("", "_next")]
            for shift, name in enumerate(names):
                ledger.write(name, jpegs[(7 * clip + n + shift) % 64], durable=False)
            segments.append(
                {"start_s": 3.0 * n, "key_frame_s": 3.0 * n, "key_frame": names[0]}
                | {"next_frame_s": 3.0 * n + 0.1, "next_frame": names[1]}
            )
        if clip % 2 == 0:
            rows.append({"clips": []})
        made = {"clip_id": str(clip), "prefilter": None, "null_reasons": {}, "segments": segments}
        rows[-1]["clips"].append(made)
    return rows


def stage(folder: Path, files: dict[str, str], which: str) -> Models:
    chosen: dict = {}
    if "clip" in which:
        chosen["clip"] = ClipScorer(weights=files["clip"], aesthetics=files["head"])
    if "lpips" in which:
        chosen["lpips"] = LpipsScorer(weights=files["alexnet"], linear=files["linear"])
    if "raft" in which:
        chosen["raft"] = RaftScorer(weights=files["raft"])
    models = Models(gpus=1.0, **chosen)
    models.setup(RunContext(str(folder), weights=models.find_versions()))
    return models


@torch.no_grad()
def on_the_device(models: Models, peak: float) -> None:
    print("\non the device alone        a second      ms   TFLOP/s  share of peak")

    def line(name: str, count: int, unit: str, work: Callable[[], object], flops: float) -> None:
        ms = milliseconds(work)
        rate = flops / ms * 1e3
        print(
            f"{name:24s} {count / ms * 1e3:9.0f} {unit:6s} {ms:7.1f} {rate / 1e12:8.1f}"
            f" {rate / peak:8.3f}",
            flush=True,
        )

    clip, lpips, raft = models.clip, models.lpips, models.raft
    frames = np.stack([clip_stage.resize_and_crop(picture(seed), 224) for seed in range(64)])
    for count in (64, 256, 1024):
        batch = torch.from_numpy(np.tile(frames, (count // 64, 1, 1, 1))).cuda()
        line(
            f"CLIP ViT-L/14, {count}",
            *(count, "frames"),
            lambda batch=batch: clip._embed(batch),
            clip_flops() * count,
        )
    batch = torch.from_numpy(np.tile(frames, (4, 1, 1, 1))).cuda()
    torch.backends.mha.set_fastpath_enabled(False)
    line("  without MHA's fast path", 256, "frames", lambda: clip._embed(batch), clip_flops() * 256)
    began = time.perf_counter()
    whole = clip._model
    for block in whole.transformer.resblocks:
        block.compile()
    line("  and blocks compiled", 256, "frames", lambda: clip._embed(batch), clip_flops() * 256)
    print(f"  (compiling took {time.perf_counter() - began:.0f} s)")
    torch.backends.mha.set_fastpath_enabled(True)
    for block in whole.transformer.resblocks:
        block._compiled_call_impl = None
    small = np.stack([cv2.resize(picture(s), (320, 180)) for s in range(KEY_FRAMES)])
    several = torch.from_numpy(np.stack([small] * 25))
    flops = counted(lambda: lpips._of(several))
    line("LPIPS, 25 clips, 320x180", 25, "clips", lambda: lpips._of(several), flops)
    pair = np.stack([cv2.resize(picture(s), (512, 288)) for s in (1, 1)])
    pairs = torch.from_numpy(np.stack([pair] * 32))
    scale = torch.ones(32, 2)
    flops = counted(lambda: raft._speeds(pairs, scale))
    line("RAFT, 32 pairs, 512x288", 32, "pairs", lambda: raft._speeds(pairs, scale), flops)


def worker(folder: str, files: dict[str, str], which: str, rows: list[Row], ready, done) -> None:
    torch.cuda.init()
    models = stage(Path(folder), files, which)
    models.process(rows[:4])
    ready.wait(PATIENCE_S)
    for first in range(0, len(rows), VIDEOS_PER_CALL):
        models.process(rows[first : first + VIDEOS_PER_CALL])
    done.put(time.perf_counter())


def through_the_stage(folder: Path, files: dict[str, str], rows: list[Row], repeat: int) -> None:
    print("\nthrough the stage, JPEG files in, scores out")
    clips = sum(len(row["clips"]) for row in rows)
    spawn = multiprocessing.get_context("spawn")
    for which, workers, share in (
        *(("clip", 1, 1), ("clip", 4, 1), ("clip+lpips", 4, 1)),
        ("clip+lpips+raft", 4, 4),
    ):
        part = rows[: len(rows) // share] * (repeat if share == 1 else 1)
        ready, done = spawn.Barrier(workers + 1), spawn.Queue()
        mine = [part[n::workers] for n in range(workers)]
        every = [
            spawn.Process(target=worker, args=(str(folder), files, which, m, ready, done))
            for m in mine
        ]
        for process in every:
            process.start()
        ready.wait(PATIENCE_S)
        began = time.perf_counter()
        for _ in every:
            done.get(timeout=PATIENCE_S)
        spent_s = time.perf_counter() - began
        for process in every:
            process.join()
        count = clips // share * (repeat if share == 1 else 1)
        print(
            f"{which:18s} {workers} workers  {count / spent_s:8.1f} clips/s "
            f"{count * KEY_FRAMES / spent_s:8.1f} key frames/s   {spent_s:.1f} s",
            flush=True,
        )


@torch.no_grad()
def of_transnet(folder: Path, peak: float) -> None:
    print("\nTransNetV2                 frames/s      ms   TFLOP/s  share of peak")
    windows = []
    for n in range(16):  # three cuts in each, so that likelihoods are not all nothing
        places = [scene(4 * n + k) for k in range(4)]
        shown = [places[f // 30](f // 5, 96, 54) for f in range(transnet.WINDOW)]
        windows.append([s[::2, ::2] for s in shown])
    given = np.array(windows)
    network = transnet._load_network().cuda()
    flops = counted(lambda: network(torch.from_numpy(given[:1]).cuda()))
    began = time.perf_counter()
    exact = transnet.load_predictor("cpu")(given[:4]).numpy()
    cpu_s = time.perf_counter() - began
    for count in (16, 64, 256):
        batch = np.tile(given, (count // 16, 1, 1, 1, 1))
        predict = transnet.load_predictor("cuda")
        ms = milliseconds(lambda b=batch, p=predict: p(b))
        rate = flops * count / ms * 1e3
        print(
            f"float32, {count:4d} windows    {count * 50 / ms * 1e3:9.0f} {ms:7.1f}"
            f" {rate / 1e12:8.1f} {rate / peak:8.3f}",
            flush=True,
        )
    found = predict(given)[:4].cpu().numpy()
    print(f"  furthest from the CPU's likelihoods: {np.abs(found - exact).max():.1e}", end="; ")
    print(f"other side of 0.5: {np.sum((found > 0.5) != (exact > 0.5))} of {exact.size}")
    batch = torch.from_numpy(np.tile(given, (16, 1, 1, 1, 1))).cuda()
    for name, tf32, half in (("TF32", True, False), ("bf16 autocast", True, True)):

        def run(tf32=tf32, half=half) -> torch.Tensor:
            flags = torch.backends.cudnn.flags(allow_tf32=tf32)
            cast = torch.autocast("cuda", torch.bfloat16, enabled=half)
            with torch.inference_mode(), flags, cast:
                return network(batch)[0][:, 25:75, 0].float().sigmoid()

        ms = milliseconds(run)
        rate = flops * 256 / ms * 1e3
        off = np.abs(run()[:4].cpu().numpy() - exact).max()
        print(
            f"{name + ', 256':24s} {256 * 50 / ms * 1e3:9.0f} {ms:7.1f} {rate / 1e12:8.1f}"
            f" {rate / peak:8.3f}   furthest from the CPU's: {off:.1e}",
            flush=True,
        )
    print(f"one core or more of the CPU, 4 windows: {200 / cpu_s:.0f} frames/s")
    watched(folder)


def watched(folder: Path) -> None:
    """DecodePass in its child process, under its memory limit, with TransNetV2 on the GPU."""
    places = [picture(200 + n, 1344, 784) for n in range(3)]

    def shown(index: int, width: int, height: int) -> np.ndarray:
        x, y = 2 * index % 60, index % 60
        return places[index // 200][y : y + height, x : x + width]

    path = zoo.draw(
        folder / "drawn.mp4", picture=shown, frames=600, width=1280, height=720, fps=25.0
    )
    for detector, gpus in (("residual", 0.05), ("transnet", 0.05)):
        decode = DecodePass(detector=detector, transnet=transnet.TransNetDetector(gpus=gpus))
        work = StageSequence([decode], RunContext(str(folder / "watched")))
        with Isolated(work.run, work.setup, memory_gib=4.0, timeout_s=120) as child:
            row: Row = {"video": str(path), "bytes": path.stat().st_size}
            child(0, row)
            began = time.perf_counter()
            found = child(0, row)
            spent_s = time.perf_counter() - began
        print(
            f"DecodePass, isolated, cuts by {detector:9s} 600 frames of 720p in {spent_s:.2f} s, "
            f"CPU {found['cpu_s']:.2f} s, cuts {[round(t, 2) for t in found['cuts_s']]}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--clips", type=int, default=768)
    options.add_argument("--repeat", type=int, default=2, help="passes over the clips")
    args = options.parse_args()
    assert torch.cuda.is_available(), "needs a CUDA device"
    began = time.perf_counter()
    peak = peak_flops()
    name, version = torch.cuda.get_device_name(), torch.__version__
    print(f"{name}, torch {version}: bf16 peak {peak / 1e12:.0f} TFLOP/s")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_weights(folder)
        rows = write_rows(folder / "ledger", args.clips)
        print(f"weights and {args.clips} clips ready after {time.perf_counter() - began:.0f} s")
        of_transnet(folder, peak)
        models = stage(folder / "ledger", files, "clip+lpips+raft")
        on_the_device(models, peak)
        del models
        torch.cuda.empty_cache()
        through_the_stage(folder / "ledger", files, rows, args.repeat)
    print(f"all of it took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
