"""Captions in, a video out.

    python -m training.sample CHECKPOINT OUT.mp4 CAPTIONS.json [duration_s=15] [key=value …]
    python -m training.sample CHECKPOINT OUT.mp4 "first part" "second part" …
    python -m training.sample CHECKPOINT FOLDER PROMPTS.jsonl …   # FOLDER/{name}.mp4 each

CHECKPOINT is one of training.train, or a folder of Allegro's or Presto's weights. CAPTIONS.json is
a list of texts, which share the time evenly, or of {"start_s", "end_s", "text"}; a clip's own JSON
(its sub_captions) does too. PROMPTS.jsonl has {"name", "cap": [texts]} a line, as the test prompts
of Presto's authors and what pipelines.split writes. The same seed gives the same video. fps=24
fills the time between the frames of the network by motion.
"""

from __future__ import annotations

from curation.cli import Arguments, check_command_line, run_command
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
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

from curation import config
from curation.atomic import atomic_path
from curation.config import ConfigError
from curation.records import segment_spans
from training import checkpoint
from training.data import generator
from training.diffusion import Predict, guided, sample_ancestral, sample_flow
from training.export import averaged
from training.interpolate import resampled
from training.text_to_video import Script, System
from training.weights import load, read_config


def sample(
    system: System,
    script: Script,
    diffusion: DiffusionConfig,
    cfg: SampleConfig,
    size: Size | None = None,
) -> Tensor:
    """(frames, height, width, 3) uint8, on the CPU. size: the system's own where none is given."""
    return sample_many(system, [script], diffusion, cfg, size)[0]


@torch.no_grad()
def sample_many(
    system: System,
    scripts: Sequence[Script],
    diffusion: DiffusionConfig,
    cfg: SampleConfig,
    size: Size | None = None,
) -> Tensor:
    """(scripts, frames, height, width, 3) uint8, on the CPU; each script's noise is its own."""
    for script in scripts:
        if system.cfg.mode == "single" and len(script.captions) != 1:
            raise ConfigError(
                f"{len(script.captions)} captions; "
                "this network was trained with one for the whole clip"
            )
    rng = generator(cfg.seed, "sample")
    device = next(system.parameters()).device
    shape = system.cfg.codec.latent_size(size or system.cfg.size)
    noise = torch.randn((len(scripts), system.cfg.codec.channels, *shape), generator=rng).to(device)
    silent = [replace(script, captions=[""] * len(script.captions)) for script in scripts]
    dtype = system.presto.proj_out.weight.dtype
    with torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext():
        hearing, deaf = (_hearing(system, these, shape[0]) for these in (scripts, silent))
        predict = guided(hearing, deaf, cfg.guidance)
        if diffusion.flows:
            latents = sample_flow(predict, noise, cfg.steps, diffusion)
        else:
            latents = sample_ancestral(predict, noise, cfg.steps, diffusion, rng)
    return system.codec.decode(latents).cpu()


def _hearing(system: System, scripts: Sequence[Script], frames: int) -> Predict:
    """The network with these captions; their keys and values are computed once for all steps."""
    text = system.presto.cache_text(system.read(scripts))
    schedules = system.schedules(scripts, frames)
    return lambda x, t: system.presto(x, t, text, schedules)


