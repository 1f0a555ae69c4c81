"""Random training sequences of small frames, with labels of every transition.

`Planner.plan` draws the random choices of a sequence, in numpy: the one or two frames of the
footage that each frame is made of, the mask that blends them (`joins.py`), the camera, the light,
overlays and the recording. `render.py` computes the frames of a batch of plans on the training
device. Footage and sequences have frames of 64 x 36 px, Y, Cb and Cr.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.transition_network import joins
from benchmarks.transition_network.plan import (
    BOXES,
    PATCHES,
    PLAIN,
    WHITE_INDEX,
    Plan,
    Shot,
    empty_plan,
)

KINDS = tuple(joins.JOINS)  # of transitions between shots
SEEN_STEP, SEEN_SHARE = 12, 0.02  # grey levels in a share of the picture: else nobody sees a cut
LABELLED, SINGLE = 0.5, 0.12  # shares of sequences: of labelled videos, and without a transition


# ---------------------------------------------------------------- cameras
# Each function draws a path of `count` frames, (count, 4) as Plan.camera_a.


def _static_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((count, 4), np.float32)


def _shaking_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    steps = (
        rng.normal(0, 1, (count, 4)) * np.array([0.008, 0.012, 0.004, 0.004]) * rng.uniform(0.3, 2)
    )
    if rng.random() < 0.4:
        steps[rng.integers(count)] *= rng.uniform(3, 12)
    path = np.cumsum(steps, axis=0)
    kernel = np.ones(31) / 31
    smooth = np.stack([np.convolve(np.pad(p, 15, "edge"), kernel, "valid") for p in path.T], axis=1)
    return path - smooth


def _panning_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    speed = rng.uniform(0.005, 0.05) * rng.choice([-1, 1])
    axis = int(rng.random() < 0.25)
    path = np.zeros((count, 4))
    path[:, axis] = np.arange(count) * speed
    return path


def _burst_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    """As in a game, on a drone or in the hand of a runner: it pans, rolls and zooms in bursts."""
    knots = count // 6 + 4
    goals = rng.normal(0, 1, (knots, 4)) * (rng.random((knots, 1)) < 0.4)
    at = np.linspace(0, knots - 1, count)
    speed = np.stack([np.interp(at, np.arange(knots), g) for g in goals.T], axis=1)
    speed *= rng.uniform(0.2, 1.0) * np.array([0.14, 0.08, 0.04, 0.06])
    path = np.cumsum(speed, axis=0)
    path[:, 2:] -= path[:, 2:].mean(axis=0)
    return np.clip(path, [-9, -9, -0.3, -0.6], [9, 9, 0.9, 0.6])


def _zooming_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    path = np.zeros((count, 4))
    path[:, 2] = np.arange(count) * rng.uniform(0.0005, 0.012)
    return path if rng.random() < 0.5 else path[::-1].copy()


def _swinging_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rests, and now and then swings, scrolls or zooms fast to another part of the scene."""
    path = np.zeros((count, 4))
    at = int(rng.integers(5, 90))
    while at < count:
        length = int(rng.integers(3, 40))
        share = joins.random_shares(rng, length)
        is_moved = rng.random(4) < (0.7, 0.4, 0.25, 0.1)
        goal = rng.uniform(-1, 1, 4) * (1.2, 0.9, 0.9, 0.2) * is_moved
        part = path[at : at + length]
        part += share[: len(part), None] * goal
        if rng.random() < 0.7:
            path[at + length :] += goal
        at += length + int(rng.integers(15, 120))
    return np.clip(path, [-9, -9, -0.5, -0.6], [9, 9, 1.2, 0.6])


# Probability and function
CAMERAS: list[tuple[float, Callable[[int, np.random.Generator], np.ndarray]]] = [
    (0.51, _static_camera),
    (0.13, _shaking_camera),
    (0.10, _panning_camera),
    (0.12, _burst_camera),
    (0.06, _zooming_camera),
    (0.08, _swinging_camera),
]


# ---------------------------------------------------------------- sequences


