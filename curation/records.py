"""Every column of every table, in one place: name, type, unit, meaning.

The trainer reads this file too (it is the schema of the sample in a shard), so it imports nothing
of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# Raised where the meaning of a column changes, not where one is added.
RELEASES = {1: "0.1.0", 2: "0.2.0"}  # schema version -> the first release that writes it
SCHEMA_VERSION = max(RELEASES)


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    what: str  # meaning and unit, as the Parquet field's metadata says it too
    model: str = ""  # the model that makes it, where that takes weights that we don't ship


def schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The Arrow schema; each field carries its description."""
    return pa.schema([pa.field(c.name, c.type, metadata={"what": c.what}) for c in columns])


SPAN = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())])
SUB_CAPTION = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("text", pa.string())])
NULL_REASONS = pa.map_(pa.string(), pa.string())
VERSIONS = pa.map_(pa.string(), pa.string())

FRAME_SAMPLE = pa.struct(
    [
        ("s", pa.float64()),  # time, relative to the clip
        ("file", pa.string()),  # JPEG, relative to the output's ledger/
        ("sha256", pa.string()),
    ]
)

# One entry per segment of a clip: what was measured in it, for captioners and for the hint in a prompt.
SEGMENT = pa.struct(
    [
        ("start_s", pa.float64()),  # relative to the clip
        ("end_s", pa.float64()),
        ("key_frame_s", pa.float64()),  # time of the stored key frame, relative to the clip
        ("key_frame", pa.string()),  # its JPEG file, relative to the output's ledger/
        ("key_frame_sha256", pa.string()),
        (
            "next_frame_s",
            pa.float64(),
        ),  # of the frame stored for optical flow, relative to the clip
        ("next_frame", pa.string()),  # its JPEG file; both null where no model of flow is used
        (
            "frame_samples",
            pa.list_(FRAME_SAMPLE),
        ),  # stored stills of the segment beside the key frame
        ("brightness", pa.float32()),  # mean luma, 0..255
        ("motion_dis", pa.float32()),  # mean flow, px/s at 320 wide
        (
            "camera_x",
            pa.float32(),
        ),  # how the view moves, px/s at 320 wide: right and down are positive
        ("camera_y", pa.float32()),
        ("camera_zoom", pa.float32()),  # relative growth of the picture per second: in is positive
        ("camera_roll", pa.float32()),  # degrees per second, clockwise turn of the view is positive
        (
            "camera_shake",
            pa.float32(),
        ),  # px/s at 320 wide, deviation of the camera's motion from its mean
        (
            "subject_motion",
            pa.float32(),
        ),  # mean flow left after the camera's is taken out, px/s at 320 wide
        ("subject_x", pa.float32()),  # mean direction of what moves, px/s at 320 wide
        ("subject_y", pa.float32()),
        ("subject_area", pa.float32()),  # share of the picture that moves by itself
        ("subject_at_x", pa.float32()),  # where it moves: centre, 0 left to 1 right
        ("subject_at_y", pa.float32()),  # 0 top to 1 bottom
    ]
)

# Scores: measured numbers that a policy may use. A null has its cause in the row's `null_reasons`.
SCORES = (
    Column("brightness", pa.float32(), "mean luma over the clip, 0..255 (full range)"),
    Column(
        "sharpness",
        pa.float32(),
        "median over frames of the Laplacian's variance on luma at about 320 wide",
    ),
    Column(
        "colourfulness", pa.float32(), "Hasler and Suesstrunk's colourfulness, mean over key frames"
    ),
    Column(
        "border_share",
        pa.float32(),
        "share of the area that is black borders for the whole clip, 0..1",
    ),
    Column("motion_dis", pa.float32(), "mean DIS optical flow, px per second at 320 px wide"),
    Column("static_share", pa.float32(), "share of the clip's time in which nothing moves, 0..1"),
    Column(
        "camera_motion",
        pa.float32(),
        "mean motion of a global affine fit to the flow, px/s at 320 wide",
    ),
    Column("subject_motion", pa.float32(), "mean flow left after the affine fit, px/s at 320 wide"),
    Column(
        "ken_burns_share",
        pa.float32(),
        "share of the clip's time that is a zoom or pan over a still picture, 0..1",
    ),
    Column(
        "frozen_share",
        pa.float32(),
        "share of the clip's time in frozen stretches (same picture repeated), 0..1",
    ),
    Column("frozen_longest_s", pa.float32(), "longest frozen stretch, s"),
    Column(
        "overlay_share",
        pa.float32(),
        "area of graphics that stay in place while the picture moves, 0..1",
    ),
    Column(
        "text_share", pa.float32(), "area of detected text (RapidOCR), mean over key frames, 0..1"
    ),
    Column("artifact_share", pa.float32(), "area of the union of text, overlays and borders, 0..1"),
    Column(
        "key_psnr",
        pa.float32(),
        "PSNR between neighbouring key frames at 320 px wide, mean over pairs, dB",
    ),
    Column(
        "key_ssim",
        pa.float32(),
        "SSIM of luma between neighbouring key frames at 320 px wide, mean over pairs",
    ),
    Column(
        "aesthetic_laion_l14",
        pa.float32(),
        "LAION aesthetics, mean over key frames, about 1..10",
        model="LAION's aesthetics head on CLIP ViT-L/14: score.models.clip.aesthetics",
    ),
    Column(
        "aesthetic_laion_l14_min",
        pa.float32(),
        "LAION aesthetics of the worst key frame, about 1..10",
        model="LAION's aesthetics head on CLIP ViT-L/14: score.models.clip.aesthetics",
    ),
    Column(
        "richness_clip_l14",
        pa.float32(),
        "1 - cosine of neighbouring key frames' CLIP ViT-L/14 embeddings, mean over pairs, 0..2",
        model="CLIP ViT-L/14: score.models.clip.weights",
    ),
    Column(
        "coherence_clip_l14",
        pa.float32(),
        "smallest cosine of any two key frames' CLIP ViT-L/14 embeddings, -1..1",
        model="CLIP ViT-L/14: score.models.clip.weights",
    ),
    Column(
        "motion_raft",
        pa.float32(),
        "mean length of RAFT's flow (raft_large, 12 updates, 512 px long side) over the key frames and the frame key_frames.pair_gap_s (0.1 s) after each, px per second at 320 px wide",
        model="RAFT optical flow: score.models.raft.weights",
    ),
    Column(
        "key_lpips",
        pa.float32(),
        "LPIPS 0.1 (AlexNet) between neighbouring key frames at 320 px wide, mean over pairs",
        model="LPIPS: score.models.lpips.weights",
    ),
    Column(
        "text_similarity_tfidf",
        pa.float32(),
        "largest TF-IDF cosine between neighbouring sub-captions, 0..1",
    ),
    Column(
        "text_similarity_minilm",
        pa.float32(),
        "largest cosine between neighbouring sub-captions' MiniLM embeddings, -1..1",
        model="a MiniLM sentence model",
    ),
)
SCORE_NAMES = tuple(c.name for c in SCORES)

