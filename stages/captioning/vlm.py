"""What captioners that ask a vision-language model share: the course of a clip, checks, retries.

A back end is a subclass with one coroutine, `say(request)`: one request in, the model's text out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge

from curation.config import ConfigError
from curation.stage import Row, RunContext
from curation.texts import largest_neighbour
from stages.captioning.captioner import Captioner, Captions, KeyFrame
from stages.captioning.checks import CheckLimits, TokenCount, failed_check
from stages.captioning.conversation import (
    CAPTION_SCHEMA,
    Conversation,
    Message,
    Request,
    Segment,
    again,
    answer,
    caption_of,
    picture,
    prompts_version,
    seed_of,
    split_messages,
    split_schema,
)
from stages.captioning.measured import quotable_lines
from stages.captioning.motion_phrases import describe_camera
from stages.captioning.segment_state import CameraState, quantize_camera
from stages.captioning.sentence_model import Sentences
from stages.captioning.t5_tokens import estimate_t5_tokens, load_t5_token_count
from stages.scorers.ocr import Ocr

CLIP_S = 3600.0  # given to one clip; a server that restarts takes minutes of it


@dataclass(frozen=True)
class Said:
    """A model's answer to one request."""

    text: str
    prompt_tokens: int = 0
    output_tokens: int = 0


class Unusable(Exception):
    """A text failed its checks as often as it may. `text` is the last one."""

    def __init__(self, reason: str, text: str):
        super().__init__(reason)
        self.text = text


