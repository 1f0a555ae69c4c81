"""Quantizes the measured numbers of a segment into levels that have words.

A level has hysteresis: it holds until its number has clearly left it, so that a number near a bound
does not read as change after change.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stages.captioning.colours import Colour

# Lower bounds of levels 1, 2, ...; below the first is level 0. Speeds: px/s in an image 320 wide.
PAN_BOUNDS_PX_S = (3.0, 12.0, 50.0)  # still | slowly (27 s and more per width) | - | quickly
ZOOM_BOUNDS_PER_S = (0.02, 0.06, 0.2)  # growth of the image per second
ROLL_BOUNDS_DEG_S = (2.5, 6.0, 20.0)
SHAKE_BOUNDS_PX_S = (6.0, 20.0)  # steady | a little | strongly
AREA_BOUNDS = (0.002, 0.04, 0.20)  # share of the image that moves: none | small | part | much
SPEED_BOUNDS_PX_S = (0.0, 18.0, 60.0)  # of the subject: slowly | - | quickly (5 s per width)
LUMA_BOUNDS = (35.0, 75.0, 165.0, 205.0)  # very dark | dark | - | bright | very bright
HYSTERESIS = 0.25  # share of a bound by which a number must pass it before the level changes
MIN_DIRECTIONALITY = 0.5  # mean velocity over mean speed; below it there is no common direction
DIRECTION_HOLD_DEG = 40.0  # a direction holds within this angle (directions are 45 degrees apart)
POSITION_HYSTERESIS = 0.07  # share of the image beyond a third's edge

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
class CameraState:
    pan: int = 0  # levels
    zoom: int = 0
    roll: int = 0
    shake: int = 0
    direction: str = ""  # of the pan, one of DIRECTIONS
    zooms_in: bool = False
    clockwise: bool = False

    @property
    def kind_of_motion(self) -> CameraState:
        """The same motion without its speed and its shake."""
        return replace(
            self, pan=min(self.pan, 1), zoom=min(self.zoom, 1), roll=min(self.roll, 1), shake=0
        )

    @property
    def moves(self) -> bool:
        return bool(self.pan or self.zoom or self.roll)


@dataclass(frozen=True)
class SubjectState:
    """What moves in the image once the camera's motion is subtracted."""

    area: int = 0  # levels
    speed: int = 1
    direction: str = ""  # one of DIRECTIONS; empty where there is no common direction
    position: str = ""
    motion: float = field(default=0.0, compare=False)  # mean residual flow, px/s at 320 wide


@dataclass(frozen=True)
class SegmentState:
    """One segment as levels. None: not measured, and therefore not mentioned in any text."""

    light: int | None  # level
    brightness: float | None  # mean luma, 0..255
    colours: tuple[Colour, ...]
    camera: CameraState | None
    subject: SubjectState | None
    quotes: tuple[tuple[str, str], ...] = ()  # text in the image, fit to quote, and its position
    # every line that OCR read: a quote among them is no new text
    ocr_lines: tuple[str, ...] = ()


def quantize_segment(
    segment: dict[str, Any],
    colours: tuple[Colour, ...],
    previous: SegmentState | None,
    *,
    quotes: tuple[tuple[str, str], ...] = (),
    ocr_lines: tuple[str, ...] = (),
) -> SegmentState:
    """Returns the state of a segment (records.SEGMENT); previous: that of the segment before."""
    luma = segment.get("brightness")
    return SegmentState(
        light=None
        if luma is None
        else quantize(luma, LUMA_BOUNDS, previous.light if previous else None),
        brightness=luma,
        colours=colours,
        camera=quantize_camera(segment, previous.camera if previous else None),
        subject=_quantize_subject(segment, previous.subject if previous else None),
        quotes=quotes,
        ocr_lines=ocr_lines,
    )


def quantize(value: float, bounds: Sequence[float], previous: int | None = None) -> int:
    """How many bounds the value has reached; the previous level holds within HYSTERESIS."""
    level = bisect_right(bounds, value)
    if previous is None or level == previous:
        return level
    if level > previous:
        holds = value < bounds[previous] * (1 + HYSTERESIS)
    else:
        holds = value > bounds[previous - 1] * (1 - HYSTERESIS)
    return previous if holds else level


def nearest_direction(x: float, y: float, previous: str = "") -> str:
    """The one of DIRECTIONS nearest to the vector (x, y), x to the right and y down."""
    angle = math.degrees(math.atan2(y, x))
    if previous:
        difference = angle - 45 * DIRECTIONS.index(previous)
        if abs((difference + 180) % 360 - 180) <= DIRECTION_HOLD_DEG:
            return previous
    return DIRECTIONS[round(angle / 45) % 8]


def name_position(x: float, y: float, previous: str = "") -> str:
    """The third of the image that a point is in. x: 0 left to 1 right.  y: 0 top to 1 bottom."""
    offsets = (-POSITION_HYSTERESIS, 0, POSITION_HYSTERESIS)
    if previous and any(_third(x + dx, y + dy) == previous for dx in offsets for dy in offsets):
        return previous
    return _third(x, y)


def _third(x: float, y: float) -> str:
    across = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    vertical = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    position = f"{vertical} {across}".strip()
    return f"at the {position}" if position else "in the middle"


def quantize_camera(segment: dict[str, Any], previous: CameraState | None) -> CameraState | None:
    """Returns the camera's state in a segment (records.SEGMENT); None: not measured."""
    names = ("camera_x", "camera_y", "camera_zoom", "camera_roll", "camera_shake")
    values: list[Any] = [segment.get(name) for name in names]
    if None in values:
        return None
    x, y, zoom, roll, shake = values
    pan = quantize(math.hypot(x, y), PAN_BOUNDS_PX_S, previous.pan if previous else None)
    zoom_level = quantize(abs(zoom), ZOOM_BOUNDS_PER_S, previous.zoom if previous else None)
    roll_level = quantize(abs(roll), ROLL_BOUNDS_DEG_S, previous.roll if previous else None)
    return CameraState(
        pan=pan,
        zoom=zoom_level,
        roll=roll_level,
        shake=quantize(shake, SHAKE_BOUNDS_PX_S, previous.shake if previous else None),
        direction=nearest_direction(x, y, previous.direction if previous else "") if pan else "",
        zooms_in=zoom_level > 0 and zoom > 0,
        clockwise=roll_level > 0 and roll > 0,
    )


def _quantize_subject(
    segment: dict[str, Any], previous: SubjectState | None
) -> SubjectState | None:
    share, motion = segment.get("subject_area"), segment.get("subject_motion")
    if share is None or motion is None:
        return None
    area = quantize(share, AREA_BOUNDS, previous.area if previous else None)
    names = ("subject_x", "subject_y", "subject_at_x", "subject_at_y")
    values: list[Any] = [segment.get(name) for name in names]
    x, y, at_x, at_y = values
    if not area or None in values:
        return SubjectState(area=0)
    previous = previous or SubjectState()
    velocity = math.hypot(x, y)
    speed = max(velocity, motion / max(share, AREA_BOUNDS[0]))
    has_direction = velocity >= MIN_DIRECTIONALITY * speed
    return SubjectState(
        area=area,
        speed=quantize(speed, SPEED_BOUNDS_PX_S, previous.speed if previous.area else None),
        direction=nearest_direction(x, y, previous.direction) if has_direction else "",
        position=name_position(at_x, at_y, previous.position),
        motion=motion,
    )
