"""All settings of training, sampling and evaluation.

Imports neither torch nor numpy, so that commands refuse a mistyped setting at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from curation.config import ConfigError, check_choice
from training.objectives import Flow, Objective, PredictClean, PredictFlow, PredictNoise, PredictV

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]
Share01 = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Seed = Annotated[int, Ge(0), Lt(2**63)]  # PyTorch takes no larger one

Shape = tuple[int, int, int]  # frames, rows, columns

Mode = Literal["overlapped", "isolated", "sequential", "single", "tent"]
Rounding = Literal["nearest", "floor"]
RecomputePolicy = Literal["all", "products", "attention", "nothing"]
Positions = Literal["relative", "space"]
Reader = Literal["pyav", "decord"]

# By the name that `diffusion.objective` selects it with.
OBJECTIVES: dict[str, Objective] = {
    "epsilon": PredictNoise(),
    "v": PredictV(),
    "flow": PredictFlow(),
    "clean": PredictClean(),
}


@dataclass(frozen=True)
class Size:
    """A clip is sampled at `frames` evenly spaced times, scaled to cover height x width, and
    cropped to its middle."""

    frames: Count = 88
    height: Count = 720  # px
    width: Count = 1280  # px


@dataclass(frozen=True)
class PixelConfig:
    """Latents are patches of `frames` x `side` x `side` pixels: no weights, lossless."""

    frames: Count = 2  # of a patch
    side: Count = 4  # of a patch, px

    pretrained: ClassVar[bool] = False

    def cache_key(self) -> dict[str, Any]:
        """What latents depend on, in addition to the clip."""
        return {"kind": "Pixel", "frames": self.frames, "side": self.side}

    @property
    def channels(self) -> int:
        return 3 * self.frames * self.side**2

    def latent_size(self, size: Size, patch: int = 1, setting: str = "size") -> Shape:
        side = (self.frames, self.side, self.side)
        return _latent_size(size, side, side, side, patch, setting)


@dataclass(frozen=True)
class AllegroConfig:
    """Allegro's video VAE: 4 x 8 x 8 pixels become 4 numbers. It processes overlapping tiles."""

    allegro: str  # folder of Allegro's weights, which contains vae/
    # of convolutions; tf32: fp32 on a CPU; bf16: faster (errors: docs/measurements/training.md)
    precision: Literal["tf32", "bf16"] = "tf32"

    pretrained: ClassVar[bool] = True
    channels: ClassVar[int] = 4
    shrinks: ClassVar[Shape] = (4, 8, 8)  # to one latent
    tile: ClassVar[Shape] = (24, 320, 320)
    stride: ClassVar[Shape] = (16, 200, 240)  # from one tile to the next

    def cache_key(self) -> dict[str, Any]:
        key = {"kind": "Allegro", "weights": weights_digest(Path(self.allegro, "vae"))}
        return key if self.precision == "tf32" else key | {"precision": self.precision}

    def latent_size(self, size: Size, patch: int = 1, setting: str = "size") -> Shape:
        """Tiles must fill the size: diffusers leaves the uncovered part black without a warning."""
        return _latent_size(size, self.tile, self.stride, self.shrinks, patch, setting)


