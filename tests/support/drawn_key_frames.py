"""Clips with key frames of their own, and a model that identifies them by the images alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from curation.records import segment_spans
from tests.support.chat_server import ChatRequest

PLACES = ("harbour", "meadow", "kitchen", "station", "orchard", "canyon", "library", "market")
ACTIONS = (
    "a red boat turns slowly and drifts across the water beside two quiet fishermen",
    "an old dog gets up from the ground and walks towards her with a stick",
    "the tall woman in green lifts one basket over the fence and sets it down",
    "four children run along the path, chasing their yellow ball between the trees",
    "a cyclist with a white helmet stops near the gate to tie his loose shoe",
)
STILL_CAMERA = dict.fromkeys(
    ("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake"), 0.0
)


def draw_jpeg(*seed: int) -> bytes:
    """An image that differs from that of every other seed."""
    cells = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    bgr = cv2.resize(cells, (64, 48), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".jpg", bgr)[1].tobytes()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_clip(ledger: Path, number: int, segments: int = 5) -> dict:
    """The row of a kept clip, its key frames and frame samples stored in `ledger`."""
    ledger.mkdir(parents=True, exist_ok=True)
    rows = []
    for segment, (start_s, end_s) in enumerate(segment_spans(15.0, segments)):
        frames = []
        for frame in range(3):
            data, name = draw_jpeg(number, segment, frame), f"clip{number}_{segment}_{frame}.jpg"
            (ledger / name).write_bytes(data)
            frames.append({"s": start_s + frame, "file": name, "sha256": sha256_of(data)})
        before, key, after = frames
        row = {"start_s": start_s, "end_s": end_s, "key_frame_s": key["s"]} | STILL_CAMERA
        row |= {"key_frame": key["file"], "key_frame_sha256": key["sha256"]}
        rows.append(row | {"frame_samples": [before, after]})
    span = {"start_s": 15.0 * number, "end_s": 15.0 * (number + 1)}
    return {"clip_id": f"clip{number}", "segments": rows, "error": None} | span


def caption_of(number: int, segment: int | None) -> str:
    """The text of `IdentifyingModel` for a segment, or None for the whole clip."""
    place = PLACES[number % len(PLACES)]
    action = "it rains on everybody" if segment is None else ACTIONS[segment % len(ACTIONS)]
    return f"In the {place} of town number {number}, {action}."


class IdentifyingModel:
    """Identifies clip and segment by the images, and asserts that the request is complete."""

    def __init__(self, clips: int, segments: int = 5) -> None:
        self.clips = {
            tuple(sha256_of(draw_jpeg(n, segment, 1)) for segment in range(segments)): n
            for n in range(clips)
        }
        self.segments_of_samples = {
            tuple(sha256_of(draw_jpeg(n, segment, frame)) for frame in (0, 2)): (n, segment)
            for n in range(clips)
            for segment in range(segments)
        }
        self.segments = segments

    def identify(self, request: ChatRequest) -> tuple[int, int | None]:
        """Returns the numbers of the clip and the segment; segment None: the whole clip."""
        number = self.clips[request.images[: self.segments]]
        samples = request.images[self.segments :]
        if not samples:
            return number, None
        number_of_samples, segment = self.segments_of_samples[samples]
        assert number_of_samples == number, "frame samples of another clip"
        return number, segment

    def __call__(self, request: ChatRequest) -> str:
        number, segment = self.identify(request)
        assert request.part_types.startswith("i" * self.segments), "the key frames are not first"
        earlier = range(self.segments if segment is None else segment)
        for other in range(self.segments):
            text = caption_of(number, other)
            is_given = text in request.question or text in request.texts[-2]
            assert is_given == (other in earlier), f"segment {segment}: earlier text {other}"
        return json.dumps({"caption": caption_of(number, segment)})
