"""The passes that other pipelines make over a video, each with its library's defaults.

Every pass opens and decodes the file again, as it does there. A file that OpenCV can't open is
skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # one line per interlaced frame otherwise

import cv2
import scenedetect

from stages.decode_pass import DecodePass
from stages.meters.motion import Motion


def detect_content(video: str) -> int:
    """Number of scenes, as `scenedetect -i VIDEO detect-content` finds them."""
    return _count_scenes(video, scenedetect.ContentDetector())


def detect_adaptive(video: str) -> int:
    """Number of scenes, as `scenedetect -i VIDEO detect-adaptive` finds them."""
    return _count_scenes(video, scenedetect.AdaptiveDetector())


def _count_scenes(video: str, detector: scenedetect.SceneDetector) -> int:
    try:
        return len(scenedetect.detect(video, detector))
    except (OSError, scenedetect.VideoOpenFailure):
        return 0


def compute_flow(video: str) -> int:
    """Number of pairs of frames whose flow was computed: as many per second as `Motion` uses, with
    the same distance in time, at the same width, with the same preset."""
    settings = Motion()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    capture = cv2.VideoCapture(video)
    fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
    every, gap = max(1, round(fps / settings.samples_per_s)), max(1, round(fps * settings.gap_s))
    first, number, pairs = None, 0, 0
    while capture.grab():
        if first is None and number % every == 0:
            first, due = _small_grey(capture), number + gap
        elif first is not None and number >= due:
            dis.calc(first, _small_grey(capture), None)
            first, pairs = None, pairs + 1
        number += 1
    capture.release()
    return pairs


def _small_grey(capture: cv2.VideoCapture):
    _, frame = capture.retrieve()
    height = max(1, round(frame.shape[0] * 320 / frame.shape[1]))
    small = cv2.resize(frame, (320, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)


def sample_frames(video: str, folder: Path) -> int:
    """Number of JPEG files written: the centre frame of every segment of as many clips as fit."""
    settings = DecodePass()
    capture = cv2.VideoCapture(video)
    fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
    seconds = capture.get(cv2.CAP_PROP_FRAME_COUNT) / fps
    step_s, written = settings.clip_s / settings.segments, 0
    for number in range(int(max(0.0, seconds) // settings.clip_s) * settings.segments):
        capture.set(cv2.CAP_PROP_POS_MSEC, (number + 0.5) * step_s * 1e3)
        found, frame = capture.read()
        if found:
            cv2.imwrite(str(folder / f"{Path(video).stem}_{number}.jpg"), frame)
            written += 1
    capture.release()
    return written
