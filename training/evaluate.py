"""Measures sampled videos: motion, agreement with the captions, changes between segments.

    python -m training.evaluate VIDEOS OUT [reference=FOLDER] [clip=FOLDER] [raft=FILE]

VIDEOS is a folder of mp4 files of training.sample, whose metadata contains the captions and their
times. OUT gets evaluation.parquet, with a row per video, and the page evaluation.html.

| column | meaning |
|---|---|
| dynamic_dis, dynamic_raft | VBench's dynamic degree of one video: is_dynamic |
| flow_top_dis, flow_top_raft | flow of the fastest 5 % of pixels, px per frame pair: is_dynamic |
| motion_px_s | mean flow, px per second at 320 px wide |
| border_steps | per segment border: largest change not due to motion, relative to the median |
| clip_similarity | per segment: cosine of its caption and its frames by CLIP, mean over frames |
| sharpness | variance of the Laplacian, mean over frames |
| psnr, ssim | to the video of the same name in `reference`, at the same share of its time |

VBench uses RAFT; values by DIS have names of their own because they are not comparable. Measures
whose weights or reference are not given are null.
"""

from __future__ import annotations

from curation.cli import Arguments, check_command_line, run_command
from training.config import EvaluateConfig

if __name__ == "__main__":  # before torch is imported: a mistyped setting is refused at once
    check_command_line(__doc__, EvaluateConfig, "VIDEOS OUT")

import base64
import html
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from curation import measures
from curation.errors import UserError
from curation.json_text import parse_object
from curation.torchvision_fix import fix_torchvision
from training.interpolate import optical_flow, warp
from training.weights import BadWeights

MOTION_WIDTH = 320  # px, of frames for motion_px_s and border_steps
BORDER_WINDOW_S = 0.5  # on both sides of a border
SPAN_SLACK_S = 0.5  # by which the last span may be longer than the video: frame rates are rounded
CLIP_FRAMES = 8  # of a segment; as many as VBench gives its models
MOTION_BINS = ((2, "static"), (10, "slow"), (40, "medium"), (float("inf"), "fast"))  # px/s
QUALITY = ["dynamic_degree", "motion_smoothness", "subject_consistency", "imaging_quality"]
Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two RGB frames -> (H, W, 2) px
Row = dict[str, Any]


@dataclass(frozen=True)
class Video:
    path: Path
    fps: float
    frames: np.ndarray  # (T, H, W, 3) uint8 RGB
    spans: list[tuple[float, float]]  # s
    captions: list[str]

    @property
    def duration_s(self) -> float:
        return len(self.frames) / self.fps


class BadSample(UserError):
    """A video can't be measured."""


def read_video(path: Path) -> Video:
    """A video of training.sample. Raises BadSample."""
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            comment = parse_object(file.metadata.get("comment") or "{}")
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
            fps = float(stream.average_rate or 0)
        parts = comment.get("captions", [])
        spans = [(float(part["start_s"]), float(part["end_s"])) for part in parts]
        captions = [str(part["text"]) for part in parts]
    except (av.FFmpegError, LookupError, ValueError, TypeError, OverflowError) as error:
        raise BadSample(f"{path}: {error}; expected an mp4 of training.sample") from error
    if len(frames) < 2 or fps <= 0:
        raise BadSample(f"{path}: {len(frames)} frames; expected two or more")
    seconds = len(frames) / fps
    for start_s, end_s in spans:
        if not 0 <= start_s < end_s <= seconds + SPAN_SLACK_S:
            raise BadSample(
                f"{path}: a caption's span is {start_s:g} to {end_s:g} s; the video has "
                f"{seconds:.3g} s"
            )
    return Video(path, fps, np.stack(frames), spans, captions)


def frames_at(path: Path, count: int) -> Iterator[np.ndarray]:
    """`count` RGB frames of a video at evenly spaced shares of its time. Decodes it twice, so that
    memory holds one frame. Raises BadSample."""

    def decoded() -> Iterator[av.VideoFrame]:
        with av.open(str(path)) as file:
            yield from file.decode(file.streams.video[0])

    try:
        total = sum(1 for _ in decoded())
        numbers = [int((i + 0.5) * total / count) for i in range(count)]
        for number, frame in enumerate(decoded()):
            for _ in range(numbers.count(number)):
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, LookupError) as error:
        raise BadSample(f"{path}: {error}; expected a real video") from error
    if not total:
        raise BadSample(f"{path}: it has no frame; expected a real video")