class Planner:
    """Plans random sequences: of labelled videos, edited from shots, and of single shots."""

    def __init__(
        self,
        shots: list[Shot],
        videos: list[dict[str, np.ndarray]],
        luma: np.ndarray,
        count: int,
        labelled: float = LABELLED,
    ) -> None:
        """shots, videos: as `gather` returns them.  luma: (N, 18, 32) uint8, of the footage, whose
        last frames are PLAIN.  count: T, the frames of a sequence.  labelled: share of sequences of
        labelled videos."""
        self.shots = [shot for shot in shots if shot.end - shot.first >= 12]
        lengths = np.array([shot.end - shot.first for shot in self.shots], float)
        self.shot_ends = np.cumsum(np.minimum(lengths, 300))
        self.videos, self.luma, self.count = videos, luma, count
        self.plain = len(luma) - len(PLAIN)
        weights = np.sqrt(np.array([len(v["frames"]) for v in videos], float))
        self.video_ends = np.cumsum(weights)
        self.labelled = labelled if videos else 0.0

    def plan(self, rng: np.random.Generator) -> Plan:
        kind = rng.random()
        if kind < self.labelled:
            plan = self._plan_labelled_video(rng)
        else:
            is_single = rng.random() < SINGLE / (1 - LABELLED)
            plan = self.plan_edited_film(rng, is_single=is_single)
        self.add_surroundings(plan, rng)
        return plan

    def add_surroundings(self, plan: Plan, rng: np.random.Generator) -> None:
        """Adds light, overlays and the recording to a plan of shots."""
        _add_light(plan, rng)
        self._add_patches(plan, rng)
        for number in range(BOXES):
            if rng.random() < 0.18:
                plan.boxes[:, number] = _random_box(self.count, rng)
        plan.recording = _random_recording(rng)

    # ------------------------------------------------------------ labelled videos

    def _plan_labelled_video(self, rng: np.random.Generator) -> Plan:
        """A span of a labelled video, forwards or backwards, at its speed, half or twice of it,
        often a part of the picture."""
        video = self.videos[_draw_row(rng, self.video_ends)]
        plan, n = empty_plan(self.count), len(video["frames"])
        step = float(rng.choice([1, 2, 0.5, rng.uniform(0.6, 1.6)], p=[0.7, 0.12, 0.06, 0.12]))
        if rng.random() < 0.4 and (events := np.flatnonzero(video["event"])).size:
            middle = int(rng.choice(events))
        else:
            middle = int(rng.integers(n))
        first = middle - int(step * rng.integers(10, self.count - 10))
        at = first + (step * np.arange(self.count)).astype(np.int64)
        inside = (at >= 0) & (at < n)
        at = at.clip(0, n - 1)
        if rng.random() < 0.4:
            at, inside = at[::-1], inside[::-1]
        plan.a = plan.b = video["frames"][at]
        plan.cuts = video["cuts"][at]
        plan.gradual = video["gradual"][at].astype(np.float32)
        plan.counted = video["counted"][at] * inside[:, None].astype(np.float32)
        if rng.random() < 0.5:
            log_zoom = rng.uniform(0, 0.45)
            room = (np.exp(log_zoom) - 1) / 2  # so far the camera stays within the picture
            plan.camera_a[:, :2] = rng.uniform(-room, room, 2)
            plan.camera_a[:, 2] = log_zoom
        elif rng.random() < 0.1:
            plan.camera_a[:] = _shaking_camera(self.count, rng)
        return plan

    # ------------------------------------------------------------ edited films

    def plan_edited_film(self, rng: np.random.Generator, is_single: bool = False) -> Plan:
        """Shots with random transitions between them, or a single shot."""
        plan = empty_plan(self.count)
        shot = self._random_shot(rng)
        self._place_shot(plan, rng, shot, 0, "a")
        at = 0
        pace = rng.choice([12, 30, 60, 110])
        # half of the films use one or two kinds of joins, as an editor does
        chances = np.array([chance for chance, *_ in joins.JOINS.values()])
        if rng.random() < 0.4:
            chances = chances * (rng.permutation(len(chances)) < 3) + 1e-9
        ends = np.cumsum(chances)
        while not is_single:
            at += int(rng.exponential(pace)) + int(rng.choice([2, 8, 16]))
            if at >= self.count - 4:
                break
            is_same = rng.random() < 0.22
            other = shot if is_same else self._random_shot(rng)
            at = self._add_join(plan, rng, at, shot, other, KINDS[_draw_row(rng, ends)])
            shot = other
        return self._repeat_frames(plan, rng) if rng.random() < 0.35 else plan

    def _random_shot(self, rng: np.random.Generator) -> Shot:
        """A shot of the footage, or a plain picture."""
        if rng.random() < 0.06:
            row = self._random_plain(rng)
            return Shot(row, row + 1, -1)
        return self.shots[_draw_row(rng, self.shot_ends)]

    def _random_plain(self, rng: np.random.Generator) -> int:
        """A plain picture's row of the footage: black, white, or any."""
        if (kind := rng.random()) < 0.6:
            return self.plain + (WHITE_INDEX if kind < 0.15 else 0)
        return self.plain + int(rng.integers(len(PLAIN)))

    def _place_shot(
        self, plan: Plan, rng: np.random.Generator, shot: Shot, at: int, layer: str
    ) -> None:
        """Puts a random span of a shot, at a random speed and under a random camera, into the
        frames from `at` on of layer a or b. A shot that is too short runs back and forth."""
        n, length = self.count - at, shot.end - shot.first
        speed = rng.choice([0, 1, 2, 3], p=[0.08, 0.76, 0.11, 0.05])
        start = int(rng.integers(max(1, length - int(min(n, 60) * speed))))
        at_frame = start + (np.arange(n) * speed).astype(np.int64)
        period = max(1, 2 * length - 2)
        at_frame = at_frame % period
        at_frame = np.where(at_frame < length, at_frame, period - at_frame)
        getattr(plan, layer)[at:] = shot.first + at_frame
        camera = rng.choice(len(CAMERAS), p=[chance for chance, _ in CAMERAS])
        path = CAMERAS[camera][1](n, rng)
        getattr(plan, f"camera_{layer}")[at:] = path
        if layer == "a" and rng.random() < 0.6:
            steps = np.abs(np.diff(path[:, :2], axis=0, prepend=path[:1, :2]))
            plan.blur[at:] = steps * rng.uniform(0.3, 0.9)

    def _add_join(
        self, plan: Plan, rng: np.random.Generator, at: int, shot: Shot, other: Shot, kind: str
    ) -> int:
        """Adds a transition from `shot` to `other` that starts at frame `at`; `other` fills the
        frames after it. Returns the first frame after the transition."""
        _, least, most, join = joins.JOINS[kind]
        length = int(np.exp(rng.uniform(np.log(least), np.log(most + 0.99)))) if most else 0
        end = min(at + length, self.count)
        is_same_camera = shot is other and rng.random() < 0.7
        self._place_shot(plan, rng, other, at, "b")
        if is_same_camera:
            plan.camera_b[at:] = plan.camera_a[at:]
        is_seen = 1.0  # whether the two pictures differ
        if shot is other or shot.video == other.video == -1:
            after = min(end, self.count - 1)
            is_seen = float(self._differ(plan.a[at - 1], plan.b[after]))
        if kind == "flash_cut":
            row = self._random_plain(rng)
            self._copy_b_to_a(plan, at)
            plan.a[at:end], plan.camera_a[at:end], plan.blur[at:end] = row, 0, 0
            plan.cuts[at:] += 1
            plan.cuts[end:] += 1
        elif kind == "cut":
            plan.counted[at, 0] *= is_seen
            self._copy_b_to_a(plan, at)
            plan.cuts[at:] += 1
        else:
            if join:
                join(plan, rng, at, end)
            else:
                is_stinger = kind == "stinger"
                row = self._random_plain(rng)
                if is_stinger and rng.random() < 0.4:  # a picture that covers the old one
                    row = self.shots[_draw_row(rng, self.shot_ends)].first
                joins.through(plan, rng, at, end, row, is_stinger)
                is_seen = 1.0
            seen = np.flatnonzero(
                (plan.share[at:end] > joins.UNSEEN) & (plan.share[at:end] < 1 - joins.UNSEEN)
            )
            span = slice(at, end)
            if join and len(seen):
                span = slice(at + int(seen[0]), at + int(seen[-1]) + 1)
                plan.counted[at:end] = 0
                plan.counted[span] = 1
            plan.gradual[span], plan.kind[span] = 1, KINDS.index(kind)
            plan.counted[at:end, 1] *= is_seen
            plan.counted[at:end, 0] *= 0.3
            self._copy_b_to_a(plan, end)
            plan.share[end:] = 0
            plan.mask[end:] = 0
        for edge in (at, end):
            if length:
                plan.counted[max(0, edge - 1) : edge + 1, 1] = 0
                plan.counted[max(0, edge - 1) : edge + 1, 0] *= 0.3 if kind != "flash_cut" else 1
        return end

    def _differ(self, a: int, b: int) -> bool:
        """Whether a person sees that two frames of the footage differ."""
        difference = self.luma[a].astype(np.int16) - self.luma[b]
        return bool(np.mean(np.abs(difference) > SEEN_STEP) > SEEN_SHARE)

    def _copy_b_to_a(self, plan: Plan, at: int) -> None:
        """Layer a shows what layer b shows, from frame `at` on."""
        plan.a[at:] = plan.b[at:]
        plan.camera_a[at:] = plan.camera_b[at:]
        plan.blur[at:] *= 0.3

    def _repeat_frames(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """The plan with repeated frames: throughout, as after a change of the frame rate, or in
        places, as where a recorder drops frames."""
        shown = np.arange(self.count)
        if rng.random() < 0.6:
            rate = rng.choice([1 / 3, 0.4, 0.5, 0.8], p=[0.3, 0.15, 0.35, 0.2])
            shown = (shown * rate).astype(np.int64)
        else:
            at = int(rng.integers(3, 30))
            while at < self.count:
                length = int(rng.integers(2, 12))
                span = slice(at, at + length)
                if not np.diff(plan.cuts[span]).any() and not plan.gradual[span].any():
                    shown[span] = at
                at += length + int(rng.integers(6, 60))
        for name in vars(plan):
            if name != "recording":
                setattr(plan, name, getattr(plan, name)[shown])
        return plan

    # ------------------------------------------------------------ changes that are no transition

    def _add_patches(self, plan: Plan, rng: np.random.Generator) -> None:
        """Adds overlays that show footage: a permanent display, an inset, a window or a menu that
        opens, an object that passes."""
        for number in range(PATCHES):
            kind = rng.random()
            if kind > 0.19:
                continue
            shot = self.shots[_draw_row(rng, self.shot_ends)]
            patch, row = plan.patches[:, number], shot.first
            if kind < 0.11:  # a display: a strip, or a corner
                height, width = rng.uniform(0.04, 0.16), rng.choice([1.0, rng.uniform(0.08, 0.5)])
                if rng.random() < 0.25:
                    height, width = width / 2 + 0.1, height
                patch[:, :4] = rng.choice([0, 1]), rng.choice([0, 1]), width, height * 2
                patch[:, 4], patch[:, 7] = rng.uniform(0.6, 1), 1
                patch[:, 6] = row
            elif kind < 0.13:  # an inset that plays
                side = rng.uniform(0.1, 0.2)
                place = [rng.choice([side, 1 - side]) for _ in range(2)]
                patch[:, :5] = *place, side, side, 1
                patch[:, 6] = row + np.arange(self.count) % (shot.end - shot.first)
            elif kind < 0.16:  # a window
                patch[:] = _random_window(self.count, rng)
                patch[:, 6] = row
            else:
                patch[:] = _random_passing_object(self.count, rng)
                patch[:, 6] = row


def _draw_row(rng: np.random.Generator, ends: np.ndarray) -> int:
    """A row, each as probable as `ends` rises at it."""
    return int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))


