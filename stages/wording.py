"""From what was measured in each segment to sentences: first what is there, then what changes.

Every sentence states a measurement and nothing else, so a thing that was not measured is not
spoken of, and no word guesses at what the moving things are. The same looks give the same words.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import groupby, pairwise

from curation.texts import joined, sentence
from stages.colours import Colour
from stages.levels import Camera, Look, Subject

LIGHTS = ("very dark", "dark", "", "bright", "very bright")
HOW_FAST = ("", "slowly", "", "quickly")
HOW_SHAKY = ("", "shaking a little", "shaking strongly")
HOW_MUCH = ("hardly anything", "something small", "part of the picture", "much of the picture")
COLOURS_NAMED = 3
ALMOST_ALL, MOSTLY = 0.85, 0.5  # of the picture
NAMED_SHARE = 0.12  # of the picture: a smaller colour is not named
NEW_SHARE, GONE_SHARE = 0.15, 0.08  # a colour comes in above the one, and is gone below the other
SHIFT_SHARE = 0.15  # of the picture: a colour that gains or loses this much is spoken of
MORE_MOTION, MUCH_MORE_MOTION = 1.3, 2.0  # ratio of the mean flow of what moves by itself
LIGHT_STEP, LIGHT_LEAP = 12.0, 35.0  # grey levels of mean luma: a little, much
SAME_TEXT = 0.7  # likeness of two readings of one text: OCR is not the same on every frame

Texts = tuple[tuple[str, str], ...]


def sub_captions(looks: list[Look]) -> list[str]:
    """The first text says what is there, each later one what is different now."""
    said = [_opening(looks[0])]
    spoken = looks[0]  # the look whose light and colours were last spoken of
    unchanged = 0
    for before, now in pairwise(looks):
        picture = [*_light_change(spoken, now), *_colour_change(spoken.colours, now.colours)]
        subject = _subject_change(before.subject, now.subject)
        changes = [*subject, *picture, *_text_change(before, now)]
        if picture:
            spoken = now
        if before.camera == now.camera and not changes:
            unchanged += 1
            said.append(_no_change(now, _scene(spoken), again=unchanged > 1))
            continue
        unchanged = 0
        goes_on = [] if subject else _goes_on(now.subject)
        view = _view_change(before.camera, now.camera, _scene(spoken))
        said.append(_sentences(_led(view, [*goes_on, *changes])))
    return said


def overall(looks: list[Look]) -> str:
    """The five in one: what is there, then each thing's course from the first to the last."""
    first, last = looks[0], looks[-1]
    return _sentences(
        [
            _picture(first),
            *_camera_course([look.camera for look in looks if look.camera]),
            *_subject_course([look.subject for look in looks if look.subject]),
            *(f"{change} from start to end" for change in _light_change(first, last)),
            *_all_texts([look.texts for look in looks]),
        ]
    )


def _opening(look: Look) -> str:
    camera = [f"the view {_does(look.camera)}"] if look.camera else []
    alone = look.camera is not None and look.camera.moves
    subject = _moves(look.subject, alone)
    return _sentences([_picture(look), *camera, *subject, *_says(look.texts)])


def _led(view: str, parts: list[str]) -> list[str]:
    """A view without a verb (`in the still view of …`) leads the next sentence."""
    if view.startswith("in ") and parts and " the view " not in view:
        return [f"{view}, {parts[0]}", *parts[1:]]
    return [view, *parts]


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(sentence(part) for part in parts if part)


# --- light and colours


def _named(colours: Iterable[Colour]) -> list[Colour]:
    return [c for c in colours if c.share >= NAMED_SHARE][:COLOURS_NAMED]


def _picture(look: Look) -> str:
    light = "" if look.light is None else LIGHTS[look.light]
    article = f"a {light} picture" if light else "a picture"
    colours = _named(look.colours)
    if not colours:
        return article if light else "a picture of many colours"
    if colours[0].share >= ALMOST_ALL:
        return f"{article}, almost all of it {colours[0].words}"
    amount = "mostly " if colours[0].share >= MOSTLY else ""
    rest = _colours_by_place(colours[1:])
    first = f"{amount}{colours[0].words}{'' if amount else ' ' + colours[0].place}".strip()
    return f"{article}, {first}{', with ' if rest else ''}{rest}"


