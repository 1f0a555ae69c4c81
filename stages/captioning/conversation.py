"""Builds the requests to a vision-language model about one clip, and parses its answers.

There is one request per segment and one for the whole clip. All begin with the same system text
and key frames, so that a server computes this prefix once per clip. Text of unknown origin
(earlier answers, text that OCR read) is quoted as JSON on one line between <data> tags, which it
can't close.

The prompts are files in stages/captioning/prompts/; their version is a hash of those in use.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

from curation.images import decode_image, encode_jpeg, shrink
from curation.texts import clean_outside_text, sanitize_text

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
STRUCTURED_ONLY = ("structured_fields",)  # prompts that only caption.structured uses
MAX_DATA_CHARS = 2000  # of each text that is quoted as data
MAX_CAPTION_CHARS = 10_000  # about five times the T5 tokens that the trainer reads
MAX_JSON_STARTS = 20  # braces of an answer at which a JSON object is searched


@cache
def load_prompts() -> dict[str, str]:
    """Name of a prompt -> its template."""
    return {path.stem: path.read_text() for path in sorted(PROMPTS_FOLDER.glob("*.txt"))}


@cache
def prompts_version(structured: bool = False) -> str:
    """A short hash over the names and texts of the prompts in use."""
    prompts = load_prompts()
    used = {name: prompts[name] for name in prompts if structured or name not in STRUCTURED_ONLY}
    return hashlib.sha256(json.dumps(used).encode()).hexdigest()[:12]


def render_prompt(name: str, **values: object) -> str:
    return Template(load_prompts()[name].strip()).substitute(
        {key: str(value) for key, value in values.items()}
    )


@dataclass(frozen=True)
class PromptImage:
    """A JPEG, and the forms that back ends need, each computed once."""

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


def make_prompt_image(jpeg: bytes, name: str, max_side_px: int) -> PromptImage:
    """Returns the JPEG, shrunk if its long side is above `max_side_px`. Raises ValueError that
    contains `name` if it is damaged."""
    bgr = decode_image(jpeg, name)
    if max(bgr.shape[:2]) <= max_side_px:
        return PromptImage(jpeg)
    return PromptImage(encode_jpeg(shrink(bgr, max_side_px), 90))


@dataclass(frozen=True)
class Message:
    """One message of a chat; `parts` are texts and images in order."""

    role: str  # system | user
    parts: tuple[str | PromptImage, ...]


@dataclass(frozen=True)
class Request:
    """Everything that a back end needs for one completion."""

    messages: tuple[Message, ...]
    schema: dict[str, Any]  # JSON schema of the answer
    max_tokens: int
    temperature: float
    seed: int = 0

    @property
    def images(self) -> list[PromptImage]:
        return [p for m in self.messages for p in m.parts if isinstance(p, PromptImage)]

    def to_chat(self, image_part: Callable[[PromptImage], dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages in the form of chat APIs and chat templates."""
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else image_part(part)
                    for part in message.parts
                ],
            }
            for message in self.messages
        ]


@dataclass(frozen=True)
class Completion:
    """A model's answer to one request."""

    text: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None  # as the back end names it
    model: str | None = None  # as the reply names it
    fault: str | None = None  # why there is no usable text, as the reason of a failed check


@dataclass(frozen=True)
class PromptSegment:
    """The images and texts of one segment in the requests."""

    start_s: float
    end_s: float
    key_frame: PromptImage
    frame_samples: tuple[PromptImage, ...]
    camera: str  # phrase for the measured camera motion
    ocr_lines: tuple[str, ...] = ()  # text that OCR read in the key frame


