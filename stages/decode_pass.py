"""DecodePass: the one decode pass. Every frame of a video is decoded once and shown to every meter.

Out come the video's facts, its cuts and takes, and its clips with the scores that need no model.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from annotated_types import Ge, Gt

from curation import measures
from curation.policy import Policy, decide
from curation.records import CAPTION, SCORE_NAMES, SCORES, Column, clip_id, segment_spans
from curation.stage import Meter, Needs, Planes, Row, Stage
from curation.storage import Folder, fetched
from curation.video.reader import Limits, Reader, VideoHead
from stages.file_hash import sha256_of
from stages.meters.fingerprint import Fingerprint
from stages.meters.freeze import Freeze
from stages.meters.key_frames import KeyFrames, decode_small
from stages.meters.light import Light
from stages.meters.motion import Motion
from stages.meters.overlay import Overlay
from stages.scorers.ocr import Text
from stages.shots.detector import Shots
from stages.shots.takes import find_takes, place_clips
from stages.shots.transnet import TransNet

BATCH = 16  # frames shown to one meter after the other: its code and data stay in the CPU's caches
COMPARED_WIDTH = 320  # px, of key frames that are compared with each other
THUMB_SIDE = 240  # px, of key frames failed the prefilter: for the report alone
KEY_SCORES = ("key_psnr", "key_ssim", "colourfulness")
CAPTION_SCORES = tuple(c.name for c in CAPTION if c.name in SCORE_NAMES)


@dataclass
class DecodePass(Stage):
    """Decode once, measure all. A clip below the prefilter is spared what costs more."""

    clip_s: Annotated[float, Gt(0)] = 15.0  # length of a clip; a shorter take gives none
    max_clip_s: Annotated[float, Gt(0)] = 15.0  # larger: fewer, longer clips that use up the take
    segments: Annotated[int, Ge(1)] = 5  # of a clip: each has a key frame and a sub-caption
    frame_samples: Annotated[int, Ge(0)] = 2  # stills stored of a segment beside its key frame
    guard_frames: Annotated[int, Ge(0)] = 2  # taken off at a detected boundary
    prefilter: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    detector: Literal["shots", "transnet"] = "shots"  # who finds where takes end
    shots: Shots = field(default_factory=Shots)
    transnet: TransNet = field(default_factory=TransNet)
    motion: Motion = field(default_factory=Motion)
    light: Light = field(default_factory=Light)
    freeze: Freeze = field(default_factory=Freeze)
    overlay: Overlay = field(default_factory=Overlay)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    key_frames: KeyFrames = field(default_factory=KeyFrames)

    ledger_url: str = field(init=False, default="")  # where key frames go
    thumb_share: float = field(
        init=False, default=1.0
    )  # of the clips below the prefilter that show some

    reads = ("video", "bytes")
    writes = (
        *("sha256", "duration_s", "width", "height", "fps", "codec", "pix_fmt", "rotation"),
        *("num_frames", "cuts_s", "gradual", "takes", "clips", "cpu_s"),
    )
    needs = Needs(cpus=1, isolated=True)

    def __post_init__(self) -> None:
        if self.detector == "transnet":
            self.needs = Needs(cpus=1, gpus=self.transnet.gpus, isolated=True)  # type: ignore[misc]

    def setup(self) -> None:
        if self.detector == "transnet":
            self.transnet.load()

    @property
    def cuts(self) -> Shots | TransNet:
        return self.transnet if self.detector == "transnet" else self.shots

    def row_timeout_s(self, row: Row) -> float:
        # By the file's size, since its header may lie: 10 kB of video a second is little.
        return 120.0 + max(row["bytes"], 0) / 1e4

    def process(self, rows: list[Row]) -> list[Row]:
        return [row | self._watch(row["video"]) for row in rows]

    def _watch(self, video: str) -> Row:
        started = time.process_time()
        with fetched(video) as path:
            sha256 = sha256_of(path)
            with Reader(path, self.limits) as reader:
                self._see_all(reader)
        transitions = self.cuts.transitions()
        times = reader.times_s
        takes = find_takes(
            transitions.cuts_s, transitions.gradual, times, reader.end_s, self.guard_frames
        )
        head = reader.head
        facts: Row = {
            "sha256": sha256,
            "duration_s": reader.end_s,
            "width": head.width,
            "height": head.height,
            "fps": len(times) / reader.end_s,
            "codec": head.codec,
            "pix_fmt": head.pix_fmt,
            "rotation": head.rotation,
            "num_frames": len(times),
            "cuts_s": transitions.cuts_s,
            "gradual": [{"start_s": a, "end_s": b} for a, b in transitions.gradual],
            "takes": [{"start_s": a, "end_s": b} for a, b in takes],
        }
        facts["clips"] = [
            self._clip(facts, reader, number, span)
            for number, take in enumerate(takes)
            for span in self._spans(take, reader)
        ]
        facts["cpu_s"] = time.process_time() - started
        return facts

    def _meters(self) -> list[Meter]:
        return [self.cuts, self.motion, self.light, self.freeze, self.overlay, self.fingerprint]

    def _see_all(self, reader: Reader) -> None:
        self.key_frames.start(self._still_side(reader.head))
        meters = self._meters()
        for meter in meters:
            meter.start(reader.head.facts())
        frames = self._planes(reader)
        while batch := list(islice(frames, BATCH)):
            for meter in meters:
                for t_s, planes in batch:
                    meter.process_frame(t_s, planes)

    def _still_side(self, head: VideoHead) -> int:
        """Of a video too small for the prefilter, key frames are for the report alone."""
        size = {"width": head.width, "height": head.height}
        prefilter = Policy({name: rule for name, rule in self.prefilter.items() if name in size})
        return THUMB_SIDE if decide(size, prefilter) else self.key_frames.side

    def _planes(self, reader: Reader) -> Iterator[tuple[float, Planes]]:
        """The frames once the stills saw them, with the decoder's picture where it is looked at."""
        in_colour = self.cuts is self.transnet
        for t_s, frame in reader.frames():
            self.key_frames.process_frame(t_s, frame)
            yield t_s, frame if in_colour else Planes(frame.y)

    def _spans(self, take: tuple[float, float], reader: Reader) -> list[tuple[float, float]]:
        """The clips of a take; of one too short for any, the take itself."""
        key_times = reader.packets.times_s[reader.packets.is_key]
        placed = place_clips(take, self.clip_s, self.max_clip_s, key_times, reader.times_s)
        return placed or [take]

    def _clip(self, video: Row, reader: Reader, take: int, span: tuple[float, float]) -> Row:
        start_s, end_s = span
        first, last = np.searchsorted(reader.times_s, [start_s - 1e-6, end_s - 1e-6])
        packets = reader.packets
        inside = (packets.times_s >= start_s - 1e-6) & (packets.times_s < end_s - 1e-6)
        at_start = np.abs(packets.times_s - start_s) < 1e-3
        clip: Row = dict.fromkeys(SCORE_NAMES)
        clip |= {
            "clip_id": clip_id(video["sha256"], start_s, end_s),
            "take": take,
            "start_s": start_s,
            "end_s": end_s,
            "duration_s": round(end_s - start_s, 6),
            "num_frames": int(last - first),
            "width": video["width"],
            "height": video["height"],
            "fps": float(last - first) / (end_s - start_s),
            "starts_on_keyframe": bool(packets.is_key[at_start].any()),
            "packet_bytes": int(packets.bytes[inside].sum()),
            "overlay_mask": None,
            "null_reasons": {},
        }
        for meter in (self.motion, self.light, self.freeze):
            clip |= meter.score(start_s, end_s)
        clip["borders"] = self.light.borders(start_s, end_s)
        clip["fingerprint"] = self.fingerprint.bytes_of(start_s, end_s)
        against = decide(clip, self.prefilter)
        clip["prefilter"] = against[0] if against else None
        if not against:
            clip |= self.overlay.score(start_s, end_s)
            clip["overlay_mask"] = _png(self.overlay.mask(start_s, end_s))
        self._add_segments(clip)
        for column in SCORES:
            if clip[column.name] is None and column.name not in Text.writes:
                clip["null_reasons"].setdefault(column.name, _cause(column, clip))
        return clip

    def _add_segments(self, clip: Row) -> None:
        passed = clip["prefilter"] is None
        stored = passed or int(clip["clip_id"][:8], 16) < self.thumb_share * 2**32
        pictures = []
        clip["segments"] = []
        for number, (a, b) in enumerate(segment_spans(clip["duration_s"], self.segments)):
            start_s, end_s = clip["start_s"] + a, clip["start_s"] + b
            segment: Row = {"start_s": a, "end_s": b}
            segment |= self.motion.segment(start_s, end_s) | self.light.segment(start_s, end_s)
            where = (start_s + end_s) / 2, clip["start_s"], clip["end_s"]
            if passed:
                still = self.key_frames.nearest(*where)
            else:
                still = self.key_frames.thumb(*where, THUMB_SIDE) if stored else []
            if still:
                t_s, jpeg = still[0]
                if passed:
                    pictures.append(decode_small(jpeg, COMPARED_WIDTH))
                name = f"key_frames/{clip['clip_id'][:2]}/{clip['clip_id']}_{number}.jpg"
                Folder(self.ledger_url).write(name, jpeg, durable=False)
                segment["key_frame_s"] = t_s - clip["start_s"]
                segment["key_frame"] = name
                segment["key_frame_sha256"] = hashlib.sha256(jpeg).hexdigest()
                if passed and len(still) > 1:
                    name = name.replace(".jpg", "_next.jpg")
                    Folder(self.ledger_url).write(name, still[1][1], durable=False)
                    segment["next_frame_s"] = still[1][0] - clip["start_s"]
                    segment["next_frame"] = name
                if passed:
                    segment["frame_samples"] = self._neighbours(clip, number, (start_s, end_s), t_s)
            clip["segments"].append(segment)
        if pictures:
            clip |= _key_scores(pictures)

    def _neighbours(
        self, clip: Row, number: int, span: tuple[float, float], key_s: float
    ) -> list[Row]:
        """Stores stills of a segment beside its key frame, spread over its time, for captioners."""
        start_s, end_s = span
        spread = segment_spans(
            end_s - start_s, self.frame_samples + 1
        )  # the key frame is one of them
        found = {key_s: b""}
        for a, b in spread:
            for t_s, jpeg in self.key_frames.nearest(start_s + (a + b) / 2, start_s, end_s)[:1]:
                found.setdefault(t_s, jpeg)
        del found[key_s]
        rows = []
        for place, (t_s, jpeg) in enumerate(sorted(found.items())[: self.frame_samples]):
            name = f"key_frames/{clip['clip_id'][:2]}/{clip['clip_id']}_{number}_{place}.jpg"
            Folder(self.ledger_url).write(name, jpeg, durable=False)
            sha256 = hashlib.sha256(jpeg).hexdigest()
            rows.append({"s": t_s - clip["start_s"], "file": name, "sha256": sha256})
        return rows


def _cause(column: Column, clip: Row) -> str:
    """Why a score is null."""
    if column.model:
        return "no scorer configured"
    if column.name in CAPTION_SCORES:
        return "only kept clips are captioned"
    if clip["prefilter"] is not None and column.name in (*KEY_SCORES, *Overlay.writes):
        return f"failed the prefilter: {clip['prefilter']}"
    return "not measurable"


def _key_scores(pictures: list[np.ndarray]) -> dict[str, Any]:
    """pictures: one per segment, (h, COMPARED_WIDTH, 3) BGR."""
    pairs = list(pairwise(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY) for p in pictures))
    return {
        "colourfulness": _mean([measures.colourfulness(p) for p in pictures]),
        "key_psnr": _mean([measures.psnr(a, b) for a, b in pairs]),
        "key_ssim": _mean([measures.ssim(a, b) for a, b in pairs if min(a.shape) >= 11]),
    }


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _png(mask: np.ndarray | None) -> bytes | None:
    if mask is None:
        return None
    done, png = cv2.imencode(".png", mask)
    assert done
    return png.tobytes()
