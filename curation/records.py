"""Every column of every table, in one place: name, type, meaning with its unit.

The trainer reads this file too (it is the schema of the sample in a shard), so it imports nothing
else of the project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Raised where the meaning of a column changes, not where one is added.
RELEASES = {1: "0.1.0", 2: "0.2.0"}  # schema version -> the first release that writes it
SCHEMA_VERSION = max(RELEASES)

INT, LONG = pa.int32(), pa.int64()
FLOAT, DOUBLE = pa.float32(), pa.float64()
TEXT, BYTES = pa.string(), pa.binary()


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    what: str  # meaning and unit; the metadata of the Parquet field has it too
    model: str = ""  # the model that makes it, where its weights are not part of the package


def schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema; each field carries its meaning."""
    return pa.schema([pa.field(c.name, c.type, metadata={"what": c.what}) for c in columns])


def struct(columns: Sequence[Column]) -> pa.StructType:
    """The type of one row inside a row."""
    return pa.struct([(c.name, c.type) for c in columns])


SPAN = pa.struct([("start_s", DOUBLE), ("end_s", DOUBLE)])
TIME_JUMP = pa.struct([("at_s", DOUBLE), ("by_s", DOUBLE)])
SIZE_CHANGE = pa.struct([("at_s", DOUBLE), ("width", INT), ("height", INT)])
NULL_REASONS = pa.map_(TEXT, TEXT)
VERSIONS = pa.map_(TEXT, TEXT)

# The fields of a sub-caption with caption.structured. The text alone trains.
CAPTION_FIELDS = (
    Column("subject", TEXT, "who or what is in the segment"),
    Column("action", TEXT, "what happens in it"),
    Column("camera", TEXT, "how the camera moves"),
    Column("light", TEXT, "what the light is like"),
    Column("style", TEXT, "what kind of picture it is"),
)
FIELD_NAMES = tuple(c.name for c in CAPTION_FIELDS)
SUB_CAPTION = struct(
    (
        Column("start_s", DOUBLE, "s from the start of the clip"),
        Column("end_s", DOUBLE, "s from the start of the clip"),
        Column("text", TEXT, "what the segment attends to in training"),
        *CAPTION_FIELDS,
    )
)

FRAME_SAMPLE = (
    Column("s", DOUBLE, "time, s from the start of the clip"),
    Column("file", TEXT, "JPEG, below the ledger's folder"),
    Column("sha256", TEXT, "of the file"),
)

# One segment of a clip: its stored frames, and measurements for captioners.
SEGMENT = (
    Column("start_s", DOUBLE, "s from the start of the clip"),
    Column("end_s", DOUBLE, "s from the start of the clip"),
    Column("key_frame_s", DOUBLE, "time of the key frame, s from the start of the clip"),
    Column("key_frame", TEXT, "its JPEG file, below the ledger's folder"),
    Column("key_frame_sha256", TEXT, "of that file"),
    Column("next_frame_s", DOUBLE, "time of the frame stored for optical flow, as key_frame_s"),
    Column("next_frame", TEXT, "its JPEG file; null where score.decode.key_frames stores no pairs"),
    Column("next_frame_sha256", TEXT, "of that file; null where an older version stored it"),
    Column("frame_samples", pa.list_(struct(FRAME_SAMPLE)), "stored frames besides the key frame"),
    Column("brightness", FLOAT, "mean luma, 0..255"),
    Column("motion_dis", FLOAT, "mean DIS optical flow, px/s at 320 px wide"),
    Column("camera_x", FLOAT, "motion of the view to the right, px/s at 320 px wide"),
    Column("camera_y", FLOAT, "motion of the view downwards, px/s at 320 px wide"),
    Column("camera_zoom", FLOAT, "relative growth of the image, 1/s; zooming in is positive"),
    Column("camera_roll", FLOAT, "clockwise turn of the view, degrees/s"),
    Column(
        "camera_shake", FLOAT, "deviation of the camera's motion from its mean, px/s at 320 wide"
    ),
    Column("subject_motion", FLOAT, "mean flow after the camera's is subtracted, px/s at 320 wide"),
    Column("subject_x", FLOAT, "mean motion of the moving area to the right, px/s at 320 px wide"),
    Column("subject_y", FLOAT, "mean motion of the moving area downwards, px/s at 320 px wide"),
    Column("subject_area", FLOAT, "share of the image that moves against the camera, 0..1"),
    Column("subject_at_x", FLOAT, "centre of the moving area, 0 left to 1 right"),
    Column("subject_at_y", FLOAT, "centre of the moving area, 0 top to 1 bottom"),
)

