"""Phrases for the picture: its light, its colours, the text in it, and how those change."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from curation.texts import join_words
from stages.captioning.colours import Colour
from stages.captioning.segment_state import SegmentState

LIGHTS = ("very dark", "dark", "", "bright", "very bright")  # by level
MEDIUM_LIGHT = "neither dark nor bright"  # the level that texts do not mention
MAX_COLOURS_NAMED = 3
MIN_SHARE_ALMOST_ALL, MIN_SHARE_MOSTLY = 0.85, 0.5  # of the picture
MIN_SHARE_NAMED = 0.12  # of the picture: a smaller colour is not named
MIN_SHARE_NEW, MAX_SHARE_GONE = 0.15, 0.08  # a colour appears above one, is gone below the other
MIN_SHARE_CHANGE = 0.15  # of the picture: a smaller gain or loss of a colour is not mentioned
MIN_LUMA_CHANGE, LARGE_LUMA_CHANGE = 12.0, 35.0  # grey levels of mean luma: a little, much
MIN_SAME_TEXT_RATIO = 0.7  # two readings of one text: OCR differs from frame to frame

Quotes = tuple[tuple[str, str], ...]  # text and its position in the image


def _named(colours: Iterable[Colour]) -> list[Colour]:
    return [c for c in colours if c.share >= MIN_SHARE_NAMED][:MAX_COLOURS_NAMED]


def describe_picture(state: SegmentState) -> str:
    """`a dark picture, mostly blue, with green at the bottom`."""
    light = "" if state.light is None else LIGHTS[state.light]
    picture = f"a {light} picture" if light else "a picture"
    colours = _named(state.colours)
    if not colours:
        return picture if light else "a picture of many colours"
    if colours[0].share >= MIN_SHARE_ALMOST_ALL:
        return f"{picture}, almost all of it {colours[0].tinted_name}"
    phrases = [_with_position(c) for c in colours]
    if colours[0].share < MIN_SHARE_MOSTLY:
        return f"{picture} of {join_words(phrases)}"
    others = f", with {join_words(phrases[1:])}" if len(phrases) > 1 else ""
    return f"{picture}, mostly {colours[0].tinted_name}{others}"


def _with_position(colour: Colour) -> str:
    return f"{colour.tinted_name} {colour.position}".strip()


def name_scene(state: SegmentState) -> str:
    """A short name by which later texts refer to the scene."""
    names = [c.name for c in _named(state.colours)]
    return f"the {join_words(names[:2])} scene" if names else "the scene"


def describe_light_change(previous: SegmentState, state: SegmentState) -> list[str]:
    """Returns at most one phrase for a change of the light."""
    if previous.brightness is None or state.brightness is None:
        return []
    change = state.brightness - previous.brightness
    if abs(change) < MIN_LUMA_CHANGE:
        return []
    amount = "much" if abs(change) >= LARGE_LUMA_CHANGE else "a little"
    return [f"the picture gets {amount} {'brighter' if change > 0 else 'darker'}"]


def describe_colour_changes(previous: tuple[Colour, ...], colours: tuple[Colour, ...]) -> list[str]:
    """Phrases for colours that appear, for those that gain or lose, and for those that are gone."""
    old, new = ({c.name: c.share for c in both} for both in (previous, colours))
    appeared, more, less, gone = [], [], [], []
    for colour in colours:
        before = old.get(colour.name, 0.0)
        if colour.share >= MIN_SHARE_NEW and before < MAX_SHARE_GONE:
            appeared.append(_with_position(colour))
        elif colour.share - before >= MIN_SHARE_CHANGE:
            more.append(f"more {colour.name}")
    for colour in previous:
        after = new.get(colour.name, 0.0)
        if colour.share >= MIN_SHARE_NEW and after < MAX_SHARE_GONE:
            gone.append(colour.name)
        elif colour.share - after >= MIN_SHARE_CHANGE:
            less.append(f"less {colour.name}")
    changes = []
    if appeared:
        changes.append(f"{join_words(appeared)} {'comes' if len(appeared) == 1 else 'come'} in")
    if more or less:
        changes.append(f"there is {join_words(more + less)}")
    if gone:
        changes.append(f"the {join_words(gone)} {'is' if len(gone) == 1 else 'are'} gone")
    return changes


def quote_by_position(quotes: Quotes) -> list[str]:
    """A phrase per position: `at the top left it says "Goal 2"`."""
    return [f"{position} it says {join_words(texts)}" for position, texts in _by_position(quotes)]


def _by_position(quotes: Quotes) -> list[tuple[str, list[str]]]:
    positions = dict.fromkeys(position for _, position in quotes)
    return [(position, _quote(q for q in quotes if q[1] == position)) for position in positions]


def describe_text_changes(previous: SegmentState, state: SegmentState) -> list[str]:
    """Phrases for text that appears or is replaced. Text that OCR reads no more may still be there,
    so no phrase states that it is gone."""
    appeared = tuple(q for q in state.quotes if not _is_among(previous.ocr_lines, q[0]))
    unread = [q for q in previous.quotes if not _is_among(state.ocr_lines, q[0])]
    replaced = {position for _, position in unread}
    return [
        f"{position} it {'now says' if position in replaced else 'says'} {join_words(texts)}"
        for position, texts in _by_position(appeared)
    ]


def _is_among(texts: Iterable[str], text: str) -> bool:
    return any(_is_same_text(text, other) for other in texts)


def _is_same_text(one: str, other: str) -> bool:
    """Whether both are readings of one text. Digits must agree: `Goal 2` is not `Goal 3`."""
    digits = [[c for c in text if c.isdigit()] for text in (one, other)]
    return digits[0] == digits[1] and (
        SequenceMatcher(None, one, other).ratio() >= MIN_SAME_TEXT_RATIO
    )


def quote_all(quotes_by_segment: list[Quotes]) -> list[str]:
    """Returns at most one phrase that quotes each text of the clip once."""
    distinct: Quotes = ()
    for quotes in quotes_by_segment:
        distinct += tuple(q for q in quotes if not _is_among([text for text, _ in distinct], q[0]))
    return [f"it says {join_words(_quote(distinct))}"] if distinct else []


def _quote(quotes: Iterable[tuple[str, str]]) -> list[str]:
    return [f'"{text}"' for text, _ in quotes]
