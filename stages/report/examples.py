"""The example clips of a report: how they are chosen, and what the page shows of each."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from curation.funnel import normalize_reason, normalize_reasons
from curation.images import DamagedFrame, decode_image, encode_jpeg, read_verified, shrink
from curation.parquet import find_rows, scan
from curation.progress import printable
from curation.records import FIELD_NAMES
from curation.stage import Row
from stages.report.histogram import Thresholds, format_value
from stages.report.statistics import MEASUREMENTS

MAX_KEPT, MAX_PER_RULE, MAX_RULES = 12, 4, 12  # kept clips; other clips of a rule; rules
THUMBNAIL_SIDE = 240  # px, the longer one
MAX_THUMBNAIL_BYTES = 14_000  # 60 clips with 5 thumbnails each stay under 6 MB
MAX_REASONS, MAX_SEGMENTS = 10, 10  # of one clip

MAX_CANDIDATES = 20 * MAX_KEPT  # per rule, of which the examples are chosen

_Candidate = tuple[str, str]  # clip_id, video
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
    """Returns `15 to 60`, `≥ 15`, `≤ 60`, or an empty text without limits."""
    least, most = thresholds
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""


def find_examples(
    clips: ds.Dataset, policy: Mapping[str, Thresholds], read_file: ReadFile
) -> tuple[ExampleGroup, list[ExampleGroup]]:
    """Kept clips; and rejected and failed clips by the rule of their first reason, the most
    frequent rule first."""
    sizes: Counter[str | None] = Counter({None: 0})  # reason, None of kept clips -> clips
    found: dict[str | None, list[_Candidate]] = {None: []}
    for table in scan(clips, ["clip_id", "video", "status", "reason"]):
        is_kept = pc.equal(table["status"], "kept")
        names = pc.if_else(is_kept, None, normalize_reasons(table["reason"])).combine_chunks()
        for group in pc.unique(names).to_pylist():
            of_group = pc.is_null(names) if group is None else pc.equal(names, group)
            rows = np.flatnonzero(pc.fill_null(of_group, False))
            sizes[group] += len(rows)
            some = found.get(group, []) + _smallest_ids(table, rows)
            found[group] = sorted(some)[:MAX_CANDIDATES]
    reasons = sorted(sizes.keys() - {None}, key=lambda name: (-sizes[name], str(name)))[:MAX_RULES]
    kept, *others = (
        ExampleGroup(
            name or "kept",
            sizes[name],
            [
                _clip_view(_read_row(clips, candidate), policy, read_file)
                for candidate in choose_examples(found[name], MAX_PER_RULE if name else MAX_KEPT)
            ],
        )
        for name in (None, *reasons)
    )
    return kept, others


def _smallest_ids(table: pa.Table, rows: np.ndarray) -> list[_Candidate]:
    of_group = table.select(["clip_id", "video"]).take(pa.array(rows))
    smallest = pc.select_k_unstable(of_group, MAX_CANDIDATES, sort_keys=[("clip_id", "ascending")])
    return [(row["clip_id"], row["video"]) for row in of_group.take(smallest).to_pylist()]


def _read_row(clips: ds.Dataset, candidate: _Candidate) -> Row:
    """One clip. A file is sorted by clip_id, so one of its groups of rows is read."""
    return find_rows(clips, pc.field("clip_id") == candidate[0])[0]


def choose_examples(candidates: list[_Candidate], most: int) -> list[_Candidate]:
    """At most `most` of them, from as many different videos as possible.

    candidates: those of the smallest clip_ids, ascending: as these are hashes, the choice is
    unbiased and the same on every run.
    """
    candidates = candidates[: 20 * most]
    videos = [video for _, video in candidates]
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
            sha256 = segment.get("key_frame_sha256")
            jpeg = read_verified(read_file, segment["key_frame"], sha256)
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
