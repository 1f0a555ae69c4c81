"""Draws training sequences of small frames, with the place of every transition.

A sequence is planned in numpy (`plan`): which frames of the footage each of its frames mixes, by
which mask, under which camera, and what else happens to it. `render` draws a batch of plans on the
training device. Footage and sequences have frames of 64 x 36 px, Y, Cb and Cr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HEIGHT, WIDTH = 36, 64
# Y, Cb, Cr of the plain pictures, which stand behind the footage; the first is black
PLAIN = np.array(
    [
        *([0, 128, 128], [0, 128, 128], [16, 128, 128], [255, 128, 128], [235, 128, 128]),
        *([128, 128, 128], [60, 160, 110], [110, 90, 170], [180, 120, 140], [30, 140, 120]),
    ],
    np.uint8,
)
WHITE = 3  # its place in PLAIN
BOXES = 4  # overlays of a sequence: captions, icons, lamps, objects that pass
# kinds of masks between two pictures
EVEN, LINE, ROUND, PATTERN = range(4)


@dataclass(frozen=True)
class Shot:
    """A span of the footage, [first, end), that holds no transition."""

    first: int
    end: int
    video: int


@dataclass
class Plan:
    """T frames. Every array has one row a frame."""

    a: np.ndarray  # frame of the footage
    b: np.ndarray  # a second one, where two are mixed
    cuts: np.ndarray  # hard cuts up to the frame, counted
    gradual: np.ndarray  # 1 at frames of a gradual transition
    counted: np.ndarray  # (T, 2) whether a frame's two labels count
    share: np.ndarray  # of b
    mask: np.ndarray  # (T, 5) kind, angle, softness, pattern, whether it is turned round
    camera_a: np.ndarray  # (T, 4) x, y (in pictures), log of zoom, angle (radians)
    camera_b: np.ndarray
    blur: np.ndarray  # (T, 2) length of the motion blur, in pictures
    light: np.ndarray  # (T, 5) gain, offsets of Y, Cb and Cr, share of the picture it falls on
    boxes: (
        np.ndarray
    )  # (T, BOXES, 10) x, y, half width, half height, opacity, Y, Cb, Cr, shape, texture
    recording: np.ndarray  # one number for each of RECORDING


# How a sequence was recorded: without colour; noise, in grey levels; rows of the black bars above
# and below; mirrored; grey levels that a group of pictures is off, and its frames; tone
RECORDING = (
    "grey",
    "noise",
    "bars",
    "mirrored",
    "codec_error",
    "group_frames",
    "gamma",
    "contrast",
)


def empty_plan(count: int) -> Plan:
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


def _still_camera(count: int, rng: np.random.Generator) -> np.ndarray:
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


def _bursting_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    """As in a game, of a drone or in a running hand: it turns, rolls and nears in bursts."""
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


CAMERAS: list[tuple[float, Callable[[int, np.random.Generator], np.ndarray]]] = [
    (0.58, _still_camera),
    (0.14, _shaking_camera),
    (0.10, _panning_camera),
    (0.11, _bursting_camera),
    (0.07, _zooming_camera),
]


# ---------------------------------------------------------------- sequences


class Planner:
    """Plans sequences from the shots and the labelled videos of some of the sources."""

    def __init__(
        self, shots: list[Shot], videos: list[dict[str, np.ndarray]], plain: int, count: int
    ) -> None:
        """videos: `frames` (their numbers in the footage), `cuts` (hard cuts up to each frame),
        `gradual`, `counted`.  plain: number of the first plain picture.  count: T."""
        self.shots = [shot for shot in shots if shot.end - shot.first >= 12]
        lengths = np.array([shot.end - shot.first for shot in self.shots], float)
        self.chances = np.minimum(lengths, 300) / np.minimum(lengths, 300).sum()
        self.videos, self.plain, self.count = videos, plain, count
        weights = np.array([len(v["frames"]) for v in videos], float)
        self.video_chances = np.sqrt(weights) / np.sqrt(weights).sum() if len(videos) else weights

    def plan(self, rng: np.random.Generator) -> Plan:
        drawn = rng.random()
        if drawn < 0.6 and self.videos:
            plan = self._of_video(rng)
        elif drawn < 0.9:
            plan = self._edited(rng)
        else:
            plan = self._edited(rng, transitions=0)
        self._add_events(plan, rng)
        plan.recording = _recording(rng)
        return plan

    # ------------------------------------------------------------ a labelled video

    def _of_video(self, rng: np.random.Generator) -> Plan:
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

    # ------------------------------------------------------------ an edited film

    def _edited(self, rng: np.random.Generator, transitions: int | None = None) -> Plan:
        plan = empty_plan(self.count)
        shot = self._shot(rng)
        self._show(plan, rng, shot, 0, self.count, "a")
        at = 0
        pace = rng.choice([12, 30, 60, 110])
        while transitions != 0:
            at += int(rng.exponential(pace)) + int(rng.choice([2, 8, 16]))
            if at >= self.count - 4:
                break
            same = rng.random() < 0.2
            other = shot if same else self._shot(rng)
            at = self._join(plan, rng, at, shot, other)
            shot = other
        return self._repeated(plan, rng) if rng.random() < 0.3 else plan

    def _shot(self, rng: np.random.Generator) -> Shot:
        if rng.random() < 0.06:
            row = self.plain + int(rng.integers(len(PLAIN)))
            return Shot(row, row + 1, -1)
        return self.shots[rng.choice(len(self.shots), p=self.chances)]

    def _show(
        self, plan: Plan, rng: np.random.Generator, shot: Shot, at: int, end: int, layer: str
    ) -> None:
        """Puts a random piece of a shot into the frames [at, end) of layer a or b."""
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

    def _join(self, plan: Plan, rng: np.random.Generator, at: int, shot: Shot, other: Shot) -> int:
        """Joins `other` to what is shown, from frame `at` on; the frame after the transition."""
        kind = rng.choice(list(JOINS), p=JOIN_CHANCES)
        least, most = JOINS[kind]
        length = int(np.exp(rng.uniform(np.log(least), np.log(most + 0.99)))) if most else 0
        length = min(length, self.count - at)
        end = at + length
        before = plan.a[at - 1]
        self._show(plan, rng, other, at, self.count, "b")
        if kind == "flash_cut":
            row = self.plain + int(rng.integers(len(PLAIN)))
            self._take_over(plan, at, self.count)
            plan.a[at:end], plan.blur[at:end] = row, 0
            plan.cuts[at:] += 1
            plan.cuts[end:] += 1
        elif kind == "cut":
            self._take_over(plan, at, self.count)
            plan.cuts[at:] += 1
            if shot is other:  # a jump cut that may be too small to be seen
                apart = abs(int(plan.a[at]) - int(before))
                if apart < 20:
                    plan.counted[at, 0] = 0
        elif kind == "fade":
            self._fade(plan, rng, at, end)
        else:
            MIXES[kind](plan, rng, at, end)
            plan.gradual[at:end] = 1
            if shot is other or shot.video == other.video == -1:
                plan.counted[at:end, 1] = 0.3
            self._finish(plan, end)
        for edge in (at, end):
            if length:
                plan.counted[max(0, edge - 1) : edge + 1, 1] = 0
                plan.counted[max(0, edge - 1) : edge + 1, 0] *= 0.3 if kind != "flash_cut" else 1
        return end

    def _take_over(self, plan: Plan, at: int, end: int) -> None:
        plan.a[at:end] = plan.b[at:end]
        plan.camera_a[at:end] = plan.camera_b[at:end]
        plan.blur[at:end] *= 0.3

    def _finish(self, plan: Plan, end: int) -> None:
        """The second picture is the only one from `end` on."""
        self._take_over(plan, end, self.count)
        plan.share[end:] = 0
        plan.mask[end:] = 0

    def _fade(self, plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
        """Through a plain picture: down, a pause, up."""
        row = self.plain + int(rng.integers(len(PLAIN))) if rng.random() < 0.3 else self.plain
        if rng.random() < 0.2:
            row = self.plain + WHITE
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
        self._finish(plan, end)

    def _repeated(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """A file that shows frames several times, or a recorder that falls behind."""
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

    # ------------------------------------------------------------ what is no transition

    def _add_events(self, plan: Plan, rng: np.random.Generator) -> None:
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
        if rng.random() < 0.12:  # exposure that adapts, clouds
            rate, depth = rng.uniform(8, 60), rng.uniform(0.15, 0.6)
            light[:, 0] *= 1 - depth * (0.5 - 0.5 * np.cos(np.arange(count) / rate))
        if rng.random() < 0.06:  # a light switch
            at = int(rng.integers(count))
            light[at : at + int(rng.integers(10, count)), 0] *= rng.uniform(0.35, 0.7)
        if rng.random() < 0.04:  # night
            light[:, 0] *= rng.uniform(0.12, 0.35)
        for number in range(BOXES):
            if rng.random() < 0.2:
                plan.boxes[:, number] = _box(count, rng)
        light[:, 0] = light[:, 0].clip(0.05, 3)


def _recording(rng: np.random.Generator) -> np.ndarray:
    """A number for each of RECORDING."""
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


def _box(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 10): a caption or an icon that comes and goes, a lamp, an object that passes, a
    display that stays."""
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
        way = (np.arange(count) - at) / length * 1.8 - 0.4
        box[:, 0] = way if rng.random() < 0.5 else 1 - way
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


