"""From measured numbers to words, steadily: a word is kept until its number has clearly left it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stages.captioning.colours import Colour

# Lower bounds of the levels 1, 2, 3; below the first is level 0. Speeds: px/s at 320 wide.
PAN_PX_S = (3.0, 12.0, 50.0)  # the view: still | slowly (27 s and more per width) | - | quickly
ZOOM_PER_S = (0.02, 0.06, 0.2)  # growth of the picture per second
ROLL_DEG_S = (2.5, 6.0, 20.0)
SHAKE_PX_S = (6.0, 20.0)  # steady | a little | strongly
AREA = (0.002, 0.04, 0.20)  # share of the picture that moves by itself: none | small | part | much
SPEED_PX_S = (0.0, 18.0, 60.0)  # of what moves: slowly | - | quickly (5 s per width)
LIGHT = (35.0, 75.0, 165.0, 205.0)  # mean luma: very dark | dark | - | bright | very bright
MARGIN = 0.25  # share of a bound by which a number must pass it before the word changes
ONE_WAY = 0.5  # mean direction over mean speed: below it, what moves has no common direction
TURN_DEG = 40.0  # a direction keeps its word within this of the word's own (45 degrees apart)
PLACE_MARGIN = 0.07  # share of the picture beyond a third's edge

DIRECTIONS = (  # clockwise from the right, 45 degrees each: y grows downwards
    "to the right",
    "down and to the right",
    "down",
    "down and to the left",
    "to the left",
    "up and to the left",
    "up",
    "up and to the right",
)


@dataclass(frozen=True)
class Camera:
    pan: int = 0  # levels
    zoom: int = 0
    roll: int = 0
    shake: int = 0
    heading: str = ""  # where the view goes, of DIRECTIONS
    closer: bool = False  # zoom in, not out
    clockwise: bool = False

    @property
    def kind(self) -> Camera:
        """What it does, without how fast and how steadily."""
        return replace(
            self, pan=min(self.pan, 1), zoom=min(self.zoom, 1), roll=min(self.roll, 1), shake=0
        )

    @property
    def moves(self) -> bool:
        return bool(self.pan or self.zoom or self.roll)


@dataclass(frozen=True)
class Subject:
    area: int = 0  # levels
    speed: int = 1
    heading: str = ""  # of DIRECTIONS, or nothing: no common direction
    place: str = ""
    motion: float = field(default=0.0, compare=False)  # mean flow left, px/s at 320 wide


@dataclass(frozen=True)
class Look:
    """One segment in words' own steps. A None was not measured, and is not spoken of."""

    light: int | None
    brightness: float | None  # mean luma, 0..255
    colours: tuple[Colour, ...]
    camera: Camera | None
    subject: Subject | None
    texts: tuple[tuple[str, str], ...] = ()  # what is written, fit to quote, and where
    read: tuple[str, ...] = ()  # all that was read: what is in it is not gone
    dense: bool = False  # more is written than was read: nothing can be said to be gone


def look(
    segment: dict[str, Any], colours: tuple[Colour, ...], before: Look | None, **text: Any
) -> Look:
    """A records.SEGMENT in steps; what has not clearly changed keeps the step it had `before`.

    text: the fields of Look that tell what is written.
    """
    light = segment.get("brightness")
    return Look(
        light=None if light is None else level(light, LIGHT, before.light if before else None),
        brightness=light,
        colours=colours,
        camera=camera_of(segment, before.camera if before else None),
        subject=_subject(segment, before.subject if before else None),
        **text,
    )


def level(value: float, bounds: Sequence[float], before: int | None = None) -> int:
    """How many bounds the value has reached; the level before holds within MARGIN of its bounds."""
    now = bisect_right(bounds, value)
    if before is None or now == before:
        return now
    edge = bounds[before] if now > before else bounds[before - 1]
    held = value < edge * (1 + MARGIN) if now > before else value > edge * (1 - MARGIN)
    return before if held else now


def direction(x: float, y: float, before: str = "") -> str:
    """The one of DIRECTIONS nearest to (x, y), x to the right and y down."""
    angle = math.degrees(math.atan2(y, x))
    if before:
        off = angle - 45 * DIRECTIONS.index(before)
        if abs((off + 180) % 360 - 180) <= TURN_DEG:
            return before
    return DIRECTIONS[round(angle / 45) % 8]


def place(x: float, y: float, before: str = "") -> str:
    """A point of the picture in words. x: 0 left to 1 right.  y: 0 top to 1 bottom."""
    if before and any(
        _place(x + dx, y + dy) == before
        for dx in (-PLACE_MARGIN, 0, PLACE_MARGIN)
        for dy in (-PLACE_MARGIN, 0, PLACE_MARGIN)
    ):
        return before
    return _place(x, y)


def _place(x: float, y: float) -> str:
    across = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    vertical = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    where = f"{vertical} {across}".strip()
    return f"at the {where}" if where else "in the middle"


def camera_of(segment: dict[str, Any], before: Camera | None) -> Camera | None:
    """A records.SEGMENT's camera in steps; None: not measured."""
    names = ("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake")
    values: list[Any] = [segment.get(name) for name in names]
    if None in values:
        return None
    x, y, zoom, roll, shake = values
    pan = level(math.hypot(x, y), PAN_PX_S, before.pan if before else None)
    zooms = level(abs(zoom), ZOOM_PER_S, before.zoom if before else None)
    rolls = level(abs(roll), ROLL_DEG_S, before.roll if before else None)
    return Camera(
        pan=pan,
        zoom=zooms,
        roll=rolls,
        shake=level(shake, SHAKE_PX_S, before.shake if before else None),
        heading=direction(x, y, before.heading if before else "") if pan else "",
        closer=zooms > 0 and zoom > 0,
        clockwise=rolls > 0 and roll > 0,
    )


def _subject(segment: dict[str, Any], before: Subject | None) -> Subject | None:
    share, motion = segment.get("subject_area"), segment.get("subject_motion")
    if share is None or motion is None:
        return None
    area = level(share, AREA, before.area if before else None)
    names = ("subject_x", "subject_y", "subject_at_x", "subject_at_y")
    values: list[Any] = [segment.get(name) for name in names]
    x, y, at_x, at_y = values
    if not area or None in values:
        return Subject(area=0)
    was = before or Subject()
    speed = max(math.hypot(x, y), motion / max(share, AREA[0]))
    one_way = math.hypot(x, y) >= ONE_WAY * speed
    return Subject(
        area=area,
        speed=level(speed, SPEED_PX_S, was.speed if was.area else None),
        heading=direction(x, y, was.heading) if one_way else "",
        place=place(at_x, at_y, was.place),
        motion=motion,
    )