@dataclass(frozen=True)
class Conversation:
    """The requests about one clip. Their messages all begin with `_shared_prefix`."""

    segments: Sequence[PromptSegment]
    language: str = "English"  # or several: English or German
    structured: bool = False  # also asks for the fields of sub-captions

    def sub_caption_messages(self, number: int, earlier: Sequence[str]) -> tuple[Message, ...]:
        """Asks for the sub-caption of segment `number`, from 0. earlier: those before it."""
        segment, samples = self.segments[number], len(self.segments[number].frame_samples)
        question = render_prompt(
            "next" if earlier else "first",
            number=number + 1,
            count=len(self.segments),
            start=f"{segment.start_s:g}",
            end=f"{segment.end_s:g}",
            shown=f"the last {samples} frames show more of it" if samples else "its frame is above",
            camera=segment.camera,
            text=_quote_ocr_lines(segment.ocr_lines),
            earlier=quote_as_json(earlier),
        )
        return self._messages(*segment.frame_samples, question + self._fields_question(number))

    def overall_messages(self, sub_captions: Sequence[str]) -> tuple[Message, ...]:
        """Asks for the caption of the whole clip."""
        return self._messages(render_prompt("overall", earlier=quote_as_json(sub_captions)))

    def refine_messages(
        self, number: int, draft: str, earlier: Sequence[str], caption: str
    ) -> tuple[Message, ...]:
        """Asks to rewrite the draft of segment `number`. earlier: the rewritten texts before it."""
        question = render_prompt(
            "refine",
            number=number + 1,
            count=len(self.segments),
            overall=quote_as_json([caption]),
            earlier=quote_as_json(earlier),
            draft=quote_as_json([draft]),
            camera=self.segments[number].camera,
        )
        return self._messages(question + self._fields_question(number))

    def _fields_question(self, number: int) -> str:
        """A paragraph that ends a question; empty without `structured`."""
        if not self.structured:
            return ""
        return "\n" + render_prompt("structured_fields", number=number + 1)

    def _messages(self, *parts: str | PromptImage) -> tuple[Message, ...]:
        system, prefix = self._shared_prefix
        return system, Message("user", (*prefix, *parts))

    @cached_property
    def _shared_prefix(self) -> tuple[Message, tuple[str | PromptImage, ...]]:
        """The system message, and the first parts of the user message: key frames by time."""
        duration = f"{self.segments[-1].end_s:g}"
        frames = render_prompt("frames", count=len(self.segments), duration=duration)
        system = Message("system", (render_prompt("system", language=self.language),))
        return system, (*(segment.key_frame for segment in self.segments), frames)


def split_messages(
    prompt: str, count: int, duration_s: float, language: str = "English"
) -> tuple[Message, ...]:
    """Asks for `count` progressive sub-captions of the clip that `prompt` describes."""
    values = {"count": count, "duration": f"{duration_s:g}"}
    system = Message("system", (render_prompt("split_system", language=language, **values),))
    description = sanitize_text(prompt, 4 * MAX_DATA_CHARS)
    return system, Message("user", (render_prompt("split", prompt=description, **values),))


def retry_messages(messages: tuple[Message, ...], reason: str) -> tuple[Message, ...]:
    """The same messages with the reason why the last answer failed added at the end, which keeps
    the shared prefix.

    reason: of a check. The part after a colon is dropped: it may contain text of unknown origin.
    """
    *before, last = messages
    prompt = render_prompt("again", reason=reason.partition(":")[0])
    return (*before, Message(last.role, (*last.parts, prompt)))


def quote_as_json(texts: Sequence[str]) -> str:
    """Texts of unknown origin as a JSON list; tags and quotation marks in them can't close it."""
    return json.dumps([sanitize_text(text, MAX_DATA_CHARS) for text in texts], ensure_ascii=False)


def _quote_ocr_lines(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"\nWords read in its middle frame: <data>{quote_as_json(lines)}</data>"


CAPTION_SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string"}},
    "required": ["caption"],
    "additionalProperties": False,
}


def split_schema(count: int) -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
    return CAPTION_SCHEMA | {"properties": {"sub_captions": texts}, "required": ["sub_captions"]}


def find_json_value(text: str, name: str) -> Any:
    """The value of `name` in the first JSON object of an answer that has it, else None.

    A code fence or other text may surround the object: not every server enforces the schema.
    """
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _ in range(MAX_JSON_STARTS):
        if start < 0:
            return None
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and name in value:
            return value[name]
        start = text.find("{", start + 1)
    return None


def parse_caption(text: str) -> str:
    """The caption with its lines, from the answer's JSON, or the whole answer if it has no JSON.

    Empty if the JSON is incomplete or has several captions.
    """
    caption = find_json_value(text, "caption")
    if caption is None and "{" not in text:
        caption = text
    if not isinstance(caption, str) or text.count('"caption"') > 1:
        return ""
    return clean_outside_text(caption, MAX_CAPTION_CHARS).strip()


def derive_seed(*parts: object) -> int:
    """A seed in 0..2^31-1 that depends only on the parts: clip, text and attempt."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
