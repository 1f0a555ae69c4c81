"""The clips that a report shows: which they are, and what a person sees of each."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.funnel import rule, rules
from curation.images import decode_image, encode_jpeg, shrink
from curation.progress import shown
from curation.stage import Row
from stages.report.histogram import Limits, number
from stages.report.statistics import MEASURES

KEPT_SAMPLES, REJECTED_SAMPLES, SAMPLED_RULES = 12, 4, 12  # clips; clips per rule; rules
THUMBNAIL = 240  # px, the longer side of the picture
PICTURE_BYTES = 14_000  # of one thumbnail: 60 clips with 5 each stay under 6 MB
REASONS, SEGMENTS = 10, 10  # shown of one clip at most

Read = Callable[[str], bytes]  # a key frame's name in the table -> the JPEG file's bytes


@dataclass(frozen=True)
class Segment:
    time: str
    alt: str
    image: str | None  # a data URI
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class Score:
    name: str
    value: str
    limit: str
    against: bool


@dataclass(frozen=True)
class Sample:
    clip_id: str
    video: str
    span: str
    notes: str  # status, split, shard
    reasons: list[str]
    caption: str
    captioner: str
    segments: list[Segment]
    limited: list[Score]  # those that the policy names
    others: list[Score]


@dataclass(frozen=True)
class Group:
    title: str
    n: int
    samples: list[Sample]


def limit_text(limits: Limits) -> str:
    least, most = limits
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""


def kept_group(clips: pa.Table, policy: Mapping[str, Limits], read: Read) -> Group:
    """Clips that were kept."""
    rows = np.flatnonzero(pc.equal(clips["status"], "kept").to_numpy())
    return _group("kept", clips, rows, KEPT_SAMPLES, policy, read)


def groups_against(clips: pa.Table, policy: Mapping[str, Limits], read: Read) -> list[Group]:
    """Clips rejected or failed, by the rule that is their first reason, the commonest first."""
    rows = np.flatnonzero(pc.not_equal(clips["status"], "kept").to_numpy())
    names = rules(clips["reason"].take(pa.array(rows))).combine_chunks().dictionary_encode()
    if isinstance(names, pa.ChunkedArray):
        return []
    of = names.indices.to_numpy()
    sizes = np.bincount(of, minlength=len(names.dictionary))
    found = []
    for i in np.argsort(-sizes, kind="stable")[:SAMPLED_RULES]:
        title = names.dictionary[int(i)].as_py()
        found.append(_group(title, clips, rows[of == i], REJECTED_SAMPLES, policy, read))
    return found


def _group(
    title: str,
    clips: pa.Table,
    rows: np.ndarray,
    most: int,
    policy: Mapping[str, Limits],
    read: Read,
) -> Group:
    chosen = choose(clips, rows, most)
    found = [_sample(clips.slice(i, 1).to_pylist()[0], policy, read) for i in chosen]
    return Group(title, len(rows), found)


def choose(clips: pa.Table, rows: np.ndarray, most: int) -> list[int]:
    """Row numbers of at most `most` of `rows`, from as many videos as there are.

    The smallest clip_ids: as these are hashes, the choice is fair and the same on every run.
    """
    if not len(rows):
        return []
    ids = pa.table({"clip_id": clips["clip_id"].take(pa.array(rows))})
    smallest = pc.select_k_unstable(ids, 20 * most, sort_keys=[("clip_id", "ascending")])
    candidates = rows[smallest.to_numpy()].tolist()
    videos = clips["video"].take(pa.array(candidates)).to_pylist()
    turn = [videos[:i].count(video) for i, video in enumerate(videos)]
    order = sorted(range(len(candidates)), key=lambda i: (turn[i], i))
    return [candidates[i] for i in order[:most]]


def _sample(clip: Row, policy: Mapping[str, Limits], read: Read) -> Sample:
    reasons = [r for r in clip.get("reasons") or [clip.get("reason")] if r]
    named = {rule(r).split(" ")[0] for r in reasons}
    scores = [
        _score(clip, name, policy.get(name, (None, None)), named)
        for name in MEASURES
        if name in clip
    ]
    segments = zip_longest(clip.get("segments") or [], clip.get("sub_captions") or [])
    notes = [clip["status"], clip.get("split"), clip.get("shard")]
    return Sample(
        clip_id=shown(clip["clip_id"], 40),
        video=shown(clip["video"], 120),
        span=f"{clip['start_s']:.2f} to {clip['end_s']:.2f} s",
        notes=", ".join(shown(n, 60) for n in notes if n),
        reasons=[shown(r) for r in reasons[:REASONS]],
        caption=prose(clip.get("caption")),
        captioner=shown(clip.get("captioner") or "", 80),
        segments=[_segment(i, *pair, read) for i, pair in enumerate(segments, 1) if i <= SEGMENTS],
        limited=[s for s in scores if s.name in policy],
        others=[s for s in scores if s.name not in policy],
    )


def prose(text: str | None) -> str:
    """A caption as one paragraph."""
    return shown(" ".join((text or "").split()), 1500)


def _score(clip: Row, name: str, limits: Limits, named: set[str]) -> Score:
    """Marked where it is among the clip's reasons: the policy isn't applied here again."""
    value, limit = clip[name], limit_text(limits)
    if value is not None:
        return Score(name, number(value), limit, name in named)
    why = shown(dict(clip.get("null_reasons") or {}).get(name) or "", 120)
    return Score(name, "not measured", "; ".join(t for t in (limit, why) if t), name in named)


def _segment(i: int, segment: Row | None, sub: Row | None, read: Read) -> Segment:
    span = segment or sub or {}
    time = f"{span['start_s']:.1f} to {span['end_s']:.1f} s"
    image, width, height, alt = None, 0, 0, f"Segment {i} has no key frame"
    if segment and segment["key_frame"]:
        try:
            image, width, height = thumbnail(read(segment["key_frame"]))
            alt = f"Key frame of segment {i}, at {segment['key_frame_s']:.1f} s of the clip"
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            alt = f"Key frame of segment {i} can't be shown: {shown(why)}"
    return Segment(time, alt, image, width, height, prose(sub["text"]) if sub else "")


def thumbnail(jpeg: bytes) -> tuple[str, int, int]:
    """A data URI, width, height in px; at most PICTURE_BYTES of picture, the finest that fits."""
    small = shrink(decode_image(jpeg, "the file"), THUMBNAIL)
    for quality in (80, 65, 50, 35, 20, 5):
        data = encode_jpeg(small, quality)
        if len(data) <= PICTURE_BYTES:
            break
    height, width = small.shape[:2]
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", width, height