# ---------------------------------------------------------------- mixes of two shots


def _shares(rng: np.random.Generator, n: int) -> np.ndarray:
    share = np.arange(1, n + 1) / (n + 1)
    return share * share * (3 - 2 * share) if rng.random() < 0.25 else share


def _dissolve(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    plan.share[at:end] = _shares(rng, end - at)
    if rng.random() < 0.15:  # the old one blurs, or nears, while it goes
        plan.blur[at:end] += (np.sin(np.pi * _shares(rng, end - at)) * rng.uniform(0.1, 0.5))[
            :, None
        ]
    if rng.random() < 0.1:  # through light
        plan.light[at:end, 1] += np.sin(np.pi * _shares(rng, end - at)) * rng.uniform(40, 200)


def _masked(kind: int) -> Callable[[Plan, np.random.Generator, int, int], None]:
    def reveal(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
        plan.share[at:end] = _shares(rng, end - at)
        angle = rng.choice([0, 0.5, 1, 1.5, rng.uniform(0, 2)]) * np.pi
        soft = rng.choice([0.01, 0.05, 0.3])
        plan.mask[at:end] = kind, angle, soft, int(rng.integers(PATTERNS)), rng.random() < 0.5

    return reveal


def _push(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """The new picture comes in; the old one is pushed out, or stays."""
    share = _shares(rng, end - at)
    quarter = int(rng.integers(4))
    axis, sign = quarter % 2, 1 if quarter < 2 else -1
    plan.camera_b[at:end, axis] += sign * (share - 1)
    if rng.random() < 0.6:
        plan.camera_a[at:end, axis] += sign * share
    plan.share[at:end] = share
    angle = (0.0, 0.5, 1.0, 1.5)[(0 if axis == 0 else 1) + (2 if sign > 0 else 0)] * np.pi
    plan.mask[at:end] = LINE, angle, 0.01, 0, 0


def _zoom(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Into the old picture, which gives way to the new one late."""
    share = _shares(rng, end - at)
    plan.camera_a[at:end, 2] += rng.uniform(0.5, 1.6) * share
    if rng.random() < 0.5:
        plan.camera_b[at:end, 2] += rng.uniform(-0.5, 0.9) * (1 - share)
    start = rng.uniform(0.2, 0.7)
    plan.share[at:end] = ((share - start) / (1 - start)).clip(0, 1)


def _whip(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """A blurred swing from one place to the other."""
    share = _shares(rng, end - at)
    axis, sign = int(rng.random() < 0.2), rng.choice([-1, 1])
    speed = rng.uniform(0.3, 1.2)
    plan.camera_a[at:end, axis] += sign * speed * share**2 * 2
    plan.camera_b[at:end, axis] -= sign * speed * (1 - share) ** 2 * 2
    plan.blur[at:end, axis] = np.sin(np.pi * share) * speed
    plan.share[at:end] = ((share - 0.5) * rng.choice([4, 20]) + 0.5).clip(0, 1)


# kind -> frames (least, most)
JOINS: dict[str, tuple[int, int]] = {
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
JOIN_CHANCES = [0.33, 0.04, 0.11, 0.27, 0.05, 0.03, 0.04, 0.05, 0.04, 0.04]
MIXES: dict[str, Callable[[Plan, np.random.Generator, int, int], None]] = {
    "dissolve": _dissolve,
    "wipe": _masked(LINE),
    "iris": _masked(ROUND),
    "pattern": _masked(PATTERN),
    "push": _push,
    "zoom": _zoom,
    "whip": _whip,
}
PATTERNS = 64
MIDDLE = 110  # grey level that a change of contrast keeps


# ---------------------------------------------------------------- rendering


class Renderer:
    """Draws batches of plans on one device."""

    def __init__(self, footage: Tensor, seed: int = 0) -> None:
        """footage: (N, 36, 64, 3) uint8 on the device, the plain pictures last."""
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
        self.x, self.y = x.to(self.device), y.to(self.device)  # 0 … 1

    def render(self, plans: dict[str, Tensor]) -> Tensor:
        """plans: the arrays of Plan with a first axis of clips -> (clips, T, 36, 64, 3) uint8"""
        p = {name: of.to(self.device, non_blocking=True) for name, of in plans.items()}
        clips, count = p["a"].shape
        flat = {name: of.flatten(0, 1) for name, of in p.items() if name != "recording"}
        numbers = p["recording"].repeat_interleave(count, dim=0).T[..., None, None]
        recording = dict(zip(RECORDING, numbers, strict=True))  # (clips * T, 1, 1) each
        picture = self._seen(flat["a"], flat["camera_a"], flat["blur"])
        mixed = torch.nonzero(flat["share"] > 0).squeeze(1)
        if len(mixed):
            second = self._seen(flat["b"][mixed], flat["camera_b"][mixed], flat["blur"][mixed])
            share = self._area(flat["share"][mixed], flat["mask"][mixed])[:, None]
            picture[mixed] = picture[mixed] * (1 - share) + second * share
        picture = self._with_boxes(picture, flat["boxes"])
        picture = self._lit(picture, flat["light"], recording)
        return self._recorded(picture, recording, clips, count).view(clips, count, HEIGHT, WIDTH, 3)

    def _seen(self, rows: Tensor, camera: Tensor, blur: Tensor) -> Tensor:
        """(n, 3, 36, 64) float: frames of the footage under a camera."""
        picture = self.footage[rows].permute(0, 3, 1, 2).float()
        moved = torch.nonzero((camera.abs().amax(1) > 1e-4) | (blur.amax(1) > 0.015)).squeeze(1)
        if not len(moved):
            return picture
        cosine, sine = torch.cos(camera[moved, 3]), torch.sin(camera[moved, 3])
        near = torch.exp(-camera[moved, 2])
        theta = torch.zeros(len(moved), 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 0, 1] = near * cosine, -near * sine * HEIGHT / WIDTH
        theta[:, 1, 0], theta[:, 1, 1] = near * sine * WIDTH / HEIGHT, near * cosine
        taps = 5 if bool((blur[moved].amax(1) > 0.015).any()) else 1
        total = 0
        for tap in range(taps):
            off = 0.0 if taps == 1 else tap / (taps - 1) - 0.5
            theta[:, :, 2] = -2 * (camera[moved, :2] + off * blur[moved])
            grid = F.affine_grid(theta, [len(moved), 3, HEIGHT, WIDTH], align_corners=False)
            total = total + F.grid_sample(
                picture[moved], grid, padding_mode="reflection", align_corners=False
            )
        picture[moved] = total / taps
        return picture

    def _area(self, share: Tensor, mask: Tensor) -> Tensor:
        """(n, 36, 64): how far each place shows the second picture."""
        kind, angle, soft, pattern, turned = mask.unbind(1)
        share, angle, soft = share[:, None, None], angle[:, None, None], soft[:, None, None]
        line = (self.x - 0.5) * torch.cos(angle) + (self.y - 0.5) * torch.sin(angle)
        reach = 0.5 * (torch.cos(angle).abs() + torch.sin(angle).abs())
        line = line / (2 * reach) + 0.5
        radius = torch.hypot((self.x - 0.5) * WIDTH / HEIGHT, self.y - 0.5) / 1.02
        radius = torch.where(turned[:, None, None] > 0, 1 - radius, radius)
        field = torch.stack([line, line, radius.expand_as(line), self.patterns[pattern.long()]])
        place = field.gather(0, kind.long()[None, :, None, None].expand(1, *line.shape))[0]
        area = ((share * (1 + soft) - place) / soft.clamp_min(1e-3)).clamp(0, 1)
        return torch.where(kind[:, None, None] == EVEN, share, area)

    def _with_boxes(self, picture: Tensor, boxes: Tensor) -> Tensor:
        for number in range(BOXES):
            shown = torch.nonzero(boxes[:, number, 4] > 0).squeeze(1)
            if not len(shown):
                continue
            x, y, wide, high, opacity, *colour, is_round, text = boxes[shown, number].T[
                ..., None, None
            ]
            dx, dy = (self.x - x).abs() / wide, (self.y - y).abs() / high
            hard = ((1 - torch.maximum(dx, dy)) * 8).clamp(0, 1)
            soft = torch.exp(-(dx**2 + dy**2))
            area = torch.where(is_round > 0, soft, hard) * opacity
            letters = self.patterns[7 + 8 * number]
            area = torch.where(text > 0, area * letters, area)
            shade = torch.stack([c.expand_as(area) for c in colour], dim=1)
            area = area[:, None]
            picture[shown] = picture[shown] * (1 - area) + shade * area
        return picture

    def _lit(self, picture: Tensor, light: Tensor, recording: dict[str, Tensor]) -> Tensor:
        """Under the light that falls on it, in the tones of the recording."""
        gain, *offsets, part = light.T[..., None, None]
        is_lit = self.y <= part
        y = 255 * (picture[:, 0] / 255).clamp(0, 1) ** recording["gamma"]
        y = (y - MIDDLE) * recording["contrast"] + MIDDLE
        found = [torch.where(is_lit, y * gain + offsets[0], y)]
        for chroma, offset in zip(picture[:, 1:].unbind(1), offsets[1:], strict=True):
            colour = chroma - 128
            colour = torch.where(is_lit, colour * gain.clamp(max=1.2) + offset, colour)
            found.append(128 + colour * (1 - recording["grey"]))
        return torch.stack(found, dim=1)

    def _recorded(
        self, picture: Tensor, recording: dict[str, Tensor], clips: int, count: int
    ) -> Tensor:
        """With the codec's error, noise and black bars, mirrored or not: (n, 36, 64, 3) uint8."""
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
