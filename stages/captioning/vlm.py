"""What captioners with a vision-language model share: the order of requests, checks and retries.

A back end is a subclass with one coroutine, `complete(request)`.
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
from curation.texts import max_adjacent
from stages.captioning.captioner import Captioner, Captions, KeyFrame
from stages.captioning.checks import CheckLimits, TokenCount, failed_check
from stages.captioning.conversation import (
    CAPTION_SCHEMA,
    Completion,
    Conversation,
    Message,
    PromptSegment,
    Request,
    derive_seed,
    find_json_value,
    make_prompt_image,
    parse_caption,
    prompts_version,
    retry_messages,
    split_messages,
    split_schema,
)
from stages.captioning.measured import quotable_lines
from stages.captioning.motion_phrases import describe_camera
from stages.captioning.segment_state import CameraState, quantize_camera
from stages.captioning.sentence_model import SentenceModel
from stages.captioning.t5_tokens import estimate_t5_tokens, load_t5_token_count
from stages.scorers.ocr_engine import OcrEngine

CLIP_TIMEOUT_S = 3600.0  # a server that restarts takes minutes of it


class ChecksFailed(Exception):
    """A text failed a check in every attempt. The message is the reason; `text` is the last text.

    For `split`, `text` is a list.
    """

    def __init__(self, reason: str, text: Any):
        super().__init__(reason)
        self.text = text


@dataclass
class VlmCaptioner(Captioner):
    """Asks for each sub-caption with the earlier ones given, then for the caption."""

    model: str = ""  # a folder, or the name that the server or the hub has for it
    revision: str | None = None  # of the weights: recorded, and loaded where a worker loads them
    image_side: Annotated[int, Ge(28)] = 640  # long side of the images in requests, px
    temperature: Annotated[float, Ge(0)] = 0.5
    max_tokens: Annotated[int, Ge(1)] = 400  # of one answer
    attempts: Annotated[int, Ge(1)] = 3  # per text; after that the clip is rejected
    min_words: Annotated[int, Ge(1)] = 8  # per text
    refine: bool = (
        False  # then rewrite each sub-caption with the caption and the earlier ones given
    )
    read_text: bool = False  # give the model the text that OCR reads (1 CPU-s per key frame)
    t5_tokenizer: str | None = None  # folder of T5's tokenizer; null: an upper estimate

    # a MiniLM sentence model that compares neighbouring sub-captions; null: TF-IDF alone
    minilm: str | None = None

    @property
    def similarity_column(self) -> str:
        """The column of the similarity that the checks limit."""
        return "text_similarity_minilm" if self.minilm else "text_similarity_tfidf"

    @property
    def scores(self) -> tuple[str, ...]:
        return ("text_similarity_minilm",) if self.minilm else ()

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        self._limits = CheckLimits(
            self.min_words, self._load_token_count(), context.similarity_limit
        )
        self._sentence_model = self._load_sentence_model()
        if self._sentence_model is not None:
            self._limits = replace(self._limits, similarity=self._sentence_model.similarity)
        if self.read_text:
            self._ocr = OcrEngine()

    def check(self) -> None:
        if not self.model:
            raise ConfigError(f"caption.{self.captioner}.model: which model shall write captions?")
        self._load_token_count()
        self._load_sentence_model()

    def row_timeout_s(self, row: Row) -> float:
        return CLIP_TIMEOUT_S

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

    async def complete(self, request: Request) -> Completion:
        """Returns the model's answer. Unavailable stops the run; another error is the clip's."""
        raise NotImplementedError

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        segments = clip["segments"]
        conversation = Conversation(
            await asyncio.to_thread(self._prompt_segments, segments, frames)
        )
        usage: Counter[str] = Counter()
        ask = partial(self._ask_for_caption, clip["clip_id"], usage)
        texts: list[str] = []
        caption = ""
        try:
            for number, segment in enumerate(segments):
                messages = conversation.sub_caption_messages(number, texts)
                texts.append(await ask(f"sub-caption {number + 1}", messages, texts, segment))
            caption = await ask("overall caption", conversation.overall_messages(texts), [], None)
            if self.refine:
                drafts, texts = texts, []
                for number, segment in enumerate(segments):
                    messages = conversation.refine_messages(number, drafts[number], texts, caption)
                    name = f"refined sub-caption {number + 1}"
                    texts.append(await ask(name, messages, texts, segment))
        except ChecksFailed as error:
            if len(texts) < len(segments):
                texts = [*texts, error.text]
            else:
                caption = error.text
            return Captions(texts, caption, f"caption {error}", self._usage_record(usage))
        scores = self._score_similarity(texts)
        return Captions(texts, caption, None, self._usage_record(usage), scores)

    async def split(self, prompt: str, count: int, duration_s: float) -> list[str]:
        """Returns `count` progressive sub-captions for a prompt. Raises ChecksFailed."""

        def parse_and_check(answer: str) -> tuple[list[str], str | None]:
            found = find_json_value(answer, "sub_captions")
            if not isinstance(found, list) or len(found) != count:
                return [], f"not {count} texts"
            texts = [" ".join(str(part).split()) for part in found]
            for number, text in enumerate(texts):
                if reason := failed_check(text, self._limits, texts[:number]):
                    return texts, f"text {number + 1} {reason}"
            return texts, None

        messages = split_messages(prompt, count, duration_s)
        max_tokens = count * self.max_tokens
        request = Request(messages, split_schema(count), max_tokens, self.temperature)
        return await self._ask(request, ("split", prompt), Counter(), parse_and_check)

    async def _ask_for_caption(
        self,
        clip_id: str,
        usage: Counter[str],
        name: str,
        messages: tuple[Message, ...],
        earlier: Sequence[str],
        segment: Row | None,
    ) -> str:
        """name: of the text, for the seed and the reason. Raises ChecksFailed."""

        def parse_and_check(answer: str) -> tuple[str, str | None]:
            caption = parse_caption(answer)
            return caption, failed_check(caption, self._limits, earlier, segment)

        request = Request(messages, CAPTION_SCHEMA, self.max_tokens, self.temperature)
        try:
            return await self._ask(request, (clip_id, name), usage, parse_and_check)
        except ChecksFailed as error:
            check, _, found = str(error).partition(":")
            reason = f"{check}: {name}" + (f",{found}" if found else "")
            raise ChecksFailed(reason, error.text) from None

    async def _ask(
        self,
        request: Request,
        seed_parts: tuple[str, str],
        usage: Counter[str],
        parse_and_check: Callable[[str], tuple[Any, str | None]],
    ) -> Any:
        """Returns the first answer that passes. Raises ChecksFailed.

        Each attempt has a seed of its own and states why the attempt before it failed.
        """
        messages = request.messages
        for attempt in range(self.attempts):
            seed = derive_seed(*seed_parts, attempt)
            completion = await self.complete(replace(request, messages=messages, seed=seed))
            usage.update(
                requests=1,
                prompt_tokens=completion.prompt_tokens,
                output_tokens=completion.output_tokens,
            )
            found, reason = parse_and_check(completion.text)
            if reason is None:
                return found
            messages = retry_messages(request.messages, reason)
        raise ChecksFailed(reason or "", found)

    def _prompt_segments(self, rows: list[Row], frames: list[KeyFrame]) -> list[PromptSegment]:
        segments: list[PromptSegment] = []
        camera: CameraState | None = None
        for row, frame in zip(rows, frames, strict=True):
            camera = quantize_camera(row, camera)
            key_frame, *samples = (
                make_prompt_image(stored.jpeg, stored.name, self.image_side)
                for stored in (frame, *frame.frame_samples)
            )
            segments.append(
                PromptSegment(
                    start_s=row["start_s"],
                    end_s=row["end_s"],
                    key_frame=key_frame,
                    frame_samples=tuple(samples),
                    camera="not known" if camera is None else f"the view {describe_camera(camera)}",
                    ocr_lines=self._read_lines(frame),
                )
            )
        return segments

    def _read_lines(self, frame: KeyFrame) -> tuple[str, ...]:
        if not self.read_text:
            return ()
        bgr = frame.bgr
        return tuple(text for text, _ in quotable_lines(self._ocr.read_lines(bgr), *bgr.shape[:2]))

    def _score_similarity(self, texts: list[str]) -> dict[str, float | None]:
        if self._sentence_model is None:
            return {}
        similarity = self._sentence_model.similarity(texts)
        return {"text_similarity_minilm": max_adjacent(similarity)}

    def _usage_record(self, usage: Counter[str]) -> dict[str, Any]:
        return dict(usage) | {"similarity_limit": self._limits.max_similarity}

    def _load_sentence_model(self) -> SentenceModel | None:
        setting = f"caption.{self.captioner}.minilm"
        return SentenceModel(self.minilm, setting) if self.minilm else None

    def _load_token_count(self) -> TokenCount:
        if self.t5_tokenizer is None:
            return estimate_t5_tokens
        return load_t5_token_count(self.t5_tokenizer, f"caption.{self.captioner}.t5_tokenizer")