def _latent_size(
    size: Size, tile: Shape, stride: Shape, shrinks: Shape, patch: int, setting: str
) -> Shape:
    """Latent frames, rows and columns. ConfigError, which has the name of the setting, where tiles
    don't fill the size, or patches of `patch` x `patch` latents don't fill the latents."""
    shape = (size.frames, size.height, size.width)
    patches = (1, patch, patch)
    axes = zip(("frames", "height", "width"), shape, tile, stride, shrinks, patches, strict=True)
    for axis, n, first, step, shrink, side in axes:
        steps = max(0, (n - first) // step)
        tried = [first + step * i for i in range(max(0, steps - side), steps + side + 1)]
        fitting = [m for m in tried if m // shrink % side == 0]
        if n not in fitting:
            near = [m for m in fitting if m < n][-1:] + [m for m in fitting if m > n][:1]
            raise ConfigError(
                f"{setting}.{axis} is {n}: the nearest that the codec"
                f"{f' and model.patch_size={side}' if side > 1 else ''} can take: "
                f"{' and '.join(map(str, near)) or 'none'}"
            )
    frames, height, width = (n // shrink for n, shrink in zip(shape, shrinks, strict=True))
    return frames, height, width


@dataclass(frozen=True)
class BytesConfig:
    """A small text encoder that is trained along with the network."""

    width: Count = 96
    heads: Count = 4
    layers: CountOrZero = 2
    max_bytes: Count = 320  # of a caption; longer captions are cut off

    pretrained: ClassVar[bool] = False

    def cache_key(self) -> dict[str, Any]:
        """What tokens depend on, in addition to the captions; these change with every step."""
        return {"kind": "trained along"}

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}: expected a multiple of {self.heads} heads")


@dataclass(frozen=True)
class T5Config:
    """T5's encoder, v1.1 XXL for Allegro."""

    t5: str  # folder of Allegro's weights, which contains text_encoder/ and tokenizer/
    width: Count = 4096
    max_tokens: Count = 512  # of a caption; longer captions are cut off

    pretrained: ClassVar[bool] = True

    def cache_key(self) -> dict[str, Any]:
        key = {"kind": "T5", "weights": weights_digest(Path(self.t5, "text_encoder"))}
        limits = {"width": self.width, "max_tokens": self.max_tokens}
        return key | limits | {"cleaned": "as in Allegro's code"}


@dataclass(frozen=True)
class ModelConfig:
    """Names and defaults of Allegro's config.json at 88 x 720 x 1280."""

    num_layers: Count = 32
    num_attention_heads: Count = 24
    attention_head_dim: Annotated[int, Ge(6), MultipleOf(6)] = 96  # pairs on three axes
    in_channels: Count = 4
    out_channels: Count = 4
    patch_size: Count = 2
    cross_attention_dim: Count = 2304
    caption_channels: Count = 4096
    interpolation_scale_t: Positive = 2.2  # positions are divided by it
    interpolation_scale_h: Positive = 2.0
    interpolation_scale_w: Positive = 2.0
    # relative: rotary positions only, as Allegro; space: also codes of row and column on the tokens
    positions: Positions = "relative"
    # latent size in training, written to the exported config.json
    sample_frames: Count = 22
    sample_height: Count = 90
    sample_width: Count = 160

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def scales(self) -> tuple[float, float, float]:
        return self.interpolation_scale_t, self.interpolation_scale_h, self.interpolation_scale_w


@dataclass(frozen=True)
class SystemConfig:
    size: Size = field(default_factory=Size)
    sizes: tuple[Size, ...] = ()  # further sizes: each clip gets the nearest
    codec: PixelConfig | AllegroConfig = field(default_factory=PixelConfig)
    text: BytesConfig | T5Config = field(default_factory=BytesConfig)
    # channels, text width and sample size are set from codec, text and size
    model: ModelConfig = field(default_factory=ModelConfig)
    # which captions a frame attends to: overlapped, isolated, sequential, single or tent
    mode: Mode = "overlapped"
    widen_frames: CountOrZero = 1  # latent frames that `overlapped` adds on both sides of a segment
    rounding: Rounding = "nearest"  # of borders to latent frames; floor: as in the release

    def __post_init__(self) -> None:
        self.latent_size(self.size)
        for size in self.sizes:
            self.latent_size(size, "sizes")

    def latent_size(self, size: Size, setting: str = "size") -> Shape:
        """Latent frames, rows and columns. ConfigError where codec or network can't take them."""
        return self.codec.latent_size(size, self.model.patch_size, setting)

    @property
    def all_sizes(self) -> tuple[Size, ...]:
        return (self.size, *self.sizes)


@dataclass(frozen=True)
class DiffusionConfig:
    objective: str = "epsilon"  # epsilon, v, flow or clean: training/objectives.py
    min_snr_gamma: Positive | None = 5.0  # of epsilon and v; null: every timestep weighs the same
    # scale of a constant per sample and channel that is added to the noise; Presto: 0.02
    noise_offset: PositiveOrZero = 0.0
    flow_shift: Positive = 1.0  # above 1: higher noise levels, for longer or larger videos

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)

    @property
    def flows(self) -> bool:
        """The path from noise to latents is straight."""
        return isinstance(OBJECTIVES[self.objective], Flow)


@dataclass(frozen=True)
class DataConfig:
    dataset: str = "out/samples-dataset"  # output of `make curate`: a folder, s3:// or gs://
    # instead of a dataset: WebDataset shards of other tools, PATH/{000..010}.tar (docs/training.md)
    webdataset: str = ""
    shuffle_clips: CountOrZero = 64  # encoded clips in the shuffle buffer of a reader of webdataset
    use_outdated_shards: bool = False  # trains although clips were selected again after the export
    workers: CountOrZero = 2  # reading processes; 0: the training process reads
    memory_mb: PositiveOrZero = 0.0  # decoded clips that each reading process keeps in memory
    cache: str = ""  # folder or URL of the latent cache that training.precompute writes; "": none
    reader: Reader = "pyav"  # pyav or decord (the extra `decord`)

    def __post_init__(self) -> None:
        if self.webdataset and self.cache:
            raise ConfigError(
                "cache holds clips of data.dataset and can't be used with data.webdataset; "
                'set one of the two to ""'
            )
        if self.webdataset and self.reader != "pyav":
            raise ConfigError(
                "reader: decord needs the frame counts of a dataset's table, which "
                "data.webdataset does not have"
            )


@dataclass(frozen=True)
class SampleConfig:
    steps: Count = 50
    guidance: PositiveOrZero = 4.0  # scale of classifier-free guidance; 1: none
    seed: Seed = 0
    # euler: Allegro's (ancestral; not ancestral for flows); dpm++: second order, about 25 steps
    solver: Literal["euler", "dpm++"] = "euler"
    # steps at noise levels t / 1000 in this interval have guidance; others take half the time
    guidance_interval: tuple[Share01, Share01] = (0.0, 1.0)
    # presto: with the template of Presto's authors around each caption, and their negative prompt
    prompts: Literal["plain", "presto"] = "plain"


@dataclass(frozen=True)
class TrainConfig:
    run_dir: str = "out/train"  # folder of checkpoints, samples and the log
    weights: str = ""  # folder of Allegro's or Presto's weights to start from; "": random
    steps: Count = 1000  # of the optimizer
    batch: Count = 1  # samples that a process (or sequence group) computes at a time
    accumulate: Count = 1  # batches of a process (or sequence group) per step
    sequence_ranks: Count = 1  # processes that share the tokens of one sample
    shard_ranks: CountOrZero = 0  # processes that share the parameters, such as a host's; 0: all
    seed: Seed = 0
    lora_rank: CountOrZero = 0  # trains adapters of this rank; 0: trains all weights
    # adamw, or adamw8bit: moments take a quarter of the memory (bitsandbytes); not under torchrun
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    lr: Positive = 1e-4  # learning rate after the warm-up
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: PositiveOrZero = 1e-2
    # what has weight decay; matrices: not norms, biases and modulation tables; all: as Presto
    decayed: Literal["all", "matrices"] = "all"
    warmup_steps: CountOrZero = 100  # in which the learning rate grows linearly to `lr`
    lr_decay: Literal["none", "cosine", "linear"] = "none"  # or cosine or linear, to 0 at `steps`
    skip_steps: CountOrZero = 0  # most steps that are skipped for a loss that is not finite
    max_norm: Positive = 1.0  # of the gradient; larger ones are scaled down
    ema_decay: Share01 = 0.9999  # of averaged weights; (1 + step) / (10 + step) if that is less
    drop_all: Share01 = 0.1  # share of samples without captions, for guidance
    drop_one: Share01 = 0.02  # share of captions that are dropped in the other samples
    # of matrix products; auto: bf16 on a GPU, fp32 on a CPU. Weights are fp32
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # what is stored for the backward pass: all, products, attention or nothing (docs/training.md)
    keep_activations: RecomputePolicy = "all"
    compile: bool = False  # torch.compile for the blocks
    deterministic: bool = False  # on a GPU: slower, and a resumed run has bit-equal losses
    save_every: Count = 500  # steps from one validation and checkpoint to the next
    keep_checkpoints: Count = 2  # number of the last checkpoints that are kept
    validation_clips: CountOrZero = 16  # most clips in a validation
    sample_every: CountOrZero = 0  # steps from one sample to the next; 0: only at the end
    log_every: Count = 10  # steps from one line of the log to the next
    wandb: str = ""  # project at Weights & Biases (needs the package wandb); "": none
    data: DataConfig = field(default_factory=DataConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        if self.weights and not self.system.text.pretrained:
            raise ConfigError(
                f"weights is {self.weights!r}: such a network attends to T5's tokens, but "
                "system.text is trained along; set system.text.t5"
            )

    def uses_bf16(self, device_type: str) -> bool:
        return self.precision == "bf16" or (self.precision == "auto" and device_type == "cuda")


@dataclass(frozen=True)
class SampleCommandConfig(SampleConfig):
    duration_s: Positive = 15.0  # of the video, if the captions have no times
    videos: Count = 1  # per prompt; several are named NAME-0.mp4 …, as VBench expects
    fps: PositiveOrZero = 0.0  # frames per second, by interpolation; 0: only the network's frames
    sequence_ranks: Count = 1  # processes that share the tokens of one video
    compile: bool = True  # torch.compile, on a GPU only
    size: Size | None = None  # null: the run's first size


@dataclass(frozen=True)
class EvaluateConfig:
    reference: str = ""  # folder of real videos with the same names
    clip: str = ""  # folder of a CLIP model as transformers saves it
    raft: str = ""  # file with the weights of torchvision's raft_large


def weights_digest(folder: Path) -> str | None:
    """Identifies a folder of weights without reading gigabytes: a hash of its configuration and of
    each file's size, first and last MiB. None where weights are missing."""
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    if not folder.is_dir() or not all(file.is_file() for file in files):
        return None
    found = hashlib.sha256()
    for file in files:
        size, most = file.stat().st_size, 1 << 20
        with file.open("rb") as opened:
            found.update(f"{file.name}:{size}:".encode() + opened.read(most))
            opened.seek(max(0, size - most))
            found.update(opened.read(most))
    return found.hexdigest()[:16]
