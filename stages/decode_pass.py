"""The decode pass: decodes every frame of a video once and passes it to every meter.

It returns the video's properties, its cuts and takes, and its clips with the scores that need no
model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from curation import config
from curation.heartbeat import report_progress
from curation.policy import Policy, decide
from curation.records import (
    CAPTION_SCORES,
    CLIP,
    FAILED_PREFILTER,
    SCORE_NAMES,
    SCORES,
    SPAN_TOLERANCE_S,
    TAG_NAMES,
    make_clip_id,
    segment_spans,
)
from curation.stage import BadVideo, Needs, PlanError, Row, RunContext, Stage
from curation.storage import Folder
from curation.urls import is_remote
from curation.video.frames import FrameProcessor, Planes
from curation.video.planes import with_chroma
from curation.video.reader import Limits, Reader, read_timeout_s
from curation.video.source import RangeFile
from curation.video_files import compute_sha256, local_copy
from stages.header_rules import HEADER_RULES, header_rejection, rejected_row
from stages.meters.clip_frames import THUMBNAIL_SIDE, ClipFrames
from stages.meters.fingerprint import Fingerprint
from stages.meters.freeze import Freeze
from stages.meters.key_frame_scores import KEY_FRAME_SCORES, key_frame_scores
from stages.meters.key_frames import KeyFrames
from stages.meters.light import Light
from stages.meters.meter import Meter, spans_near
from stages.meters.motion import Motion
from stages.meters.overlay import Overlay
from stages.meters.seams import Seams
from stages.shots.detector import Detector
from stages.shots.learned import LearnedDetector
from stages.shots.pyscenedetect import (
    AdaptiveDetector,
    ContentDetector,
    HashDetector,
    HistogramDetector,
)
from stages.shots.takes import TIME_TOLERANCE_S, find_takes, place_clips
from stages.shots.transnet import TransNetDetector

# Each meter processes so many frames before the next one does: its code and data stay in the
# CPU's caches.
FRAMES_PER_BATCH = 16


@dataclass
class DecodePass(Stage):
    """Decodes once and computes all scores that need no model.

    Every field of type Meter processes the frames and scores the clips. `detector` is the name of
    the field of type Detector that finds cuts and transitions.
    """

    # Shortest length of a clip. Copies of shorter ones can't be found: they may be in both splits.
    clip_s: Annotated[float, Ge(1)] = 15.0
    max_clip_s: Annotated[float, Gt(0)] = 15.0  # longest; above clip_s, clips fill takes
    segments: Annotated[int, Ge(1)] = 5  # of a clip: each has a key frame and a sub-caption
    frame_samples: Annotated[int, Ge(0)] = 2  # stored per segment, in addition to its key frame
    guard_frames: Annotated[int, Ge(0)] = 2  # dropped on both sides of a cut or transition
    prefilter: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    detector: str = "learned"  # finds cuts and transitions: the name of one of the next six
    learned: LearnedDetector = field(default_factory=LearnedDetector)
    transnet: TransNetDetector = field(default_factory=TransNetDetector)
    content: ContentDetector = field(default_factory=ContentDetector)
    adaptive: AdaptiveDetector = field(default_factory=AdaptiveDetector)
    hash: HashDetector = field(default_factory=HashDetector)
    histogram: HistogramDetector = field(default_factory=HistogramDetector)
    motion: Motion = field(default_factory=Motion)
    light: Light = field(default_factory=Light)
    freeze: Freeze = field(default_factory=Freeze)
    overlay: Overlay = field(default_factory=Overlay)
    seams: Seams = field(default_factory=Seams)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    key_frames: KeyFrames = field(default_factory=KeyFrames)

    reads = ("video", "bytes", "version")
    writes = (
        *("sha256", "duration_s", "width", "height", "fps", "codec", "pix_fmt", "rotation"),
        *("mirrored", *TAG_NAMES, "num_frames", "cuts_s", "gradual", "takes"),
        *("time_jumps", "size_changes", "clips", "cpu_s"),
    )
    # Without a new frame, chunk of the file or clip. A large file that hangs would else keep its
    # worker for days.
    stall_timeout_s = 300.0

    def __post_init__(self) -> None:
        config.check_choice("detector", self.detector, self.detectors)

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, gpus=self._detector.gpus, isolated=True)

    @property
    def meters(self) -> list[Meter]:
        return list(config.fields_of(self, Meter).values())

    @property
    def detectors(self) -> dict[str, Detector]:
        return config.fields_of(self, Detector)

    @property
    def costly_scores(self) -> list[str]:
        """The scores that are computed only for clips that pass the prefilter."""
        costly = [name for meter in self.meters if meter.after_prefilter for name in meter.writes]
        return [name for name in (*costly, *KEY_FRAME_SCORES) if name in SCORE_NAMES]

    def check(self) -> None:
        """Raises PlanError if the detector's package, or a column of a meter or detector, is
        missing."""
        self._detector.check()
        known = {column.name for column in CLIP}
        parts: dict[str, Meter | Detector] = {**config.fields_of(self, Meter), **self.detectors}
        for name, part in parts.items():
            if unknown := [column for column in part.writes if column not in known]:
                raise PlanError(
                    f"score.decode.{name} writes {', '.join(unknown)}, which curation/records.py "
                    "does not have\n  fix: add it to SCORES there"
                )

    @property
    def _detector(self) -> Detector:
        return self.detectors[self.detector]

    @property
    def scores_of_other_detectors(self) -> set[str]:
        """The scores that other detectors give, and the chosen one does not."""
        return {name for d in self.detectors.values() for name in d.writes} - {
            *self._detector.writes
        }

    def setup(self, context: RunContext) -> None:
        self._ledger = Folder(context.ledger_url)
        self._thumbnail_share = context.thumbnail_share
        self._detector.setup()

    def row_timeout_s(self, row: Row) -> float:
        return read_timeout_s(row["bytes"])

    def process(self, rows: list[Row]) -> list[Row]:
        return [row | self._score_video(row) for row in rows]

    def _score_video(self, row: Row) -> Row:
        started = time.process_time()
        columns = self._reject_unfetched(row) or self._decode_video(row["video"], row["bytes"])
        return columns | {"cpu_s": time.process_time() - started}

    def _reject_unfetched(self, row: Row) -> Row | None:
        """The columns of a remote video that its header rules out: the header alone is fetched."""
        if not is_remote(row["video"]) or self.prefilter.keys().isdisjoint(HEADER_RULES):
            return None
        try:
            file = RangeFile(row["video"], row["bytes"])
        except BadVideo:  # fetching it gives the reason
            return None
        found = header_rejection(file, self.limits, self.prefilter)
        file_id = f"{row['video']}:{row['bytes']}:{row['version']}"
        return rejected_row(*found, None, file_id) if found else None

    def _decode_video(self, video: str, size: int) -> Row:
        with local_copy(video, size) as path:
            if found := header_rejection(path, self.limits, self.prefilter):
                sha256 = compute_sha256(path)
                return rejected_row(*found, sha256, sha256)
            with Reader(path, self.limits) as reader:
                sha256 = compute_sha256(path)  # not before it is known to be a video
                self._process_frames(reader)
        return self.score_frames(reader, sha256)

    def score_frames(self, reader: Reader, sha256: str) -> Row:
        """The columns of a video after the pass over its frames."""
        found = self._detector.transitions()
        times, end_s, header = reader.times_s, reader.end_s, reader.header
        cuts_s = sorted({*found.cuts_s, *reader.breaks_s})
        takes = find_takes(cuts_s, found.gradual, times, end_s, self.guard_frames)
        columns: Row = {
            "sha256": sha256,
            "duration_s": end_s,
            "width": header.width,
            "height": header.height,
            "fps": len(times) / end_s,
            "codec": header.codec,
            "pix_fmt": header.pix_fmt,
            "rotation": header.geometry.orientation.rotation,
            "mirrored": header.geometry.orientation.mirrored,
            "interlaced": 1 in reader.interlaced,
            "transfer": header.transfer,
            "num_frames": len(times),
            "cuts_s": found.cuts_s,
            "gradual": [{"start_s": a, "end_s": b} for a, b in found.gradual],
            "takes": [{"start_s": a, "end_s": b} for a, b in takes],
            "time_jumps": [{"at_s": t_s, "by_s": by_s} for t_s, by_s in reader.time_jumps],
            "size_changes": [
                {"at_s": t_s, "width": w, "height": h} for t_s, w, h in reader.sizes[1:]
            ],
        }
        columns["clips"] = [
            self._score_clip(columns, reader, number, span)
            for number, take in enumerate(takes)
            for span in self._clip_spans(take, reader)
        ]
        return columns

    def _process_frames(self, reader: Reader) -> None:
        """Passes every frame to the detector, the meters, the fingerprint and the key frames."""
        processors: list[FrameProcessor] = [self._detector, *self.meters, self.fingerprint]
        self.key_frames.start()
        for processor in processors:
            processor.start(reader.header.info())
        frames = self._planes(reader)
        if any(p.reads_chroma for p in processors):
            frames = with_chroma(frames)
        if not any(p.reads_source for p in processors):  # 3 MB each in 1080p
            frames = ((t_s, Planes(planes.y, None, planes.chroma)) for t_s, planes in frames)
        while batch := list(islice(frames, FRAMES_PER_BATCH)):
            report_progress()
            for processor in processors:
                for t_s, planes in batch:
                    processor.process_frame(t_s, planes)

    def _key_frame_side(self, width: int, height: int) -> int:
        """Long side, px: of thumbnails if the prefilter rejects all clips this small."""
        size = {"width": width, "height": height}
        prefilter = Policy({name: rule for name, rule in self.prefilter.items() if name in size})
        return THUMBNAIL_SIDE if decide(size, prefilter) else self.key_frames.side

    def _planes(self, reader: Reader) -> Iterator[tuple[float, Planes]]:
        """Yields the time and planes of every frame, after the key frames have processed it."""
        sizes = 0
        for t_s, frame in reader.frames():
            if len(reader.sizes) > sizes:
                sizes = len(reader.sizes)
                self.key_frames.limit_side(self._key_frame_side(*reader.sizes[-1][1:]))
            self.key_frames.process_frame(t_s, frame)
            yield t_s, frame

    def _clip_spans(self, take: tuple[float, float], reader: Reader) -> list[tuple[float, float]]:
        """The clips of a take, or the take itself if it is too short for a clip."""
        key_times_s = reader.packets.key_times_s
        spans = place_clips(take, self.clip_s, self.max_clip_s, key_times_s, reader.times_s)
        return spans or [take]

    def _score_clip(self, video: Row, reader: Reader, take: int, span: tuple[float, float]) -> Row:
        report_progress()
        start_s, end_s = span
        bounds_s = np.array(span) - SPAN_TOLERANCE_S
        first, last = np.searchsorted(reader.times_s, bounds_s)
        packets = reader.packets
        inside = slice(*np.searchsorted(packets.times_s, bounds_s))
        near_s = start_s - TIME_TOLERANCE_S, start_s + TIME_TOLERANCE_S
        key_start, key_stop = np.searchsorted(packets.key_times_s, near_s)
        keys_s = packets.key_times_s[max(0, key_start - 1) : key_stop + 1]
        width, height = reader.size_at(start_s)
        clip: Row = dict.fromkeys(column.name for column in CLIP)
        clip |= {
            "clip_id": make_clip_id(video["sha256"], start_s, end_s),
            "take": take,
            "start_s": start_s,
            "end_s": end_s,
            "duration_s": round(end_s - start_s, 6),
            "num_frames": int(last - first),
            "width": width,
            "height": height,
            "fps": float(last - first) / (end_s - start_s),
            "interlaced": 1 in reader.interlaced[first:last],
            "transfer": video["transfer"],
            "starts_on_keyframe": bool((np.abs(keys_s - start_s) < TIME_TOLERANCE_S).any()),
            "packet_bytes": int(packets.bytes[inside].sum()),
            "fingerprint": self.fingerprint.encode(start_s, end_s),
        }
        clip["damaged_share"] = _share_inside(reader.damaged, start_s, end_s)
        clip |= self._detector.score(start_s, end_s)
        for meter in self.meters:
            if not meter.after_prefilter:
                clip |= meter.score(start_s, end_s)
        reasons = decide(clip, self.prefilter)
        clip["prefilter"] = reasons[0] if reasons else None
        if not reasons:
            for meter in self.meters:
                if meter.after_prefilter:
                    clip |= meter.score(start_s, end_s)
        clip["segments"], key_frames = self._segments(clip)
        clip |= key_frame_scores(key_frames)
        clip["null_reasons"] = self._null_reasons(clip)
        return clip

    def _segments(self, clip: Row) -> tuple[list[Row], list[bytes]]:
        """Stores the frames of a clip. Returns its segments, and the JPEGs of its key frames, none
        if it failed the prefilter."""
        frames = ClipFrames(self.key_frames, self._ledger, self.frame_samples)
        passed = clip["prefilter"] is None
        has_thumbnails = int(clip["clip_id"][:8], 16) < self._thumbnail_share * 2**32
        segments, key_frames = [], []
        for number, (a, b) in enumerate(segment_spans(clip["duration_s"], self.segments)):
            span = clip["start_s"] + a, clip["start_s"] + b
            segment: Row = {"start_s": a, "end_s": b}
            for meter in self.meters:
                segment |= meter.score_segment(*span)
            if passed:
                columns, jpeg = frames.store(clip, number, *span)
                segment |= columns
                key_frames += [jpeg] if jpeg else []
            elif has_thumbnails:
                segment |= frames.store_thumbnail(clip, number, *span)
            segments.append(segment)
        return segments, key_frames

    def _null_reasons(self, clip: Row) -> dict[str, str]:
        """Score -> its null reason. The OCR stage adds those of its own scores."""
        costly = self.costly_scores
        measured = {*KEY_FRAME_SCORES, *(name for meter in self.meters for name in meter.writes)}
        reasons = {}
        for column in SCORES:
            if clip[column.name] is not None:
                continue
            if column.model:
                reasons[column.name] = "no scorer configured"
            elif column.name in CAPTION_SCORES:
                reasons[column.name] = "only kept clips are captioned"
            elif clip["prefilter"] is not None and column.name in costly:
                reasons[column.name] = FAILED_PREFILTER + clip["prefilter"]
            elif column.name in self.scores_of_other_detectors:
                reasons[column.name] = f"the detector {self.detector} does not give it"
            elif column.name in measured:
                reasons[column.name] = "not measurable"
        return reasons


def _share_inside(spans: list[tuple[float, float]], start_s: float, end_s: float) -> float:
    """The share of the time from start_s to end_s that lies in the spans, which are in order and
    do not overlap."""
    near = spans_near(spans, start_s, end_s)
    overlaps_s = [min(b, end_s) - max(a, start_s) for a, b in near]
    return sum(t_s for t_s in overlaps_s if t_s > TIME_TOLERANCE_S) / (end_s - start_s)
