"""Captions in, a video out.

    python -m training.sample CHECKPOINT OUT.mp4 CAPTIONS.json [duration_s=15] [key=value …]
    python -m training.sample CHECKPOINT OUT.mp4 "first part" "second part" …

CAPTIONS.json is a list of texts, which share the time evenly, or of {"start_s", "end_s", "text"}; a
clip's own JSON (its sub_captions) and what pipelines.split writes do too. The same seed gives the
same video.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from curation import config
from curation.config import ConfigError
from curation.records import segment_spans
from training import checkpoint
from training.checkpoint import CheckpointError
from training.data import generator
from training.diffusion import DiffusionConfig, Predict, guided, sample_ancestral, sample_flow
from training.system import Script, System, SystemConfig


@dataclass(frozen=True)
class SampleConfig:
    steps: Annotated[int, Ge(1)] = 50
    guidance: Annotated[float, Ge(0)] = 4.0  # classifier-free; 1: the captions alone
    seed: int = 0


@dataclass(frozen=True)
class CommandConfig(SampleConfig):
    duration_s: Annotated[float, Gt(0)] = 15.0  # of the video, where the captions give no times


@torch.no_grad()
def sample(system: System, script: Script, diffusion: DiffusionConfig, cfg: SampleConfig) -> Tensor:
    """(frames, height, width, 3) uint8, on the CPU."""
    if system.cfg.mode == "single" and len(script.captions) != 1:
        raise ConfigError(
            f"{len(script.captions)} captions; this network was trained with one for the whole clip"
        )
    rng = generator(cfg.seed, "sample")
    device = next(system.parameters()).device
    noise = torch.randn((1, system.codec.channels, *system.latent_size), generator=rng).to(device)
    silent = Script(script.spans, [""] * len(script.captions))
    predict = guided(_hearing(system, script), _hearing(system, silent), cfg.guidance)
    if diffusion.objective == "flow":
        latents = sample_flow(predict, noise, cfg.steps, diffusion)
    else:
        latents = sample_ancestral(predict, noise, cfg.steps, diffusion, rng)
    return system.codec.decode(latents)[0].cpu()


def _hearing(system: System, script: Script) -> Predict:
    """The network with these captions; their keys and values are computed once for all steps."""
    text = system.presto.cache_text(system.read([script]))
    schedules = system.schedules([script])
    return lambda x, t: system.presto(x, t, text, schedules)


def write_mp4(video: Tensor, path: str | Path, duration_s: float) -> None:
    """video: (T, H, W, 3) uint8. H.264, evenly over `duration_s`; there whole or not at all."""
    frames, height, width, _ = video.shape
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out:
        rate = Fraction(frames / duration_s).limit_denominator(1001)
        stream = out.add_stream("libx264", rate=rate, options={"crf": "14"})
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        for picture in video[:, : stream.height, : stream.width].numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture.copy(), format="rgb24")))
        out.mux(stream.encode())
    part.replace(path)


def open_system(path: str | Path) -> tuple[System, DiffusionConfig]:
    """The averaged network of a checkpoint, ready to sample from."""
    state = checkpoint.load(path)
    known = state["settings"]
    system = System(config.build(SystemConfig, known["system"], str(path)))
    system.load_state_dict(state["ema"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # the GPU's attention takes no fp32
        system = system.to(torch.bfloat16)
    diffusion = config.build(DiffusionConfig, known["diffusion"], str(path))
    return system.to(device).eval().requires_grad_(False), diffusion


def read_script(texts: Sequence[str], duration_s: float) -> Script:
    """From the command line: texts, or one .json file."""
    parts: Any = list(texts)
    if len(texts) == 1 and texts[0].endswith(".json"):
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


def main(argv: Sequence[str]) -> None:
    names = {f.name for f in fields(CommandConfig)}
    settings = [a for a in argv if a.partition("=")[0] in names]
    rest = [a for a in argv if a not in settings]
    if len(rest) < 3 or "-h" in argv or "--help" in argv:
        sys.exit((__doc__ or "").strip())
    try:
        cfg = config.load(CommandConfig, None, settings)
        system, diffusion = open_system(rest[0])
        script = read_script(rest[2:], cfg.duration_s)
        write_mp4(sample(system, script, diffusion, cfg), rest[1], script.duration_s)
    except (ConfigError, CheckpointError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(rest[1])


if __name__ == "__main__":
    main(sys.argv[1:])
