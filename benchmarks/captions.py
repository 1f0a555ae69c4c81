"""Captioning with a model of Qwen2.5-VL-7B's size by vLLM on one GPU: clips per GPU-hour.

    python -m benchmarks.captions [--graphs] [--in-flight 256] [--seconds 60] [--limit 550]

One engine serves all measurements, each of which starts with empty caches:
  engine         all requests of a clip at once, prepared before: the engine runs --in-flight of
                 them (max_num_seqs) and five times as many wait; this is the engine's maximum
  http           our captioner `openai` in another process, over the engine's HTTP server
  in-process     our captioner `vllm`: six requests per clip, in order
  engine, again  the first measurement repeated, to show drift
  uncached       as in-process, but requests don't use the prefix cache

A measurement counts the completions in a window of --seconds during which --in-flight clips are in
flight all the time. The window starts once as many requests have completed as clips are in flight;
at its end the run is cancelled. So neither the start nor the end of a run counts. Each slot starts
at another of the six requests of its first clip, so that all six are equally frequent at any time.

The weights are random (load_format=dummy); configuration and tokenizer are generated. So every
completion has the maximum of MAX_TOKENS tokens (random tokens rarely end a JSON string). Its checks
are counted, but have no effect, and a fixed text of the usual length goes into the next request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.records import segment_spans
from curation.stage import Row, RunContext
from stages.captioning.checks import CheckLimits, failed_check
from stages.captioning.conversation import Completion, Request, parse_caption
from stages.captioning.openai_server import OpenAICaptioner
from stages.captioning.t5_tokens import estimate_t5_tokens
from stages.captioning.vllm_engine import VllmCaptioner
from stages.captioning.vlm import VlmCaptioner
from tests.support.paths import REPOSITORY

MODULE = (sys.executable, "-m", "benchmarks.captions")
MAX_TOKENS = 100  # of a completion
KEY_FRAME_SIZE = (768, 432)  # px, as `score` stores frames of 16:9
IMAGE_SIDE = 640  # px, the longer one, as sent
SEGMENTS, FRAME_SAMPLES = 5, 2
REQUESTS_PER_CLIP = SEGMENTS + 1
DRAWING_PROCESSES = 8
TEXTS = (  # about as long as real sub-captions, and different from each other
    "A woman in a green raincoat walks along a wet cobbled street at dusk, past the lit windows of "
    "small shops. She holds a folded umbrella in her left hand and looks up at the signs above the "
    "doors. Behind her two cyclists cross the square. The camera follows her slowly at the height "
    "of her shoulders, keeping her in the middle of the view.",
    "She stops in front of a bakery and leans towards the glass, where loaves and round cakes lie "
    "on wooden shelves. A baker with a white apron comes from the back with a full tray and nods "
    "to her. Steam has gathered at the edges of the pane. The camera comes closer and moves to the "
    "right until the tray fills the lower half of the view.",
    "The door opens and a boy runs out with a paper bag, nearly dropping it on the step. He turns, "
    "waves at somebody inside, and hurries off between parked cars. The rain has become stronger "
    "and drops bounce from the roofs. The camera pans to the left after him while the shop front "
    "goes out of focus.",
    "A yellow tram comes around the corner with its headlights on and halts at the stop across the "
    "road. Several passengers get off, opening umbrellas one after another, while an old man with "
    "a dog waits to get on. Reflections of the lamps stretch over the rails. The camera rises a "
    "little and holds on the open doors.",
    "The tram pulls away and leaves the stop empty except for the dog's leash on the bench. Far "
    "down the avenue the green coat appears once more, now under a wide black umbrella, next to "
    "somebody taller. Leaves drift along the gutter. The camera draws back over the roofs until "
    "people are only small dark points between the lights.",
    "On a rainy evening in an old town a woman in a green coat walks from a bakery to a tram stop "
    "and on along an avenue, while a boy, a baker and passengers cross her way. The street, the "
    "shop window, the tram and the roofs follow each other in one movement of the camera, from "
    "close behind her to high above the houses.",
)


# ---------------------------------------------------------------- the model

SPECIAL = 151643  # the id of Qwen2.5's first special token
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "in_channels": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
}


def make_model(folder: Path) -> None:
    """Writes Qwen2.5-VL-7B's configuration, and a tokenizer with as many entries as its own.

    English text has about four letters per token, as with the real tokenizer. The other entries of
    the vocabulary are strings that no text contains.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    corpus = [*TEXTS, *(path.read_text() for path in REPOSITORY.rglob("*.md"))]
    corpus += [path.read_text() for path in (REPOSITORY / "stages/captioning/prompts").iterdir()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=16000, initial_alphabet=alphabet, min_frequency=2)
    )
    trained = json.loads(bpe.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    fillers = (f"Ġfiller{number}" for number in range(SPECIAL))
    while len(vocabulary) < SPECIAL:
        vocabulary.setdefault(next(fillers), len(vocabulary))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole.pre_tokenizer, whole.decoder = bpe.pre_tokenizer, decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    assert whole.token_to_id("<|image_pad|>") == CONFIG["image_token_id"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
        chat_template=CHAT,
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}  # areas, px
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT,
    )
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 151645}))