# ---- measures


def is_dynamic(frames: np.ndarray, fps: float, flow: Flow) -> tuple[bool, float]:
    """VBench's dynamic degree of one video, and the mean of the values that it compares.

    Every max(1, round(fps / 8))-th frame is kept. A pair of frames moves where the mean of its
    largest 5 % of flow magnitudes exceeds 6 * min(height, width) / 256 px; the video is dynamic
    where at least round(4 * kept / 16) pairs move (vbench/dynamic_degree.py, Python's round).
    """
    kept = frames[:: max(1, round(fps / 8))]
    threshold = 6.0 * min(kept.shape[1:3]) / 256
    tops = []
    for one, two in pairwise(kept):
        magnitudes = np.sort(np.linalg.norm(flow(one, two), axis=-1), axis=None)
        tops.append(float(magnitudes[-int(len(magnitudes) * 0.05) :].mean()))
    moving = sum(top > threshold for top in tops)
    return moving >= round(4 * len(kept) / 16), statistics.fmean(tops) if tops else 0.0


def motion_and_steps(video: Video) -> tuple[float, list[float]]:
    """Mean flow, px/s at 320 px wide, and for each border between segments the largest change of
    neighbouring frames near it after motion compensation, relative to the video's median. About 1
    for a smooth border, far more for a cut."""
    height = round(video.frames.shape[1] * MOTION_WIDTH / video.frames.shape[2])
    size = (MOTION_WIDTH, height)
    small = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in video.frames]
    motion, residual = [], []
    for one, two in pairwise(small):
        displacement = optical_flow(two, one)
        motion.append(float(np.linalg.norm(displacement, axis=-1).mean()))
        residual.append(float(np.abs(two - warp(one, displacement)).mean()))
    change = np.array(residual)
    times = (np.arange(len(change)) + 1) / video.fps  # between two frames
    # 0.5 grey levels more: in a static video any change would be large
    median = float(np.median(change)) + 0.5
    steps = []
    for start, _ in video.spans[1:]:
        near = np.abs(times - start) <= max(BORDER_WINDOW_S, 1.5 / video.fps)
        steps.append(float(change[near].max() / median) if near.any() else float("nan"))
    return statistics.fmean(motion) * video.fps, steps


def fidelity(video: Video, real: Path) -> tuple[float, float]:
    """PSNR (dB) and SSIM to a real video, mean over frames at the same share of the time; the real
    frames are resized to the sampled ones. Raises BadSample."""
    psnrs, ssims = [], []
    height, width = video.frames.shape[1:3]
    real_frames = frames_at(real, len(video.frames))
    for frame, other in zip(video.frames, real_frames, strict=True):
        other = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA)
        psnrs.append(min(100.0, measures.psnr(frame, other)))
        ssims.append(measures.ssim(_grey(frame), _grey(other)))
    return statistics.fmean(psnrs), statistics.fmean(ssims)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


class ClipModel:
    """Similarity of texts and frames by CLIP (arXiv 2103.00020)."""

    def __init__(self, folder: str):
        fix_torchvision()
        from transformers import AutoTokenizer, CLIPModel

        try:
            self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the library raises many types for a missing or damaged file
            raise BadWeights(
                f"{folder}: no CLIP model can be read there ({str(error).splitlines()[0]:.150}); "
                f"get one: hf download openai/clip-vit-large-patch14 --local-dir {folder}"
            ) from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    @torch.no_grad()
    def similarity(self, frames: np.ndarray, caption: str) -> float:
        """Mean cosine of the caption's and the frames' embeddings. frames: (N, H, W, 3) uint8."""
        side = self.model.config.vision_config.image_size
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).movedim(-1, 1) / 255
        scale = side / min(x.shape[2:])
        size = [max(side, round(n * scale)) for n in x.shape[2:]]
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=self.device)
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=self.device)
        pixels = (x - mean[:, None, None]) / deviation[:, None, None]
        longest = self.model.config.text_config.max_position_embeddings
        read = self.tokenizer(caption, truncation=True, max_length=longest, return_tensors="pt")
        out = self.model(pixel_values=pixels, **read.to(self.device))
        return F.cosine_similarity(out.image_embeds, out.text_embeds).mean().item()