def _colours_by_place(colours: list[Colour]) -> str:
    """`grey and beige at the bottom and blue`: those with a place first."""
    ordered = sorted(colours, key=lambda c: (not c.place, c.place))
    groups = groupby(ordered, key=lambda c: c.place)
    return joined([f"{joined([c.words for c in group])} {at}".strip() for at, group in groups])


def _scene(look: Look) -> str:
    """A short name to hold on to in later texts."""
    names = [c.name for c in _named(look.colours)]
    return f"the {joined(names[:2])} scene" if names else "the scene"


def _light_change(spoken: Look, now: Look) -> list[str]:
    if spoken.brightness is None or now.brightness is None:
        return []
    step = now.brightness - spoken.brightness
    if abs(step) < LIGHT_STEP:
        return []
    amount = "much" if abs(step) >= LIGHT_LEAP else "a little"
    return [f"the picture gets {amount} {'brighter' if step > 0 else 'darker'}"]


def _colour_change(spoken: tuple[Colour, ...], now: tuple[Colour, ...]) -> list[str]:
    old, new = ({c.name: c.share for c in colours} for colours in (spoken, now))
    come, more, less, gone = [], [], [], []
    for colour in now:
        before = old.get(colour.name, 0.0)
        if colour.share >= NEW_SHARE and before < GONE_SHARE:
            come.append(f"{colour.words} {colour.place}".strip())
        elif colour.share - before >= SHIFT_SHARE:
            more.append(f"more {colour.name}")
    for colour in spoken:
        after = new.get(colour.name, 0.0)
        if colour.share >= NEW_SHARE and after < GONE_SHARE:
            gone.append(colour.name)
        elif colour.share - after >= SHIFT_SHARE:
            less.append(f"less {colour.name}")
    changes = []
    if come:
        changes.append(f"{joined(come)} {'comes' if len(come) == 1 else 'come'} in")
    if more or less:
        changes.append(f"there is {joined(more + less)}")
    if gone:
        changes.append(f"the {joined(gone)} {'is' if len(gone) == 1 else 'are'} gone")
    return changes


# --- the view

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


def _does(camera: Camera) -> str:
    if not camera.moves:
        return ("stays still", "shakes a little", "shakes strongly")[camera.shake]
    return ", ".join(filter(None, (_moving(camera, DOES), HOW_SHAKY[camera.shake])))


def _view_change(before: Camera | None, now: Camera | None, scene: str) -> str:
    """What the view does now, told from what it did; the short name of the scene goes with it."""
    if now is None:
        return f"in {scene}"
    if before is None:
        return f"in {scene} the view {_does(now)}"
    shake = f", {HOW_SHAKY[now.shake]}" if now.shake else ""
    if not before.moves and not now.moves:
        if now == before:
            return f"in the {('still', 'slightly shaking', 'shaking')[now.shake]} view of {scene}"
        return f"the view of {scene} {'steadies' if now.shake < before.shake else _does(now)}"
    if not before.moves:
        return f"in {scene} the view starts to {_moving(now, TO_DO)}{shake}"
    if not now.moves:
        return f"the view of {scene} comes to rest{shake}"
    if before.kind != now.kind:
        return f"in {scene} the view now {_does(now)}"
    if now.shake < before.shake:
        shake = f"{shake}, less than before" if now.shake else ", more steadily"
    pace = (now.pan + now.zoom + now.roll) - (before.pan + before.zoom + before.roll)
    if pace:
        change = "faster" if pace > 0 else "slower"
        return (
            f"in {scene} the view keeps {_moving(now, DOING, False)}, {change} than before{shake}"
        )
    return f"in {scene} the view keeps {_moving(now, DOING)}{shake}"


def _camera_course(cameras: list[Camera]) -> list[str]:
    steps = [phrase for phrase, _ in groupby(_does(camera) for camera in cameras)]
    if not steps:
        return []
    if len(steps) == 1:
        return [f"the view {steps[0]} throughout"]
    return [f"the view first {', then '.join(steps)}"]


# --- what moves in it