def _add_light(plan: Plan, rng: np.random.Generator) -> None:
    """Adds changes of light."""
    light, count = plan.light, len(plan.light)
    if rng.random() < 0.12:  # flashes of a lamp or a photographer
        for at in rng.integers(0, count, int(rng.integers(1, 5))):
            span = slice(at, at + int(rng.integers(1, 5)))
            light[span, 1] += rng.uniform(30, 220)
            light[at, 4] = rng.choice([1, rng.uniform(0.2, 0.9)])
    if rng.random() < 0.06:  # stage light
        every = int(rng.integers(2, 8))
        steps = rng.normal(0, 1, (count // every + 1, 4)) * np.array([0.25, 5, 10, 10])
        light[:, :4] += np.repeat(steps, every, axis=0)[:count]
    if rng.random() < 0.10:  # automatic exposure, clouds
        rate, depth = rng.uniform(8, 60), rng.uniform(0.15, 0.6)
        light[:, 0] *= 1 - depth * (0.5 - 0.5 * np.cos(np.arange(count) / rate))
    if rng.random() < 0.10:  # it gets darker or brighter, and stays so
        length, at = int(rng.integers(6, 100)), int(rng.integers(count))
        share = np.zeros(count)
        part = share[at : at + length]
        part[:] = joins.random_shares(rng, length)[: len(part)]
        share[at + length :] = 1
        least = rng.uniform(0.3, 0.8)
        gain = 1 - (1 - least) * (share if rng.random() < 0.6 else 1 - share)
        light[:, 0] *= gain
        light[:, 2:4] += (rng.normal(0, 8, 2) * share[:, None]) * (rng.random() < 0.4)
    if rng.random() < 0.06:  # a light switch
        at = int(rng.integers(count))
        light[at : at + int(rng.integers(10, count)), 0] *= rng.uniform(0.35, 0.7)
    if rng.random() < 0.1:  # night
        light[:, 0] *= rng.uniform(0.12, 0.35)
        light[:, 1] += rng.uniform(0, 8)
    light[:, 0] = light[:, 0].clip(0.05, 3)


def _random_recording(rng: np.random.Generator) -> np.ndarray:
    """(len(RECORDING),) float32"""
    kind = rng.random()
    numbers = [
        0 if rng.random() < 0.12 else np.exp(rng.normal(0, 0.2)),
        rng.uniform(-np.pi, np.pi) if kind < 0.2 else rng.normal(0, 0.1),
        rng.choice([0, rng.uniform(0, 1.2), rng.uniform(0, 4)], p=[0.4, 0.45, 0.15]),
        rng.choice([0, rng.integers(1, 8)], p=[0.8, 0.2]),
        rng.random() < 0.5,
        rng.random() < 0.06,
        rng.choice([0, rng.uniform(0.5, 5)], p=[0.7, 0.3]),
        rng.choice([0, rng.uniform(2, 14)], p=[0.88, 0.12]),
        rng.choice([12, 24, 30, 48, 60, 250]),
        np.exp(rng.normal(0, 0.18)),
        np.exp(rng.normal(0, 0.18)),
    ]
    return np.array(numbers, np.float32)


def _slides_in(path: np.ndarray, at: int, end: int, rng: np.random.Generator) -> None:
    """An overlay's x and y, (count, 2), in place: it comes from beyond an edge, and goes there."""
    length = int(rng.integers(3, 18))
    away = [(-0.7, 0), (0.7, 0), (0, -0.6), (0, 0.6)][rng.integers(4)]
    far = 1 - joins.random_shares(rng, length)
    part = path[at : at + length]
    part += far[: len(part), None] * np.array(away)
    if rng.random() < 0.6:
        start = max(at, end - length)
        part = path[start:end]
        part += far[::-1][: len(part), None] * np.array(away)


def _random_window(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 8), a patch: a window or a menu that opens over a part of the picture."""
    patch = np.zeros((count, 8), np.float32)
    at, length = int(rng.integers(count)), int(rng.integers(8, 150))
    patch[:, :2] = rng.uniform(0.25, 0.75, 2)
    patch[:, 2:4] = rng.uniform(0.1, 0.38, 2)
    opacity = np.zeros(count)
    opacity[at : at + length] = rng.uniform(0.6, 1)
    kind = rng.random()
    if kind < 0.4:
        _slides_in(patch[:, :2], at, min(count, at + length), rng)
    elif kind < 0.7:
        opacity = _smoothed(opacity, int(rng.integers(2, 12)))
    elif kind < 0.85:  # opens from its centre
        n = int(rng.integers(3, 12))
        part = patch[at : at + n, 2:4]
        part *= joins.random_shares(rng, n)[: len(part), None]
    patch[:, 4] = opacity
    return patch


def _random_passing_object(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 8), a patch: a large thing that crosses the picture once or lingers near the lens."""
    patch = np.zeros((count, 8), np.float32)
    patch[:, 2:4] = rng.uniform(0.12, 0.55), rng.uniform(0.3, 1.0)
    at, length = int(rng.integers(count)), int(rng.integers(6, 50))
    x = (np.arange(count) - at) / length * 2.2 - 0.6
    if rng.random() < 0.3:  # turns back
        x = 0.8 - np.abs(x - 0.5) * rng.uniform(1, 2)
    patch[:, 0] = x if rng.random() < 0.5 else 1 - x
    patch[:, 1] = rng.uniform(0.2, 0.8) + 0.03 * np.sin(np.arange(count) / 3)
    patch[:, 4] = (x > -0.7) & (x < 1.7)
    patch[:, 5] = rng.random() < 0.7
    return patch


def _smoothed(opacity: np.ndarray, ramp: int) -> np.ndarray:
    """An opacity that fades in and out over 2 * ramp + 1 frames."""
    kernel = np.ones(2 * ramp + 1) / (2 * ramp + 1)
    return np.convolve(np.pad(opacity, ramp, "edge"), kernel, "valid")


def _random_box(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 10), a box of Plan.boxes: a caption, a title or an icon that appears and disappears,
    a lamp, a passing object, or a permanent display."""
    box = np.zeros((count, 10), np.float32)
    kind = rng.choice(
        ["caption", "title", "icon", "lamp", "passing", "display"],
        p=[0.26, 0.1, 0.18, 0.13, 0.1, 0.23],
    )
    at, length = int(rng.integers(count)), int(rng.integers(4, 90))
    box[:, 5:8] = joins.random_colour(rng)
    box[:, 0], box[:, 1] = rng.uniform(0, 1, 2)
    box[:, 8] = float(kind in ("lamp", "passing"))  # round and soft
    if kind == "caption":
        box[:, :4] = (
            0.5 + rng.normal(0, 0.08),
            rng.choice([0.85, 0.15, 0.5]),
            rng.uniform(0.1, 0.4),
            rng.uniform(0.03, 0.12),
        )
        box[:, 9] = 1  # as lines of text
    elif kind == "title":
        box[:, :4] = 0.5, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.5), rng.uniform(0.08, 0.3)
        box[:, 9] = rng.random() < 0.7
    elif kind == "icon":
        box[:, 2:4] = rng.uniform(0.02, 0.2, 2)
        box[:, 9] = rng.random() < 0.4
    elif kind == "lamp":
        box[:, 2:4] = rng.uniform(0.03, 0.25, 2)
        length = int(rng.integers(1, 16))
    elif kind == "passing":
        box[:, 2:4] = rng.uniform(0.15, 0.4), rng.uniform(0.3, 0.9)
        length = int(rng.integers(5, 24))
        x = (np.arange(count) - at) / length * 1.8 - 0.4
        box[:, 0] = x if rng.random() < 0.5 else 1 - x
    else:
        side = rng.uniform(0.04, 0.15)
        box[:, :4] = (
            rng.choice([side, 1 - side, 0.5]),
            rng.choice([side, 1 - side]),
            rng.uniform(0.04, 0.5),
            side,
        )
        box[:, 9] = rng.choice([0, 1])
        at, length = 0, count
    opacity = np.zeros(count, np.float32)
    opacity[at : at + length] = rng.uniform(0.5, 1)
    if kind in ("caption", "title", "icon"):
        if (way := rng.random()) < 0.4:
            opacity = _smoothed(opacity, int(rng.integers(2, 12)))
        elif way < 0.65:
            _slides_in(box[:, :2], at, min(count, at + length), rng)
    box[:, 4] = opacity
    return box
