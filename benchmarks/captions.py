"""Captions of a Qwen2.5-VL-7B-sized model by vLLM on one GPU: clips per GPU-hour.

    python -m benchmarks.captions [--graphs] [--in-flight 256] [--seconds 60] [--limit 550]

One engine serves all measurements, each begun with empty caches:
  engine         the requests, all known beforehand, six of a clip at once: it takes --in-flight of
                 them at a time (max_num_seqs), and five times as many wait: what it can do
  http           our captioner `openai` in another process, over the engine's own HTTP server
  in-process     our captioner `vllm`: six requests a clip, in order
  engine, again  so that a drift shows
  uncached       as in-process, no request reading what another one of its clip computed

Counted is what is answered in a window of --seconds in which --in-flight clips are under way at
every moment, in all measurements alike: it opens when as many requests have been answered as there
are clips under way, and at its end the run is cut off. So neither filling nor draining counts, as
in a run of hours. Each place begins at another of the six requests of its first clip: at every
moment all six are asked about equally often.

The weights are random (load_format=dummy), configuration and tokenizer are made on the spot. So
every answer runs to its limit of OUTPUT tokens (chance seldom ends a JSON string), its checks
are counted but decide nothing, and a set text of an answer's length goes into the next question.
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
OUTPUT = 100  # tokens of every answer
STILL = (768, 432)  # px, as `score` stores stills of 16:9; sent with a long side of SIDE
SIDE, SEGMENTS, NEIGHBOURS = 640, 5, 2
REQUESTS = SEGMENTS + 1  # of a clip
DRAWING = 8  # processes that draw the clips
TEXTS = (  # about as long as real sub-captions, and unlike each other
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


# ---------------------------------------------------------------- a model of the size, on the spot

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
    """Qwen2.5-VL-7B's shape without its weights, and a tokenizer with as many entries as its own.

    English comes out at about four letters a token, as with the real one; what is left of the
    vocabulary is filled with pieces that no text has.
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
    learnt = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    fillers = (f"Ġfiller{number}" for number in range(SPECIAL))
    while len(vocabulary) < SPECIAL:
        vocabulary.setdefault(next(fillers), len(vocabulary))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole.pre_tokenizer, whole.decoder = bpe.pre_tokenizer, decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    assert whole.token_to_id("<|image_pad|>") == CONFIG["image_token_id"]
    words = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
        chat_template=CHAT,
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}  # areas, px
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT,
    )
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 151645}))


# ---------------------------------------------------------------- clips, as `score` leaves them


def make_clips(ledger: Path, numbers: Iterable[int]) -> list[Row]:
    """Rows of clips, and their stills: textures like no other's."""
    import hashlib

    ledger.mkdir(parents=True, exist_ok=True)

    def still(clip: int, number: int) -> dict[str, Any]:
        cells = np.random.default_rng([clip, number]).integers(0, 255, (27, 48, 3), np.uint8)
        bgr = cv2.resize(cells, STILL, interpolation=cv2.INTER_CUBIC)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        name = f"{clip}_{number}.jpg"
        (ledger / name).write_bytes(jpeg)
        return {"s": float(number), "file": name, "sha256": hashlib.sha256(jpeg).hexdigest()}

    def clip(number: int) -> Row:
        segments = []
        for part, (start_s, end_s) in enumerate(segment_spans(15.0, SEGMENTS)):
            before, key, after = (still(number, 3 * part + place) for place in range(3))
            row = {"start_s": start_s, "end_s": end_s, "key_frame_s": key["s"]}
            row |= {"key_frame": key["file"], "key_frame_sha256": key["sha256"]}
            segments.append(row | {"frame_samples": [before, after][:NEIGHBOURS]})
        span = {"start_s": 0.0, "end_s": 15.0, "error": None}
        return {"clip_id": f"clip{number}", "segments": segments} | span

    return [clip(number) for number in numbers]


# ---------------------------------------------------------------- what is measured

first_asked: ContextVar[int] = ContextVar("first_asked", default=0)  # requests before it are not


@dataclass
class Taken:
    """What was answered in one window."""

    seconds: float
    ramp_s: float  # before it
    said: list[Completion]
    cpu_s: float  # of this process and its threads
    failed_checks: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def requests_per_s(self) -> float:
        return len(self.said) / self.seconds

    def as_row(self) -> dict[str, Any]:
        count = max(1, len(self.said))
        return {
            "requests": len(self.said),
            "seconds": round(self.seconds, 2),
            "ramp_s": round(self.ramp_s, 1),
            "clips_per_gpu_hour": round(3600 * self.requests_per_s / REQUESTS),
            "requests_per_s": round(self.requests_per_s, 2),
            "prompt_tokens_per_request": round(sum(s.prompt_tokens for s in self.said) / count, 1),
            "output_tokens_per_request": round(sum(s.output_tokens for s in self.said) / count, 1),
            "cpu_ms_per_request": round(1000 * self.cpu_s / count, 1),
            "answers_that_fail_a_check": dict(self.failed_checks),
            "errors": self.errors[:3],
        }


