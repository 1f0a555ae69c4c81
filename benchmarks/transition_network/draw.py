"""Random training sequences of small frames, with labels of every transition.

`Planner.plan` draws the random choices of a sequence, in numpy: the one or two frames of the
footage that each frame is made of, the mask that blends them, the camera, the light, overlays and
the recording. `Renderer.render` computes the frames of a batch of plans on the training device.
Footage and sequences have frames of 64 x 36 px, Y, Cb and Cr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HEIGHT, WIDTH = 36, 64
# Y, Cb, Cr of the plain pictures, which follow the footage; the first is black
PLAIN = np.array(
    [
        *([0, 128, 128], [0, 128, 128], [16, 128, 128], [255, 128, 128], [235, 128, 128]),
        *([128, 128, 128], [60, 160, 110], [110, 90, 170], [180, 120, 140], [30, 140, 120]),
    ],
    np.uint8,
)
WHITE_INDEX = 3  # in PLAIN
BOXES = 4  # most overlays of a sequence, drawn as boxes: captions, icons, lamps, passing objects
# Kinds of masks between two pictures
UNIFORM, LINE, ROUND, PATTERN = range(4)


@dataclass(frozen=True)
class Shot:
    """A span of the footage, [first, end), that holds no transition."""

    first: int
    end: int
    video: int  # number of the source; -1 for a plain picture


@dataclass
class Plan:
    """A sequence of T frames. Every array but `recording` has one row a frame. Layer b is a second
    picture, used where `share` is above 0."""

    a: np.ndarray  # (T,) the frame of the footage, an index
    b: np.ndarray  # (T,) that of layer b
    cuts: np.ndarray  # (T,) number of hard cuts up to the frame
    gradual: np.ndarray  # (T,) 1 at frames of a gradual transition
    counted: np.ndarray  # (T, 2) weight of the labels of a cut and of a gradual transition
    share: np.ndarray  # (T,) of layer b in the frame
    mask: np.ndarray  # (T, 5) kind, angle (radians), softness, pattern, whether an iris closes
    camera_a: np.ndarray  # (T, 4) x, y (widths, heights), log of zoom, angle (radians)
    camera_b: np.ndarray  # (T, 4)
    blur: np.ndarray  # (T, 2) length of the motion blur in x and y (widths, heights)
    light: np.ndarray  # (T, 5) gain, offsets of Y, Cb and Cr, share of the height that is lit
    # (T, BOXES, 10) x, y, half width, half height, opacity, Y, Cb, Cr, is round, is text
    boxes: np.ndarray
    recording: np.ndarray  # one number for each of RECORDING


RECORDING = (
    "grey",  # 1: without colour
    "noise",  # standard deviation, grey levels
    "bars",  # rows of each black bar, above and below
    "mirrored",  # 1: left and right are exchanged
    "codec_error",  # of the luma, the same within a group of pictures, grey levels
    "group_frames",  # frames of a group of pictures
    "gamma",
    "contrast",
)


def empty_plan(count: int) -> Plan:
    """A plan of `count` frames that all show the first frame of the footage, unchanged."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((count, *shape), np.float32)

    light = zeros(5)
    light[:, 0], light[:, 4] = 1, 1
    return Plan(
        a=np.zeros(count, np.int64),
        b=np.zeros(count, np.int64),
        cuts=np.zeros(count, np.int64),
        gradual=zeros(),
        counted=np.ones((count, 2), np.float32),
        share=zeros(),
        mask=zeros(5),
        camera_a=zeros(4),
        camera_b=zeros(4),
        blur=zeros(2),
        light=light,
        boxes=zeros(BOXES, 10),
        recording=np.array([0, 0, 0, 0, 0, 1, 1, 1], np.float32),
    )


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
    speed = rng.uniform(0.01, 0.05) * rng.choice([-1, 1])
    axis = int(rng.random() < 0.2)
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


# Probability and function
CAMERAS: list[tuple[float, Callable[[int, np.random.Generator], np.ndarray]]] = [
    (0.58, _static_camera),
    (0.14, _shaking_camera),
    (0.10, _panning_camera),
    (0.11, _burst_camera),
    (0.07, _zooming_camera),
]


# ---------------------------------------------------------------- sequences


