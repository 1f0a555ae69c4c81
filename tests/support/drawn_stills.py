"""Clips with stills of their own, and a model that tells of which clip and segment it was shown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from curation.records import segment_spans
from tests.support.chat_server import Asked

PLACES = ("harbour", "meadow", "kitchen", "station", "orchard", "canyon", "library", "market")
DEEDS = (
    "a red boat turns slowly and drifts across the water beside two quiet fishermen",
    "an old dog gets up from the ground and walks towards her with a stick",
    "the tall woman in green lifts one basket over the fence and sets it down",
    "four children run along the path, chasing their yellow ball between the trees",
    "a cyclist with a white helmet stops near the prefilter to tie his loose shoe",
)
STILL = dict.fromkeys(("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake"), 0.0)


def jpeg(*seed: int) -> bytes:
    """A picture like no other seed's."""
    cells = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    picture = cv2.resize(cells, (64, 48), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".jpg", picture)[1].tobytes()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def drawn_clip(ledger: Path, number: int, segments: int = 5) -> dict:
    """The row of a kept clip, its stills in `ledger`."""
    ledger.mkdir(parents=True, exist_ok=True)
    rows = []
    for part, (start_s, end_s) in enumerate(segment_spans(15.0, segments)):
        stills = []
        for place in range(3):
            data, name = jpeg(number, part, place), f"clip{number}_{part}_{place}.jpg"
            (ledger / name).write_bytes(data)
            stills.append({"s": start_s + place, "file": name, "sha256": sha256_of(data)})
        before, key, after = stills
        row = {"start_s": start_s, "end_s": end_s, "key_frame_s": key["s"]} | STILL
        row |= {"key_frame": key["file"], "key_frame_sha256": key["sha256"]}
        rows.append(row | {"frame_samples": [before, after]})
    span = {"start_s": 15.0 * number, "end_s": 15.0 * (number + 1)}
    return {"clip_id": f"clip{number}", "segments": rows, "error": None} | span


def said_of(number: int, part: int | None) -> str:
    """What the model below says of a segment, or of the whole clip."""
    place = PLACES[number % len(PLACES)]
    deed = "it rains on everybody" if part is None else DEEDS[part % len(DEEDS)]
    return f"In the {place} of town number {number}, {deed}."


class Witness:
    """Answers by what the pictures show alone, and asserts that each request is as it must be."""

    def __init__(self, clips: int, segments: int = 5) -> None:
        self.keys = {
            tuple(sha256_of(jpeg(n, part, 1)) for part in range(segments)): n for n in range(clips)
        }
        self.parts = {
            tuple(sha256_of(jpeg(n, part, place)) for place in (0, 2)): (n, part)
            for n in range(clips)
            for part in range(segments)
        }
        self.segments = segments

    def seen(self, asked: Asked) -> tuple[int, int | None]:
        """Clip and segment that a request is about, by its pictures."""
        number = self.keys[asked.pictures[: self.segments]]
        more = asked.pictures[self.segments :]
        if not more:
            return number, None
        also, part = self.parts[more]
        assert also == number, "neighbours of another clip"
        return number, part

    def __call__(self, asked: Asked) -> str:
        number, part = self.seen(asked)
        assert asked.parts.startswith("i" * self.segments), "the key frames are not first"
        earlier = range(self.segments if part is None else part)
        for other in range(self.segments):
            told = (
                said_of(number, other) in asked.question
                or said_of(number, other) in (asked.texts[-2])
            )
            assert told == (other in earlier), f"segment {part}: earlier text {other}"
        return json.dumps({"caption": said_of(number, part)})
