"""Samples videos from captions.

    python -m training.sample CHECKPOINT OUT.mp4 CAPTIONS.json [duration_s=15] [key=value …]
    python -m training.sample CHECKPOINT OUT.mp4 "first part" "second part" …
    python -m training.sample CHECKPOINT FOLDER PROMPTS.jsonl …   # FOLDER/{name}.mp4 each
    torchrun --nproc-per-node N -m training.sample …   # a video per process, or sequence_ranks=N

CHECKPOINT is a checkpoint of training.train or a folder of Allegro's or Presto's weights.
CAPTIONS.json is a list of texts, which divide the time equally, or of {"start_s", "end_s", "text"},
or a clip's JSON with sub_captions. PROMPTS.jsonl has {"name", "cap": [texts]} on each line, like
the test prompts of Presto's authors and the output of pipelines.split. The same seed gives the same
video; on a GPU, the last bits may differ. fps=24 interpolates between the network's frames by
optical flow. Fast: solver=dpm++ steps=25 guidance_interval='[0.2, 1]'.
"""

from __future__ import annotations

from curation.cli import Arguments, UsageError, check_command_line, run_command
from curation.json_text import parse_json, parse_object
from curation.progress import format_duration
from training.config import (
    AllegroConfig,
    DiffusionConfig,
    SampleCommandConfig,
    SampleConfig,
    Size,
    SystemConfig,
    T5Config,
)

if __name__ == "__main__":  # before torch is imported: a mistyped setting is refused at once
    check_command_line(__doc__, SampleCommandConfig, "CHECKPOINT OUT CAPTION...")

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from torch import Tensor

from curation import config
from curation.atomic import atomic_path
from curation.config import ConfigError
from curation.records import segment_spans
from curation.texts import is_utf8
from training import checkpoint
from training.data import seeded_generator
from training.diffusion import Predict, guided, sample_latents
from training.export import load_averaged_system
from training.interpolate import resample_frames
from training.parallel import init_distributed, shard_tokens, shutdown
from training.pretrained import REPOSITORY, check_weights
from training.sca import segment_starts
from training.text_to_video import Prompt, System
from training.weights import BadWeights, load_presto, read_config

PROGRESS_S = 10.0  # between lines
MAX_NAME_BYTES = 200  # of a prompt; file systems allow 255, with what is added to it
# of a video; with other frame rates an mp4 would be shown at another speed
MIN_DURATION_S, MAX_DURATION_S = 0.1, 3600.0
MAX_FRAMES = 10_000  # of an interpolated video: 28 GB of memory at 720 x 1280 px
# what stands around each caption, and for the unconditional prediction instead of all of them;
# presto: prompts.py of github.com/Cakeyan/Presto (Apache-2.0)
TEMPLATES = {
    "plain": ("{}", ""),
    "presto": (
        "(masterpiece), (best quality), (ultra-detailed), (unwatermarked), \n{} \nemotional, "
        "harmonious, vignette, 4k epic detailed, shot on kodak, 35mm photo, \nsharp focus, high "
        "budget, cinemascope, moody, epic, gorgeous",
        "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer "
        "digits, cropped, worst quality, \nlow quality, normal quality, jpeg artifacts, signature, "
        "watermark, username, blurry.",
    ),
}