def write_mp4(
    video: Tensor, path: str | Path, duration_s: float, about: dict[str, str] | None = None
) -> None:
    """video: (T, H, W, 3) uint8. H.264, BT.709, evenly over `duration_s`; there whole or not at
    all. about: metadata of the file (title, comment)."""
    frames, height, width, _ = video.shape
    # x264's AVX-512 code gives other bytes from run to run
    encoding = {"crf": "14", "x264-params": "asm=avx2"}
    with (
        atomic_path(Path(path)) as part,
        av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out,
    ):
        out.metadata.update(about or {})
        rate = Fraction(frames / duration_s).limit_denominator(1001)
        stream = out.add_stream("libx264", rate=rate, options=encoding)
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1  # 16..235
        for picture in video[:, : stream.height, : stream.width].numpy():
            frame = av.VideoFrame.from_ndarray(picture.copy(), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        out.mux(stream.encode())


def open_system(
    path: str | Path, system_class: type[System] = System
) -> tuple[System, DiffusionConfig]:
    """The averaged network of a checkpoint, or a folder of Allegro's or Presto's weights, ready to
    sample from."""
    if not Path(path, checkpoint.TOLD).exists() and any(Path(path).glob("**/config.json")):
        known, system = {"diffusion": {"objective": "epsilon"}}, released(str(path))
    else:
        known, system = checkpoint.told(path)["settings"], averaged(path, system_class)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # the GPU's attention takes no fp32
        system = system.to(torch.bfloat16)
    diffusion = config.build(DiffusionConfig, known["diffusion"], str(path))
    return system.to(device).eval().requires_grad_(False), diffusion


def released(folder: str) -> System:
    """Published weights: with Allegro's codec and T5, and captions cut as the release cuts them."""
    model = read_config(folder)
    frames, rows, columns = model.sample_frames, model.sample_height, model.sample_width
    size = Size(
        *(n * by for n, by in zip((frames, rows, columns), AllegroConfig.shrinks, strict=True))
    )
    cfg = SystemConfig(size, (), AllegroConfig(folder), T5Config(folder), model, rounding="floor")
    with torch.device("meta"):
        system = System(cfg)
    system.presto = load(folder)
    return system


def read_prompts(path: str, duration_s: float) -> dict[str, Script]:
    """Name -> captions, from a .jsonl of {"name", "cap"}."""
    found: dict[str, Script] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected prompts as JSON lines") from None
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            name, texts = str(told["name"]), [str(text) for text in told["cap"]]
        except (ValueError, TypeError, KeyError):
            raise ConfigError(
                f'{path}: line {number} is {line!r:.60}; expected {{"name": …, "cap": [texts]}}'
            ) from None
        if not texts or Path(name).name != name or name in found:
            raise ConfigError(
                f"{path}: line {number}: {name!r:.60} must be a file name of its own, with captions"
            )
        found[name] = Script(segment_spans(duration_s, len(texts)), texts)
    return found


def read_script(texts: Sequence[str], duration_s: float) -> Script:
    """From the command line: texts, or one .json file."""
    parts: Any = list(texts)
    if len(texts) == 1 and (texts[0].endswith(".json") or _is_file(texts[0])):
        try:
            parts = json.loads(Path(texts[0]).read_text())
        except FileNotFoundError:
            raise ConfigError(f"{texts[0]}: no such file; expected captions as JSON") from None
        except ValueError as error:
            raise ConfigError(f"{texts[0]}: not valid JSON: {error}") from None
        parts = parts.get("sub_captions", parts.get("cap")) if isinstance(parts, dict) else parts
    if isinstance(parts, list) and parts and all(isinstance(p, str) for p in parts):
        return Script(segment_spans(duration_s, len(parts)), parts)
    try:
        spans = [(float(p["start_s"]), float(p["end_s"])) for p in parts]
        script = Script(spans, [str(p["text"]) for p in parts])
        return script if script.duration_s > 0 else Script([], [])
    except (TypeError, KeyError, ValueError, IndexError):
        raise ConfigError(
            f"captions are {parts!r:.80}; expected a list of texts, or of start_s, end_s and text"
        ) from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a caption too long for a name
        return False


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        run,
        argv,
        settings=SampleCommandConfig,
        arguments="CHECKPOINT OUT CAPTION...",
        stopped="the videos named above are whole",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[SampleCommandConfig]) -> None:
    cfg = arguments.settings
    made_with, out, *texts = arguments.values
    if texts[0].endswith(".jsonl"):
        prompts = read_prompts(texts[0], cfg.duration_s)
        scripts = {f"{out}/{name}.mp4": script for name, script in prompts.items()}
    else:
        scripts = {out: read_script(texts, cfg.duration_s)}
    for path in scripts:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    system, diffusion = open_system(made_with)
    for (path, script), i in product(scripts.items(), range(cfg.videos)):
        one = replace(cfg, seed=cfg.seed + i)
        video = sample(system, script, diffusion, one)
        if cfg.fps:
            frames = resampled(video.numpy(), round(script.duration_s * cfg.fps))
            video = torch.from_numpy(frames)
        to = path if cfg.videos == 1 else f"{path.removesuffix('.mp4')}-{i}.mp4"
        write_mp4(video, to, script.duration_s, about(script, made_with, one))
        print(to, flush=True)


def about(script: Script, made_with: str, cfg: SampleConfig) -> dict[str, str]:
    """What an mp4 says of itself: its captions, and with what it can be made again."""
    told = {
        "checkpoint": Path(made_with).name,
        "seed": cfg.seed,
        "steps": cfg.steps,
        "guidance": cfg.guidance,
        "captions": [
            {"start_s": a, "end_s": b, "text": text}
            for (a, b), text in zip(script.spans, script.captions, strict=True)
        ],
    }
    return {"title": script.captions[0][:100], "comment": json.dumps(told, ensure_ascii=False)}


if __name__ == "__main__":
    main(sys.argv[1:])
