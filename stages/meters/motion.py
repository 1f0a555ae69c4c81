"""Measures the motion of the camera and of the objects before it, a few times a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Gt

from curation.video.frames import Planes, VideoInfo
from stages.meters.alignment import (
    MIN_ALIGNED_SIDE_PX,
    NO_MOTION,
    Affine,
    AlignmentImage,
    DisFlow,
    Match,
    align,
    better_match,
    fit_flow,
    match,
    mean_length,
)
from stages.meters.ken_burns import KenBurnsDetector, Window, ken_burns_spans
from stages.meters.meter import Meter, spans_near
from stages.meters.small_arrays import SmallArrays

# One sample as a row of numbers: speeds in px/s at 320 wide, the camera as motion of the content,
# residual_flow as the mean flow that the camera does not explain.
_FIELDS = (
    *("t_s", "motion", "is_static", "camera", "x", "y", "zoom", "rotation"),
    *("residual_flow", "subject_x", "subject_y", "area", "at_x", "at_y", "weight"),
)
_COLUMN = {name: i for i, name in enumerate(_FIELDS)}
NO_SUBJECT = (0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0)

# px within a sample's gap, of the half-size image.
SLOW_CAMERA_PX = 0.5  # below it the camera is measured from one sample to the next
STATIC_CAMERA_PX = 0.1  # below it the camera is static, whatever moves in front of it
MIN_MOVING_SHARE = 0.0025  # of the frame: less is flicker
TIME_TOLERANCE_S = 0.002  # else a frame at 0.0999 s would make every gap one frame longer


@dataclass
class Motion(Meter):
    """Measures how much moves, and whether it is the camera or objects before it.

    A sample is a pair of frames `gap_s` apart, which is short so that the flow finds fast objects.
    A slow camera is measured from one sample to the next. Speeds are computed from the frames' own
    times, so that they do not depend on the frame rate.
    """

    samples_per_s: Annotated[float, Gt(0)] = 2.0
    gap_s: Annotated[float, Gt(0)] = 0.1
    static_below_px_s: Annotated[float, Ge(0)] = 1.0  # a slower camera is static
    # Flow that the camera does not explain is an object's motion if it is faster than this and
    # than 0.2 x the camera's speed.
    subject_above_px_s: Annotated[float, Ge(0)] = 4.0
    # a shorter zoom or pan over a still image is not counted
    min_ken_burns_s: Annotated[float, Ge(0)] = 2.0
    writes = ("motion_dis", "static_share", "camera_motion", "subject_motion", "ken_burns_share")

    def start(self, video: VideoInfo) -> None:
        sides = video.reduced_width // 2, video.reduced_height // 2
        self._is_too_small = min(sides) < MIN_ALIGNED_SIDE_PX
        self._scale = 320 / max(*sides, 1)
        self._flow = DisFlow()
        self._ken_burns = KenBurnsDetector()
        self._first: tuple[float, AlignmentImage] | None = None  # of the sample under way
        self._previous: tuple[float, AlignmentImage] | None = None  # first of the sample before
        self._velocity, self._noise = NO_MOTION, 0.0  # of the sample before: what is expected
        self._next_s = 0.0
        self._samples = SmallArrays()
        self._windows: list[Window] = []
        self._results: tuple[np.ndarray, list[tuple[float, float]]] | None = None

    def process_frame(self, t_s: float, frame: Planes) -> None:
        ends_sample = (
            self._first is not None and t_s - self._first[0] >= self.gap_s - TIME_TOLERANCE_S
        )
        starts_sample = self._first is None and t_s >= self._next_s
        if self._is_too_small or not (ends_sample or starts_sample):
            return
        self._results = None
        image = AlignmentImage.from_plane(frame.y)
        if ends_sample:
            assert self._first is not None
            self._add_sample(*self._first, t_s, image)
            self._previous, self._first = self._first, None
        if self._first is None and t_s >= self._next_s:
            self._first = (t_s, image)
            self._next_s = max(self._next_s + 1 / self.samples_per_s, t_s)

    def _add_sample(
        self, t_s: float, first: AlignmentImage, second_t_s: float, second: AlignmentImage
    ) -> None:
        seconds = second_t_s - t_s
        camera, flow = self._estimate_camera(first, second, seconds)
        velocity = self._slow_velocity(t_s, first, camera, seconds)
        velocity = velocity or camera.motion.scaled(1 / seconds)
        self._samples.append(self._numbers(t_s, flow, camera, velocity, seconds))
        self._velocity = velocity
        window = self._ken_burns.process_image(t_s, first, velocity)
        if window is not None:
            self._windows.append(window)

    def _estimate_camera(
        self, first: AlignmentImage, second: AlignmentImage, seconds: float
    ) -> tuple[Match, np.ndarray | None]:
        """The camera's motion, and the flow: None if the camera's motion explains every change.

        An object in front of a blank background can have most of the flow's weight although the
        camera is static; so zero motion is always tried as well.
        """
        camera = align(first, second, self._velocity.scaled(seconds), steps=1)
        if self._velocity is not NO_MOTION:
            camera = better_match(match(first, second, NO_MOTION), camera)
        # A wrong motion fits nowhere: the noise is then higher than in the sample before.
        is_lost = camera.noise > 2 * self._noise
        has_outliers = camera.outliers.mean() >= MIN_MOVING_SHARE
        flow = self._flow(first, second) if is_lost or has_outliers else None
        if flow is not None and (is_lost or camera.motion_px > STATIC_CAMERA_PX):
            camera = better_match(camera, align(first, second, fit_flow(first, flow)))
        self._noise = camera.noise
        return camera, flow

    def _slow_velocity(
        self, t_s: float, image: AlignmentImage, camera: Match, seconds: float
    ) -> Affine | None:
        """The velocity since the sample before, px/s; None for a faster camera."""
        if self._previous is None or camera.motion_px > SLOW_CAMERA_PX:
            return None
        previous_s, previous = self._previous
        start = camera.motion.scaled((t_s - previous_s) / seconds)
        found = align(previous, image, start, steps=1)
        if found.cost(camera.noise) > 3:  # a cut, or a camera that jumped in between
            return None
        return found.motion.scaled(1 / (t_s - previous_s))

    def _numbers(
        self, t_s: float, flow: np.ndarray | None, camera: Match, velocity: Affine, seconds: float
    ) -> np.ndarray:
        """(fields,) float32: see _FIELDS."""
        points = camera.first.cell_centres
        camera_flow = velocity.displacement(points) * self._scale
        camera_speed = cv2.magnitude(camera_flow[..., 0], camera_flow[..., 1])
        mean, shift = float(camera_speed.mean()), velocity.shift * self._scale
        of_camera = [mean, *shift, velocity.zoom, velocity.rotation]
        if flow is None:
            is_static = mean < self.static_below_px_s
            return np.array([t_s, mean, is_static, *of_camera, *NO_SUBJECT], np.float32)
        # Flow counts where the camera's motion leaves a difference; elsewhere it is noise.
        own = (flow - camera.motion.displacement(points)) * np.float32(self._scale / seconds)
        own *= camera.outliers[..., None]
        speed = cv2.magnitude(own[..., 0], own[..., 1])
        moves = speed > np.maximum(self.subject_above_px_s, 0.2 * camera_speed)
        area, weight = float(moves.mean()), float(speed[moves].sum())
        is_static = mean < self.static_below_px_s and area < MIN_MOVING_SHARE
        subject = [float(speed.mean()), *NO_SUBJECT[1:]]
        if weight:
            size = camera.first.luma.shape[::-1]
            at = (speed[moves] @ points[moves]) / weight / size + 0.5
            subject = [subject[0], *own[moves].mean(0), area, *at, weight]
        motion = mean_length(camera_flow + own)
        return np.array([t_s, motion, is_static, *of_camera, *subject], np.float32)

    def _samples_between(self, start_s: float, end_s: float) -> np.ndarray:
        """(samples, fields) with start_s <= t < end_s."""
        samples, _ = self._compute_results()
        times_s = self._sample_times_s
        bounds_s = np.array((start_s, end_s), times_s.dtype)  # else each call converts all times
        return samples[slice(*np.searchsorted(times_s, bounds_s))]

    def _compute_results(self) -> tuple[np.ndarray, list[tuple[float, float]]]:
        """All samples, and the spans of a Ken Burns effect."""
        if self._results is None:
            samples = np.array(self._samples.between(0, len(self._samples)), np.float32)
            samples = samples.reshape(-1, len(_FIELDS))
            self._sample_times_s = samples[:, 0].copy()
            self._results = samples, ken_burns_spans(self._windows, self.min_ken_burns_s)
        return self._results

    def score(self, start_s: float, end_s: float) -> dict[str, float | None]:
        samples = self._samples_between(start_s, end_s)
        if not len(samples):
            return dict.fromkeys(self.writes)
        names = ("motion", "is_static", "camera", "residual_flow")
        means = (float(samples[:, _COLUMN[name]].mean()) for name in names)
        motion, static_share, camera, residual_flow = means
        _, spans = self._compute_results()
        near = spans_near(spans, start_s, end_s)
        ken_burns_s = sum(max(0.0, min(e, end_s) - max(s, start_s)) for s, e in near)
        return {
            "motion_dis": round_to_4_digits(motion),
            "static_share": static_share,
            "camera_motion": round_to_4_digits(camera),
            "subject_motion": round_to_4_digits(residual_flow),
            "ken_burns_share": min(1.0, ken_burns_s / (end_s - start_s)),
        }

    def score_segment(self, start_s: float, end_s: float) -> dict[str, float | None]:
        samples = self._samples_between(start_s, end_s)
        names = (
            *("motion_dis", "camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake"),
            *("subject_motion", "subject_x", "subject_y", "subject_area"),
            *("subject_at_x", "subject_at_y"),
        )
        if not len(samples):
            return dict.fromkeys(names)
        mean = {name: float(samples[:, i].mean()) for name, i in _COLUMN.items()}
        # The view moves against its content.
        camera = (-mean["x"], -mean["y"], mean["zoom"], -float(np.degrees(mean["rotation"])))
        shifts = samples[:, [_COLUMN["x"], _COLUMN["y"]]]
        shake = float(np.sqrt(((shifts - shifts.mean(0)) ** 2).sum(1).mean()))
        weight = samples[:, _COLUMN["weight"]]
        count = len(samples)
        share = weight / weight.sum() if weight.sum() > 0 else np.full(count, 1 / count)
        subject = (share @ samples[:, [_COLUMN[n] for n in ("subject_x", "subject_y")]]).tolist()
        at = (share @ samples[:, [_COLUMN[n] for n in ("at_x", "at_y")]]).tolist()
        subject_motion, area = mean["residual_flow"], mean["area"]
        values = (mean["motion"], *camera, shake, subject_motion, *subject, area, *at)
        return dict(zip(names, map(round_to_4_digits, values), strict=True))


def round_to_4_digits(value: float) -> float:
    """To four significant digits: the last bits of a float32 sum depend on memory alignment."""
    return float(f"{value:.4g}")
