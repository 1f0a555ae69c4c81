"""Throughput of the scorers with weights on one GPU: the stages' code, random weights, full size.

    python -m benchmarks.models_gpu [--clips 768]

Three parts. *On the device*: inputs are prepared before, so this is the GPU's maximum; the share of
peak is FLOPs per second divided by those of a bf16 product of 8192 x 8192 matrices in the same run.
*Through the stage*: `Models` on rows with JPEG key frames (768 x 432) on disk, which its threads
read and decode; with 4 workers, four processes share the GPU, as with `gpus: 0.25`. *TransNetV2*:
its throughput and the difference from the CPU's probabilities, and `DecodePass` with it in an
isolated child. Images have random texture (zeros would run faster); the scores have no meaning.
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
from tests.support import video_files
from tests.support.small_input import scene

KEY_FRAMES = 5
WORKER_TIMEOUT_S = 150
TOKENS, WIDTH, LAYERS = 257, 1024, 24  # of CLIP ViT-L/14 at 224 px


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def clip_flops() -> float:
    """Of one frame: 12 D^2 weights per layer, attention, and the patch embedding."""
    products = 2 * TOKENS * 12 * WIDTH**2 * LAYERS
    attention = 4 * TOKENS**2 * WIDTH * LAYERS
    return products + attention + 2 * (TOKENS - 1) * 3 * 14 * 14 * WIDTH


def write_weights(folder: Path) -> dict[str, str]:
    """Writes random weights of the published sizes. Returns the files by name."""
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


def textured_image(seed: int, width: int = 768, height: int = 432) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (height // 24, width // 24, 3), np.uint8)
    large = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + rng.normal(0, 6, large.shape), 0, 255).astype(np.uint8)


def write_rows(folder: Path, clips: int) -> list[Row]:
    """Rows of videos with two clips each. Writes one file per key frame, from 64 images."""
    ledger = Folder(str(folder))
    (folder / "key_frames").mkdir(parents=True)
    jpegs = []
    for seed in range(64):
        encoded, jpeg = cv2.imencode(".jpg", textured_image(seed), [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert encoded
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
        row = {"clip_id": str(clip), "prefilter": None, "null_reasons": {}, "segments": segments}
        rows[-1]["clips"].append(row)
    return rows


def set_up_models(folder: Path, files: dict[str, str], which: str) -> Models:
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
def measure_on_device(models: Models, peak: float) -> None:
    print("\non the device              per second     ms   TFLOP/s  share of peak")

    def measure(name: str, count: int, unit: str, work: Callable[[], object], flops: float) -> None:
        ms = milliseconds(work)
        rate = flops / ms * 1e3
        print(
            f"{name:24s} {count / ms * 1e3:9.0f} {unit:6s} {ms:7.1f} {rate / 1e12:8.1f}"
            f" {rate / peak:8.3f}",
            flush=True,
        )

    clip, lpips, raft = models.clip, models.lpips, models.raft
    frames = np.stack([clip_stage.resize_and_crop(textured_image(seed), 224) for seed in range(64)])
    for count in (64, 256, 1024):
        batch = torch.from_numpy(np.tile(frames, (count // 64, 1, 1, 1))).cuda()
        measure(
            f"CLIP ViT-L/14, {count}",
            *(count, "frames"),
            lambda batch=batch: clip._embed(batch),
            clip_flops() * count,
        )
    batch = torch.from_numpy(np.tile(frames, (4, 1, 1, 1))).cuda()
    torch.backends.mha.set_fastpath_enabled(False)
    measure(
        "  without the MHA fast path", 256, "frames", lambda: clip._embed(batch), clip_flops() * 256
    )
    start = time.perf_counter()
    model = clip._model
    for block in model.transformer.resblocks:
        block.compile()
    measure("  and blocks compiled", 256, "frames", lambda: clip._embed(batch), clip_flops() * 256)
    print(f"  (compilation took {time.perf_counter() - start:.0f} s)")
    torch.backends.mha.set_fastpath_enabled(True)
    for block in model.transformer.resblocks:
        block._compiled_call_impl = None
    small = np.stack([cv2.resize(textured_image(s), (320, 180)) for s in range(KEY_FRAMES)])
    clips = torch.from_numpy(np.stack([small] * 25))
    flops = count_flops(lambda: lpips._mean_distances(clips))
    measure("LPIPS, 25 clips, 320x180", 25, "clips", lambda: lpips._mean_distances(clips), flops)
    pair = np.stack([cv2.resize(textured_image(s), (512, 288)) for s in (1, 1)])
    pairs = torch.from_numpy(np.stack([pair] * 32))
    scale = torch.ones(32, 2)
    flops = count_flops(lambda: raft._speeds(pairs, scale))
    measure("RAFT, 32 pairs, 512x288", 32, "pairs", lambda: raft._speeds(pairs, scale), flops)


def run_worker(
    folder: str, files: dict[str, str], which: str, rows: list[Row], ready, done
) -> None:
    torch.cuda.init()
    models = set_up_models(Path(folder), files, which)
    models.process(rows[:4])
    ready.wait(WORKER_TIMEOUT_S)
    for first in range(0, len(rows), VIDEOS_PER_CALL):
        models.process(rows[first : first + VIDEOS_PER_CALL])
    done.put(time.perf_counter())


def measure_through_stage(
    folder: Path, files: dict[str, str], rows: list[Row], repeat: int
) -> None:
    print("\nthrough the stage, JPEG files in, scores out")
    clips = sum(len(row["clips"]) for row in rows)
    spawn = multiprocessing.get_context("spawn")
    for which, workers, share in (
        *(("clip", 1, 1), ("clip", 4, 1), ("clip+lpips", 4, 1)),
        ("clip+lpips+raft", 4, 4),
    ):
        part = rows[: len(rows) // share] * (repeat if share == 1 else 1)
        ready, done = spawn.Barrier(workers + 1), spawn.Queue()
        shares = [part[n::workers] for n in range(workers)]
        processes = [
            spawn.Process(target=run_worker, args=(str(folder), files, which, m, ready, done))
            for m in shares
        ]
        for process in processes:
            process.start()
        ready.wait(WORKER_TIMEOUT_S)
        start = time.perf_counter()
        for _ in processes:
            done.get(timeout=WORKER_TIMEOUT_S)
        spent_s = time.perf_counter() - start
        for process in processes:
            process.join()
        count = clips // share * (repeat if share == 1 else 1)
        print(
            f"{which:18s} {workers} workers  {count / spent_s:8.1f} clips/s "
            f"{count * KEY_FRAMES / spent_s:8.1f} key frames/s   {spent_s:.1f} s",
            flush=True,
        )


@torch.no_grad()
def measure_transnet(folder: Path, peak: float) -> None:
    print("\nTransNetV2                 frames/s      ms   TFLOP/s  share of peak")
    windows = []
    for n in range(16):  # three cuts in each, so that some probabilities are high
        scenes = [scene(4 * n + k) for k in range(4)]
        frames = [scenes[f // 30](f // 5, 96, 54) for f in range(transnet.WINDOW)]
        windows.append([s[::2, ::2] for s in frames])
    inputs = np.array(windows)
    network = transnet._load_network().cuda()
    flops = count_flops(lambda: network(torch.from_numpy(inputs[:1]).cuda()))
    start = time.perf_counter()
    exact = transnet.load_predictor("cpu")(inputs[:4]).numpy()
    cpu_s = time.perf_counter() - start
    for count in (16, 64, 256):
        batch = np.tile(inputs, (count // 16, 1, 1, 1, 1))
        predict = transnet.load_predictor("cuda")
        ms = milliseconds(lambda b=batch, p=predict: p(b))
        rate = flops * count / ms * 1e3
        print(
            f"float32, {count:4d} windows    {count * 50 / ms * 1e3:9.0f} {ms:7.1f}"
            f" {rate / 1e12:8.1f} {rate / peak:8.3f}",
            flush=True,
        )
    found = predict(inputs)[:4].cpu().numpy()
    print(
        f"  largest difference from the CPU's probabilities: {np.abs(found - exact).max():.1e}",
        end="; ",
    )
    print(f"on the other side of 0.5: {np.sum((found > 0.5) != (exact > 0.5))} of {exact.size}")
    batch = torch.from_numpy(np.tile(inputs, (16, 1, 1, 1, 1))).cuda()
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
            f" {rate / peak:8.3f}   largest difference from the CPU's: {off:.1e}",
            flush=True,
        )
    print(f"CPU, one core or more, 4 windows: {200 / cpu_s:.0f} frames/s")
    measure_decode_pass(folder)


def measure_decode_pass(folder: Path) -> None:
    """DecodePass in an isolated child with a memory limit, with TransNetV2 on the GPU."""
    images = [textured_image(200 + n, 1344, 784) for n in range(3)]

    def frame_at(index: int, width: int, height: int) -> np.ndarray:
        x, y = 2 * index % 60, index % 60
        return images[index // 200][y : y + height, x : x + width]

    path = video_files.draw(
        folder / "drawn.mp4", picture=frame_at, frames=600, width=1280, height=720, fps=25.0
    )
    for detector, gpus in (("learned", 0.05), ("transnet", 0.05)):
        decode = DecodePass(detector=detector, transnet=transnet.TransNetDetector(gpus=gpus))
        work = StageSequence([decode], RunContext(str(folder / "ledger-transnet")))
        with Isolated(work.run, work.setup, memory_gib=4.0, timeout_s=120) as child:
            row: Row = {"video": str(path), "bytes": path.stat().st_size}
            child(0, row)
            start = time.perf_counter()
            found = child(0, row)
            spent_s = time.perf_counter() - start
        print(
            f"DecodePass, isolated, cuts by {detector:9s} 600 frames of 720p in {spent_s:.2f} s, "
            f"CPU {found['cpu_s']:.2f} s, cuts {[round(t, 2) for t in found['cuts_s']]}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--clips", type=int, default=768)
    options.add_argument("--repeat", type=int, default=2, help="number of passes over the clips")
    args = options.parse_args()
    assert torch.cuda.is_available(), "needs a CUDA device"
    start = time.perf_counter()
    peak = peak_flops()
    name, version = torch.cuda.get_device_name(), torch.__version__
    print(f"{name}, torch {version}: bf16 peak {peak / 1e12:.0f} TFLOP/s")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_weights(folder)
        rows = write_rows(folder / "ledger", args.clips)
        print(f"weights and {args.clips} clips ready after {time.perf_counter() - start:.0f} s")
        measure_transnet(folder, peak)
        models = set_up_models(folder / "ledger", files, "clip+lpips+raft")
        measure_on_device(models, peak)
        del models
        torch.cuda.empty_cache()
        measure_through_stage(folder / "ledger", files, rows, args.repeat)
    print(f"total: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
