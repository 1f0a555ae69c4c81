"""Phrases for motion: what the view does, what moves in it, and how both change."""

from __future__ import annotations

from itertools import groupby

from curation.texts import join_words
from stages.captioning.segment_state import CameraState, SubjectState

PACES = ("", "slowly", "", "quickly")  # by level
SHAKES = ("", "shaking a little", "shaking strongly")
AMOUNTS = ("hardly anything", "something small", "part of the picture", "much of the picture")
MIN_CHANGE_RATIO, LARGE_CHANGE_RATIO = 1.3, 2.0  # of the subject's mean flow

_FORMS = {  # of a verb whose subject is `the view`: does, to do, doing
    "pan": ("pans", "pan", "panning"),
    "tilt": ("tilts", "tilt", "tilting"),
    "move": ("moves", "move", "moving"),
    "close": ("closes in", "close in", "closing in"),
    "draw": ("draws back", "draw back", "drawing back"),
    "turn": ("turns", "turn", "turning"),
}
DOES, TO_DO, DOING = range(3)


def _camera_moves(camera: CameraState, form: int, with_pace: bool = True) -> str:
    """`pans slowly to the right and closes in`, in one of the forms DOES, TO_DO and DOING."""
    moves = []
    if camera.pan:
        verbs = {"to the left": "pan", "to the right": "pan", "up": "tilt", "down": "tilt"}
        verb = verbs.get(camera.direction, "move")
        moves.append((verb, PACES[camera.pan], camera.direction))
    if camera.zoom:
        moves.append(("close" if camera.zooms_in else "draw", PACES[camera.zoom], ""))
    if camera.roll:
        direction = "clockwise" if camera.clockwise else "anticlockwise"
        moves.append(("turn", PACES[camera.roll], direction))
    return join_words(
        [
            " ".join(filter(None, (_FORMS[verb][form], pace if with_pace else "", direction)))
            for verb, pace, direction in moves
        ]
    )


def describe_camera(camera: CameraState) -> str:
    """The predicate of `the view`: `stays still`, `pans slowly to the right`."""
    if not camera.moves:
        return ("stays still", "shakes a little", "shakes strongly")[camera.shake]
    return ", ".join(filter(None, (_camera_moves(camera, DOES), SHAKES[camera.shake])))


def describe_camera_change(
    previous: CameraState | None, camera: CameraState | None, scene: str
) -> str:
    """The motion of the view, compared with the segment before; scene: the scene's short name."""
    if camera is None:
        return f"in {scene}"
    if previous is None:
        return f"in {scene} the view {describe_camera(camera)}"
    shake = f", {SHAKES[camera.shake]}" if camera.shake else ""
    if not previous.moves and not camera.moves:
        if camera == previous:
            return (
                f"in the {('still', 'slightly shaking', 'shaking')[camera.shake]} view of {scene}"
            )
        steadier = camera.shake < previous.shake
        return f"the view of {scene} {'steadies' if steadier else describe_camera(camera)}"
    if not previous.moves:
        return f"in {scene} the view starts to {_camera_moves(camera, TO_DO)}{shake}"
    if not camera.moves:
        return f"the view of {scene} {'only shakes now' if camera.shake else 'comes to rest'}"
    if previous.kind_of_motion != camera.kind_of_motion:
        return f"in {scene} the view now {describe_camera(camera)}"
    if camera.shake < previous.shake:
        shake = f"{shake}, less than before" if camera.shake else ", more steadily"
    faster_by = (camera.pan + camera.zoom + camera.roll) - (
        previous.pan + previous.zoom + previous.roll
    )
    if faster_by:
        pace = "faster" if faster_by > 0 else "slower"
        moves = _camera_moves(camera, DOING, with_pace=False)
        return f"in {scene} the view keeps {moves}, {pace} than before{shake}"
    return f"in {scene} the view keeps {_camera_moves(camera, DOING)}{shake}"


def summarize_camera(cameras: list[CameraState]) -> list[str]:
    """Returns at most one phrase for the motion of the view over all segments."""
    steps = [phrase for phrase, _ in groupby(describe_camera(camera) for camera in cameras)]
    if not steps:
        return []
    if len(steps) == 1:
        return [f"the view {steps[0]} throughout"]
    return [f"the view first {', then '.join(steps)}"]


def describe_subject(subject: SubjectState | None, view_moves: bool = False) -> list[str]:
    """Returns at most one phrase for what moves, where and how."""
    if subject is None:
        return []
    verb = "moves by itself" if view_moves else "moves"
    if not subject.area:
        return [f"{AMOUNTS[0]} {verb}"]
    return [f"{_subject_noun(subject)} {_subject_verb(subject, verb)}"]


def _position(subject: SubjectState) -> str:
    return "" if subject.area == len(AMOUNTS) - 1 else subject.position


def _subject_noun(subject: SubjectState) -> str:
    return f"{AMOUNTS[subject.area]} {_position(subject)}".strip()


def _subject_verb(subject: SubjectState, verb: str) -> str:
    direction = subject.direction or "this way and that"
    return " ".join(filter(None, (verb, PACES[subject.speed], direction)))


def describe_subject_change(
    previous: SubjectState | None, subject: SubjectState | None
) -> list[str]:
    """Returns at most one phrase for how the motion differs from that of the segment before."""
    if subject is None:
        return []
    if previous is None:
        return describe_subject(subject)
    if not previous.area and not subject.area:
        return []
    if not previous.area:
        return [f"{_subject_noun(subject)} {_subject_verb(subject, 'starts to move')}"]
    if not subject.area:
        return ["the movement dies down"]
    changes = []
    if subject.position != previous.position and _position(subject):
        changes.append(f"is now {subject.position}")
    if subject.area != previous.area:
        more = subject.area > previous.area
        changes.append(f"takes up {'more' if more else 'less'} of the picture")
    if subject.speed != previous.speed:
        changes.append("gets faster" if subject.speed > previous.speed else "slows down")
    if subject.direction != previous.direction:
        changes.append(f"goes {subject.direction or 'this way and that'}")
    if subject.speed == previous.speed and subject.area == previous.area:
        changes += _describe_strength_change(previous.motion, subject.motion)
    return [f"the movement {join_words(changes)}"] if changes else []


def _describe_strength_change(previous: float, motion: float) -> list[str]:
    if previous <= 0:
        return []
    ratio = motion / previous
    if 1 / MIN_CHANGE_RATIO < ratio < MIN_CHANGE_RATIO:
        return []
    small = 1 / LARGE_CHANGE_RATIO < ratio < LARGE_CHANGE_RATIO
    return [f"gets {'a little' if small else 'much'} {'stronger' if ratio > 1 else 'weaker'}"]


def describe_ongoing_motion(subject: SubjectState | None) -> list[str]:
    """Returns at most one phrase for motion that has not changed."""
    if subject is None or not subject.area:
        return []
    parts = ("the movement", _position(subject), "goes on", subject.direction)
    return [" ".join(filter(None, parts))]


def summarize_subject(subjects: list[SubjectState]) -> list[str]:
    """Returns at most one phrase for what moves over all segments."""
    steps = [phrase for phrase, _ in groupby(_summary_step(subject) for subject in subjects)]
    if not steps:
        return []
    if len(steps) == 1:
        return [f"{steps[0]} throughout"]
    return [f"first {', then '.join(steps)}"]


def _summary_step(subject: SubjectState) -> str:
    if not subject.area:
        return f"{AMOUNTS[0]} moves"
    return f"{AMOUNTS[subject.area]} moves {_position(subject)}".strip()