# ---------------------------------------------------------------- clips, as `score` writes them


def make_clips(ledger: Path, numbers: Iterable[int]) -> list[Row]:
    """Rows of clips; writes their frames, each with a random texture."""
    import hashlib

    ledger.mkdir(parents=True, exist_ok=True)

    def write_frame(clip: int, number: int) -> dict[str, Any]:
        cells = np.random.default_rng([clip, number]).integers(0, 255, (27, 48, 3), np.uint8)
        bgr = cv2.resize(cells, KEY_FRAME_SIZE, interpolation=cv2.INTER_CUBIC)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        name = f"{clip}_{number}.jpg"
        (ledger / name).write_bytes(jpeg)
        return {"s": float(number), "file": name, "sha256": hashlib.sha256(jpeg).hexdigest()}

    def make_clip(number: int) -> Row:
        segments = []
        for part, (start_s, end_s) in enumerate(segment_spans(15.0, SEGMENTS)):
            before, key, after = (write_frame(number, 3 * part + i) for i in range(3))
            row = {"start_s": start_s, "end_s": end_s, "key_frame_s": key["s"]}
            row |= {"key_frame": key["file"], "key_frame_sha256": key["sha256"]}
            segments.append(row | {"frame_samples": [before, after][:FRAME_SAMPLES]})
        span = {"start_s": 0.0, "end_s": 15.0, "error": None}
        return {"clip_id": f"clip{number}", "segments": segments} | span

    return [make_clip(number) for number in numbers]


# ---------------------------------------------------------------- the measurements

# the number of a clip's first request that is sent
first_request: ContextVar[int] = ContextVar("first_request", default=0)


@dataclass
class Window:
    """The completions of one measurement."""

    seconds: float
    ramp_s: float  # before the window
    completions: list[Completion]
    cpu_s: float  # of this process and its threads
    failed_checks: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def requests_per_s(self) -> float:
        return len(self.completions) / self.seconds

    def as_row(self) -> dict[str, Any]:
        count = max(1, len(self.completions))
        return {
            "requests": len(self.completions),
            "seconds": round(self.seconds, 2),
            "ramp_s": round(self.ramp_s, 1),
            "clips_per_gpu_hour": round(3600 * self.requests_per_s / REQUESTS_PER_CLIP),
            "requests_per_s": round(self.requests_per_s, 2),
            "prompt_tokens_per_request": round(self._mean("prompt_tokens"), 1),
            "output_tokens_per_request": round(self._mean("output_tokens"), 1),
            "cpu_ms_per_request": round(1000 * self.cpu_s / count, 1),
            "failed_checks": dict(self.failed_checks),
            "errors": self.errors[:3],
        }

    def _mean(self, field: str) -> float:
        return sum(getattr(c, field) for c in self.completions) / max(1, len(self.completions))


