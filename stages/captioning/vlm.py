"""What captioners with a vision-language model share: the order of requests, checks and retries.

A back end is a subclass with one coroutine, `complete(request)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge

from curation.config import ConfigError, check_choice
from curation.stage import Row, RunContext
from curation.texts import clean_outside_text, max_adjacent, sanitize_text
from stages.captioning.caption_fields import STRUCTURED_SCHEMA, failed_field, parse_fields
from stages.captioning.captioner import Captioner, Captions, KeyFrame
from stages.captioning.checks import (
    ENDED,
    CheckLimits,
    TokenCount,
    failed_answer,
    failed_check,
)
from stages.captioning.conversation import (
    CAPTION_SCHEMA,
    MAX_CAPTION_CHARS,
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
from stages.captioning.language import NAMES, format_languages, load_identifier
from stages.captioning.measured import quotable_lines
from stages.captioning.motion_phrases import describe_camera
from stages.captioning.segment_state import CameraState, quantize_camera
from stages.captioning.sentence_model import SentenceModel
from stages.captioning.t5_tokens import estimate_t5_tokens, load_t5_token_count
from stages.scorers.ocr_engine import OcrEngine

CLIP_TIMEOUT_S = 3600.0  # a server that restarts takes minutes of it
MAX_MODEL_CHARS, MAX_MODELS = 200, 5  # of the names in replies that a row records
MAX_REJECTED_CHARS = 2000  # of a text that failed; it is stored to be read, not for training
FORMULA_STARTS = ("=", "+", "-", "@")  # spreadsheets compute what begins so
_FULL_WIDTH = {ord(c): ord(c) + 0xFEE0 for c in "[]{}$|\\"}  # similar, without a meaning in markup


@dataclass
class Usage:
    """What the requests about one clip took."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    models: set[str] = field(default_factory=set)  # as the replies name them

    def add(self, completion: Completion) -> None:
        self.requests += 1
        self.prompt_tokens += completion.prompt_tokens
        self.output_tokens += completion.output_tokens
        if completion.model and len(self.models) < MAX_MODELS:
            self.models.add(clean_outside_text(completion.model, MAX_MODEL_CHARS))


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
    revision: str | None = None  # of the weights; recorded, and used if a worker loads the weights
    image_side: Annotated[int, Ge(28)] = 640  # long side of the images in requests, px
    temperature: Annotated[float, Ge(0)] = 0.5
    max_tokens: Annotated[int, Ge(1)] = 400  # of one answer
    attempts: Annotated[int, Ge(1)] = 3  # per text; after that the clip is rejected
    min_words: Annotated[int, Ge(1)] = 8  # per text
    # ISO 639 codes of the languages that a text may have; the prompts ask for them
    languages: list[str] = field(default_factory=lambda: ["en"])
    # rewrites each sub-caption with the caption and the earlier rewritten ones given
    refine: bool = False
    read_text: bool = False  # gives the model the text that OCR reads (1 CPU-s per key frame)
    # folder of T5's tokenizer, which counts the tokens of a text; null: an upper estimate
    t5_tokenizer: str | None = None
    # a MiniLM sentence model that compares consecutive sub-captions; null: TF-IDF alone
    minilm: str | None = None

    def __post_init__(self) -> None:
        for code in self.languages or [""]:
            check_choice("languages", code, NAMES)

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
            self.min_words,
            self._load_token_count(),
            context.similarity_limit,
            languages=self.languages,
        )
        load_identifier()
        self._sentence_model = self._load_sentence_model()
        if self._sentence_model is not None:
            self._limits = replace(self._limits, similarity=self._sentence_model.similarity)
        if self.read_text:
            self._ocr = OcrEngine()

    def check(self) -> None:
        if not self.model:
            setting = f"caption.{self.captioner}.model"
            raise ConfigError(
                f"{setting}: expected the name of a model, found none; set {setting}=NAME"
            )
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
            "prompts": prompts_version(self.structured),
            "read_text": self.read_text,
            "minilm": self.minilm,
            "languages": self.languages,
            **{name: getattr(self, name) for name in sampling},
            **({"structured": True} if self.structured else {}),
        }

    async def complete(self, request: Request) -> Completion:
        """Returns the model's answer. Unavailable stops the run; another error is the clip's."""
        raise NotImplementedError

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        segments = clip["segments"]
        conversation = Conversation(
            await asyncio.to_thread(self._prompt_segments, segments, frames),
            format_languages(self.languages),
            self.structured,
        )
        usage = Usage()
        ask = partial(self._ask_for_caption, clip["clip_id"], usage)
        texts: list[str] = []
        fields: list[dict[str, str | None]] = []
        caption = ""
        try:
            for number, segment in enumerate(segments):
                messages = conversation.sub_caption_messages(number, texts)
                name = f"sub-caption {number + 1}"
                text, of_text = await ask(name, messages, texts, segment)
                texts.append(text)
                fields.append(of_text)
            caption, _ = await ask(
                "overall caption", conversation.overall_messages(texts), [], None
            )
            if self.refine:
                drafts, texts, fields = texts, [], []
                for number, segment in enumerate(segments):
                    messages = conversation.refine_messages(number, drafts[number], texts, caption)
                    name = f"refined sub-caption {number + 1}"
                    text, of_text = await ask(name, messages, texts, segment)
                    texts.append(text)
                    fields.append(of_text)
        except ChecksFailed as error:
            failed_text = make_inert(error.text)
            if len(texts) < len(segments):
                texts = [*texts, failed_text]
            else:
                caption = failed_text
            record = self._usage_record(usage)
            return Captions(texts, caption, f"caption {error}", record, fields=fields)
        scores = self._score_similarity(texts)
        return Captions(texts, caption, None, self._usage_record(usage), scores, fields)

    async def split(self, prompt: str, count: int, duration_s: float) -> list[str]:
        """Returns `count` progressive sub-captions for a prompt. Raises ChecksFailed."""

        def parse_and_check(completion: Completion) -> tuple[list[str], str | None]:
            found = find_json_value(completion.text, "sub_captions")
            if not isinstance(found, list) or len(found) != count:
                return [], f"not {count} texts"
            texts = [clean_outside_text(str(part), MAX_CAPTION_CHARS) for part in found]
            is_complete = completion.finish_reason in ENDED
            for number, text in enumerate(texts):
                earlier = texts[:number]
                if reason := failed_check(text, self._limits, earlier, None, is_complete):
                    return texts, f"text {number + 1} {reason}"
            return [" ".join(text.split()) for text in texts], None

        language = format_languages(self.languages)
        messages = split_messages(prompt, count, duration_s, language)
        max_tokens = count * self.max_tokens
        request = Request(messages, split_schema(count), max_tokens, self.temperature)
        return await self._ask(request, ("split", prompt), Usage(), parse_and_check)

    async def _ask_for_caption(
        self,
        clip_id: str,
        usage: Usage,
        name: str,
        messages: tuple[Message, ...],
        earlier: Sequence[str],
        segment: Row | None,
    ) -> tuple[str, dict[str, str | None]]:
        """Returns the text, and with `structured` the fields of a segment's text.

        name: of the text, for the seed and the reason.  segment: None for the caption of the
        whole. Raises ChecksFailed.
        """
        has_fields = self.structured and segment is not None
        fields: dict[str, str] = {}

        def parse_and_check(completion: Completion) -> tuple[str, str | None]:
            caption = parse_caption(completion.text)
            is_complete = completion.finish_reason in ENDED
            reason = failed_check(caption, self._limits, earlier, segment, is_complete)
            if reason is None and has_fields:
                fields.update(parse_fields(completion.text))
                reason = failed_field(fields, segment)
            return " ".join(caption.split()), reason

        schema = STRUCTURED_SCHEMA if has_fields else CAPTION_SCHEMA
        request = Request(messages, schema, self.max_tokens, self.temperature)
        try:
            text = await self._ask(request, (clip_id, name), usage, parse_and_check)
            return text, {field: " ".join(value.split()) for field, value in fields.items()}
        except ChecksFailed as error:
            check, _, found = str(error).partition(":")
            reason = f"{check}: {name}" + (f",{found}" if found else "")
            raise ChecksFailed(reason, error.text) from None

    async def _ask(
        self,
        request: Request,
        seed_parts: tuple[str, str],
        usage: Usage,
        parse_and_check: Callable[[Completion], tuple[Any, str | None]],
    ) -> Any:
        """Returns the first answer that passes. Raises ChecksFailed.

        Each attempt has a seed of its own and states why the attempt before it failed.
        """
        messages = request.messages
        for attempt in range(self.attempts):
            seed = derive_seed(*seed_parts, attempt)
            completion = await self.complete(replace(request, messages=messages, seed=seed))
            usage.add(completion)
            found, reason = completion.text, failed_answer(completion, request.max_tokens)
            if reason is None:
                found, reason = parse_and_check(completion)
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

    def _usage_record(self, usage: Usage) -> dict[str, Any]:
        record = vars(usage) | {"models": sorted(usage.models)}
        return record | {"similarity_limit": self._limits.max_similarity}

    def _load_sentence_model(self) -> SentenceModel | None:
        setting = f"caption.{self.captioner}.minilm"
        return SentenceModel(self.minilm, setting) if self.minilm else None

    def _load_token_count(self) -> TokenCount:
        if self.t5_tokenizer is None:
            return estimate_t5_tokens
        return load_t5_token_count(self.t5_tokenizer, f"caption.{self.captioner}.t5_tokenizer")


def make_inert(text: Any) -> str:
    """A text that failed a check as one line that no page, table or shell acts on."""
    line = sanitize_text(clean_outside_text(str(text), 2 * MAX_REJECTED_CHARS), MAX_REJECTED_CHARS)
    line = line.translate(_FULL_WIDTH)
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line
