"""PySceneDetect's detectors, for teams whose thresholds are tuned for them.

Each gets the frames that `scenedetect.detect(path, detector, backend="pyav")` gives it: BGR of the
stored size, not turned, reduced to 256 px as its SceneManager reduces them. So the cuts are the
same; the conversion to BGR is most of the cost (docs/measurements/shots.md). They find hard cuts
and report a gradual transition, where they find it, as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import cv2
from annotated_types import Ge, Gt, Le

from curation.video.frames import Planes, VideoInfo
from stages.shots.detector import Detector, Transitions


@dataclass
class PySceneDetector(Detector):
    reads_source = True
    min_scene_len: Annotated[int, Ge(0)] = 15  # frames

    def create(self) -> Any:
        """The `scenedetect.SceneDetector`, new for each video."""
        raise NotImplementedError

    def start(self, video: VideoInfo) -> None:
        self._detector, self._fps = self.create(), video.fps
        self._times_s: dict[int, float] = {}  # of the frames, by their microseconds
        self._cuts: list[Any] = []
        self._size: tuple[int, ...] | None = None
        self._last: Any = None

    def process_frame(self, t_s: float, frame: Planes) -> None:
        from scenedetect.common import FrameTimecode, Timecode
        from scenedetect.scene_manager import compute_downscale_factor

        image = frame.source.frame.to_ndarray(format="bgr24")
        height, width = image.shape[:2]
        if self._size not in (None, image.shape):
            return  # as its SceneManager does
        self._size = image.shape
        factor = compute_downscale_factor(max(width, height))
        if factor > 1:
            size = max(1, round(width / factor)), max(1, round(height / factor))
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        stamp = Timecode(pts=round(t_s * 1e6), time_base=Fraction(1, 1_000_000))
        self._times_s[stamp.pts] = t_s
        self._last = FrameTimecode(timecode=stamp, fps=self._fps)
        self._cuts += self._detector.process_frame(self._last, image)

    def transitions(self) -> Transitions:
        if self._last is not None:
            self._cuts += self._detector.post_process(self._last)
        times_s = {self._times_s[cut.pts] for cut in self._cuts}
        return Transitions(sorted(times_s - {0.0}), [])


@dataclass
class ContentDetector(PySceneDetector):
    """The change of hue, saturation and value from frame to frame."""

    threshold: Annotated[float, Gt(0)] = 27.0

    def create(self) -> Any:
        from scenedetect import ContentDetector

        return ContentDetector(self.threshold, self.min_scene_len)


@dataclass
class AdaptiveDetector(PySceneDetector):
    """The same change, divided by its mean over the frames nearby."""

    adaptive_threshold: Annotated[float, Gt(0)] = 3.0
    window_width: Annotated[int, Ge(1)] = 2  # frames on either side
    min_content_val: Annotated[float, Ge(0)] = 15.0

    def create(self) -> Any:
        from scenedetect import AdaptiveDetector

        return AdaptiveDetector(
            self.adaptive_threshold, self.min_scene_len, self.window_width, self.min_content_val
        )


@dataclass
class HashDetector(PySceneDetector):
    """The distance between perceptual hashes."""

    threshold: Annotated[float, Gt(0), Le(1)] = 0.35
    size: Annotated[int, Ge(2)] = 8
    lowpass: Annotated[int, Ge(1)] = 2

    def create(self) -> Any:
        from scenedetect import HashDetector

        return HashDetector(self.threshold, self.size, self.lowpass, self.min_scene_len)


@dataclass
class HistogramDetector(PySceneDetector):
    """The correlation of luma histograms."""

    threshold: Annotated[float, Gt(0), Le(1)] = 0.20
    bins: Annotated[int, Ge(2)] = 128

    def create(self) -> Any:
        from scenedetect import HistogramDetector

        return HistogramDetector(self.threshold, self.bins, self.min_scene_len)