def _moves(subject: Subject | None, alone: bool = False) -> list[str]:
    """What moves where and how. alone: the view moves too, and this is beside it."""
    if subject is None:
        return []
    verb = "moves by itself" if alone else "moves"
    if not subject.area:
        return [f"{HOW_MUCH[0]} {verb}"]
    lead = f"{_where(subject)}, " if _where(subject) else ""
    return [f"{lead}{HOW_MUCH[subject.area]} {_how(subject, verb)}"]


def _where(subject: Subject) -> str:
    return "" if subject.area == len(HOW_MUCH) - 1 else subject.place


def _how(subject: Subject, verb: str) -> str:
    way = subject.heading or "this way and that"
    return " ".join(filter(None, (verb, HOW_FAST[subject.speed], way)))


def _subject_change(before: Subject | None, now: Subject | None) -> list[str]:
    if now is None:
        return []
    if before is None:
        return _moves(now)
    if not before.area and not now.area:
        return []
    if not before.area:
        return [f"{HOW_MUCH[now.area]} {_how(now, 'starts to move')} {_where(now)}".strip()]
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
    ratio = now / before
    if 1 / MORE_MOTION < ratio < MORE_MOTION:
        return []
    amount = "much " if not 1 / MUCH_MORE_MOTION < ratio < MUCH_MORE_MOTION else "a little "
    return [f"gets {amount}{'stronger' if ratio > 1 else 'weaker'}"]


def _goes_on(subject: Subject | None) -> list[str]:
    if subject is None or not subject.area:
        return []
    parts = ("the movement", _where(subject), "goes on", subject.heading)
    return [" ".join(filter(None, parts))]


def _subject_course(subjects: list[Subject]) -> list[str]:
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


def _no_change(look: Look, scene: str, again: bool) -> str:
    view = _view_change(look.camera, look.camera, scene)
    quiet = look.subject is not None and not look.subject.area
    if look.camera is not None and look.camera.moves:
        lead = "again nothing changes" if again else "nothing changes"
        return sentence(f"{lead}: {' and '.join([view, *_goes_on(look.subject)])}")
    if quiet:
        lead = "again hardly anything" if again else "hardly anything"
        return sentence(f"{lead} moves or changes {view}")
    lead = "again nothing changes" if again else "nothing changes"
    return sentence(": ".join([f"{lead} {view}", *_goes_on(look.subject)]))


# --- what is written in it


def _says(texts: Texts) -> list[str]:
    return [f"{place} it says {joined(list(group))}" for place, group in _by_place(texts)]


def _by_place(texts: Texts) -> list[tuple[str, list[str]]]:
    places = dict.fromkeys(place for _, place in texts)
    return [(place, _quotes(t for t in texts if t[1] == place)) for place in places]


def _text_change(before: Look, now: Look) -> list[str]:
    come = tuple(t for t in now.texts if not _holds(before.read, t[0]))
    gone = [] if now.dense else [t for t in before.texts if not _holds(now.read, t[0])]
    replaced = {place for _, place in gone} & {place for _, place in come}
    changes = [
        f"{place} it {'now says' if place in replaced else 'says'} {joined(group)}"
        for place, group in _by_place(come)
    ]
    left = _quotes(t for t in gone if t[1] not in replaced)
    if left:
        noun, verb = ("text", "is") if len(left) == 1 else ("texts", "are")
        changes.append(f"the {noun} {joined(left)} {verb} gone")
    return changes


def _holds(texts: Iterable[str], text: str) -> bool:
    return any(_same(text, other) for other in texts)


def _same(one: str, other: str) -> bool:
    """Two readings of one text. Digits must agree: `Goal 2` is not `Goal 3` misread."""
    digits = [[c for c in text if c.isdigit()] for text in (one, other)]
    return digits[0] == digits[1] and SequenceMatcher(None, one, other).ratio() >= SAME_TEXT


def _all_texts(looks: list[Texts]) -> list[str]:
    seen: Texts = ()
    for texts in looks:
        seen += tuple(t for t in texts if not _holds([text for text, _ in seen], t[0]))
    return [f"it says {joined(_quotes(seen))}"] if seen else []


def _quotes(texts: Iterable[tuple[str, str]]) -> list[str]:
    return [f'"{text}"' for text, _ in texts]