AESTHETICS = "LAION's aesthetics head on CLIP ViT-L/14: score.models.clip.aesthetics"
CLIP_VIT = "CLIP ViT-L/14: score.models.clip.weights"
TEXT_SIMILARITY = (
    Column(
        "text_similarity_tfidf",
        FLOAT,
        "largest TF-IDF cosine between consecutive sub-captions, 0..1",
    ),
    Column(
        "text_similarity_minilm",
        FLOAT,
        "largest cosine between consecutive sub-captions' MiniLM embeddings, -1..1",
        model="a MiniLM sentence model",
    ),
)

# Scores: measured numbers that a policy may use. A null has its reason in the row's `null_reasons`.
SCORES = (
    Column("brightness", FLOAT, "mean luma over the clip, 0..255 (full range)"),
    Column(
        "sharpness",
        FLOAT,
        "median over frames of the Laplacian's variance on luma at about 320 wide",
    ),
    Column("colourfulness", FLOAT, "Hasler and Suesstrunk's colourfulness, mean over key frames"),
    Column(
        "border_share",
        FLOAT,
        "share of the area that is borders of one colour for the whole clip, 0..1",
    ),
    Column("motion_dis", FLOAT, "mean DIS optical flow, px per second at 320 px wide"),
    Column("static_share", FLOAT, "share of the clip's time in which nothing moves, 0..1"),
    Column(
        "camera_motion",
        FLOAT,
        "mean motion of a global affine fit to the flow, px/s at 320 wide",
    ),
    Column("subject_motion", FLOAT, "mean flow left after the affine fit, px/s at 320 wide"),
    Column(
        "ken_burns_share",
        FLOAT,
        "share of the clip's time that is a zoom or pan over a still image, 0..1",
    ),
    Column(
        "frozen_share",
        FLOAT,
        "share of the clip's time that is frozen (the same frame repeated), 0..1",
    ),
    Column("frozen_longest_s", FLOAT, "longest frozen span, s"),
    Column(
        "damaged_share",
        FLOAT,
        "share of the clip's time from damaged packets or frames to the next intact keyframe packet, "
        "0..1",
    ),
    Column(
        "cut_probability",
        FLOAT,
        "highest probability of a hard cut within the clip that is too low for a cut, 0..1",
    ),
    Column(
        "gradual_probability",
        FLOAT,
        "highest probability of a gradual transition within the clip that is too low for one, 0..1",
    ),
    Column(
        "overlay_share",
        FLOAT,
        "area of graphics that stay in place while the image moves, 0..1",
    ),
    Column(
        "text_share",
        FLOAT,
        "area of detected text (RapidOCR), mean over score.ocr.frames (2) key frames, 0..1",
    ),
    Column(
        "artifact_share",
        FLOAT,
        "area of the union of text, overlays and borders, mean over the same key frames, 0..1",
    ),
    Column(
        "seam_share",
        FLOAT,
        "how clear the clearest straight line or outline is at which two views meet, 0..1",
    ),
    Column(
        "screen_share",
        FLOAT,
        "area of user interfaces, pages and slides: text and thin lines on flat colour, mean over "
        "key frames, 0..1",
    ),
    Column(
        "key_psnr",
        FLOAT,
        "PSNR between consecutive key frames at 320 px wide, mean over pairs, dB",
    ),
    Column(
        "key_ssim",
        FLOAT,
        "SSIM of luma between consecutive key frames at 320 px wide, mean over pairs",
    ),
    Column(
        "aesthetic_laion_l14",
        FLOAT,
        "LAION aesthetics, mean over key frames, about 1..10",
        model=AESTHETICS,
    ),
    Column(
        "aesthetic_laion_l14_min",
        FLOAT,
        "LAION aesthetics of the worst key frame, about 1..10",
        model=AESTHETICS,
    ),
    Column(
        "richness_clip_l14",
        FLOAT,
        "1 - cosine of consecutive key frames' CLIP ViT-L/14 embeddings, mean over pairs, 0..2",
        model=CLIP_VIT,
    ),
    Column(
        "coherence_clip_l14",
        FLOAT,
        "smallest cosine of any two key frames' CLIP ViT-L/14 embeddings, -1..1",
        model=CLIP_VIT,
    ),
    Column(
        "motion_raft",
        FLOAT,
        "mean length of RAFT's flow (raft_large, 12 updates, 512 px long side) from each key frame "
        "to the frame key_frames.pair_gap_s (0.1 s) later, px/s at 320 px wide",
        model="RAFT optical flow: score.models.raft.weights",
    ),
    Column(
        "key_lpips",
        FLOAT,
        "LPIPS 0.1 (AlexNet) between consecutive key frames at 320 px wide, mean over pairs",
        model="LPIPS: score.models.lpips.weights",
    ),
    *TEXT_SIMILARITY,
)
SCORE_NAMES = tuple(c.name for c in SCORES)