@torch.no_grad()
def sample(
    system: System,
    prompt: Prompt,
    diffusion: DiffusionConfig,
    cfg: SampleConfig,
    size: Size | None = None,
    progress: str = "",
) -> Tensor:
    """(frames, height, width, 3) uint8, on the CPU. size: None for the system's. progress: a name
    under which lines with the time left are printed; "": none."""
    if system.cfg.mode == "single" and len(prompt.captions) != 1:
        raise ConfigError(
            f"{len(prompt.captions)} captions; "
            "this network was trained with one for the whole clip: give one"
        )
    size = size or system.cfg.size
    system.check_memory(size)
    rng = seeded_generator(cfg.seed, "sample")
    device = next(system.parameters()).device
    shape = system.cfg.latent_size(size)
    noise = torch.randn((1, system.cfg.codec.channels, *shape), generator=rng).to(device)
    template, negative = TEMPLATES[cfg.prompts]
    wanted, avoided = prompt.with_template(template), prompt.with_template(negative)
    dtype = system.presto.proj_out.weight.dtype
    with torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext():
        conditional, unconditional = (_with_prompt(system, p, shape[0]) for p in (wanted, avoided))
        predict = guided(conditional, unconditional, cfg.guidance, cfg.guidance_interval)
        if progress:
            predict = _with_progress(predict, cfg.steps, progress)
        latents = sample_latents(predict, noise, cfg, diffusion, rng)
    return system.codec.decode(latents)[0].cpu()


def _with_prompt(system: System, prompt: Prompt, frames: int) -> Predict:
    """The network with these captions, whose keys and values are computed once for all steps."""
    text = system.presto.cache_text(system.encode_text([prompt]))
    schedules = system.schedules([prompt], frames)
    return lambda x, t: system.presto(x, t, text, schedules)


def _with_progress(predict: Predict, steps: int, name: str) -> Predict:
    """The same, and prints the steps done and the time left to stderr, every ten seconds at most.
    Steps without guidance take half the time, so the time left is a little too long before them and
    too short after them."""
    start = printed = time.monotonic()
    done = 0

    def predict_and_print(x: Tensor, t: Tensor) -> Tensor:
        nonlocal done, printed
        out = predict(x, t)
        if x.is_cuda:  # a GPU's work is only queued here
            torch.cuda.synchronize()
        done, now = done + 1, time.monotonic()
        if now - printed >= PROGRESS_S or (done == steps and printed > start):
            left = format_duration((now - start) / done * (steps - done))
            print(f"{name}: step {done}/{steps}, {left} left", file=sys.stderr, flush=True)
            printed = now
        return out

    return predict_and_print