def load_raft(path: str) -> Flow:
    """torchvision's raft_large with the weights in a file; 20 updates, as in VBench."""
    fix_torchvision()
    try:
        from torchvision.models.optical_flow import raft_large

        network: Any = raft_large()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise BadWeights(
            f"{path}: RAFT can't be loaded from there ({str(error).splitlines()[0]:.150}); "
            "expected torchvision, and its file raft_large_C_T_SKHT_V2-ff5fadd5.pth"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).eval()

    def tensor(picture: np.ndarray) -> Tensor:
        x = torch.from_numpy(picture).to(device).movedim(-1, 0)[None].float() / 127.5 - 1
        down, right = (-n % 8 for n in x.shape[2:])
        return F.pad(x, (0, right, 0, down), mode="replicate")

    @torch.no_grad()
    def calc(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        flow = network(tensor(one), tensor(two), num_flow_updates=20)[-1][0]
        return flow.movedim(0, -1)[: one.shape[0], : one.shape[1]].cpu().numpy()

    return calc


# ---- a folder


def evaluate(video: Video, real: Path | None, clip: ClipModel | None, raft: Flow | None) -> Row:
    """The row of a video; see the table at the top of this file."""
    height, width = video.frames.shape[1:3]
    motion, steps = motion_and_steps(video)
    dynamic, top = is_dynamic(video.frames, video.fps, optical_flow)
    row: Row = {
        "video": video.path.name,
        "width": width,
        "height": height,
        "duration_s": video.duration_s,
        "fps": video.fps,
        "motion_px_s": motion,
        "dynamic_dis": dynamic,
        "flow_top_dis": top,
        "dynamic_raft": None,
        "flow_top_raft": None,
        "border_steps": steps,
        "clip_similarity": None,
        "sharpness": statistics.fmean(measures.sharpness(_grey(f)) for f in video.frames),
        "psnr": None,
        "ssim": None,
    }
    if raft:
        row["dynamic_raft"], row["flow_top_raft"] = is_dynamic(video.frames, video.fps, raft)
    if clip:
        row["clip_similarity"] = [
            clip.similarity(sample_segment(video, *span), caption)
            for span, caption in zip(video.spans, video.captions, strict=True)
        ]
    if real:
        row["psnr"], row["ssim"] = fidelity(video, real)
    return row


def sample_segment(video: Video, start_s: float, end_s: float) -> np.ndarray:
    """CLIP_FRAMES evenly spaced frames of a segment."""
    share = (np.arange(CLIP_FRAMES) + 0.5) / CLIP_FRAMES
    index = ((start_s + share * (end_s - start_s)) * video.fps).astype(int)
    return video.frames[np.clip(index, 0, len(video.frames) - 1)]


def summary_groups(row: Row) -> Iterator[str]:
    """The groups of the summary that a video belongs to."""
    yield "all"
    limit = next(i for i, (below, _) in enumerate(MOTION_BINS) if row["motion_px_s"] < below)
    yield f"motion: {MOTION_BINS[limit][1]}"
    shares = {
        1.0: "1:1",
        4 / 3: "4:3",
        16 / 9: "16:9",
        3 / 4: "3:4",
        9 / 16: "9:16",
        21 / 9: "21:9",
    }
    shape = row["width"] / row["height"]
    yield f"aspect: {shares[min(shares, key=lambda s: abs(np.log(s / shape)))]}"
    yield f"length: {5 * round(row['duration_s'] / 5)} s"


MEANS = [
    "dynamic_dis",
    "dynamic_raft",
    "flow_top_dis",
    "flow_top_raft",
    "motion_px_s",
    "border_steps",
    "clip_similarity",
    "sharpness",
    "psnr",
    "ssim",
]


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over groups of videos; null where no video has the measure."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        for group in summary_groups(row):
            found.setdefault(group, []).append(row)
    table = []
    for group in sorted(found):
        line: Row = {"group": group, "videos": len(found[group])}
        for name in MEANS:
            values = [row[name] for row in found[group] if row[name] is not None]
            flat = [x for v in values for x in (v if isinstance(v, list) else [v]) if x == x]
            line[name] = statistics.fmean(flat) if flat else None
        table.append(line)
    return table


def html_page(rows: Sequence[Row], strips: dict[str, bytes], videos: Path) -> str:
    """The text of evaluation.html, which loads no other files."""
    folder = html.escape(shlex.quote(str(videos)))  # in commands
    lines = [
        "<!doctype html><meta charset=utf-8><title>Evaluation</title>",
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 10px;text-align:right}",
        "img{max-width:100%}tr:nth-child(even){background:#f4f4f4}</style>",
        f"<h1>{len(rows)} videos</h1>{_table(summarize(rows))}",
        "<p>Columns: see <code>training/evaluate.py</code>. VBench's metrics, with its weights:"
        f"<pre>vbench evaluate --mode custom_input --videos_path {folder} "
        f"--dimension {' '.join(QUALITY)}</pre>"
        "and its semantic score, for videos of its prompts named PROMPT-0.mp4 to PROMPT-4.mp4:"
        f"<pre>vbench evaluate --videos_path {folder} --dimension overall_consistency</pre>",
    ]
    for row in rows:
        picture = base64.b64encode(strips[row["video"]]).decode()
        lines.append(f"<h3>{html.escape(row['video'])}</h3>{_table([row])}")
        lines.append(f'<img src="data:image/jpeg;base64,{picture}">')
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(cell(v) for v in value)
        if isinstance(value, float):
            return f"{value:.3g}"
        return "" if value is None else html.escape(str(value))

    head = "".join(f"<th>{name}" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(v)}" for v in row.values()) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def film_strip(video: Video) -> bytes:
    """A JPEG of one frame per segment, side by side, 240 px high."""
    spans = video.spans or [(0.0, video.duration_s)]
    middle = [min(len(video.frames) - 1, int((a + b) / 2 * video.fps)) for a, b in spans]
    row = np.hstack([video.frames[i] for i in middle])
    scale = 240 / row.shape[0]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    row = cv2.resize(row, None, fx=scale, fy=scale, interpolation=interpolation)
    return cv2.imencode(".jpg", row[..., ::-1])[1].tobytes()


