"""Small datasets and clips for tests of training: packed as `make curate` packs them."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import torch

from curation.records import SCORE_NAMES, hash_frames
from stages.export.extraction import ExtractedClip
from stages.export.shards import pack_shard, plan_shards, shards_table
from training.clips import Clip

FPS, FRAMES, WIDTH, HEIGHT = 25, 50, 160, 96


def frame(number: int, of: int) -> np.ndarray:
    """Frame `of` of clip `number`: grey by time, the left half by clip. (HEIGHT, WIDTH, 3) RGB."""
    picture = np.full((HEIGHT, WIDTH, 3), 20 + 4 * of, np.uint8)
    picture[:, : WIDTH // 2] = (40 * number) % 200 + 20
    return picture


def write_mp4(clip: dict, target: Path, frames: int = FRAMES) -> ExtractedClip:
    number = int(clip["video"])
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number, i), format="rgb24")))
        out.mux(stream.encode())
    size = target.stat().st_size
    return ExtractedClip("encode", "h264", FRAMES, 0, WIDTH, HEIGHT, float(FPS), size, 0.0)


def row(number: int, split: str = "train") -> dict:
    """A clip's row as export has it: clip, selection and captions joined."""
    hashes = [hashlib.sha256(f"{number}-{i}".encode()).hexdigest() for i in range(5)]
    return {
        "clip_id": hashlib.sha256(str(number).encode()).hexdigest()[:24],
        "video": str(number),
        "split": split,
        "start_s": 1.0,
        "end_s": 3.0,
        "num_frames": FRAMES,
        "width": WIDTH,
        "height": HEIGHT,
        "starts_on_keyframe": True,
        "packet_bytes": 10_000,
        "segments": [{"key_frame_sha256": sha256} for sha256 in hashes],
        "frames_sha256": hash_frames(hashes),
        "caption": f"All of {number} ☀",
        "sub_captions": [
            {"start_s": 0.4 * i, "end_s": 0.4 * (i + 1), "text": f"clip {number}, part {i}"}
            for i in range(5)
        ],
        "captioner": "measured",
        "provenance": "{}",
        **dict.fromkeys(SCORE_NAMES),
    }


def dataset(
    folder: Path,
    rows: Sequence[dict],
    most: int = 3,
    make: Callable[[dict, Path], ExtractedClip] = write_mp4,
) -> Path:
    """A dataset of these clips in shards of at most `most`."""
    by_id = {r["clip_id"]: r for r in rows}
    receipts = [
        pack_shard(plan, by_id, folder / "shards", folder / "receipts", make)
        for plan in plan_shards(rows, 10**9, most)
    ]
    pq.write_table(shards_table(receipts), folder / "shards.parquet")
    return folder


def clip(number: int, frames: int = 4, height: int = 16, width: int = 16) -> Clip:
    """A drawn clip in memory: noise of its own and captions of its own."""
    rng = np.random.default_rng(number)
    video = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
    spans = [(0.0, 1.0), (1.0, 2.0)]
    texts = [f"{number} first", f"then {number}"]
    return Clip(f"{number:024d}", torch.from_numpy(video), 2.0, spans, texts, f"all of {number}")
