"""Captions of a Qwen2.5-VL-7B-sized model by vLLM on one GPU: clips per GPU-hour.

    python benchmarks/captions.py [--graphs] [--in-flight 128] [--seconds 70] [--limit 500]

One engine serves all measurements, each begun with empty caches:
  in-process   our captioner `vllm`: six requests a clip, in order, many clips under way
  engine       the same requests, all known beforehand and given to the engine at once
  http         our captioner `openai` in another process, over the engine's own HTTP server
  uncached     as in-process, no request reading what another one of its clip computed

The weights are random (load_format=dummy), configuration and tokenizer are made on the spot. So
every answer runs to its limit of OUTPUT tokens (chance seldom ends a JSON string), its checks
are counted but decide nothing, and a set text of an answer's length goes into the next question.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.records import segment_spans
from curation.stage import Row
from stages.caption_checks import Limits, failed, t5_tokens_at_most
from stages.conversation import Request, caption_of
from stages.vlm import Said, Vlm
from stages.vlm_openai import OpenAI
from stages.vlm_vllm import Vllm

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = 100  # tokens of every answer
STILL = (768, 432)  # px, as `score` stores stills of 16:9; sent with a long side of SIDE
SIDE, SEGMENTS, NEIGHBOURS = 640, 5, 2
REQUESTS = SEGMENTS + 1  # of a clip
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
    corpus += [path.read_text() for path in (REPOSITORY / "stages/prompts").iterdir()]
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


def make_clips(ledger: Path, count: int) -> list[Row]:
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
            segments.append(row | {"neighbours": [before, after][:NEIGHBOURS]})
        span = {"start_s": 0.0, "end_s": 15.0, "error": None}
        return {"clip_id": f"clip{number}", "segments": segments} | span

    return [clip(number) for number in range(count)]


# ---------------------------------------------------------------- what is measured


@dataclass
class Taken:
    """One measurement."""

    clips: int
    seconds: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    failed_checks: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def as_row(self) -> dict[str, Any]:
        requests = self.clips * REQUESTS
        return {
            "clips": self.clips,
            "seconds": round(self.seconds, 2),
            "clips_per_gpu_hour": round(3600 * self.clips / self.seconds),
            "requests_per_s": round(requests / self.seconds, 2),
            "prompt_tokens_per_request": round(self.prompt_tokens / requests, 1),
            "output_tokens_per_request": round(self.output_tokens / requests, 1),
            "answers_that_fail_a_check": dict(self.failed_checks),
            "errors": self.errors[:3],
        }


class Fixed:
    """Mixed into a captioner: answers of OUTPUT tokens, whose checks are counted alone."""

    def note(self) -> None:
        self.asked: list[Request] = []
        self.spent: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._checks = Limits(8, t5_tokens_at_most)

    async def say(self, request: Request) -> Said:
        request = replace(request, max_tokens=OUTPUT)
        self.asked.append(request)
        said = await super().say(request)  # type: ignore[misc]
        self.spent.update(prompt=said.prompt_tokens, output=said.output_tokens)
        reason = failed(caption_of(said.text), self._checks)
        self.failed[(reason or "none").partition(":")[0]] += 1
        question = request.messages[-1].parts[-1]
        number = int(question[5]) - 1 if str(question).startswith("Part ") else SEGMENTS
        return replace(said, text=json.dumps({"caption": TEXTS[number]}))


class FixedVllm(Fixed, Vllm):
    read_prefix = True

    def _sampling(self, request: Request) -> Any:
        sampling = super()._sampling(request)
        sampling.skip_reading_prefix_cache = not self.read_prefix
        return sampling


class FixedOpenAI(Fixed, OpenAI):
    pass


async def captioned(stage: Any, clips: list[Row], in_flight: int) -> Taken:
    """All clips, at most `in_flight` under way, as the runner keeps them."""
    stage.note()
    room = asyncio.Semaphore(in_flight)

    async def one(clip: Row) -> Row:
        async with room:
            return await stage.process_one(dict(clip))

    begun = time.perf_counter()
    rows = await asyncio.gather(*(one(clip) for clip in clips))
    seconds = time.perf_counter() - begun
    errors = [row["error"] or row["rejected"] for row in rows if row["error"] or row["rejected"]]
    spent = stage.spent
    return Taken(len(clips), seconds, spent["prompt"], spent["output"], stage.failed, errors)


async def engine_alone(stage: FixedVllm, asked: list[Request]) -> Taken:
    """The requests that the captioner made, all given to the engine at once."""
    begun = time.perf_counter()
    said = await asyncio.gather(*(stage._generate(request) for request in asked))
    seconds = time.perf_counter() - begun
    prompt = sum(one.prompt_tokens for one in said)
    output = sum(one.output_tokens for one in said)
    return Taken(len(asked) // REQUESTS, seconds, prompt, output)


async def emptied(stage: FixedVllm) -> None:
    engine = stage._engine
    await engine.reset_mm_cache()
    await engine.reset_encoder_cache()
    for _ in range(50):  # blocks of requests that just ended are freed a moment later
        if await engine.reset_prefix_cache():
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("the prefix cache can't be emptied")


async def over_http(stage: FixedVllm, model: Path, ledger: Path, count: int, in_flight: int) -> Any:
    """The captioner `openai` as a process of its own, the server in this one."""
    from vllm.entrypoints.openai.api_server import build_and_serve, create_server_socket
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = ["--model", str(model), "--served-model-name", "bench", "--disable-uvicorn-access-log"]
    words += ["--uvicorn-log-level", "warning", "--port", "8123", "--host", "127.0.0.1"]
    words += ["--chat-template-content-format", "openai"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    listening = create_server_socket(("127.0.0.1", 8123), reuse_port=False)
    address = "http://127.0.0.1:8123"
    server = asyncio.create_task(build_and_serve(stage._engine, address, listening, args))
    await asyncio.sleep(2)
    if server.done():
        server.result()
    command = [sys.executable, __file__, "--client", f"{address}/v1", "--ledger", str(ledger)]
    command += ["--clips", str(count), "--in-flight", str(in_flight)]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    told, _ = await client.communicate()
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    return json.loads(told.decode().splitlines()[-1])


def client(url: str, ledger: Path, count: int, in_flight: int) -> None:
    """The other process of `over_http`: prints its measurement."""
    stage = FixedOpenAI(url=url, model="bench", clips_in_flight=in_flight, image_side=SIDE)
    _prepare(stage, ledger)
    stage.check()
    stage.setup()

    async def run() -> Taken:
        try:
            return await captioned(stage, make_clips(ledger, count), in_flight)
        finally:
            await stage.close()

    print(json.dumps(asyncio.run(run()).as_row()))


def _prepare(stage: Vlm, ledger: Path) -> None:
    stage.ledger_url, stage.similarity = str(ledger), None


async def measure(args: argparse.Namespace, say: Callable[..., None]) -> dict[str, Any]:
    started = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix="longtake-captions-"))
    model, ledger = scratch / "model", scratch / "ledger"
    model.mkdir()
    make_model(model)
    engine: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "limit_mm_per_prompt": {"image": SEGMENTS + NEIGHBOURS, "video": 0},
    }
    engine |= graphs() if args.graphs else {"enforce_eager": True}
    stage = FixedVllm(
        model=str(model), image_side=SIDE, clips_in_flight=args.in_flight, engine=engine
    )
    _prepare(stage, ledger)
    stage.setup()

    def left() -> float:
        return args.limit - (time.perf_counter() - started)

    found: dict[str, Any] = {"graphs": args.graphs, "in_flight": args.in_flight}
    found["engine_up_s"] = round(time.perf_counter() - started, 1)
    say(found)
    try:
        warm = make_clips(ledger / "warm", 2 * 16)
        stage.ledger_url = str(ledger / "warm")
        await captioned(stage, warm[:16], 16)
        await emptied(stage)
        rate = 32 / (await captioned(stage, warm, 32)).seconds
        count = max(16, min(512, round(rate * args.seconds)))
        say({"warm clips/s": round(rate, 2), "clips": count})
        clips = make_clips(ledger, count)
        stage.ledger_url = str(ledger)

        await emptied(stage)
        own = await captioned(stage, clips, args.in_flight)
        asked = stage.asked
        found["in-process"] = own.as_row()
        say({"in-process": found["in-process"]})
        await emptied(stage)
        alone = await engine_alone(stage, asked)
        found["engine"] = alone.as_row()
        found["in-process/engine"] = round(alone.seconds / own.seconds, 3)
        say({"engine": found["engine"], "in-process/engine": found["in-process/engine"]})
        if left() > 1.5 * own.seconds:
            await emptied(stage)
            http = await over_http(stage, model, ledger, count, args.in_flight)
            found["http"] = http
            found["http/engine"] = round(alone.seconds / http["seconds"], 3)
            say({"http": http, "http/engine": found["http/engine"]})
        half = max(8, count // 3)
        if left() > 1.5 * own.seconds:
            await emptied(stage)
            stage.read_prefix = False
            bare = await captioned(stage, clips[:half], args.in_flight)
            await emptied(stage)
            stage.read_prefix = True
            again = await captioned(stage, clips[:half], args.in_flight)
            found["uncached"] = bare.as_row()
            found["cached, as many clips"] = again.as_row()
            found["prefix caching"] = round(bare.seconds / again.seconds, 2)
            say({name: found[name] for name in ("uncached", "prefix caching")})
    finally:
        stage._engine.shutdown()
    return found


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
    parser.add_argument("--in-flight", type=int, default=128, help="clips")
    parser.add_argument("--seconds", type=float, default=70, help="of one measurement, about")
    parser.add_argument("--limit", type=float, default=500, help="s for all; the rest is left out")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--ledger", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(list(words))
    if args.client:
        client(args.client, args.ledger, args.clips, args.in_flight)
        return
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    def say(told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)

    found = asyncio.run(measure(args, say))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    say(found)


if __name__ == "__main__":
    main(sys.argv[1:])
