"""Motion of the camera and of what it sees, a few looks a second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.stage import Meter, Planes, VideoFacts
from stages.align import LEAST_SIDE, Affine, DisFlow, Look, Match, aligned, camera_between, mean_px
from stages.still_picture import StillPicture, Window, still_stretches

# A look as one row of numbers: speeds in px/s at 320 wide, the camera as the motion of the content.
_FIELDS = (
    *("t_s", "motion", "camera", "still", "x", "y", "zoom", "turn"),
    *("left", "subject_x", "subject_y", "area", "at_x", "at_y", "weight"),
)
_AT = {name: i for i, name in enumerate(_FIELDS)}

SLOW_PX = 0.5  # in a look's gap, of the half-size picture: so slow a camera is measured between looks
ALIEN = 9.0  # times the noise's square that a cell differs by where something moves by itself
STIRS = 0.0025  # of the picture that moves: less is a flicker


@dataclass
class Motion(Meter):
    """Says how much moves, and what: the camera or the things before it; never whether it's enough.

    A look is a pair of frames `gap_s` apart: short, so that fast things are still found by the
    flow. A slow camera is measured from one look to the next. Speeds come from the frames' own
    times, so that 4 fps, 100 fps and uneven times read the same.
    """

    looks_per_s: float = 2.0
    gap_s: float = 0.1
    still_below_px_s: float = 1.0  # a camera slower than this stands still
    # What is left of the flow moves by itself from here on, and from 0.2 x the camera's speed.
    subject_above_px_s: float = 4.0
    fake_least_s: float = 2.0  # a shorter zoom or pan over a still picture is not counted
    writes = ("motion_dis", "still_share", "camera_motion", "subject_motion", "fake_motion")

    def start(self, video: VideoFacts) -> None:
        sides = video.reduced_width // 2, video.reduced_height // 2
        self._blind = min(sides) < LEAST_SIDE
        self._scale = 320 / max(*sides, 1)
        self._dis = DisFlow()
        self._still = StillPicture()
        self._first: tuple[float, Look] | None = None
        self._before: tuple[float, Look] | None = None  # the first frame of the look before
        self._next_s = 0.0
        self._looks: list[np.ndarray] = []
        self._windows: list[Window] = []
        self._ready: tuple[np.ndarray, list[tuple[float, float]]] | None = None

    def see(self, t_s: float, frame: Planes) -> None:
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
        flow = self._dis(first, second)
        camera = camera_between(first, second, flow)
        velocity = self._slow(t_s, first, camera, seconds) or camera.motion.times(1 / seconds)
        self._looks.append(self._numbers(t_s, flow, camera, velocity, seconds))
        window = self._still.see(t_s, first, velocity)
        if window is not None:
            self._windows.append(window)

    def _slow(self, t_s: float, look: Look, camera: Match, seconds: float) -> Affine | None:
        """The velocity since the look before, where too little moves from frame to frame."""
        if self._before is None or mean_px(camera.motion.at(look.points)) > SLOW_PX:
            return None
        before_s, before = self._before
        start = camera.motion.times((t_s - before_s) / seconds)
        found = aligned(before, look, start, rounds=1)
        if found.cost(camera.noise) > 3:  # a cut, or a camera that jumped meanwhile
            return None
        return found.motion.times(1 / (t_s - before_s))

    def _numbers(
        self, t_s: float, flow: np.ndarray, camera: Match, velocity: Affine, seconds: float
    ) -> np.ndarray:
        points = camera.first.points
        of_camera = velocity.at(points) * self._scale
        # Flow counts where the camera's motion leaves a difference; elsewhere it is noise.
        alien = camera.error > ALIEN * camera.noise
        own = (flow - camera.motion.at(points)) * (self._scale / seconds) * alien[..., None]
        speed, camera_speed = (np.hypot(*np.moveaxis(v, -1, 0)) for v in (own, of_camera))
        moves = speed > np.maximum(self.subject_above_px_s, 0.2 * camera_speed)
        weight = (speed * moves).sum()
        size = camera.first.luma.shape[::-1]
        at = (points * (speed * moves)[..., None]).sum((0, 1)) / (weight or 1) / size + 0.5
        direction = own[moves].mean(0) if weight else (0.0, 0.0)
        still = camera_speed.mean() < self.still_below_px_s and moves.mean() < STIRS
        mean_speed = np.hypot(*np.moveaxis(of_camera + own, -1, 0)).mean()
        shift = velocity.shift * self._scale
        return np.array(
            [t_s, mean_speed, camera_speed.mean(), still, *shift, velocity.zoom, velocity.turn]
            + [speed.mean(), *direction, moves.mean(), *at, weight],
            np.float32,
        )

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
            "motion_dis": motion,
            "still_share": still,
            "camera_motion": camera,
            "subject_motion": left,
            "fake_motion": min(1.0, fake_s / (end_s - start_s)),
        }

    def segment(self, start_s: float, end_s: float) -> dict[str, float | None]:
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
        return dict(zip(names, values, strict=True))