NOT_DECODED = "not decoded"  # the null reason of all scores where a header rule rejects the video
# Begins the null reason of costly scores of a clip that fails the prefilter; then comes the rule.
FAILED_PREFILTER = "failed the prefilter: "

# Of a video and of each of its clips; a policy may have rules `{is: …}` and `{in: […]}` on them.
TAGS = (
    Column("interlaced", pa.bool_(), "whether any of its frames is interlaced"),
    Column(
        "transfer",
        TEXT,
        "transfer function, as ffprobe prints it: smpte2084 (PQ), arib-std-b67 (HLG), unknown …",
    ),
)
TAG_NAMES = tuple(c.name for c in TAGS)

# A clip inside its video's row, as `score` writes it.
CLIP = (
    Column("clip_id", TEXT, "hash of the source's bytes and the exact span"),
    Column("take", INT, "number of the take in its video, from 0; null: it is not decoded"),
    Column("start_s", DOUBLE, "start, s from the video's first frame"),
    Column("end_s", DOUBLE, "end (exclusive), s from the video's first frame"),
    Column(
        "duration_s",
        DOUBLE,
        "length of the clip; of a take too short for a clip, the take's, s",
    ),
    Column("num_frames", INT, "decoded frames in the span; null: the video is not decoded"),
    Column("width", INT, "px, as shown"),
    Column("height", INT, "px, as shown"),
    Column("fps", FLOAT, "frames per second in the span: frames over seconds"),
    *TAGS,
    Column(
        "starts_on_keyframe",
        pa.bool_(),
        "a keyframe packet lies at the start: stream copy can cut here",
    ),
    Column("packet_bytes", LONG, "bytes of the video packets in the span"),
    Column(
        "prefilter",
        TEXT,
        "the rule of the prefilter that the clip fails: costly scores are null; null: it passes",
    ),
    *SCORES,
    Column("null_reasons", NULL_REASONS, "score -> why it is null"),
    Column("segments", pa.list_(struct(SEGMENT)), "its segments, in order"),
    Column(
        "fingerprint",
        BYTES,
        "hashes over time, for near-duplicates: see stages/meters/fingerprint.py",
    ),
    Column(
        "borders",
        pa.list_(FLOAT),
        "borders of one colour: left, top, right, bottom, shares of width and height",
    ),
    Column(
        "overlay_mask",
        BYTES,
        "PNG at reduced size, 255 where graphics stay in place, or null",
    ),
)