class Fixed(VlmCaptioner):
    """Mixed into a captioner: answers of OUTPUT tokens, whose checks are counted alone."""

    def forget(self) -> None:
        self.said: list[Completion] = []
        self.failed: Counter[str] = Counter()
        self._checks = CheckLimits(8, estimate_t5_tokens)

    async def complete(self, request: Request) -> Completion:
        question = str(request.messages[-1].parts[-1])
        number = int(question[5]) - 1 if question.startswith("Part ") else SEGMENTS
        if number >= first_asked.get():
            said = await self.asked(request)
            self.said.append(said)
            reason = failed_check(parse_caption(said.text), self._checks)
            self.failed[(reason or "none").partition(":")[0]] += 1
        return Completion(json.dumps({"caption": TEXTS[number]}))

    async def asked(self, request: Request) -> Completion:
        return await super().complete(replace(request, max_tokens=OUTPUT))


class FixedVllm(Fixed, VllmCaptioner):
    read_prefix = True

    def _sampling(self, request: Request) -> Any:
        sampling = super()._sampling(request)
        sampling.skip_reading_prefix_cache = not self.read_prefix
        return sampling


class FixedOpenAI(Fixed, OpenAICaptioner):
    pass


class Unasked(Fixed):
    """Asks nobody: it keeps the requests, as our captioners make them."""

    captioner = "unasked"

    async def asked(self, request: Request) -> Completion:
        self.made.append(request)
        return Completion("")

    def requests(self, clip: Row) -> list[Request]:
        self.made: list[Request] = []
        _check(asyncio.run(self.process_one(dict(clip))))
        return self.made


def draw(scratch: Path, first: int, step: int, count: int) -> None:
    """Clips and their requests, by one of `step` processes."""
    stage = Unasked(image_side=SIDE)
    stage.setup(RunContext(str(scratch)))
    stage.forget()
    clips = make_clips(scratch, range(first, count, step))
    known = [stage.requests(clip) for clip in clips]
    (scratch / f"{first}.pickle").write_bytes(pickle.dumps((clips, known)))


def _check(row: Row) -> None:
    if row["error"] or row["rejected"]:
        raise RuntimeError(row["error"] or row["rejected"])


async def steady(
    stage: Any,
    clips: Iterable[Any],
    caption: Callable[[Any], Awaitable[None]],
    in_flight: int,
    seconds: float,
) -> Taken:
    """What `stage` is answered in `seconds` with `in_flight` clips under way, then cut off."""
    stage.forget()
    waiting, errors = iter(clips), list[str]()

    async def place(number: int) -> None:
        first_asked.set(number % REQUESTS)
        for clip in waiting:
            try:
                await caption(clip)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            first_asked.set(0)
        raise RuntimeError("too few clips: not all places are taken to the end")

    begun = time.perf_counter()
    places = [asyncio.create_task(place(number)) for number in range(in_flight)]

    async def until(full: Callable[[], bool]) -> tuple[float, int, float]:
        while not full():
            await asyncio.sleep(0.05)
            for ended in filter(asyncio.Task.done, places):
                ended.result()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), len(stage.said), used.ru_utime + used.ru_stime

    try:
        start_s, before, cpu_s = await until(lambda: len(stage.said) >= in_flight)
        stage.failed.clear()
        end_s, after, cpu_end_s = await until(lambda: time.perf_counter() - start_s >= seconds)
        said, failed_checks = stage.said[before:after], Counter(stage.failed)
    finally:
        for one in places:
            one.cancel()
        await asyncio.gather(*places, return_exceptions=True)
    took_s = end_s - start_s
    return Taken(took_s, start_s - begun, said, cpu_end_s - cpu_s, failed_checks, errors)


async def captioned(stage: Any, clips: list[Row], in_flight: int, seconds: float) -> Taken:
    """Our captioner, its clips under way as the runner keeps them."""

    async def caption(clip: Row) -> None:
        _check(await stage.process_one(dict(clip)))

    return await steady(stage, clips, caption, in_flight, seconds)


async def engine_alone(
    stage: FixedVllm, known: list[list[Request]], in_flight: int, seconds: float
) -> Taken:
    """All requests of a clip at once: six times as many under way as a captioner has."""

    async def all_at_once(requests: list[Request]) -> None:
        await asyncio.gather(*(stage.complete(request) for request in requests))

    return await steady(stage, known, all_at_once, in_flight, seconds)


async def emptied(stage: FixedVllm) -> None:
    engine = stage._engine
    await engine.reset_mm_cache()
    await engine.reset_encoder_cache()
    for _ in range(300):  # blocks of requests that just ended are freed a moment later
        if await engine.reset_prefix_cache():
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("the prefix cache can't be emptied")