class FixedTexts(VlmCaptioner):
    """Mixin of a captioner: completions have MAX_TOKENS tokens and are replaced by TEXTS; their
    checks are only counted."""

    def reset(self) -> None:
        self.completions: list[Completion] = []
        self.failed_checks: Counter[str] = Counter()
        self._checks = CheckLimits(8, estimate_t5_tokens)

    async def complete(self, request: Request) -> Completion:
        text = str(request.messages[-1].parts[-1])
        number = int(text[5]) - 1 if text.startswith("Part ") else SEGMENTS
        if number >= first_request.get():
            completion = await self.send(request)
            self.completions.append(completion)
            reason = failed_check(parse_caption(completion.text), self._checks)
            self.failed_checks[(reason or "none").partition(":")[0]] += 1
        return Completion(json.dumps({"caption": TEXTS[number]}))

    async def send(self, request: Request) -> Completion:
        return await super().complete(replace(request, max_tokens=MAX_TOKENS))


class FixedTextsVllm(FixedTexts, VllmCaptioner):
    read_prefix = True

    def _sampling(self, request: Request) -> Any:
        sampling = super()._sampling(request)
        sampling.skip_reading_prefix_cache = not self.read_prefix
        return sampling


class FixedTextsOpenAI(FixedTexts, OpenAICaptioner):
    pass


class RequestRecorder(FixedTexts):
    """Records the requests that our captioners make, and sends none."""

    captioner = "recorder"

    async def send(self, request: Request) -> Completion:
        self.recorded.append(request)
        return Completion("")

    def requests_of(self, clip: Row) -> list[Request]:
        self.recorded: list[Request] = []
        _raise_error(asyncio.run(self.process_one(dict(clip))))
        return self.recorded


def draw_clips(scratch: Path, first: int, step: int, count: int) -> None:
    """Writes every `step`-th clip and its requests; runs in a process of its own."""
    stage = RequestRecorder(image_side=IMAGE_SIDE)
    stage.setup(RunContext(str(scratch)))
    stage.reset()
    clips = make_clips(scratch, range(first, count, step))
    requests = [stage.requests_of(clip) for clip in clips]
    (scratch / f"{first}.pickle").write_bytes(pickle.dumps((clips, requests)))


def _raise_error(row: Row) -> None:
    if row["error"] or row["rejected"]:
        raise RuntimeError(row["error"] or row["rejected"])


async def measure_window(
    stage: Any,
    clips: Iterable[Any],
    caption: Callable[[Any], Awaitable[None]],
    in_flight: int,
    seconds: float,
) -> Window:
    """Completions in `seconds` with `in_flight` clips in flight all the time; then cancels them.

    Raises RuntimeError if there are too few clips.
    """
    stage.reset()
    remaining, errors = iter(clips), list[str]()

    async def slot(number: int) -> None:
        first_request.set(number % REQUESTS_PER_CLIP)
        for clip in remaining:
            try:
                await caption(clip)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            first_request.set(0)
        raise RuntimeError("too few clips: some slots are empty before the end")

    begin_s = time.perf_counter()
    slots = [asyncio.create_task(slot(number)) for number in range(in_flight)]

    async def wait_until(reached: Callable[[], bool]) -> tuple[float, int, float]:
        while not reached():
            await asyncio.sleep(0.05)
            for ended in filter(asyncio.Task.done, slots):
                ended.result()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), len(stage.completions), used.ru_utime + used.ru_stime

    try:
        start_s, before, cpu_s = await wait_until(lambda: len(stage.completions) >= in_flight)
        stage.failed_checks.clear()
        end_s, after, cpu_end_s = await wait_until(lambda: time.perf_counter() - start_s >= seconds)
        completions, failed_checks = stage.completions[before:after], Counter(stage.failed_checks)
    finally:
        for task in slots:
            task.cancel()
        await asyncio.gather(*slots, return_exceptions=True)
    ramp_s, cpu_s = start_s - begin_s, cpu_end_s - cpu_s
    return Window(end_s - start_s, ramp_s, completions, cpu_s, failed_checks, errors)


