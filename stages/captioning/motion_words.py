"""Words for motion: what the view does, what moves in it, and what becomes different in both."""

from __future__ import annotations

from itertools import groupby

from curation.texts import joined
from stages.captioning.levels import Camera, Subject

HOW_FAST = ("", "slowly", "", "quickly")
HOW_SHAKY = ("", "shaking a little", "shaking strongly")
HOW_MUCH = ("hardly anything", "something small", "part of the picture", "much of the picture")
MORE_MOTION, MUCH_MORE_MOTION = 1.3, 2.0  # ratio of the mean flow of what moves by itself

_FORMS = {  # as it is said of `the view`: does, to do, doing
    "pan": ("pans", "pan", "panning"),
    "tilt": ("tilts", "tilt", "tilting"),
    "move": ("moves", "move", "moving"),
    "close": ("closes in", "close in", "closing in"),
    "draw": ("draws back", "draw back", "drawing back"),
    "turn": ("turns", "turn", "turning"),
}
DOES, TO_DO, DOING = range(3)


def _moving(camera: Camera, form: int, paced: bool = True) -> str:
    """`pans slowly to the right and closes in`, in the form asked for; or without the pace."""
    moves = []
    if camera.pan:
        verb = {"to the left": "pan", "to the right": "pan", "up": "tilt", "down": "tilt"}
        stem = verb.get(camera.heading, "move")
        moves.append((stem, HOW_FAST[camera.pan], camera.heading))
    if camera.zoom:
        moves.append(("close" if camera.closer else "draw", HOW_FAST[camera.zoom], ""))
    if camera.roll:
        way = "clockwise" if camera.clockwise else "anticlockwise"
        moves.append(("turn", HOW_FAST[camera.roll], way))
    return joined(
        [
            " ".join(filter(None, (_FORMS[stem][form], pace if paced else "", way)))
            for stem, pace, way in moves
        ]
    )


def view_does(camera: Camera) -> str:
    if not camera.moves:
        return ("stays still", "shakes a little", "shakes strongly")[camera.shake]
    return ", ".join(filter(None, (_moving(camera, DOES), HOW_SHAKY[camera.shake])))


def view_change(before: Camera | None, now: Camera | None, scene: str) -> str:
    """What the view does now, told from what it did; the short name of the scene goes with it."""
    if now is None:
        return f"in {scene}"
    if before is None:
        return f"in {scene} the view {view_does(now)}"
    shake = f", {HOW_SHAKY[now.shake]}" if now.shake else ""
    if not before.moves and not now.moves:
        if now == before:
            return f"in the {('still', 'slightly shaking', 'shaking')[now.shake]} view of {scene}"
        return f"the view of {scene} {'steadies' if now.shake < before.shake else view_does(now)}"
    if not before.moves:
        return f"in {scene} the view starts to {_moving(now, TO_DO)}{shake}"
    if not now.moves:
        return f"the view of {scene} {'only shakes now' if now.shake else 'comes to rest'}"
    if before.kind != now.kind:
        return f"in {scene} the view now {view_does(now)}"
    if now.shake < before.shake:
        shake = f"{shake}, less than before" if now.shake else ", more steadily"
    pace = (now.pan + now.zoom + now.roll) - (before.pan + before.zoom + before.roll)
    if pace:
        change = "faster" if pace > 0 else "slower"
        return (
            f"in {scene} the view keeps {_moving(now, DOING, False)}, {change} than before{shake}"
        )
    return f"in {scene} the view keeps {_moving(now, DOING)}{shake}"


def camera_course(cameras: list[Camera]) -> list[str]:
    steps = [phrase for phrase, _ in groupby(view_does(camera) for camera in cameras)]
    if not steps:
        return []
    if len(steps) == 1:
        return [f"the view {steps[0]} throughout"]
    return [f"the view first {', then '.join(steps)}"]


def moves(subject: Subject | None, alone: bool = False) -> list[str]:
    """What moves where and how. alone: the view moves too, and this is beside it."""
    if subject is None:
        return []
    verb = "moves by itself" if alone else "moves"
    if not subject.area:
        return [f"{HOW_MUCH[0]} {verb}"]
    return [f"{_what(subject)} {_how(subject, verb)}"]


def _where(subject: Subject) -> str:
    return "" if subject.area == len(HOW_MUCH) - 1 else subject.place


def _what(subject: Subject) -> str:
    return f"{HOW_MUCH[subject.area]} {_where(subject)}".strip()


def _how(subject: Subject, verb: str) -> str:
    way = subject.heading or "this way and that"
    return " ".join(filter(None, (verb, HOW_FAST[subject.speed], way)))


def subject_change(before: Subject | None, now: Subject | None) -> list[str]:
    if now is None:
        return []
    if before is None:
        return moves(now)
    if not before.area and not now.area:
        return []
    if not before.area:
        return [f"{_what(now)} {_how(now, 'starts to move')}"]
    if not now.area:
        return ["the movement dies down"]
    changes = []
    if now.place != before.place and _where(now):
        changes.append(f"is now {now.place}")
    if now.area != before.area:
        changes.append(f"takes up {'more' if now.area > before.area else 'less'} of the picture")
    if now.speed != before.speed:
        changes.append("gets faster" if now.speed > before.speed else "slows down")
    if now.heading != before.heading:
        changes.append(f"goes {now.heading or 'this way and that'}")
    if now.speed == before.speed and now.area == before.area:
        changes += _amount_change(before.motion, now.motion)
    return [f"the movement {joined(changes)}"] if changes else []


def _amount_change(before: float, now: float) -> list[str]:
    if before <= 0:
        return []
    ratio = now / before
    if 1 / MORE_MOTION < ratio < MORE_MOTION:
        return []
    amount = "much " if not 1 / MUCH_MORE_MOTION < ratio < MUCH_MORE_MOTION else "a little "
    return [f"gets {amount}{'stronger' if ratio > 1 else 'weaker'}"]


def goes_on(subject: Subject | None) -> list[str]:
    if subject is None or not subject.area:
        return []
    parts = ("the movement", _where(subject), "goes on", subject.heading)
    return [" ".join(filter(None, parts))]


def subject_course(subjects: list[Subject]) -> list[str]:
    steps = [phrase for phrase, _ in groupby(_course_step(subject) for subject in subjects)]
    if not steps:
        return []
    if len(steps) == 1:
        return [f"{steps[0]} throughout"]
    return [f"first {', then '.join(steps)}"]


def _course_step(subject: Subject) -> str:
    if not subject.area:
        return f"{HOW_MUCH[0]} moves"
    return f"{HOW_MUCH[subject.area]} moves {_where(subject)}".strip()