def write_mp4(
    video: Tensor, path: str | Path, duration_s: float, metadata: dict[str, str] | None = None
) -> None:
    """Writes H.264 with BT.709 colours, the frames evenly over `duration_s`; a complete file only.
    video: (T, H, W, 3) uint8. metadata: of the file, for example title and comment."""
    frames, height, width, _ = video.shape
    # x264's AVX-512 code is not deterministic
    encoding = {"crf": "14", "x264-params": "asm=avx2"}
    with (
        atomic_path(Path(path)) as part,
        av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out,
    ):
        out.metadata.update(metadata or {})
        rate = Fraction(frames / duration_s).limit_denominator(1001)
        stream = out.add_stream("libx264", rate=rate, options=encoding)
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG  # 16..235
        for picture in video[:, : stream.height, : stream.width].numpy():
            frame = av.VideoFrame.from_ndarray(picture.copy(), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        out.mux(stream.encode())


def load_system(path: str | Path) -> tuple[System, DiffusionConfig]:
    """A system to sample from: of a checkpoint, with averaged weights, or of a folder of Allegro's
    or Presto's weights."""
    is_checkpoint = Path(path, checkpoint.STATE_FILE).exists()
    if not is_checkpoint and not any(Path(path).glob("**/config.json")):
        found = checkpoint.last_checkpoint(path)
        raise BadWeights(
            f"{path}: neither a checkpoint of training.train nor a folder of Allegro's or Presto's "
            + (
                f"weights; expected a checkpoint of this run, as {found}"
                if found
                else "weights; expected RUN_DIR/checkpoints/step-00000400 or such a folder; get "
                f"Allegro's: hf download {REPOSITORY} --local-dir weights/allegro"
            )
        )
    if not is_checkpoint:
        system = published_system(str(path))
        settings = {"objective": "epsilon"}
    else:
        system = load_averaged_system(path)
        settings = checkpoint.read_state(path)["settings"]["diffusion"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # attention on a GPU has no fp32
        system = system.to(torch.bfloat16)
    diffusion = config.build(DiffusionConfig, settings, str(path))
    return system.to(device).eval().requires_grad_(False), diffusion


def published_system(folder: str) -> System:
    """Published weights with Allegro's codec and T5; segments are rounded as in the release."""
    model = read_config(folder)
    frames, rows, columns = model.sample_frames, model.sample_height, model.sample_width
    size = Size(
        *(n * by for n, by in zip((frames, rows, columns), AllegroConfig.shrinks, strict=True))
    )
    cfg = SystemConfig(size, (), AllegroConfig(folder), T5Config(folder), model, rounding="floor")
    with torch.device("meta"):
        system = System(cfg)
    system.presto = load_presto(folder)
    return system


def read_prompts(path: str, duration_s: float) -> dict[str, Prompt]:
    """Name -> prompt, from a .jsonl of {"name", "cap"}. ConfigError where it is invalid."""
    found: dict[str, Prompt] = {}
    try:
        lines = Path(path).read_text().split("\n")  # splitlines ends lines at U+2028 too
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; expected prompts as JSON lines") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_object(line)
            name, texts = str(row["name"]), row["cap"]
            name_bytes = len(name.encode())
        except (ValueError, KeyError):
            raise ConfigError(
                f'{path}: line {number} is {line!r:.60}; expected {{"name": …, "cap": [texts]}}'
            ) from None
        is_file_name = Path(name).name == name and "\0" not in name
        if not is_file_name or not 0 < name_bytes <= MAX_NAME_BYTES or name in found:
            raise ConfigError(
                f"{path}: line {number}: name is {name!r:.60}; expected a file name of at most "
                f"{MAX_NAME_BYTES} bytes that no other line has"
            )
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)):
            raise ConfigError(
                f"{path}: line {number}: cap is {texts!r:.60}; expected a list of texts"
            )
        found[name] = Prompt(segment_spans(duration_s, len(texts)), texts)
    if not found:
        raise ConfigError(f"{path}: no line; expected prompts as JSON lines")
    return found


def read_prompt(texts: Sequence[str], duration_s: float) -> Prompt:
    """Reads the prompt of the command line: texts, or one .json file. The first segment begins at
    0 s, the others follow as in the file. Raises ConfigError."""
    if len(texts) > 1 or not (texts[0].endswith(".json") or _is_file(texts[0])):
        return Prompt(segment_spans(duration_s, len(texts)), texts)
    path = texts[0]
    try:
        parts = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected captions as JSON") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    parts = parts.get("sub_captions", parts.get("cap")) if isinstance(parts, dict) else parts
    if not (isinstance(parts, list) and parts):
        raise ConfigError(
            f"{path}: captions are {parts!r:.80}; expected a list of texts, or of objects with "
            "start_s, end_s and text, or an object with such a list as sub_captions or cap"
        )
    if all(isinstance(part, str) for part in parts):
        return Prompt(segment_spans(duration_s, len(parts)), parts)
    for number, part in enumerate(parts, 1):
        _check_segment(part, f"{path}: segment {number}")
    begin = parts[0]["start_s"]
    try:
        segment_starts([(part["start_s"], part["end_s"]) for part in parts], 1)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; correct start_s or end_s") from None
    spans = [(part["start_s"] - begin, part["end_s"] - begin) for part in parts]
    return Prompt(spans, [part["text"] for part in parts])