async def measure_captioner(stage: Any, clips: list[Row], in_flight: int, seconds: float) -> Window:
    """Our captioner, with clips in flight as in the runner."""

    async def caption(clip: Row) -> None:
        _raise_error(await stage.process_one(dict(clip)))

    return await measure_window(stage, clips, caption, in_flight, seconds)


async def measure_engine(
    stage: FixedTextsVllm, requests: list[list[Request]], in_flight: int, seconds: float
) -> Window:
    """All requests of a clip at once: six times as many in flight as a captioner has."""

    async def all_at_once(requests: list[Request]) -> None:
        await asyncio.gather(*(stage.complete(request) for request in requests))

    return await measure_window(stage, requests, all_at_once, in_flight, seconds)


async def empty_caches(stage: FixedTextsVllm) -> None:
    engine = stage._engine
    await engine.reset_mm_cache()
    await engine.reset_encoder_cache()
    for _ in range(300):  # the blocks of requests that just ended are freed a moment later
        if await engine.reset_prefix_cache():
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("the prefix cache can't be emptied")


async def measure_http(
    stage: FixedTextsVllm, args: argparse.Namespace, scratch: Path
) -> dict[str, Any]:
    """The captioner `openai` in a process of its own, the server in this one."""
    from vllm.entrypoints.openai.api_server import build_and_serve, create_server_socket
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = [
        "--model",
        stage.model,
        "--served-model-name",
        "bench",
        "--disable-uvicorn-access-log",
    ]
    options += ["--uvicorn-log-level", "warning", "--port", "8123", "--host", "127.0.0.1"]
    options += ["--chat-template-content-format", "openai"]
    served = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    listening = create_server_socket(("127.0.0.1", 8123), reuse_port=False)
    address = "http://127.0.0.1:8123"
    server = asyncio.create_task(build_and_serve(stage._engine, address, listening, served))
    await asyncio.sleep(2)
    if server.done():
        server.result()
    command = [*MODULE, "--client", f"{address}/v1", "--scratch", str(scratch)]
    command += ["--in-flight", str(args.in_flight), "--seconds", str(args.seconds)]
    before = resource.getrusage(resource.RUSAGE_SELF)
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await client.communicate()
    after = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(1)  # the server drops the requests of the process that ended
    server.cancel()
    with suppress(TimeoutError):  # it returns a coroutine that shuts it down
        await asyncio.wait_for(await server, 20)
    row, completed = json.loads(output.decode().splitlines()[-1])
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**row, "server_cpu_ms_per_request": round(1000 * used_s / completed, 1)}


def run_client(url: str, args: argparse.Namespace) -> None:
    """The other process of `measure_http`: prints its window and its number of completions."""
    stage = FixedTextsOpenAI(
        url=url, model="bench", max_clips_in_flight=args.in_flight, image_side=IMAGE_SIDE
    )
    clips = json.loads((args.scratch / "clips.json").read_text())
    stage.check()
    stage.setup(RunContext(str(args.scratch)))

    async def run() -> Window:
        try:
            return await measure_captioner(stage, clips, args.in_flight, args.seconds)
        finally:
            await stage.close()

    row = asyncio.run(run()).as_row()
    print(json.dumps([row, len(stage.completions)]))