async def over_http(stage: FixedVllm, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The captioner `openai` as a process of its own, the server in this one."""
    from vllm.entrypoints.openai.api_server import build_and_serve, create_server_socket
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = ["--model", stage.model, "--served-model-name", "bench", "--disable-uvicorn-access-log"]
    words += ["--uvicorn-log-level", "warning", "--port", "8123", "--host", "127.0.0.1"]
    words += ["--chat-template-content-format", "openai"]
    served = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
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
    told, _ = await client.communicate()
    after = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(1)  # the server notices that nobody waits for the rest
    server.cancel()
    with suppress(TimeoutError):  # it hands out its own closing, to be awaited
        await asyncio.wait_for(await server, 20)
    row, answered = json.loads(told.decode().splitlines()[-1])
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**row, "server_cpu_ms_per_request": round(1000 * used_s / answered, 1)}


def client(url: str, args: argparse.Namespace) -> None:
    """The other process of `over_http`: prints its measurement, and all that it was answered."""
    stage = FixedOpenAI(url=url, model="bench", max_clips_in_flight=args.in_flight, image_side=SIDE)
    clips = json.loads((args.scratch / "clips.json").read_text())
    stage.check()
    stage.setup(RunContext(str(args.scratch)))

    async def run() -> Taken:
        try:
            return await captioned(stage, clips, args.in_flight, args.seconds)
        finally:
            await stage.close()

    row = asyncio.run(run()).as_row()
    print(json.dumps([row, len(stage.said)]))


async def measure(args: argparse.Namespace, say: Callable[[dict[str, Any]], None]) -> None:
    started = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix="longtake-captions-"))
    model = scratch / "model"
    model.mkdir()
    count = 2 * args.in_flight + round(4 * args.seconds)  # enough at 24 requests a second
    command = [*MODULE, "--scratch", str(scratch), "--draw"]
    drawing = [  # while the engine starts
        subprocess.Popen([*command, str(first), str(DRAWING), str(count)])
        for first in range(DRAWING)
    ]
    make_model(model)
    engine: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "limit_mm_per_prompt": {"image": SEGMENTS + NEIGHBOURS, "video": 0},
        "max_num_seqs": args.in_flight,
        "mm_processor_cache_gb": 8,  # 2.8 MB a picture, seven of each clip under way
    }
    engine |= graphs() if args.graphs else {"enforce_eager": True}
    stage = FixedVllm(
        model=str(model), image_side=SIDE, max_clips_in_flight=args.in_flight, engine_args=engine
    )
    stage.setup(RunContext(str(scratch)))
    clips: list[Row] = []
    known: list[list[Request]] = []  # of each clip
    for first, process in enumerate(drawing):
        if process.wait():
            raise RuntimeError("the clips could not be drawn")
        drawn, asked = pickle.loads((scratch / f"{first}.pickle").read_bytes())
        clips, known = clips + drawn, known + asked
    (scratch / "clips.json").write_text(json.dumps(clips))
    settings = {"graphs": args.graphs, "in_flight": args.in_flight, "clips": count}
    say({"ready_s": round(time.perf_counter() - started, 1), **settings})

    async def in_process() -> dict[str, Any]:
        return (await captioned(stage, clips, args.in_flight, args.seconds)).as_row()

    async def alone() -> dict[str, Any]:
        return (await engine_alone(stage, known, args.in_flight, args.seconds)).as_row()

    async def http() -> dict[str, Any]:
        return await over_http(stage, args, scratch)

    async def uncached() -> dict[str, Any]:
        stage.read_prefix = False
        return await in_process()

    steps = {"engine": alone, "http": http, "in-process": in_process}
    steps |= {"engine, again": alone, "uncached": uncached}
    took_s = 0.0
    try:
        await captioned(stage, clips[-64:], 32, 2)  # kernels are built
        for name, step in steps.items():
            begun = time.perf_counter()
            if begun - started + took_s > args.limit:
                say({name: "left out: no time"})
                continue
            await emptied(stage)
            say({name: await step()})
            took_s = time.perf_counter() - begun
    finally:
        stage._engine.shutdown()


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Of each measurement's rate to the engine's own, the mean of its measurements."""
    rates = {name: row["requests_per_s"] for name, row in found.items() if isinstance(row, dict)}
    own = [rate for name, rate in rates.items() if name.startswith("engine")]
    others = {name: rate for name, rate in rates.items() if not name.startswith("engine")}
    return {f"{name}/engine": round(r * len(own) / sum(own), 3) for name, r in others.items()}


def graphs() -> dict[str, Any]:
    """CUDA graphs of decoding alone: no compilation, which would take minutes of the start."""
    sizes = [1, 2, 4, *range(8, 257, 8)]
    return {
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": sizes,
        }
    }


def main(words: Iterable[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs of decoding")
    parser.add_argument("--in-flight", type=int, default=256, help="clips")
    parser.add_argument("--seconds", type=float, default=60, help="of one window")
    parser.add_argument("--limit", type=float, default=550, help="s for all; the rest is left out")
    parser.add_argument("--out", help="JSON file for the results, written anew with each of them")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(list(words))
    if args.client:
        client(args.client, args)
        return
    if args.draw:
        draw(args.scratch, *args.draw)
        return
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {}

    def say(told: dict[str, Any]) -> None:
        found.update(told)
        found.update(of := ratios(found))
        print(json.dumps(told | of), flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(found, indent=1))

    asyncio.run(measure(args, say))


if __name__ == "__main__":
    main(sys.argv[1:])