def _check_segment(part: Any, where: str) -> None:
    """Raises ConfigError, whose message begins with `where`."""
    if not isinstance(part, dict):
        raise ConfigError(f"{where} is {part!r:.80}; expected an object with start_s, end_s, text")
    for name in ("start_s", "end_s"):
        value: Any = part.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and -sys.float_info.max <= value <= sys.float_info.max):
            raise ConfigError(f"{where}: {name} is {value!r:.80}; expected a number of seconds")
    if not isinstance(part.get("text"), str):
        raise ConfigError(f"{where}: text is {part.get('text')!r:.80}; expected the caption")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a caption too long for a file name
        return False


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        run,
        argv,
        settings=SampleCommandConfig,
        arguments="CHECKPOINT OUT CAPTION...",
        stopped="the videos printed above are complete",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[SampleCommandConfig]) -> None:
    cfg = arguments.settings
    checkpoint_path, out, *texts = arguments.values
    files = [text for text in texts if text.endswith((".json", ".jsonl"))]
    if files and len(texts) > 1:
        raise UsageError(
            f"{files[0]!r:.60} is one of {len(texts)} captions; expected texts, or one file"
        )
    if texts[0].endswith(".jsonl"):
        by_name = read_prompts(texts[0], cfg.duration_s)
        prompts = {f"{out}/{name}.mp4": prompt for name, prompt in by_name.items()}
    else:
        if not out.endswith(".mp4"):
            raise UsageError(f"OUT is {out!r}; expected a name that ends in .mp4 for one prompt")
        prompts = {out: read_prompt(texts, cfg.duration_s)}
    for prompt in prompts.values():
        _check_prompt(prompt, cfg.fps)
    for path in prompts:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    world = init_distributed(cfg.sequence_ranks)
    system, diffusion = load_system(checkpoint_path)
    for part in (system.cfg.codec, system.cfg.text):
        check_weights(part)
    shard_tokens(system.presto, world)
    if cfg.compile and world.device.type == "cuda":
        system.presto.compile_blocks()
    jobs = list(product(prompts.items(), range(cfg.videos)))
    for (path, prompt), i in jobs[world.replica :: world.replicas]:
        seeded = replace(cfg, seed=cfg.seed + i)
        to = path if cfg.videos == 1 else f"{path.removesuffix('.mp4')}-{i}.mp4"
        name = to if world.is_first_of_replica else ""
        video = sample(system, prompt, diffusion, seeded, cfg.size, name)
        if not world.is_first_of_replica:
            continue
        if cfg.fps:
            count = max(1, round(prompt.duration_s * cfg.fps))
            frames = resample_frames(video.numpy(), count)
            video = torch.from_numpy(frames)
        write_mp4(video, to, prompt.duration_s, mp4_metadata(prompt, checkpoint_path, seeded))
        print(to, flush=True)
    shutdown()


def _check_prompt(prompt: Prompt, fps: float) -> None:
    """Raises ConfigError for what would fail after the video has been sampled."""
    for text in prompt.captions:
        if not is_utf8(text):
            raise ConfigError(f"a caption is {text!r:.60}; expected text in UTF-8")
    if not MIN_DURATION_S <= prompt.duration_s <= MAX_DURATION_S:
        raise ConfigError(
            f"a video of {prompt.duration_s:g} s; expected {MIN_DURATION_S:g} to "
            f"{MAX_DURATION_S:g} s: duration_s and the times of captions are in seconds"
        )
    if prompt.duration_s * fps > MAX_FRAMES:
        raise ConfigError(
            f"{prompt.duration_s:g} s at fps={fps:g} have more than {MAX_FRAMES} frames; expected "
            "a lower fps or duration_s"
        )


def mp4_metadata(prompt: Prompt, checkpoint_path: str, cfg: SampleConfig) -> dict[str, str]:
    """A title, and a comment with the captions and settings that reproduce the video."""
    comment = {
        "checkpoint": Path(checkpoint_path).name,
        "seed": cfg.seed,
        "steps": cfg.steps,
        "guidance": cfg.guidance,
        "guidance_interval": cfg.guidance_interval,
        "solver": cfg.solver,
        "prompts": cfg.prompts,
        "captions": [
            {"start_s": a, "end_s": b, "text": text}
            for (a, b), text in zip(prompt.spans, prompt.captions, strict=True)
        ],
    }
    return {"title": prompt.captions[0][:100], "comment": json.dumps(comment, ensure_ascii=False)}


if __name__ == "__main__":
    main(sys.argv[1:])