# A clip inside its video's row, as `score` writes it.
CLIP = (
    Column("clip_id", pa.string(), "hash of the source's bytes and the exact span"),
    Column("take", pa.int32(), "number of the take in its video, from 0"),
    Column("start_s", pa.float64(), "start, s from the video's first frame"),
    Column("end_s", pa.float64(), "end (exclusive), s from the video's first frame"),
    Column(
        "duration_s",
        pa.float64(),
        "length of the clip; of a take too short for a clip, the take's, s",
    ),
    Column("num_frames", pa.int32(), "decoded frames in the span"),
    Column("width", pa.int32(), "px, as shown"),
    Column("height", pa.int32(), "px, as shown"),
    Column("fps", pa.float32(), "frames per second in the span: frames over seconds"),
    Column(
        "starts_on_keyframe",
        pa.bool_(),
        "a key-frame packet lies at the start: stream copy can cut here",
    ),
    Column("packet_bytes", pa.int64(), "bytes of the video packets in the span"),
    Column(
        "prefilter",
        pa.string(),
        "why costly scorers were spared, or null: the clip passed the prefilter",
    ),
    *SCORES,
    Column("null_reasons", NULL_REASONS, "score -> why it is null"),
    Column("segments", pa.list_(SEGMENT), "what was measured in each segment"),
    Column(
        "fingerprint",
        pa.binary(),
        "hashes over time, for near-duplicates: see stages/meters/fingerprint.py",
    ),
    Column(
        "borders",
        pa.list_(pa.float32()),
        "black borders: left, top, right, bottom, shares of width and height",
    ),
    Column(
        "overlay_mask",
        pa.binary(),
        "PNG at reduced size, 255 where graphics stay in place, or null",
    ),
)

VIDEO = (
    Column("video", pa.string(), "path or URL, as listed"),
    Column("bytes", pa.int64(), "size of the file"),
    Column("version", pa.string(), "mtime or etag: what tells that the file changed"),
    Column("sha256", pa.string(), "of the file's bytes"),
    Column("status", pa.string(), "ok | duplicate | failed"),
    Column("error", pa.string(), "why it failed, or whose bytes it shares, or null"),
    Column("duration_s", pa.float64(), "from the first frame to the end of the last, s"),
    Column("width", pa.int32(), "px, as shown"),
    Column("height", pa.int32(), "px, as shown"),
    Column("fps", pa.float32(), "frames over seconds"),
    Column("codec", pa.string(), "video codec"),
    Column("pix_fmt", pa.string(), "pixel format"),
    Column("rotation", pa.int32(), "degrees that the picture is turned by for showing"),
    Column("num_frames", pa.int32(), "decoded frames"),
    Column("cuts_s", pa.list_(pa.float64()), "hard cuts: time of the first frame after each, s"),
    Column("gradual", pa.list_(SPAN), "gradual transitions"),
    Column("takes", pa.list_(SPAN), "takes, guard frames taken off"),
    Column("cpu_s", pa.float64(), "CPU time of scoring this video, s"),
    Column("weights", VERSIONS, "score of its clips that takes a model -> which weights made it"),
    Column("clips", pa.list_(pa.struct([(c.name, c.type) for c in CLIP])), "its clips, nested"),
)

