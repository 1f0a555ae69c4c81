"""Latents and text tokens of every clip, computed once: reading them, and what they belong to.

A cache has a shard for each shard of the dataset, of the same name. It holds, per clip, a JSON and
a safetensors file with

    latents       mean and log-variance (2, C, t, h, w) fp16; of a codec without noise (C, t, h, w)
    text.0 …      tokens of '', of the caption and of each sub-caption, without padding

There is no text where the text encoder is trained along. key.json records the codec, text encoder
and sizes that the cache was made with; training refuses a cache of another key, or of other clips
or captions. training/precompute.py writes it.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as read_tensors

from curation import config
from training.clips import BadData, Clip, Place, Shards, Source, groups, members, parse, places
from training.config import DataConfig, SystemConfig

KEY_FILE = "key.json"
AGAIN = "run python -m training.precompute with this configuration"


def open_source(cfg: SystemConfig, data: DataConfig, split: str) -> Source:
    """The clips of a split: from the cache where `data.cache` is given, else from the shards."""
    if data.cache:
        return LatentCache(cfg, data, split)
    return Shards(data.dataset, split, cfg.size, data.memory_mb, cfg.sizes)


def cache_key(cfg: SystemConfig) -> dict[str, Any]:
    """What latents and texts depend on, in addition to the clips. Digests are None where the
    weights are missing."""
    sizes = [asdict(size) for size in cfg.all_sizes]
    return {
        "format": 1,
        "codec": cfg.codec.cache_key(),
        "text": cfg.text.cache_key(),
        "sizes": sizes,
    }


def check_key(cache: Path, key: dict[str, Any]) -> None:
    """BadData where the cache is missing, damaged or of another key."""
    try:
        made: dict[str, Any] = json.loads((cache / KEY_FILE).read_text())
    except FileNotFoundError:
        raise BadData(f"{cache}: nothing computed ahead there; {AGAIN}") from None
    except ValueError as error:
        raise BadData(
            f"{cache / KEY_FILE} is damaged ({error}); delete {cache}, and {AGAIN}"
        ) from error
    changed = [line for line in config.differences(made, key) if not line.endswith("-> None")]
    if changed:
        raise BadData(
            f"{cache} was made with something else ({'; '.join(changed)}); "
            f"give another data.cache, and {AGAIN}"
        )


def origin_of(place: Place) -> tuple[str, str, str]:
    row = place.row
    if not row.get("json_sha256"):
        raise BadData(
            "shards.parquet has no json_sha256, which says whether captions have changed; pack the "
            "dataset again: python -m pipelines.export"
        )
    return row["clip_id"], row["sha256"], row["json_sha256"]


def texts_of(clip: Clip) -> list[str]:
    return ["", clip.caption, *clip.sub_captions]


class LatentCache:
    """The clips of one split, with cached latents and texts. BadData where the cache is not of this
    dataset, these captions, sizes and encoders."""

    def __init__(self, cfg: SystemConfig, data: DataConfig, split: str):
        self.cache = Path(data.cache)
        check_key(self.cache, cache_key(cfg))
        if not (self.cache / "shards.parquet").is_file():
            raise BadData(f"{self.cache}: not all is computed yet; {AGAIN}")
        of_dataset = places(Path(data.dataset), split)
        self.places = places(self.cache, split)
        wanted = [origin_of(place)[1:] for place in of_dataset.values()]
        found = [
            tuple(self.places[clip_id].row["of"]) if clip_id in self.places else None
            for clip_id in of_dataset
        ]
        changed = [c for c, a, b in zip(of_dataset, wanted, found, strict=True) if a != b]
        if changed:
            raise BadData(
                f"{len(changed)} of {len(of_dataset)} clips of {data.dataset} are not in "
                f"{self.cache} or have changed since, {changed[0]} for one; {AGAIN}"
            )
        self.clip_ids: Sequence[str] = list(of_dataset)
        self.groups = groups(of_dataset, cfg.all_sizes)

    def __getitem__(self, index: int, /) -> Clip:
        clip_id = self.clip_ids[index]
        place = self.places[clip_id]
        where = self.cache / "shards" / place.shard
        try:
            told, data = members(where, place, ".safetensors")
            tensors = read_tensors(data)
            clip = parse(clip_id, told, torch.empty(0, dtype=torch.uint8))
            texts = texts_of(clip) if "text.0" in tensors else []
            by_text = {text: tensors[f"text.{i}"] for i, text in enumerate(texts)}
            fields = {"latents": tensors["latents"], "texts": by_text}
            return Clip(**(vars(clip) | fields))
        except (BadData, OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            raise BadData(
                f"clip {clip_id} in {where}: {error or type(error).__name__}; delete this shard, "
                f"and {AGAIN}"
            ) from error
