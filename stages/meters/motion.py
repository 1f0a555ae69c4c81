"""Motion of the camera and of what it sees, a few looks a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Gt

from curation.video.frames import Planes, VideoInfo
from stages.meters.alignment import (
    LEAST_SIDE,
    STILL,
    Affine,
    DisFlow,
    Look,
    Match,
    aligned,
    guess,
    likelier,
    match,
    mean_px,
)
from stages.meters.ken_burns import StillPicture, Window, still_stretches
from stages.meters.meter import Meter

# A look as one row of numbers: speeds in px/s at 320 wide, the camera as the motion of the content.
_FIELDS = (
    *("t_s", "motion", "still", "camera", "x", "y", "zoom", "turn"),
    *("left", "subject_x", "subject_y", "area", "at_x", "at_y", "weight"),
)
_AT = {name: i for i, name in enumerate(_FIELDS)}
NO_SUBJECT = (0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0)

SLOW_PX = (
    0.5  # in a look's gap, of the half-size picture: so slow a camera is measured between looks
)
SAME_PX = 0.1  # a camera that moves less in a look's gap stands still, whatever moves before it
STIRS = 0.0025  # of the picture that moves: less is a flicker


@dataclass
class Motion(Meter):
    """Says how much moves, and what: the camera or the things before it; never whether it's enough.

    A look is a pair of frames `gap_s` apart: short, so that fast things are still found by the
    flow. A slow camera is measured from one look to the next. Speeds come from the frames' own
    times, so that 4 fps, 100 fps and uneven times read the same.
    """

    looks_per_s: Annotated[float, Gt(0)] = 2.0
    gap_s: Annotated[float, Gt(0)] = 0.1
    still_below_px_s: Annotated[float, Ge(0)] = 1.0  # a camera slower than this stands still
    # What is left of the flow moves by itself from here on, and from 0.2 x the camera's speed.
    subject_above_px_s: Annotated[float, Ge(0)] = 4.0
    # a shorter zoom or pan over a still picture is not counted
    fake_least_s: Annotated[float, Ge(0)] = 2.0
    writes = ("motion_dis", "static_share", "camera_motion", "subject_motion", "ken_burns_share")

    def start(self, video: VideoInfo) -> None:
        sides = video.reduced_width // 2, video.reduced_height // 2
        self._blind = min(sides) < LEAST_SIDE
        self._scale = 320 / max(*sides, 1)
        self._dis = DisFlow()
        self._still = StillPicture()
        self._first: tuple[float, Look] | None = None
        self._before: tuple[float, Look] | None = None  # the first frame of the look before
        self._velocity, self._noise = STILL, 0.0  # of the look before: what is expected
        self._next_s = 0.0
        self._looks: list[np.ndarray] = []
        self._windows: list[Window] = []
        self._ready: tuple[np.ndarray, list[tuple[float, float]]] | None = None

    def process_frame(self, t_s: float, frame: Planes) -> None:
        # A hair's tolerance, or a frame at 0.0999 s would make every gap one frame longer.
        ends = self._first is not None and t_s - self._first[0] >= self.gap_s - 0.002
        if self._blind or not (ends or (self._first is None and t_s >= self._next_s)):
            return
        self._ready = None
        look = Look.at(frame.y)
        if ends:
            assert self._first is not None
            self._look(*self._first, t_s, look)
            self._before, self._first = self._first, None
        if self._first is None and t_s >= self._next_s:
            self._first = (t_s, look)
            self._next_s = max(self._next_s + 1 / self.looks_per_s, t_s)

    def _look(self, t_s: float, first: Look, second_t_s: float, second: Look) -> None:
        seconds = second_t_s - t_s
        camera, flow = self._camera(first, second, seconds)
        velocity = self._slow(t_s, first, camera, seconds) or camera.motion.times(1 / seconds)
        self._looks.append(self._numbers(t_s, flow, camera, velocity, seconds))
        self._velocity = velocity
        window = self._still.process_frame(t_s, first, velocity)
        if window is not None:
            self._windows.append(window)

    def _camera(self, first: Look, second: Look, seconds: float) -> tuple[Match, np.ndarray | None]:
        """The camera's motion and the flow; None where the camera explains all there is.

        A thing that moves before blank ground can hold most of the flow's votes: the ground, which
        stays, is the evidence against it, so no motion at all is always tried as well.
        """
        camera = aligned(first, second, self._velocity.times(seconds), rounds=1)
        if self._velocity is not STILL:
            camera = likelier(match(first, second, STILL), camera)
        # A motion that is quite wrong fits nowhere: then all is noise, and more than there was.
        lost = camera.noise > 2 * self._noise
        flow = self._dis(first, second) if lost or camera.alien.mean() >= STIRS else None
        if flow is not None and (lost or camera.motion_px > SAME_PX):
            camera = likelier(camera, aligned(first, second, guess(first, flow)))
        self._noise = camera.noise
        return camera, flow

    def _slow(self, t_s: float, look: Look, camera: Match, seconds: float) -> Affine | None:
        """The velocity since the look before, where too little moves from frame to frame."""
        if self._before is None or camera.motion_px > SLOW_PX:
            return None
        before_s, before = self._before
        start = camera.motion.times((t_s - before_s) / seconds)
        found = aligned(before, look, start, rounds=1)
        if found.cost(camera.noise) > 3:  # a cut, or a camera that jumped meanwhile
            return None
        return found.motion.times(1 / (t_s - before_s))

    def _numbers(
        self, t_s: float, flow: np.ndarray | None, camera: Match, velocity: Affine, seconds: float
    ) -> np.ndarray:
        points = camera.first.points
        of_camera = velocity.at(points) * self._scale
        camera_speed = cv2.magnitude(of_camera[..., 0], of_camera[..., 1])
        mean, shift = float(camera_speed.mean()), velocity.shift * self._scale
        known = [mean, *shift, velocity.zoom, velocity.turn]
        if flow is None:
            still = mean < self.still_below_px_s
            return np.array([t_s, mean, still, *known, *NO_SUBJECT], np.float32)
        # Flow counts where the camera's motion leaves a difference; elsewhere it is noise.
        own = (flow - camera.motion.at(points)) * np.float32(self._scale / seconds)
        own *= camera.alien[..., None]
        speed = cv2.magnitude(own[..., 0], own[..., 1])
        moves = speed > np.maximum(self.subject_above_px_s, 0.2 * camera_speed)
        area, weight = float(moves.mean()), float(speed[moves].sum())
        still = mean < self.still_below_px_s and area < STIRS
        subject = [float(speed.mean()), *NO_SUBJECT[1:]]
        if weight:
            size = camera.first.luma.shape[::-1]
            at = (speed[moves] @ points[moves]) / weight / size + 0.5
            subject = [subject[0], *own[moves].mean(0), area, *at, weight]
        return np.array([t_s, mean_px(of_camera + own), still, *known, *subject], np.float32)

    def _between(self, start_s: float, end_s: float) -> np.ndarray:
        """(looks, numbers) of the looks with start_s <= t < end_s."""
        looks, _ = self._answer()
        return looks[(looks[:, 0] >= start_s) & (looks[:, 0] < end_s)]

    def _answer(self) -> tuple[np.ndarray, list[tuple[float, float]]]:
        if self._ready is None:
            looks = np.array(self._looks, np.float32).reshape(-1, len(_FIELDS))
            self._ready = looks, still_stretches(self._windows, self.fake_least_s)
        return self._ready

    def score(self, start_s: float, end_s: float) -> dict[str, float | None]:
        looks = self._between(start_s, end_s)
        if not len(looks):
            return dict.fromkeys(self.writes)
        names = ("motion", "still", "camera", "left")
        motion, still, camera, left = (float(looks[:, _AT[name]].mean()) for name in names)
        fake_s = sum(max(0.0, min(e, end_s) - max(s, start_s)) for s, e in self._answer()[1])
        return {
            "motion_dis": steady(motion),
            "static_share": still,
            "camera_motion": steady(camera),
            "subject_motion": steady(left),
            "ken_burns_share": min(1.0, fake_s / (end_s - start_s)),
        }

    def score_segment(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """The facts of one segment, named and signed as in `curation.records.SEGMENT`."""
        looks = self._between(start_s, end_s)
        names = (
            *("motion_dis", "camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake"),
            *("subject_motion", "subject_x", "subject_y", "subject_area"),
            *("subject_at_x", "subject_at_y"),
        )
        if not len(looks):
            return dict.fromkeys(names)
        mean = {name: float(looks[:, i].mean()) for name, i in _AT.items()}
        # The view moves against its content.
        camera = (-mean["x"], -mean["y"], mean["zoom"], -float(np.degrees(mean["turn"])))
        shifts = looks[:, [_AT["x"], _AT["y"]]]
        shake = float(np.sqrt(((shifts - shifts.mean(0)) ** 2).sum(1).mean()))
        weight = looks[:, _AT["weight"]]
        share = weight / weight.sum() if weight.sum() > 0 else np.full(len(looks), 1 / len(looks))
        subject = (share @ looks[:, [_AT[n] for n in ("subject_x", "subject_y")]]).tolist()
        at = (share @ looks[:, [_AT[n] for n in ("at_x", "at_y")]]).tolist()
        values = (mean["motion"], *camera, shake, mean["left"], *subject, mean["area"], *at)
        return dict(zip(names, map(steady, values), strict=True))


def steady(value: float) -> float:
    """Four significant digits: the last bits of float32 sums hang on where arrays lie in memory."""
    return float(f"{value:.4g}")