async def measure_all(args: argparse.Namespace, report: Callable[[dict[str, Any]], None]) -> None:
    started = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix="longtake-captions-"))
    model = scratch / "model"
    model.mkdir()
    count = 2 * args.in_flight + round(4 * args.seconds)  # enough for 24 requests per second
    command = [*MODULE, "--scratch", str(scratch), "--draw"]
    processes = [  # while the engine starts
        subprocess.Popen([*command, str(first), str(DRAWING_PROCESSES), str(count)])
        for first in range(DRAWING_PROCESSES)
    ]
    make_model(model)
    engine: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "limit_mm_per_prompt": {"image": SEGMENTS + FRAME_SAMPLES, "video": 0},
        "max_num_seqs": args.in_flight,
        "mm_processor_cache_gb": 8,  # 2.8 MB per image, seven images per clip in flight
    }
    engine |= cuda_graphs() if args.graphs else {"enforce_eager": True}
    stage = FixedTextsVllm(
        model=str(model),
        image_side=IMAGE_SIDE,
        max_clips_in_flight=args.in_flight,
        engine_args=engine,
    )
    stage.setup(RunContext(str(scratch)))
    clips: list[Row] = []
    requests: list[list[Request]] = []  # of each clip
    for first, process in enumerate(processes):
        if process.wait():
            raise RuntimeError("the clips could not be drawn")
        drawn, recorded = pickle.loads((scratch / f"{first}.pickle").read_bytes())
        clips, requests = clips + drawn, requests + recorded
    (scratch / "clips.json").write_text(json.dumps(clips))
    settings = {"graphs": args.graphs, "in_flight": args.in_flight, "clips": count}
    report({"ready_s": round(time.perf_counter() - started, 1), **settings})

    async def in_process() -> dict[str, Any]:
        return (await measure_captioner(stage, clips, args.in_flight, args.seconds)).as_row()

    async def engine_only() -> dict[str, Any]:
        return (await measure_engine(stage, requests, args.in_flight, args.seconds)).as_row()

    async def http() -> dict[str, Any]:
        return await measure_http(stage, args, scratch)

    async def uncached() -> dict[str, Any]:
        stage.read_prefix = False
        return await in_process()

    steps = {"engine": engine_only, "http": http, "in-process": in_process}
    steps |= {"engine, again": engine_only, "uncached": uncached}
    took_s = 0.0
    try:
        await measure_captioner(stage, clips[-64:], 32, 2)  # warm-up: compiles kernels
        for name, step in steps.items():
            start = time.perf_counter()
            if start - started + took_s > args.limit:
                report({name: "skipped: no time"})
                continue
            await empty_caches(stage)
            report({name: await step()})
            took_s = time.perf_counter() - start
    finally:
        stage._engine.shutdown()


def ratios_to_engine(found: dict[str, Any]) -> dict[str, float]:
    """The rate of each measurement, divided by the mean of the engine's measurements."""
    rates = {name: row["requests_per_s"] for name, row in found.items() if isinstance(row, dict)}
    own = [rate for name, rate in rates.items() if name.startswith("engine")]
    others = {name: rate for name, rate in rates.items() if not name.startswith("engine")}
    return {f"{name}/engine": round(r * len(own) / sum(own), 3) for name, r in others.items()}


def cuda_graphs() -> dict[str, Any]:
    """CUDA graphs for decoding only, without compilation, which would take minutes."""
    sizes = [1, 2, 4, *range(8, 257, 8)]
    return {
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": sizes,
        }
    }


def main(argv: Iterable[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs of decoding")
    parser.add_argument("--in-flight", type=int, default=256, help="clips in flight")
    parser.add_argument("--seconds", type=float, default=60, help="of a window")
    parser.add_argument(
        "--limit",
        type=float,
        default=550,
        help="s for all measurements; skips those for which no time is left",
    )
    parser.add_argument("--out", help="JSON file for the results, rewritten after each measurement")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(list(argv))
    if args.client:
        run_client(args.client, args)
        return
    if args.draw:
        draw_clips(args.scratch, *args.draw)
        return
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {}

    def report(new: dict[str, Any]) -> None:
        found.update(new)
        found.update(to_engine := ratios_to_engine(found))
        print(json.dumps(new | to_engine), flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(found, indent=1))

    asyncio.run(measure_all(args, report))


if __name__ == "__main__":
    main(sys.argv[1:])
