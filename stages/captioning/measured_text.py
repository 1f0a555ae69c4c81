"""Sentences from the states of a clip's segments: first a description, then what changes.

Every sentence states a measurement and nothing else: a thing that was not measured is not
mentioned, and no word guesses what the moving things are. The same states give the same text.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from curation.texts import format_sentence
from stages.captioning import motion_phrases as motion
from stages.captioning import picture_phrases as picture
from stages.captioning.segment_state import SegmentState


def write_sub_captions(states: list[SegmentState]) -> list[str]:
    """One text per segment: the first describes it, each later one states what has changed."""
    texts = [_describe(states[0])]
    described = states[0]  # the state whose light and colours the texts gave last
    unchanged = 0
    for previous, state in pairwise(states):
        picture_changes = [
            *picture.describe_light_change(described, state),
            *picture.describe_colour_changes(described.colours, state.colours),
        ]
        subject_change = motion.describe_subject_change(previous.subject, state.subject)
        text_changes = picture.describe_text_changes(previous, state)
        changes = [*subject_change, *picture_changes, *text_changes]
        if picture_changes:
            described = state
        scene = picture.name_scene(described)
        if previous.camera == state.camera and not changes:
            unchanged += 1
            texts.append(_describe_no_change(state, scene, again=unchanged > 1))
            continue
        unchanged = 0
        ongoing = [] if subject_change else motion.describe_ongoing_motion(state.subject)
        view = motion.describe_camera_change(previous.camera, state.camera, scene)
        texts.append(_join_sentences(_lead_with(view, [*ongoing, *changes])))
    return texts


def write_caption(states: list[SegmentState]) -> str:
    """One text for the clip: the first segment's picture, then each thing from start to end."""
    first, last = states[0], states[-1]
    light_change = picture.describe_light_change(first, last)
    return _join_sentences(
        [
            picture.describe_picture(first),
            *motion.summarize_camera([state.camera for state in states if state.camera]),
            *motion.summarize_subject([state.subject for state in states if state.subject]),
            *(f"{change} from start to end" for change in light_change),
            *picture.quote_all([state.quotes for state in states]),
        ]
    )


# Why a field of caption.structured is null: of the first two no measurement exists.
FIELD_NULL_REASONS = {
    "subject": "needs a model",
    "style": "needs a model",
    **dict.fromkeys(("action", "camera", "light"), "not measured"),
}


def write_fields(state: SegmentState) -> dict[str, str | None]:
    """The fields of caption.structured that are measured. `action` is what moves, and where."""
    camera, subject, light = state.camera, state.subject, state.light
    moving = motion.describe_subject(subject, view_moves=camera is not None and camera.moves)
    return {
        "action": moving[0] if moving else None,
        "camera": None if camera is None else f"the view {motion.describe_camera(camera)}",
        "light": None if light is None else picture.LIGHTS[light] or picture.MEDIUM_LIGHT,
    }


def _describe(state: SegmentState) -> str:
    camera = [f"the view {motion.describe_camera(state.camera)}"] if state.camera else []
    view_moves = state.camera is not None and state.camera.moves
    subject = motion.describe_subject(state.subject, view_moves)
    quotes = picture.quote_by_position(state.quotes)
    return _join_sentences([picture.describe_picture(state), *camera, *subject, *quotes])


def _lead_with(view: str, phrases: list[str]) -> list[str]:
    """A view without a verb (`in the still view of …`) becomes the start of the next phrase."""
    if view.startswith("in ") and phrases and " the view " not in view:
        return [f"{view}, {phrases[0]}", *phrases[1:]]
    return [view, *phrases]


def _join_sentences(phrases: Iterable[str]) -> str:
    return " ".join(format_sentence(phrase) for phrase in phrases if phrase)


def _describe_no_change(state: SegmentState, scene: str, again: bool) -> str:
    view = motion.describe_camera_change(state.camera, state.camera, scene)
    ongoing = motion.describe_ongoing_motion(state.subject)
    subject_rests = state.subject is not None and not state.subject.area
    if state.camera is not None and state.camera.moves:
        lead = "again nothing changes" if again else "nothing changes"
        return format_sentence(f"{lead}: {' and '.join([view, *ongoing])}")
    if subject_rests:
        lead = "again hardly anything" if again else "hardly anything"
        return format_sentence(f"{lead} moves or changes {view}")
    lead = "again nothing changes" if again else "nothing changes"
    return format_sentence(": ".join([f"{lead} {view}", *ongoing]))
