"""Split: turns a prompt into five progressive sub-captions, by the model that writes captions.

    python -m pipelines.split OUT.json "PROMPT" [CONFIG] [key=value …]
    python -m pipelines.split OUT.jsonl PROMPTS.txt [CONFIG] [key=value …]

Writes a line of JSON per prompt, {"name", "prompt", "cap": [five texts]}; training.sample and the
trainer that Presto's authors released read it. PROMPTS.txt has a prompt per line. The model is that
of the captioner, for example caption.openai.url=http://HOST:8000/v1 caption.openai.model=NAME.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.cli import Arguments, UsageError, run_command
from curation.config import ConfigError
from curation.progress import Progress, printable
from curation.stage import RunContext, Unavailable
from curation.storage import Folder
from curation.texts import is_utf8
from curation.urls import InputError, is_url
from pipelines.settings import DEFAULT_CONFIG, Settings
from stages.captioning.vlm import ChecksFailed, VlmCaptioner

MAX_PROMPTS_IN_FLIGHT = 64


def split(settings: Settings, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """A row per prompt: name, prompt and cap; `error` instead of cap where every answer failed."""
    writer = settings.caption.chosen
    if not isinstance(writer, VlmCaptioner):
        raise ConfigError(
            f"the captioner `{writer.captioner}` writes captions of videos only; give a model: "
            "caption.openai.url=http://HOST:8000/v1 caption.openai.model=NAME"
        )
    writer.check()
    writer.setup(RunContext(api_key=writer.api_key()))
    with Progress("split", len(prompts), "prompts") as progress:
        return asyncio.run(_split_all(writer, settings, prompts, progress))


async def _split_all(
    writer: VlmCaptioner, settings: Settings, prompts: Sequence[str], progress: Progress
) -> list[Any]:
    decode, limit = settings.score.decode, asyncio.Semaphore(MAX_PROMPTS_IN_FLIGHT)

    async def split_one(prompt: str) -> dict[str, Any]:
        name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
        async with limit:
            try:
                parts = await writer.split(prompt, decode.segments, decode.clip_s)
            except Unavailable:
                raise
            except Exception as error:  # of this prompt only
                progress.update(done=1, failed=1)
                kind = "" if isinstance(error, ChecksFailed) else f"{type(error).__name__}: "
                return {"name": name, "prompt": prompt, "error": f"{kind}{error}"}
        progress.update(done=1)
        return {"name": name, "prompt": prompt, "cap": parts}

    async def show_wait_reason() -> None:
        while True:
            progress.show_wait_reason(writer.wait_reason())
            await asyncio.sleep(1.0)

    shown = asyncio.create_task(show_wait_reason())
    try:
        return list(await asyncio.gather(*(split_one(prompt) for prompt in prompts)))
    finally:
        shown.cancel()
        await writer.close()


def read_prompts(given: str) -> list[str]:
    """The prompt itself, or the different lines of a .txt file. Raises InputError."""
    if not given.endswith(".txt"):
        if not is_utf8(given):
            raise InputError(f"the prompt is {given!r:.60}; expected text in UTF-8")
        return [given] if given.strip() else []
    try:
        lines = dict.fromkeys(Path(given).read_text().split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{given}: can't be read as prompts, one per line: {error}") from None
    return [line for line in lines if line.strip()]


def work(given: Arguments[Settings]) -> int:
    target, prompt = given.values
    if is_url(target) or Path(target).is_dir():
        raise UsageError(f"OUT is {target!r:.60}; expected the name of a file on this machine")
    prompts = read_prompts(prompt)
    if not prompts:
        raise InputError("no prompt given")
    rows = split(given.settings, prompts)
    done = [row for row in rows if "cap" in row]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done)
    if done:
        Folder(str(Path(target).parent)).write(Path(target).name, lines.encode())
    for row in rows:
        if "error" in row:
            print(
                f"failed: {printable(row['prompt'], 60)}: {printable(row['error'])}",
                file=sys.stderr,
            )
    print(f"{len(done)} of {len(rows)} prompts split" + (f" -> {target}" if done else ""))
    return 0 if len(done) == len(rows) else 1


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        work,
        argv,
        settings=Settings,
        arguments="OUT PROMPT [CONFIG]",
        default_config=DEFAULT_CONFIG,
        stopped="nothing was written",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
