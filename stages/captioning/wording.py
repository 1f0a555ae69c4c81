"""From what was measured in each segment to sentences: first what is there, then what changes.

Every sentence states a measurement and nothing else, so a thing that was not measured is not
spoken of, and no word guesses at what the moving things are. The same looks give the same words.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from curation.texts import sentence
from stages.captioning import motion_words as motion
from stages.captioning import picture_words as picture
from stages.captioning.levels import Look


def sub_captions(looks: list[Look]) -> list[str]:
    """The first text says what is there, each later one what is different now."""
    said = [_opening(looks[0])]
    spoken = looks[0]  # the look whose light and colours were last spoken of
    unchanged = 0
    for before, now in pairwise(looks):
        repainted = [
            *picture.light_change(spoken, now),
            *picture.colour_change(spoken.colours, now.colours),
        ]
        subject = motion.subject_change(before.subject, now.subject)
        changes = [*subject, *repainted, *picture.text_change(before, now)]
        if repainted:
            spoken = now
        if before.camera == now.camera and not changes:
            unchanged += 1
            said.append(_no_change(now, picture.scene(spoken), again=unchanged > 1))
            continue
        unchanged = 0
        goes_on = [] if subject else motion.goes_on(now.subject)
        view = motion.view_change(before.camera, now.camera, picture.scene(spoken))
        said.append(_sentences(_led(view, [*goes_on, *changes])))
    return said


def overall(looks: list[Look]) -> str:
    """The five in one: what is there, then each thing's course from the first to the last."""
    first, last = looks[0], looks[-1]
    return _sentences(
        [
            picture.description(first),
            *motion.camera_course([look.camera for look in looks if look.camera]),
            *motion.subject_course([look.subject for look in looks if look.subject]),
            *(f"{change} from start to end" for change in picture.light_change(first, last)),
            *picture.all_texts([look.texts for look in looks]),
        ]
    )


def _opening(look: Look) -> str:
    camera = [f"the view {motion.view_does(look.camera)}"] if look.camera else []
    alone = look.camera is not None and look.camera.moves
    subject = motion.moves(look.subject, alone)
    return _sentences([picture.description(look), *camera, *subject, *picture.says(look.texts)])


def _led(view: str, parts: list[str]) -> list[str]:
    """A view without a verb (`in the still view of …`) leads the next sentence."""
    if view.startswith("in ") and parts and " the view " not in view:
        return [f"{view}, {parts[0]}", *parts[1:]]
    return [view, *parts]


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(sentence(part) for part in parts if part)


def _no_change(look: Look, scene: str, again: bool) -> str:
    view = motion.view_change(look.camera, look.camera, scene)
    quiet = look.subject is not None and not look.subject.area
    if look.camera is not None and look.camera.moves:
        lead = "again nothing changes" if again else "nothing changes"
        return sentence(f"{lead}: {' and '.join([view, *motion.goes_on(look.subject)])}")
    if quiet:
        lead = "again hardly anything" if again else "hardly anything"
        return sentence(f"{lead} moves or changes {view}")
    lead = "again nothing changes" if again else "nothing changes"
    return sentence(": ".join([f"{lead} {view}", *motion.goes_on(look.subject)]))