VIDEO = (
    Column("video", TEXT, "path or URL, as listed"),
    Column("bytes", LONG, "size of the file"),
    Column("version", TEXT, "modification time or etag, by which a changed file is recognized"),
    Column("sha256", TEXT, "of the file's bytes; null: a remote file that is not fetched"),
    Column("status", TEXT, "ok | duplicate | failed"),
    Column("error", TEXT, "why it failed, or which file has the same bytes, or null"),
    Column("duration_s", DOUBLE, "from the first frame to the end of the last, s"),
    Column("width", INT, "px, as shown; of the first frame"),
    Column("height", INT, "px, as shown; of the first frame"),
    Column("fps", FLOAT, "frames over seconds"),
    Column("codec", TEXT, "video codec"),
    Column("pix_fmt", TEXT, "pixel format"),
    Column("rotation", INT, "degrees clockwise that the stored picture is turned for display"),
    Column("mirrored", pa.bool_(), "whether left and right are exchanged before it is turned"),
    *TAGS,
    Column("num_frames", INT, "decoded frames; null: it is not decoded"),
    Column("cuts_s", pa.list_(DOUBLE), "hard cuts: time of the first frame after each, s"),
    Column("gradual", pa.list_(SPAN), "gradual transitions"),
    Column("takes", pa.list_(SPAN), "takes, without their guard frames"),
    Column(
        "time_jumps",
        pa.list_(TIME_JUMP),
        "where the file's time stamps jump ahead or back: first frame after it, by how much, s; "
        "times in these tables do not jump",
    ),
    Column(
        "size_changes", pa.list_(SIZE_CHANGE), "where the size changes: first frame of the new size"
    ),
    Column("cpu_s", DOUBLE, "CPU time of scoring this video, s"),
    Column(
        "weights", VERSIONS, "score of its clips by a model -> version of the weights that made it"
    ),
    Column("clips", pa.list_(struct(CLIP)), "its clips, nested"),
)

SELECTION = (
    Column("clip_id", TEXT, "as in CLIP"),
    Column("status", TEXT, "kept | rejected"),
    Column("reason", TEXT, "the first reason against it, or null"),
    Column("reasons", pa.list_(TEXT), "all reasons against it"),
    Column("split", TEXT, "train | validation, by source video"),
)

CAPTION = (
    Column("clip_id", TEXT, "as in CLIP"),
    Column(
        "captioner",
        TEXT,
        "name of this set of captions; `measured`: from measurements alone, without a model; "
        "`corrected`: by a person, and `provenance` names the set that it was",
    ),
    Column("error", TEXT, "why there is none, or null"),
    Column("rejected", TEXT, "the check that they failed in every attempt, or null"),
    Column("caption", TEXT, "overall caption"),
    Column("sub_captions", pa.list_(SUB_CAPTION), "times relative to the clip"),
    Column("field_null_reasons", NULL_REASONS, "field of the sub-captions -> why it is null"),
    Column(
        "frames_sha256",
        TEXT,
        "hash over the frames that the captioner got: key frames, then frame samples",
    ),
    Column("provenance", TEXT, "JSON: model, revision, prompt version, sampling"),
    *TEXT_SIMILARITY,
)

CORRECTED = "corrected"  # the captioner of captions that a person corrected

CAPTION_SCORES = tuple(c.name for c in CAPTION if c.name in SCORE_NAMES)

REVIEW = (
    Column(
        "number",
        LONG,
        "counts the reviews: of a clip and kind (and of marks, of each reviewer) the highest counts",
    ),
    Column("clip_id", TEXT, "as in CLIP"),
    Column("kind", TEXT, "flag | caption | mark"),
    Column("reviewer", TEXT, "the name that the reviewer gave"),
    Column("value", TEXT, "of a flag, why; of a mark, good | bad; null: withdrawn"),
    Column("captioner", TEXT, "of a corrected caption: the set of captions that it corrects"),
    Column("caption", TEXT, "corrected overall caption; null: the correction is withdrawn"),
    Column("sub_captions", pa.list_(SUB_CAPTION), "corrected, with the times that they had"),
    Column("frames_sha256", TEXT, "of the captions that it corrects; it counts for no others"),
    Column("unix_s", DOUBLE, "when it was written, Unix time, s"),
)