@dataclass
class Vlm(Captioner):
    """Five sub-captions in order, each asked for with those before it; then one of the whole."""

    model: str = ""  # a folder, or a name as the server or the hub has it
    revision: str | None = None  # of the weights: recorded, and loaded where we load them
    image_side: Annotated[int, Ge(28)] = 640  # long side of the pictures shown, px
    temperature: Annotated[float, Ge(0)] = 0.5
    max_tokens: Annotated[int, Ge(1)] = 400  # of one answer
    attempts: Annotated[int, Ge(1)] = 3  # at one text; then the clip is rejected
    min_words: Annotated[int, Ge(1)] = 8  # of a text
    refine: bool = False  # afterwards rewrite each sub-caption, told the whole and those before it
    read_text: bool = False  # tell the model what OCR reads in the key frames (1 CPU-s a frame)
    t5_tokenizer: str | None = None  # folder of T5's; null: an estimate that errs upwards

    # a MiniLM sentence model, by which neighbours are compared; null: by TF-IDF alone
    minilm: str | None = None

    @property
    def compared_by(self) -> str:
        """The column by which neighbours may be too similar."""
        return "text_similarity_minilm" if self.minilm else "text_similarity_tfidf"

    @property
    def scores(self) -> tuple[str, ...]:
        return ("text_similarity_minilm",) if self.minilm else ()

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        self._limits = CheckLimits(self.min_words, self._t5(), context.similarity_limit)
        self._sentences = self._minilm()
        if self._sentences is not None:
            self._limits = replace(self._limits, similarity=self._sentences.similarity)
        if self.read_text:
            self._ocr = Ocr()

    def check(self) -> None:
        if not self.model:
            raise ConfigError(f"caption.{self.captioner}.model: which model shall write captions?")
        self._t5()
        self._minilm()

    def row_timeout_s(self, row: Row) -> float:
        return CLIP_S

    def provenance(self) -> dict[str, Any]:
        sampling = ("image_side", "temperature", "max_tokens", "attempts", "min_words", "refine")
        return {
            "captioner": self.captioner,
            "model": self.model,
            "revision": self.revision,
            "prompts": prompts_version(),
            "read_text": self.read_text,
            "minilm": self.minilm,
            **{name: getattr(self, name) for name in sampling},
        }

    async def say(self, request: Request) -> Said:
        """The model's answer. Unavailable stops the run, any other error is the clip's."""
        raise NotImplementedError

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        segments = await asyncio.to_thread(self._segments, clip["segments"], frames)
        told = Conversation(segments)
        spent: Counter[str] = Counter()
        ask = partial(self._caption, clip["clip_id"], spent)
        texts: list[str] = []
        overall = ""
        try:
            for number, facts in enumerate(clip["segments"]):
                asked = told.sub_caption(number, texts)
                texts.append(await ask(f"sub-caption {number + 1}", asked, texts, facts))
            overall = await ask("overall caption", told.overall(texts), [], None)
            drafts, texts = texts, texts if not self.refine else []
            for number, facts in enumerate(clip["segments"] if self.refine else []):
                asked = told.refined(number, drafts[number], texts, overall)
                texts.append(await ask(f"refined sub-caption {number + 1}", asked, texts, facts))
        except Unusable as error:
            if len(texts) < len(segments):
                texts = [*texts, error.text]
            else:
                overall = error.text
            return Captions(texts, overall, f"caption {error}", self._cost(spent))
        return Captions(texts, overall, None, self._cost(spent), self._compared(texts))

    async def split(self, prompt: str, count: int, duration_s: float) -> list[str]:
        """One idea of a clip as `count` progressive sub-captions. Raises Unusable."""
        asked = split_messages(prompt, count, duration_s)

        def parts(text: str) -> tuple[list[str], str | None]:
            found = answer(text, "sub_captions")
            if not isinstance(found, list) or len(found) != count:
                return [], f"not {count} texts"
            texts = [" ".join(str(part).split()) for part in found]
            for number, text in enumerate(texts):
                if reason := failed_check(text, self._limits, texts[:number]):
                    return texts, f"text {number + 1} {reason}"
            return texts, None

        schema = split_schema(count)
        return await self._answer(("split", prompt), Counter(), asked, schema, parts, count)

    async def _caption(
        self,
        clip_id: str,
        spent: Counter[str],
        what: str,
        asked: tuple[Message, ...],
        earlier: Sequence[str],
        segment: Row | None,
    ) -> str:
        def checked(text: str) -> tuple[str, str | None]:
            caption = caption_of(text)
            return caption, failed_check(caption, self._limits, earlier, segment)

        try:
            return await self._answer((clip_id, what), spent, asked, CAPTION_SCHEMA, checked, 1)
        except Unusable as error:
            check, _, found = str(error).partition(":")
            raise Unusable(
                f"{check}: {what}" + (f",{found}" if found else ""), error.text
            ) from None

    async def _answer(
        self,
        of: tuple[str, str],
        spent: Counter[str],
        asked: tuple[Message, ...],
        schema: dict[str, Any],
        checked: Callable[[str], tuple[Any, str | None]],
        texts: int,
    ) -> Any:
        """The first answer that passes `checked`; each attempt is told why the last one failed, and
        draws anew. Raises Unusable."""
        question = asked
        for attempt in range(self.attempts):
            request = Request(
                question,
                schema,
                seed_of(*of, attempt),
                max_tokens=self.max_tokens * texts,
                temperature=self.temperature,
            )
            said = await self.say(request)
            spent.update(
                requests=1, prompt_tokens=said.prompt_tokens, output_tokens=said.output_tokens
            )
            found, reason = checked(said.text)
            if reason is None:
                return found
            question = again(asked, reason)
        raise Unusable(reason or "", found)

    def _segments(self, facts: list[Row], frames: list[KeyFrame]) -> list[Segment]:
        """What is shown of a clip: pictures at their size, camera and text in words."""
        segments: list[Segment] = []
        camera: CameraState | None = None
        for row, frame in zip(facts, frames, strict=True):
            camera = quantize_camera(row, camera)
            shown = [
                picture(still.jpeg, still.name, self.image_side)
                for still in (frame, *frame.neighbours)
            ]
            segments.append(
                Segment(
                    start_s=row["start_s"],
                    end_s=row["end_s"],
                    key=shown[0],
                    neighbours=tuple(shown[1:]),
                    camera="not known" if camera is None else f"the view {describe_camera(camera)}",
                    text=self._read(frame),
                )
            )
        return segments

    def _read(self, frame: KeyFrame) -> tuple[str, ...]:
        if not self.read_text:
            return ()
        bgr = frame.bgr
        return tuple(text for text, _ in quotable_lines(self._ocr.read_text(bgr), *bgr.shape[:2]))

    def _compared(self, texts: list[str]) -> dict[str, float | None]:
        if self._sentences is None:
            return {}
        return {"text_similarity_minilm": largest_neighbour(self._sentences.similarity(texts))}

    def _minilm(self) -> Sentences | None:
        setting = f"caption.{self.captioner}.minilm"
        return Sentences(self.minilm, setting) if self.minilm else None

    def _cost(self, spent: Counter[str]) -> dict[str, Any]:
        return dict(spent) | {"similarity_limit": self._limits.max_similarity}

    def _t5(self) -> TokenCount:
        if self.t5_tokenizer is None:
            return estimate_t5_tokens
        return load_t5_token_count(self.t5_tokenizer, f"caption.{self.captioner}.t5_tokenizer")
