"""Random training sequences of small frames, with labels of every transition.

`Planner.plan` draws the random choices of a sequence, in numpy: the one or two frames of the
footage that each frame is made of, the mask that blends them (`joins.py`), the camera
(`cameras.py`), the light, overlays and the recording (`surroundings.py`). `render.py` computes the
frames of a batch of plans on the training device. Footage and sequences have frames of 64 x 36 px,
Y, Cb and Cr.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.transition_network import joins
from benchmarks.transition_network.cameras import CAMERAS, shaking_camera
from benchmarks.transition_network.plan import (
    BOXES,
    PATCHES,
    PLAIN,
    WHITE_INDEX,
    WHOLE_FRAME,
    Plan,
    Shot,
    empty_plan,
)
from benchmarks.transition_network.surroundings import (
    add_light,
    random_area,
    random_box,
    random_patch,
    random_recording,
)

KINDS = tuple(joins.JOINS)  # of transitions between shots
# A person sees a transition if more than this share of the picture changes by more than this step.
SEEN_STEP, SEEN_SHARE = 12, 0.02  # grey levels, share
LABELLED_SHARE = 0.5  # of the sequences are spans of labelled videos
SINGLE_SHARE = 0.12  # of the sequences are single shots
# more of the transitions of slideshows than of other films
SLIDESHOW_FACTORS = {"push": 4, "dissolve": 1.5, "short_dissolve": 1.5, "fade": 0.5, "stinger": 0.3}


@dataclass(frozen=True)
class Style:
    """How a drawn film is edited."""

    kinds: tuple[str, ...] = KINDS  # of its transitions; without any it is a single shot
    is_slideshow: bool = False  # of still pictures
    is_one_place: bool = False  # every transition is between two times of one camera
    is_in_area: bool = False  # shown in a part of the frame


def random_style(rng: np.random.Generator) -> Style:
    kinds = KINDS
    if rng.random() < SINGLE_SHARE / (1 - LABELLED_SHARE):
        kinds = ()
    elif rng.random() < 0.4:  # many editors use a few kinds of transitions
        kinds = tuple(KINDS[number] for number in rng.permutation(len(KINDS))[:3])
    return Style(kinds, *(rng.random(3) < (0.12, 0.08, 0.2)).tolist())


class Planner:
    """Plans random sequences: of labelled videos, edited from shots, and of single shots."""

    def __init__(
        self,
        shots: list[Shot],
        videos: list[dict[str, np.ndarray]],
        luma: np.ndarray,
        count: int,
    ) -> None:
        """shots, videos: as `gather` returns them.  luma: (N, 18, 32) uint8, of the footage, whose
        last frames are PLAIN.  count: T, the frames of a sequence."""
        self.shots = [shot for shot in shots if shot.end - shot.first >= 12]
        lengths = np.array([shot.end - shot.first for shot in self.shots], float)
        self.shot_ends = np.cumsum(np.minimum(lengths, 300))
        self.videos, self.luma, self.count = videos, luma, count
        self.plain = len(luma) - len(PLAIN)
        weights = np.sqrt(np.array([len(v["frames"]) for v in videos], float))
        self.video_ends = np.cumsum(weights)
        self.labelled_share = LABELLED_SHARE if videos else 0.0

    def plan(self, rng: np.random.Generator, style: Style | None = None) -> Plan:
        """A random sequence; a film of this style where it is given."""
        if style is None and rng.random() < self.labelled_share:
            plan = self._plan_labelled_video(rng)
            is_in_area = rng.random() < 0.1
        else:
            style = style or random_style(rng)
            plan = self.plan_edited_film(rng, style)
            is_in_area = style.is_in_area
        self._add_surroundings(plan, rng, is_in_area)
        return plan

    def _add_surroundings(self, plan: Plan, rng: np.random.Generator, is_in_area: bool) -> None:
        """Adds light, overlays and the recording to a plan of shots."""
        add_light(plan, rng)
        for number in range(PATCHES):
            shot = self.shots[_draw_row(rng, self.shot_ends)]
            plan.patches[:, number] = random_patch(self.count, rng, shot)
        for number in range(BOXES):
            if rng.random() < 0.18:
                plan.boxes[:, number] = random_box(self.count, rng)
        row = self.shots[_draw_row(rng, self.shot_ends)].first
        area = random_area(rng, row) if is_in_area else np.array(WHOLE_FRAME)
        plan.recording = random_recording(rng, area)

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
            plan.camera_a[:] = shaking_camera(self.count, rng)
        return plan

    # ------------------------------------------------------------ edited films

    def plan_edited_film(self, rng: np.random.Generator, style: Style) -> Plan:
        """Shots with random transitions between them, or a single shot."""
        plan = empty_plan(self.count)
        shot = self._random_shot(rng)
        self._place_shot(plan, rng, shot, 0, "a", style.is_slideshow)
        at = 0
        pace = rng.choice([30, 60, 110] if style.is_slideshow else [12, 30, 60, 110])
        factors = SLIDESHOW_FACTORS if style.is_slideshow else {}
        chances = [joins.JOINS[kind][0] * factors.get(kind, 1) for kind in style.kinds]
        ends = np.cumsum(chances)
        while style.kinds:
            at += int(rng.exponential(pace)) + int(rng.choice([2, 8, 16]))
            if at >= self.count - 4:
                break
            is_same = style.is_one_place or rng.random() < 0.22
            other = shot if is_same else self._random_shot(rng)
            kind = style.kinds[_draw_row(rng, ends)]
            if is_same and rng.random() < 0.3:  # time passes in one place
                kind = "dissolve"
            at = self._add_join(plan, rng, at, shot, other, kind, style)
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
        self,
        plan: Plan,
        rng: np.random.Generator,
        shot: Shot,
        at: int,
        layer: str,
        is_still: bool,
    ) -> None:
        """Puts a random span of a shot, at a random speed and under a random camera, into the
        frames from `at` on of layer a or b. A shot that is too short runs back and forth.
        is_still: one frame of it, mostly under a camera that does not move."""
        n, length = self.count - at, shot.end - shot.first
        speed = 0 if is_still else rng.choice([0, 1, 2, 3], p=[0.08, 0.76, 0.11, 0.05])
        start = int(rng.integers(max(1, length - int(min(n, 60) * speed))))
        at_frame = start + (np.arange(n) * speed).astype(np.int64)
        period = max(1, 2 * length - 2)
        at_frame = at_frame % period
        at_frame = np.where(at_frame < length, at_frame, period - at_frame)
        getattr(plan, layer)[at:] = shot.first + at_frame
        camera = rng.choice(len(CAMERAS), p=[chance for chance, _ in CAMERAS])
        path = CAMERAS[camera][1](n, rng)
        if is_still and rng.random() < 0.8:
            path = np.zeros((n, 4))
            if rng.random() < 0.3:  # it comes closer, or goes away
                path[:, 2] = np.arange(n) * rng.normal(0, 0.001) + 0.1
        getattr(plan, f"camera_{layer}")[at:] = path
        if layer == "a" and rng.random() < 0.6:
            steps = np.abs(np.diff(path[:, :2], axis=0, prepend=path[:1, :2]))
            plan.blur[at:] = steps * rng.uniform(0.3, 0.9)

    def _add_join(
        self,
        plan: Plan,
        rng: np.random.Generator,
        at: int,
        shot: Shot,
        other: Shot,
        kind: str,
        style: Style,
    ) -> int:
        """Adds a transition from `shot` to `other` that starts at frame `at`; `other` fills the
        frames after it. Returns the first frame after the transition."""
        _, least, most, join = joins.JOINS[kind]
        length = int(np.exp(rng.uniform(np.log(least), np.log(most + 0.99)))) if most else 0
        end = min(at + length, self.count)
        is_same_camera = shot is other and (style.is_one_place or rng.random() < 0.7)
        self._place_shot(plan, rng, other, at, "b", style.is_slideshow)
        if is_same_camera:
            plan.camera_b[at:] = plan.camera_a[at:]
            if rng.random() < 0.4:  # held in a hand, or moved a little
                plan.camera_b[at:] += rng.normal(0, 1, 4) * (0.02, 0.03, 0.02, 0.01)
        is_seen = 1.0  # weight of the labels: 0 where a person can't see that the pictures differ
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
        """Makes layer a show what layer b shows, from frame `at` on."""
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


def _draw_row(rng: np.random.Generator, ends: np.ndarray) -> int:
    """A random index into `ends`, the cumulative sums of the weights of all indices."""
    return int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
