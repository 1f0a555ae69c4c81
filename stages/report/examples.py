"""The example clips of a report: how they are chosen, and what the page shows of each."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.funnel import normalize_reason, normalize_reasons
from curation.images import DamagedFrame, decode_image, encode_jpeg, read_verified, shrink
from curation.progress import printable
from curation.records import FIELD_NAMES
from curation.stage import Row
from stages.report.histogram import Thresholds, format_value
from stages.report.statistics import MEASUREMENTS

MAX_KEPT, MAX_PER_RULE, MAX_RULES = 12, 4, 12  # kept clips; other clips of a rule; rules
THUMBNAIL_SIDE = 240  # px, the longer one
MAX_THUMBNAIL_BYTES = 14_000  # 60 clips with 5 thumbnails each stay under 6 MB
MAX_REASONS, MAX_SEGMENTS = 10, 10  # of one clip

ReadFile = Callable[[str], bytes]  # name of a key frame in the table -> bytes of the JPEG file


@dataclass(frozen=True)
class SegmentView:
    time: str
    alt: str
    image: str | None  # data URI
    width: int
    height: int
    text: str
    fields: list[tuple[str, str]]  # name, text


@dataclass(frozen=True)
class ScoreView:
    name: str
    value: str
    range: str  # that the policy allows
    is_reason: bool  # whether one of the clip's reasons is about it


@dataclass(frozen=True)
class ClipView:
    clip_id: str
    video: str
    span: str
    notes: str  # status, split, shard
    reasons: list[str]
    caption: str
    captioner: str
    segments: list[SegmentView]
    in_policy: list[ScoreView]
    others: list[ScoreView]


@dataclass(frozen=True)
class ExampleGroup:
    title: str
    total: int  # clips of which the examples are chosen
    clips: list[ClipView]


def format_range(thresholds: Thresholds) -> str:
    """15 to 60, ≥ 15, ≤ 60, or nothing."""
    least, most = thresholds
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""


def kept_examples(
    clips: pa.Table, policy: Mapping[str, Thresholds], read_file: ReadFile
) -> ExampleGroup:
    rows = np.flatnonzero(pc.equal(clips["status"], "kept").to_numpy())
    return _group("kept", clips, rows, MAX_KEPT, policy, read_file)


def rejected_examples(
    clips: pa.Table, policy: Mapping[str, Thresholds], read_file: ReadFile
) -> list[ExampleGroup]:
    """Rejected and failed clips by the rule of their first reason, the most frequent rule first."""
    rows = np.flatnonzero(pc.not_equal(clips["status"], "kept").to_numpy())
    names = normalize_reasons(clips["reason"].take(pa.array(rows)))
    names = names.combine_chunks().dictionary_encode()
    if isinstance(names, pa.ChunkedArray):
        return []
    rule_index = names.indices.to_numpy()
    sizes = np.bincount(rule_index, minlength=len(names.dictionary))
    groups = []
    for i in np.argsort(-sizes, kind="stable")[:MAX_RULES]:
        title = names.dictionary[int(i)].as_py()
        groups.append(_group(title, clips, rows[rule_index == i], MAX_PER_RULE, policy, read_file))
    return groups


def _group(
    title: str,
    clips: pa.Table,
    rows: np.ndarray,
    most: int,
    policy: Mapping[str, Thresholds],
    read_file: ReadFile,
) -> ExampleGroup:
    chosen = choose_examples(clips, rows, most)
    views = [_clip_view(clips.slice(i, 1).to_pylist()[0], policy, read_file) for i in chosen]
    return ExampleGroup(title, len(rows), views)


def choose_examples(clips: pa.Table, rows: np.ndarray, most: int) -> list[int]:
    """At most `most` of the row numbers `rows`, from as many different videos as possible.

    The smallest clip_ids: as these are hashes, the choice is unbiased and the same on every run.
    """
    if not len(rows):
        return []
    ids = pa.table({"clip_id": clips["clip_id"].take(pa.array(rows))})
    smallest = pc.select_k_unstable(ids, 20 * most, sort_keys=[("clip_id", "ascending")])
    candidates = rows[smallest.to_numpy()].tolist()
    videos = clips["video"].take(pa.array(candidates)).to_pylist()
    earlier = [videos[:i].count(video) for i, video in enumerate(videos)]  # of the same video
    order = sorted(range(len(candidates)), key=lambda i: (earlier[i], i))
    return [candidates[i] for i in order[:most]]


def _clip_view(clip: Row, policy: Mapping[str, Thresholds], read_file: ReadFile) -> ClipView:
    reasons = [r for r in clip.get("reasons") or [clip.get("reason")] if r]
    columns = {normalize_reason(r).split(" ")[0] for r in reasons}
    scores = [
        _score_view(clip, name, policy.get(name, (None, None)), name in columns)
        for name in MEASUREMENTS
        if name in clip
    ]
    segments = zip_longest(clip.get("segments") or [], clip.get("sub_captions") or [])
    notes = [clip["status"], clip.get("split"), clip.get("shard")]
    return ClipView(
        clip_id=printable(clip["clip_id"], 40),
        video=printable(clip["video"], 120),
        span=f"{clip['start_s']:.2f} to {clip['end_s']:.2f} s",
        notes=", ".join(printable(n, 60) for n in notes if n),
        reasons=[printable(r) for r in reasons[:MAX_REASONS]],
        caption=one_paragraph(clip.get("caption")),
        captioner=printable(clip.get("captioner") or "", 80),
        segments=[
            _segment_view(i, *pair, read_file)
            for i, pair in enumerate(segments, 1)
            if i <= MAX_SEGMENTS
        ],
        in_policy=[s for s in scores if s.name in policy],
        others=[s for s in scores if s.name not in policy],
    )


def one_paragraph(text: str | None) -> str:
    """A caption without line breaks, shortened if it is very long."""
    return printable(" ".join((text or "").split()), 1500)


def _score_view(clip: Row, name: str, thresholds: Thresholds, is_reason: bool) -> ScoreView:
    """is_reason comes from the clip's reasons: the policy isn't applied here again."""
    value, allowed = clip[name], format_range(thresholds)
    if value is not None:
        return ScoreView(name, format_value(value), allowed, is_reason)
    why = printable(dict(clip.get("null_reasons") or {}).get(name) or "", 120)
    return ScoreView(name, "not measured", "; ".join(t for t in (allowed, why) if t), is_reason)


def _segment_view(
    i: int, segment: Row | None, sub_caption: Row | None, read_file: ReadFile
) -> SegmentView:
    span = segment or sub_caption or {}
    time = f"{span['start_s']:.1f} to {span['end_s']:.1f} s"
    image, width, height, alt = None, 0, 0, f"Segment {i} has no key frame"
    if segment and segment["key_frame"]:
        try:
            jpeg = read_verified(read_file, segment["key_frame"], None)
            image, width, height = thumbnail(jpeg)
            alt = f"Key frame of segment {i}, at {segment['key_frame_s']:.1f} s of the clip"
        except (OSError, DamagedFrame) as error:
            why = getattr(error, "strerror", None) or error
            alt = f"Key frame of segment {i} can't be shown: {printable(why)}"
    text = one_paragraph(sub_caption["text"]) if sub_caption else ""
    fields = [
        (name, one_paragraph(value))
        for name in FIELD_NAMES
        if (value := (sub_caption or {}).get(name))
    ]
    return SegmentView(time, alt, image, width, height, text, fields)


def thumbnail(jpeg: bytes) -> tuple[str, int, int]:
    """Data URI, width and height in px, in the best quality within MAX_THUMBNAIL_BYTES."""
    small = shrink(decode_image(jpeg, "the file"), THUMBNAIL_SIDE)
    for quality in (80, 65, 50, 35, 20, 5):
        data = encode_jpeg(small, quality)
        if len(data) <= MAX_THUMBNAIL_BYTES:
            break
    height, width = small.shape[:2]
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", width, height