EMBEDDING = (
    Column("clip_id", TEXT, "as in CLIP"),
    Column("model", TEXT, "version of the weights that made it, as in the videos' `weights`"),
    Column(
        "key_frames",
        pa.list_(pa.list_(pa.float16())),
        "CLIP embedding of each key frame, in order, of length 1",
    ),
)

SHARD = (
    Column("clip_id", TEXT, "as in CLIP"),
    Column("shard", TEXT, "name of the tar that it is planned for"),
    Column("split", TEXT, "train | validation"),
    Column("offset", LONG, "of the mp4's first byte in the tar"),
    Column("bytes", LONG, "size of the mp4"),
    Column("sha256", TEXT, "of the mp4"),
    Column("json_sha256", TEXT, "of the JSON of the same sample, captions included"),
    Column("method", TEXT, "copy | encode"),
    Column("codec", TEXT, "of the mp4"),
    Column("num_frames", INT, "frames that the mp4 shows"),
    Column("width", INT, "px, as shown"),
    Column("height", INT, "px, as shown"),
    Column("clip_s", DOUBLE, "length of the clip, s"),
    Column("start_error_s", DOUBLE, "from the span's start to the mp4's first frame, s"),
    Column("error", TEXT, "why it is not in the shard, or null"),
)


def with_schema_version(schema: pa.Schema) -> pa.Schema:
    """The schema with the present version in its metadata."""
    return schema.with_metadata({"schema_version": str(SCHEMA_VERSION)})


def schema_version(schema: pa.Schema) -> int:
    """The version in a table's metadata; version 1 wrote none."""
    return int((schema.metadata or {}).get(b"schema_version", 1))


def described(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """The table with the schema version, and each column's meaning in its field's metadata.

    columns: of those with the same name the first counts; every column of the table has one.
    """
    meanings = {c.name: c.what for c in reversed(columns)}
    fields = [field.with_metadata({"what": meanings[field.name]}) for field in table.schema]
    return table.cast(with_schema_version(pa.schema(fields)))


def null_reason_entries(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Of each entry of the column `null_reasons`: its row, its score and its reason.

    pyarrow 26 has no list kernels for maps, and list_parent_indices aborts on one.
    """
    texts = pa.struct([("key", TEXT), ("value", TEXT)])
    entries = column.combine_chunks().cast(pa.list_(texts))
    scores, reasons = pc.list_flatten(entries).flatten()
    return pc.list_parent_indices(entries).to_numpy(), scores, reasons


def make_clip_id(sha256: str, start_s: float, end_s: float) -> str:
    """24 hex digits; equal for the same bytes and the same span on any machine."""
    span = f"{sha256}:{round(start_s * 1e6)}:{round(end_s * 1e6)}"
    return hashlib.sha256(span.encode()).hexdigest()[:24]


def hash_frames(hashes: Sequence[str]) -> str:
    """SHA-256 over the hashes of files, in order: ties captions to the frames they were made from."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def stored_frame_hashes(segments: Sequence[dict[str, Any]]) -> list[Any]:
    """The hashes of the files that a captioner gets: key frames, then frame samples.

    None stands for a key frame that was not stored.
    """
    samples = [sample for s in segments for sample in s.get("frame_samples") or []]
    return [s["key_frame_sha256"] for s in segments] + [sample["sha256"] for sample in samples]


def segment_spans(duration_s: float, segments: int) -> list[tuple[float, float]]:
    """(start, end) of equal segments, s from the start of the clip."""
    return [(duration_s * i / segments, duration_s * (i + 1) / segments) for i in range(segments)]


# Times are rounded on their way through tables: a frame this close to an end of a span is on it.
SPAN_TOLERANCE_S = 1e-6


def is_in_span(t_s: float, start_s: float, end_s: float) -> bool:
    """Whether a frame at t_s belongs to the span [start_s, end_s)."""
    return start_s - SPAN_TOLERANCE_S <= t_s < end_s - SPAN_TOLERANCE_S
