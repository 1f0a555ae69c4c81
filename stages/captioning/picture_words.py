"""Words for the picture: its light, its colours, what is written in it, and how those change."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from curation.texts import joined
from stages.captioning.colours import Colour
from stages.captioning.levels import Look

LIGHTS = ("very dark", "dark", "", "bright", "very bright")
COLOURS_NAMED = 3
ALMOST_ALL, MOSTLY = 0.85, 0.5  # of the picture
NAMED_SHARE = 0.12  # of the picture: a smaller colour is not named
NEW_SHARE, GONE_SHARE = 0.15, 0.08  # a colour comes in above the one, and is gone below the other
SHIFT_SHARE = 0.15  # of the picture: a colour that gains or loses this much is spoken of
LIGHT_STEP, LIGHT_LEAP = 12.0, 35.0  # grey levels of mean luma: a little, much
SAME_TEXT = 0.7  # likeness of two readings of one text: OCR is not the same on every frame

Texts = tuple[tuple[str, str], ...]  # what is written, where


def _named(colours: Iterable[Colour]) -> list[Colour]:
    return [c for c in colours if c.share >= NAMED_SHARE][:COLOURS_NAMED]


def description(look: Look) -> str:
    light = "" if look.light is None else LIGHTS[look.light]
    article = f"a {light} picture" if light else "a picture"
    colours = _named(look.colours)
    if not colours:
        return article if light else "a picture of many colours"
    if colours[0].share >= ALMOST_ALL:
        return f"{article}, almost all of it {colours[0].words}"
    placed = [f"{c.words} {c.place}".strip() for c in colours]
    if colours[0].share < MOSTLY:
        return f"{article} of {joined(placed)}"
    rest = f", with {joined(placed[1:])}" if len(placed) > 1 else ""
    return f"{article}, mostly {colours[0].words}{rest}"


def scene(look: Look) -> str:
    """A short name to hold on to in later texts."""
    names = [c.name for c in _named(look.colours)]
    return f"the {joined(names[:2])} scene" if names else "the scene"


def light_change(spoken: Look, now: Look) -> list[str]:
    if spoken.brightness is None or now.brightness is None:
        return []
    step = now.brightness - spoken.brightness
    if abs(step) < LIGHT_STEP:
        return []
    amount = "much" if abs(step) >= LIGHT_LEAP else "a little"
    return [f"the picture gets {amount} {'brighter' if step > 0 else 'darker'}"]


def colour_change(spoken: tuple[Colour, ...], now: tuple[Colour, ...]) -> list[str]:
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


def says(texts: Texts) -> list[str]:
    return [f"{place} it says {joined(list(group))}" for place, group in _by_place(texts)]


def _by_place(texts: Texts) -> list[tuple[str, list[str]]]:
    places = dict.fromkeys(place for _, place in texts)
    return [(place, _quotes(t for t in texts if t[1] == place)) for place in places]


def text_change(before: Look, now: Look) -> list[str]:
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


def all_texts(looks: list[Texts]) -> list[str]:
    seen: Texts = ()
    for texts in looks:
        seen += tuple(t for t in texts if not _holds([text for text, _ in seen], t[0]))
    return [f"it says {joined(_quotes(seen))}"] if seen else []


def _quotes(texts: Iterable[tuple[str, str]]) -> list[str]:
    return [f'"{text}"' for text, _ in texts]