class Planner:
    """Plans random sequences: 60 % labelled videos, 30 % edited from shots, 10 % single shots."""

    def __init__(
        self, shots: list[Shot], videos: list[dict[str, np.ndarray]], plain: int, count: int
    ) -> None:
        """shots, videos: as `gather` returns them.  plain: index of the first plain picture in the
        footage.  count: T, the frames of a sequence."""
        self.shots = [shot for shot in shots if shot.end - shot.first >= 12]
        lengths = np.array([shot.end - shot.first for shot in self.shots], float)
        self.shot_chances = np.minimum(lengths, 300) / np.minimum(lengths, 300).sum()
        self.videos, self.plain, self.count = videos, plain, count
        weights = np.array([len(v["frames"]) for v in videos], float)
        self.video_chances = np.sqrt(weights) / np.sqrt(weights).sum() if len(videos) else weights

    def plan(self, rng: np.random.Generator) -> Plan:
        kind = rng.random()
        if kind < 0.6 and self.videos:
            plan = self._plan_labelled_video(rng)
        elif kind < 0.9:
            plan = self._plan_edited_film(rng)
        else:
            plan = self._plan_edited_film(rng, transitions=0)
        self._add_light_and_boxes(plan, rng)
        plan.recording = _random_recording(rng)
        return plan

    # ------------------------------------------------------------ labelled videos

    def _plan_labelled_video(self, rng: np.random.Generator) -> Plan:
        """A span of a labelled video, forwards or backwards, at its speed or twice as fast."""
        video = self.videos[rng.choice(len(self.videos), p=self.video_chances)]
        plan, n = empty_plan(self.count), len(video["frames"])
        step = int(rng.choice([1, 1, 1, 1, 1, 2]))
        if rng.random() < 0.4 and (events := np.flatnonzero(video["event"])).size:
            middle = int(rng.choice(events))
        else:
            middle = int(rng.integers(n))
        first = middle - step * int(rng.integers(10, self.count - 10))
        at = first + step * np.arange(self.count)
        inside = (at >= 0) & (at < n)
        at = at.clip(0, n - 1)
        if rng.random() < 0.4:
            at, inside = at[::-1], inside[::-1]
        plan.a = plan.b = video["frames"][at]
        plan.cuts = video["cuts"][at]
        plan.gradual = video["gradual"][at].astype(np.float32)
        plan.counted = video["counted"][at] * inside[:, None].astype(np.float32)
        return plan

    # ------------------------------------------------------------ edited films

    def _plan_edited_film(self, rng: np.random.Generator, transitions: int | None = None) -> Plan:
        """Shots with random transitions between them; a single shot where `transitions` is 0."""
        plan = empty_plan(self.count)
        shot = self._random_shot(rng)
        self._place_shot(plan, rng, shot, 0, self.count, "a")
        at = 0
        pace = rng.choice([12, 30, 60, 110])
        while transitions != 0:
            at += int(rng.exponential(pace)) + int(rng.choice([2, 8, 16]))
            if at >= self.count - 4:
                break
            is_same = rng.random() < 0.2
            other = shot if is_same else self._random_shot(rng)
            at = self._add_transition(plan, rng, at, shot, other)
            shot = other
        return self._repeat_frames(plan, rng) if rng.random() < 0.3 else plan

    def _random_shot(self, rng: np.random.Generator) -> Shot:
        """A shot of the footage, or a plain picture."""
        if rng.random() < 0.06:
            row = self.plain + int(rng.integers(len(PLAIN)))
            return Shot(row, row + 1, -1)
        return self.shots[rng.choice(len(self.shots), p=self.shot_chances)]

    def _place_shot(
        self, plan: Plan, rng: np.random.Generator, shot: Shot, at: int, end: int, layer: str
    ) -> None:
        """Puts a random span of a shot, at a random speed and under a random camera, into the
        frames [at, end) of layer a or b. A shot that is too short runs back and forth."""
        n, length = end - at, shot.end - shot.first
        speed = rng.choice([0, 1, 2, 3], p=[0.06, 0.78, 0.11, 0.05])
        start = int(rng.integers(max(1, length - int(min(n, 60) * speed))))
        at_frame = start + (np.arange(n) * speed).astype(np.int64)
        period = max(1, 2 * length - 2)
        at_frame = at_frame % period
        at_frame = np.where(at_frame < length, at_frame, period - at_frame)
        getattr(plan, layer)[at:end] = shot.first + at_frame
        camera = rng.choice(len(CAMERAS), p=[chance for chance, _ in CAMERAS])
        path = CAMERAS[camera][1](n, rng)
        getattr(plan, f"camera_{layer}")[at:end] = path
        if layer == "a" and rng.random() < 0.6:
            steps = np.abs(np.diff(path[:, :2], axis=0, prepend=path[:1, :2]))
            plan.blur[at:end] = steps * rng.uniform(0.3, 0.9)

    def _add_transition(
        self, plan: Plan, rng: np.random.Generator, at: int, shot: Shot, other: Shot
    ) -> int:
        """Adds a random transition from `shot` to `other` that starts at frame `at`; `other` fills
        the frames after it. Returns the first frame after the transition."""
        kind = rng.choice(list(TRANSITION_FRAMES), p=TRANSITION_CHANCES)
        least, most = TRANSITION_FRAMES[kind]
        length = int(np.exp(rng.uniform(np.log(least), np.log(most + 0.99)))) if most else 0
        length = min(length, self.count - at)
        end = at + length
        before = plan.a[at - 1]
        self._place_shot(plan, rng, other, at, self.count, "b")
        if kind == "flash_cut":
            row = self.plain + int(rng.integers(len(PLAIN)))
            self._copy_b_to_a(plan, at, self.count)
            plan.a[at:end], plan.blur[at:end] = row, 0
            plan.cuts[at:] += 1
            plan.cuts[end:] += 1
        elif kind == "cut":
            self._copy_b_to_a(plan, at, self.count)
            plan.cuts[at:] += 1
            if shot is other:  # a jump cut, perhaps too small to be visible
                skipped = abs(int(plan.a[at]) - int(before))
                if skipped < 20:
                    plan.counted[at, 0] = 0
        elif kind == "fade":
            self._add_fade(plan, rng, at, end)
        else:
            GRADUAL_TRANSITIONS[kind](plan, rng, at, end)
            plan.gradual[at:end] = 1
            if shot is other or shot.video == other.video == -1:
                plan.counted[at:end, 1] = 0.3
            self._show_b_alone(plan, end)
        for edge in (at, end):
            if length:
                plan.counted[max(0, edge - 1) : edge + 1, 1] = 0
                plan.counted[max(0, edge - 1) : edge + 1, 0] *= 0.3 if kind != "flash_cut" else 1
        return end

    def _copy_b_to_a(self, plan: Plan, at: int, end: int) -> None:
        """Layer a shows what layer b shows, in the frames [at, end)."""
        plan.a[at:end] = plan.b[at:end]
        plan.camera_a[at:end] = plan.camera_b[at:end]
        plan.blur[at:end] *= 0.3

    def _show_b_alone(self, plan: Plan, end: int) -> None:
        """From frame `end` on, layer b replaces layer a, and nothing is blended."""
        self._copy_b_to_a(plan, end, self.count)
        plan.share[end:] = 0
        plan.mask[end:] = 0

    def _add_fade(self, plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
        """Adds a fade in the frames [at, end): to a plain picture, a pause, and from it."""
        row = self.plain + int(rng.integers(len(PLAIN))) if rng.random() < 0.3 else self.plain
        if rng.random() < 0.2:
            row = self.plain + WHITE_INDEX
        down = at + int((end - at) * rng.uniform(0.25, 0.6))
        up = down + int((end - down) * rng.choice([0, 0, rng.uniform(0, 0.6)]))
        after, camera = plan.b[up:end].copy(), plan.camera_b[up:end].copy()
        plan.b[at:up], plan.camera_b[at:up] = row, 0
        plan.share[at:down] = np.arange(1, down - at + 1) / (down - at + (down < up))
        plan.share[down:up] = 1
        plan.a[up:end], plan.camera_a[up:end] = row, 0
        plan.b[up:end], plan.camera_b[up:end] = after, camera
        plan.share[up:end] = np.arange(1, end - up + 1) / (end - up + 1)
        plan.gradual[at:end] = 1
        self._show_b_alone(plan, end)

    def _repeat_frames(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """The plan with repeated frames: throughout, as after a change of the frame rate, or in
        places, as where a recorder drops frames."""
        shown = np.arange(self.count)
        if rng.random() < 0.6:
            shown = (shown * rng.choice([1 / 3, 0.5, 0.5, 0.8, 0.4])).astype(np.int64)
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

    def _add_light_and_boxes(self, plan: Plan, rng: np.random.Generator) -> None:
        """Adds changes of light, and overlays (boxes)."""
        count, light = self.count, plan.light
        if rng.random() < 0.12:  # flashes of a lamp or a photographer
            for at in rng.integers(0, count, int(rng.integers(1, 5))):
                span = slice(at, at + int(rng.integers(1, 5)))
                light[span, 1] += rng.uniform(30, 220)
                light[at, 4] = rng.choice([1, rng.uniform(0.2, 0.9)])
        if rng.random() < 0.06:  # stage light
            every = int(rng.integers(2, 8))
            steps = rng.normal(0, 1, (count // every + 1, 4)) * np.array([0.25, 5, 10, 10])
            light[:, :4] += np.repeat(steps, every, axis=0)[:count]
        if rng.random() < 0.12:  # automatic exposure, clouds
            rate, depth = rng.uniform(8, 60), rng.uniform(0.15, 0.6)
            light[:, 0] *= 1 - depth * (0.5 - 0.5 * np.cos(np.arange(count) / rate))
        if rng.random() < 0.06:  # a light switch
            at = int(rng.integers(count))
            light[at : at + int(rng.integers(10, count)), 0] *= rng.uniform(0.35, 0.7)
        if rng.random() < 0.04:  # night
            light[:, 0] *= rng.uniform(0.12, 0.35)
        for number in range(BOXES):
            if rng.random() < 0.2:
                plan.boxes[:, number] = _random_box(count, rng)
        light[:, 0] = light[:, 0].clip(0.05, 3)


def _random_recording(rng: np.random.Generator) -> np.ndarray:
    """(len(RECORDING),) float32"""
    numbers = [
        rng.random() < 0.12,
        rng.choice([0, rng.uniform(0, 1.2), rng.uniform(0, 4)], p=[0.4, 0.45, 0.15]),
        rng.choice([0, rng.integers(1, 8)], p=[0.8, 0.2]),
        rng.random() < 0.5,
        rng.choice([0, rng.uniform(0.5, 5)], p=[0.7, 0.3]),
        rng.choice([12, 24, 30, 48, 60, 250]),
        np.exp(rng.normal(0, 0.15)),
        np.exp(rng.normal(0, 0.15)),
    ]
    return np.array(numbers, np.float32)


def _random_box(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 10), a box of Plan.boxes: a caption or an icon that appears and disappears, a lamp, a
    passing object, or a permanent display."""
    box = np.zeros((count, 10), np.float32)
    kind = rng.choice(
        ["caption", "icon", "lamp", "passing", "display"], p=[0.3, 0.2, 0.15, 0.1, 0.25]
    )
    at, length = int(rng.integers(count)), int(rng.integers(4, 90))
    box[:, 5:8] = rng.choice([0, 255, rng.uniform(20, 235)]), 128, 128
    box[:, 6:8] += rng.normal(0, 30, 2) * (rng.random() < 0.5)
    box[:, 0], box[:, 1] = rng.uniform(0, 1, 2)
    box[:, 8] = float(kind in ("lamp", "passing"))  # round and soft
    if kind == "caption":
        box[:, :4] = (
            0.5 + rng.normal(0, 0.08),
            rng.choice([0.85, 0.15, 0.5]),
            rng.uniform(0.1, 0.4),
            0,
        )
        box[:, 3] = rng.uniform(0.03, 0.12)
        box[:, 9] = 1  # as lines of text
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
    if kind in ("caption", "icon") and rng.random() < 0.4:  # fades in and out
        ramp = int(rng.integers(2, 12))
        opacity = np.convolve(
            np.pad(opacity, ramp, "edge"), np.ones(2 * ramp + 1) / (2 * ramp + 1), "valid"
        )
    box[:, 4] = opacity
    return box


# ---------------------------------------------------------------- gradual transitions
# Each function writes the transition from layer a to layer b into the frames [at, end) of a plan.


def _random_shares(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,) shares of layer b that rise between 0 and 1, linearly or smoothly."""
    share = np.arange(1, n + 1) / (n + 1)
    return share * share * (3 - 2 * share) if rng.random() < 0.25 else share


def _dissolve(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    plan.share[at:end] = _random_shares(rng, end - at)
    if rng.random() < 0.15:  # with a motion blur, longest in the middle
        plan.blur[at:end] += (
            np.sin(np.pi * _random_shares(rng, end - at)) * rng.uniform(0.1, 0.5)
        )[:, None]
    if rng.random() < 0.1:  # through a bright picture
        plan.light[at:end, 1] += np.sin(np.pi * _random_shares(rng, end - at)) * rng.uniform(
            40, 200
        )


def _masked_transition(kind: int) -> Callable[[Plan, np.random.Generator, int, int], None]:
    """A transition by a mask of a kind: a wipe, an iris or a random pattern."""

    def add(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
        plan.share[at:end] = _random_shares(rng, end - at)
        angle = rng.choice([0, 0.5, 1, 1.5, rng.uniform(0, 2)]) * np.pi
        softness = rng.choice([0.01, 0.05, 0.3])
        plan.mask[at:end] = kind, angle, softness, int(rng.integers(PATTERNS)), rng.random() < 0.5

    return add


def _push(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Layer b moves in from a side; layer a is pushed out, or does not move (a slide)."""
    share = _random_shares(rng, end - at)
    side = int(rng.integers(4))
    axis, sign = side % 2, 1 if side < 2 else -1
    plan.camera_b[at:end, axis] += sign * (share - 1)
    if rng.random() < 0.6:
        plan.camera_a[at:end, axis] += sign * share
    plan.share[at:end] = share
    angle = (0.5 * axis if sign > 0 else 1 + 0.5 * axis) * np.pi  # towards layer b
    plan.mask[at:end] = LINE, angle, 0.01, 0, 0


def _zoom(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Zooms into layer a, and blends with layer b in the last part."""
    share = _random_shares(rng, end - at)
    plan.camera_a[at:end, 2] += rng.uniform(0.5, 1.6) * share
    if rng.random() < 0.5:
        plan.camera_b[at:end, 2] += rng.uniform(-0.5, 0.9) * (1 - share)
    start = rng.uniform(0.2, 0.7)
    plan.share[at:end] = ((share - start) / (1 - start)).clip(0, 1)


def _whip(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """A fast, blurred pan that starts in layer a and ends in layer b."""
    share = _random_shares(rng, end - at)
    axis, sign = int(rng.random() < 0.2), rng.choice([-1, 1])
    speed = rng.uniform(0.3, 1.2)
    plan.camera_a[at:end, axis] += sign * speed * share**2 * 2
    plan.camera_b[at:end, axis] -= sign * speed * (1 - share) ** 2 * 2
    plan.blur[at:end, axis] = np.sin(np.pi * share) * speed
    plan.share[at:end] = ((share - 0.5) * rng.choice([4, 20]) + 0.5).clip(0, 1)


# kind -> least and most frames
TRANSITION_FRAMES: dict[str, tuple[int, int]] = {
    "cut": (0, 0),
    "flash_cut": (1, 8),
    "fade": (4, 100),
    "dissolve": (3, 110),
    "wipe": (5, 40),
    "iris": (5, 40),
    "pattern": (5, 40),
    "push": (5, 40),
    "zoom": (5, 40),
    "whip": (4, 16),
}
TRANSITION_CHANCES = [0.33, 0.04, 0.11, 0.27, 0.05, 0.03, 0.04, 0.05, 0.04, 0.04]
GRADUAL_TRANSITIONS: dict[str, Callable[[Plan, np.random.Generator, int, int], None]] = {
    "dissolve": _dissolve,
    "wipe": _masked_transition(LINE),
    "iris": _masked_transition(ROUND),
    "pattern": _masked_transition(PATTERN),
    "push": _push,
    "zoom": _zoom,
    "whip": _whip,
}
PATTERNS = 64
CONTRAST_PIVOT = 110  # grey level that a change of contrast keeps


# ---------------------------------------------------------------- rendering


class Renderer:
    """Renders batches of plans on one device."""

    def __init__(self, footage: Tensor, seed: int = 0) -> None:
        """footage: (N, 36, 64, 3) uint8 on the device, PLAIN last.  seed: of the patterns."""
        self.footage, self.device = footage, footage.device
        generator = torch.Generator().manual_seed(seed)
        patterns = []
        for number in range(PATTERNS):
            size = [(3, 4), (5, 9), (9, 16), (1, 8), (6, 1), (2, 2), (18, 32), (36, 64)][number % 8]
            noise = torch.rand((1, 1, *size), generator=generator)
            mode = "nearest" if number % 3 == 0 else "bilinear"
            patterns.append(F.interpolate(noise, (HEIGHT, WIDTH), mode=mode)[0, 0])
        self.patterns = torch.stack(patterns).to(self.device)
        y, x = torch.meshgrid(
            (torch.arange(HEIGHT) + 0.5) / HEIGHT,
            (torch.arange(WIDTH) + 0.5) / WIDTH,
            indexing="ij",
        )
        # (36, 64) each: the positions of pixels, 0 to 1
        self.x, self.y = x.to(self.device), y.to(self.device)

    def render(self, plans: dict[str, Tensor]) -> Tensor:
        """plans: the arrays of Plan with a first axis of clips -> (clips, T, 36, 64, 3) uint8"""
        plans = {k: array.to(self.device, non_blocking=True) for k, array in plans.items()}
        clips, count = plans["a"].shape
        flat = {k: array.flatten(0, 1) for k, array in plans.items() if k != "recording"}
        values = plans["recording"].repeat_interleave(count, dim=0).T[..., None, None]
        recording = dict(zip(RECORDING, values, strict=True))  # (clips * T, 1, 1) each
        picture = self._warped(flat["a"], flat["camera_a"], flat["blur"])
        blended = torch.nonzero(flat["share"] > 0).squeeze(1)
        if len(blended):
            second = self._warped(
                flat["b"][blended], flat["camera_b"][blended], flat["blur"][blended]
            )
            share = self._share_map(flat["share"][blended], flat["mask"][blended])[:, None]
            picture[blended] = picture[blended] * (1 - share) + second * share
        picture = self._with_boxes(picture, flat["boxes"])
        picture = self._with_light(picture, flat["light"], recording)
        return self._as_recorded(picture, recording, clips, count).view(
            clips, count, HEIGHT, WIDTH, 3
        )

    def _warped(self, rows: Tensor, camera: Tensor, blur: Tensor) -> Tensor:
        """(n, 3, 36, 64) float: frames of the footage, moved by a camera and blurred by motion.

        rows: (n,) indices into the footage.  camera: (n, 4).  blur: (n, 2).
        """
        picture = self.footage[rows].permute(0, 3, 1, 2).float()
        moved = torch.nonzero((camera.abs().amax(1) > 1e-4) | (blur.amax(1) > 0.015)).squeeze(1)
        if not len(moved):
            return picture
        cosine, sine = torch.cos(camera[moved, 3]), torch.sin(camera[moved, 3])
        scale = torch.exp(-camera[moved, 2])
        theta = torch.zeros(len(moved), 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 0, 1] = scale * cosine, -scale * sine * HEIGHT / WIDTH
        theta[:, 1, 0], theta[:, 1, 1] = scale * sine * WIDTH / HEIGHT, scale * cosine
        taps = 5 if bool((blur[moved].amax(1) > 0.015).any()) else 1
        total = 0
        for tap in range(taps):
            offset = 0.0 if taps == 1 else tap / (taps - 1) - 0.5
            theta[:, :, 2] = -2 * (camera[moved, :2] + offset * blur[moved])
            grid = F.affine_grid(theta, [len(moved), 3, HEIGHT, WIDTH], align_corners=False)
            total = total + F.grid_sample(
                picture[moved], grid, padding_mode="reflection", align_corners=False
            )
        picture[moved] = total / taps
        return picture

    def _share_map(self, share: Tensor, mask: Tensor) -> Tensor:
        """(n, 36, 64): the share of layer b at each pixel.  share: (n,).  mask: (n, 5)."""
        kind, angle, softness, pattern, closes = mask.unbind(1)
        share, angle, softness = (x[:, None, None] for x in (share, angle, softness))
        line = (self.x - 0.5) * torch.cos(angle) + (self.y - 0.5) * torch.sin(angle)
        reach = 0.5 * (torch.cos(angle).abs() + torch.sin(angle).abs())
        line = line / (2 * reach) + 0.5
        radius = torch.hypot((self.x - 0.5) * WIDTH / HEIGHT, self.y - 0.5) / 1.02
        radius = torch.where(closes[:, None, None] > 0, 1 - radius, radius)
        # by kind of mask, which indexes them: the share from which a pixel changes to layer b
        starts = torch.stack([line, line, radius.expand_as(line), self.patterns[pattern.long()]])
        start = starts.gather(0, kind.long()[None, :, None, None].expand(1, *line.shape))[0]
        masked = ((share * (1 + softness) - start) / softness.clamp_min(1e-3)).clamp(0, 1)
        return torch.where(kind[:, None, None] == UNIFORM, share, masked)

    def _with_boxes(self, picture: Tensor, boxes: Tensor) -> Tensor:
        """Draws the overlays into pictures (n, 3, 36, 64), in place.  boxes: (n, BOXES, 10)."""
        for number in range(BOXES):
            shown = torch.nonzero(boxes[:, number, 4] > 0).squeeze(1)
            if not len(shown):
                continue
            columns = boxes[shown, number].T[..., None, None]
            x, y, half_width, half_height, opacity, *colour, is_round, is_text = columns
            dx, dy = (self.x - x).abs() / half_width, (self.y - y).abs() / half_height
            rectangle = ((1 - torch.maximum(dx, dy)) * 8).clamp(0, 1)
            gaussian = torch.exp(-(dx**2 + dy**2))
            alpha = torch.where(is_round > 0, gaussian, rectangle) * opacity
            letters = self.patterns[7 + 8 * number]
            alpha = torch.where(is_text > 0, alpha * letters, alpha)
            plain = torch.stack([c.expand_as(alpha) for c in colour], dim=1)
            alpha = alpha[:, None]
            picture[shown] = picture[shown] * (1 - alpha) + plain * alpha
        return picture

    def _with_light(self, picture: Tensor, light: Tensor, recording: dict[str, Tensor]) -> Tensor:
        """Pictures (n, 3, 36, 64) with the recording's gamma, contrast and colour, and under the
        light, (n, 5)."""
        gain, *offsets, lit_share = light.T[..., None, None]
        is_lit = self.y <= lit_share
        y = 255 * (picture[:, 0] / 255).clamp(0, 1) ** recording["gamma"]
        y = (y - CONTRAST_PIVOT) * recording["contrast"] + CONTRAST_PIVOT
        channels = [torch.where(is_lit, y * gain + offsets[0], y)]
        for chroma, offset in zip(picture[:, 1:].unbind(1), offsets[1:], strict=True):
            colour = chroma - 128
            colour = torch.where(is_lit, colour * gain.clamp(max=1.2) + offset, colour)
            channels.append(128 + colour * (1 - recording["grey"]))
        return torch.stack(channels, dim=1)

    def _as_recorded(
        self, picture: Tensor, recording: dict[str, Tensor], clips: int, count: int
    ) -> Tensor:
        """Pictures (n, 3, 36, 64) with the codec's error, noise and black bars, some mirrored:
        (n, 36, 64, 3) uint8."""
        frame = torch.arange(count, device=self.device).repeat(clips)
        clip = torch.arange(clips, device=self.device).repeat_interleave(count)
        group = (frame / recording["group_frames"].flatten()).long() + 17 * clip
        error = (
            self.patterns[(group * 7 + 6) % PATTERNS] - self.patterns[(group * 5 + 2) % PATTERNS]
        )
        picture[:, 0] += error * recording["codec_error"]
        picture += torch.randn_like(picture) * recording["noise"][:, None]
        row = torch.arange(HEIGHT, device=self.device)[:, None]
        in_bar = (row < recording["bars"]) | (row >= HEIGHT - recording["bars"])
        black = torch.tensor([0.0, 128.0, 128.0], device=self.device)[:, None, None]
        picture = torch.where(in_bar[:, None], black, picture)
        picture = torch.where(recording["mirrored"][:, None] > 0, picture.flip(3), picture)
        return picture.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