SELECTION = (
    Column("clip_id", pa.string(), ""),
    Column("status", pa.string(), "kept | rejected"),
    Column("reason", pa.string(), "the first reason against it, or null"),
    Column("reasons", pa.list_(pa.string()), "all reasons against it"),
    Column("split", pa.string(), "train | validation, by source video"),
)

CAPTION = (
    Column("clip_id", pa.string(), ""),
    Column(
        "captioner",
        pa.string(),
        "who wrote it; `measured`: only what was measured, no model saw the frames",
    ),
    Column("error", pa.string(), "why there is none, or null"),
    Column("rejected", pa.string(), "the check that the captions failed for good, or null"),
    Column("caption", pa.string(), "overall caption"),
    Column("sub_captions", pa.list_(SUB_CAPTION), "times relative to the clip"),
    Column(
        "frames_sha256",
        pa.string(),
        "hash over the stills that the captioner was given: key frames, then their neighbours",
    ),
    Column("provenance", pa.string(), "JSON: model, revision, prompt version, sampling"),
    Column(
        "text_similarity_tfidf",
        pa.float32(),
        "largest TF-IDF cosine between neighbouring sub-captions, 0..1",
    ),
    Column(
        "text_similarity_minilm",
        pa.float32(),
        "largest cosine between neighbouring sub-captions' MiniLM embeddings, -1..1",
        model="a MiniLM sentence model",
    ),
)

CAPTION_SCORES = tuple(c.name for c in CAPTION if c.name in SCORE_NAMES)

EMBEDDING = (
    Column("clip_id", pa.string(), ""),
    Column("model", pa.string(), "which weights made it, as in the videos' `weights`"),
    Column(
        "key_frames",
        pa.list_(pa.list_(pa.float16())),
        "CLIP embedding of each key frame, in order, of length 1",
    ),
)

SHARD = (
    Column("clip_id", pa.string(), ""),
    Column("shard", pa.string(), "name of the tar that holds it, or was to hold it"),
    Column("split", pa.string(), "train | validation"),
    Column("offset", pa.int64(), "of the mp4's first byte in the tar"),
    Column("bytes", pa.int64(), "size of the mp4"),
    Column("sha256", pa.string(), "of the mp4"),
    Column("json_sha256", pa.string(), "of the JSON beside it, captions included"),
    Column("method", pa.string(), "copy | encode"),
    Column("codec", pa.string(), "of the mp4"),
    Column("num_frames", pa.int32(), "frames that the mp4 shows"),
    Column("width", pa.int32(), "px, as shown"),
    Column("height", pa.int32(), "px, as shown"),
    Column("clip_s", pa.float64(), "length of the clip, s"),
    Column("start_error_s", pa.float64(), "from the span's start to the mp4's first frame, s"),
    Column("error", pa.string(), "why it is not in the shard, or null"),
)


def with_schema_version(schema: pa.Schema) -> pa.Schema:
    return schema.with_metadata({"schema_version": str(SCHEMA_VERSION)})


def schema_version(schema: pa.Schema) -> int:
    """Of a table as read; version 1 did not write it."""
    return int((schema.metadata or {}).get(b"schema_version", 1))


def described(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """The table with the schema version, and each column's meaning in its field's metadata.

    columns: of those with the same name the first counts; every column of the table has one.
    """
    meanings = {c.name: c.what for c in reversed(columns)}
    fields = [field.with_metadata({"what": meanings[field.name]}) for field in table.schema]
    return table.cast(with_schema_version(pa.schema(fields)))


def clip_id(sha256: str, start_s: float, end_s: float) -> str:
    """The same bytes and the same span give the same id on any machine: 24 hex digits."""
    span = f"{sha256}:{round(start_s * 1e6)}:{round(end_s * 1e6)}"
    return hashlib.sha256(span.encode()).hexdigest()[:24]


def frames_sha256(hashes: Sequence[str]) -> str:
    """What ties captions to the frames they were made from: over the files' hashes, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def stored_frame_hashes(segments: Sequence[dict[str, Any]]) -> list[Any]:
    """Of the files that a captioner of the clip is given: key frames, then their neighbours.

    None stands for a key frame that was not stored.
    """
    neighbours = [still for s in segments for still in s.get("frame_samples") or []]
    return [s["key_frame_sha256"] for s in segments] + [still["sha256"] for still in neighbours]


def segment_spans(duration_s: float, segments: int) -> list[tuple[float, float]]:
    """`segments` equal spans of a clip's own time line, s from its start."""
    return [(duration_s * i / segments, duration_s * (i + 1) / segments) for i in range(segments)]


# Times pass through floats and tables: a frame this close to a border of a span counts as on it.
SPAN_TOLERANCE_S = 1e-6


def in_span(t_s: float, start_s: float, end_s: float) -> bool:
    """Whether the frame shown at `t_s` belongs to the span: its start does, its end does not."""
    return start_s - SPAN_TOLERANCE_S <= t_s < end_s - SPAN_TOLERANCE_S
