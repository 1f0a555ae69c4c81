"""What is asked of a vision-language model, and what its answer says. Pure: no model, no server.

A clip is asked about once per segment and once as a whole. Every request begins with the same
bytes, the system text and the key frames in order, so that a server computes them once per clip.
Texts of unknown origin (earlier answers, words read in the frames) go in as one harmless line
between <data> tags, which they can't close.

The words stand in stages/prompts/; the hash over these files is the prompts' version.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

from curation.images import decode_image, encode_jpeg, shrink
from curation.texts import harmless

FOLDER = Path(__file__).parent / "prompts"
DATA_CHARS = 2000  # of one text that is quoted as data


@cache
def prompts() -> dict[str, str]:
    """Name -> text."""
    return {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.txt"))}


@cache
def prompts_version() -> str:
    """A short hash over all prompts: other words, other captions."""
    return hashlib.sha256(json.dumps(prompts()).encode()).hexdigest()[:12]


def worded(name: str, **values: object) -> str:
    return Template(prompts()[name].strip()).substitute(
        {key: str(value) for key, value in values.items()}
    )


@dataclass(frozen=True)
class Picture:
    """A JPEG, with what back ends make of it once however often it is shown."""

    jpeg: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.jpeg).hexdigest()

    @cached_property
    def url(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()

    @cached_property
    def pil(self) -> Any:
        from PIL import Image

        return Image.open(BytesIO(self.jpeg)).convert("RGB")


def picture(jpeg: bytes, name: str, side: int) -> Picture:
    """The JPEG with a long side of `side` px at most. Raises ValueError where it is none."""
    bgr = decode_image(jpeg, name)
    if max(bgr.shape[:2]) <= side:
        return Picture(jpeg)
    return Picture(encode_jpeg(shrink(bgr, side), 90))


@dataclass(frozen=True)
class Message:
    """One turn; `parts` are texts and pictures in the order in which they are shown."""

    role: str  # system | user
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class Request:
    """All that a back end needs for one answer."""

    messages: tuple[Message, ...]
    schema: dict[str, Any]  # JSON schema of the answer
    seed: int
    max_tokens: int
    temperature: float

    @property
    def pictures(self) -> list[Picture]:
        return [p for m in self.messages for p in m.parts if isinstance(p, Picture)]

    def as_chat(self, image: Any) -> list[dict[str, Any]]:
        """The messages as chat APIs and chat templates take them; image(picture): its part."""
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else image(part)
                    for part in message.parts
                ],
            }
            for message in self.messages
        ]


@dataclass(frozen=True)
class Segment:
    """What is shown and said of one segment."""

    start_s: float
    end_s: float
    key: Picture
    neighbours: tuple[Picture, ...]
    camera: str  # what was measured, in words
    text: tuple[str, ...] = ()  # words read in the key frame, of unknown origin


@dataclass(frozen=True)
class Conversation:
    """The questions about one clip. Each is a tuple of messages; `_opening` is their prefix."""

    segments: Sequence[Segment]

    def sub_caption(self, number: int, earlier: Sequence[str]) -> tuple[Message, ...]:
        """About segment `number`, from 0; earlier: the texts of those before it."""
        segment, more = self.segments[number], len(self.segments[number].neighbours)
        question = worded(
            "next" if earlier else "first",
            number=number + 1,
            count=len(self.segments),
            start=f"{segment.start_s:g}",
            end=f"{segment.end_s:g}",
            shown=f"the last {more} frames show more of it" if more else "its frame is above",
            camera=segment.camera,
            text=_read(segment.text),
            earlier=quoted(earlier),
        )
        return self._asked(*segment.neighbours, question)

    def overall(self, texts: Sequence[str]) -> tuple[Message, ...]:
        return self._asked(worded("overall", earlier=quoted(texts)))

    def refined(
        self, number: int, draft: str, earlier: Sequence[str], overall: str
    ) -> tuple[Message, ...]:
        """A rewriting of segment `number`'s draft; earlier: final texts of those before it."""
        return self._asked(
            worded(
                "refine",
                number=number + 1,
                count=len(self.segments),
                overall=quoted([overall]),
                earlier=quoted(earlier),
                draft=quoted([draft]),
                camera=self.segments[number].camera,
            )
        )

    def _asked(self, *parts: str | Picture) -> tuple[Message, ...]:
        system, opening = self._opening
        return system, Message("user", (*opening, *parts))

    @cached_property
    def _opening(self) -> tuple[Message, tuple[str | Picture, ...]]:
        """The common beginning: the rules, then the key frames in order of time."""
        seconds = f"{self.segments[-1].end_s:g}"
        told = worded("frames", count=len(self.segments), duration=seconds)
        rules = Message("system", (worded("system"),))
        return rules, (*(segment.key for segment in self.segments), told)


def split_messages(prompt: str, count: int, duration_s: float) -> tuple[Message, ...]:
    """One idea of a clip, to be told in `count` parts."""
    values = {"count": count, "duration": f"{duration_s:g}"}
    rules = Message("system", (worded("split_system", **values),))
    idea = harmless(prompt, 4 * DATA_CHARS)
    return rules, Message("user", (worded("split", prompt=idea, **values),))


def again(messages: tuple[Message, ...], reason: str) -> tuple[Message, ...]:
    """The same question once more, told why the last answer was no good. It ends differently, so
    the common beginning stays common.

    reason: what stands before its colon is told; after it may stand words of unknown origin.
    """
    *before, last = messages
    told = worded("again", reason=reason.partition(":")[0])
    return (*before, Message(last.role, (*last.parts, told)))


def quoted(texts: Sequence[str]) -> str:
    """Texts of unknown origin as a JSON list that no tag and no quotation mark can break out of."""
    return json.dumps([harmless(text, DATA_CHARS) for text in texts], ensure_ascii=False)


def _read(texts: Sequence[str]) -> str:
    return f"\nWords read in its middle frame: <data>{quoted(texts)}</data>" if texts else ""


CAPTION_SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string"}},
    "required": ["caption"],
    "additionalProperties": False,
}


def split_schema(count: int) -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
    return CAPTION_SCHEMA | {"properties": {"sub_captions": texts}, "required": ["sub_captions"]}


def answer(text: str, name: str) -> Any:
    """The value of `name` in the JSON object that an answer holds; None where there is none.

    Around the object there may be a code fence or other words: not every server holds a model to
    the schema.
    """
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, _ = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and name in found:
            return found[name]
        at = text.find("{", at + 1)
    return None


def caption_of(text: str) -> str:
    """The caption in an answer as one line: of its JSON object, or the answer itself where a model
    gave plain words; empty where the answer broke off."""
    found = answer(text, "caption")
    if found is None and "{" not in text:
        found = text
    return " ".join(found.split()) if isinstance(found, str) else ""


def seed_of(*parts: object) -> int:
    """The same for the same clip, segment and attempt, in whatever run: 0..2^31-1."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