def evaluate_folder(videos: Path, out: Path, cfg: EvaluateConfig) -> list[Row]:
    paths = sorted(videos.glob("*.mp4"))
    if not paths:
        raise BadSample(f"{videos}: no .mp4 in it; expected videos of training.sample")
    if cfg.reference and not any(Path(cfg.reference, path.name).exists() for path in paths):
        raise BadSample(
            f"reference is {cfg.reference!r}: no file there has the name of a video in {videos}; "
            "expected a folder of real videos with the names of the sampled ones"
        )
    clip = ClipModel(cfg.clip) if cfg.clip else None
    raft = load_raft(cfg.raft) if cfg.raft else None
    rows, strips = [], {}
    for path in paths:
        video, real = read_video(path), Path(cfg.reference, path.name)
        has_reference = bool(cfg.reference) and real.exists()
        rows.append(evaluate(video, real if has_reference else None, clip, raft))
        strips[path.name] = film_strip(video)
        print(path, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / "evaluation.parquet")
    (out / "evaluation.html").write_text(html_page(rows, strips, videos), "utf-8")
    return rows


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        run,
        argv,
        settings=EvaluateConfig,
        arguments="VIDEOS OUT",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[EvaluateConfig]) -> None:
    videos, out = arguments.values
    rows = evaluate_folder(Path(videos), Path(out), arguments.settings)
    dynamic = sum(row["dynamic_dis"] for row in rows) / len(rows)
    print(f"{len(rows)} videos, dynamic by DIS {dynamic:.0%}: {out}/evaluation.html")


if __name__ == "__main__":
    main(sys.argv[1:])
