"""The latent cache: latents and text tokens of every clip, computed before training.

A cache has a shard for each shard of the dataset, of the same name. It holds, per clip, a JSON and
a safetensors file with

    latents       mean and log-variance (2, C, t, h, w) fp16; of PixelCodec (C, t, h, w) fp32
    text.0 …      tokens of '', of the caption and of each sub-caption, without padding

There is no text where the text encoder is trained along. key.json records the codec, text encoder
and sizes that the cache was made with; training refuses a cache of another key, or of other clips
or captions. training/precompute.py writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from safetensors.torch import load as read_tensors

from curation import config
from curation.json_text import parse_object
from curation.storage import Folder
from curation.urls import is_remote
from training.clips import (
    UNREADABLE,
    BadData,
    Clip,
    ClipList,
    ClipLocation,
    ClipSource,
    ShardedClips,
    check_selection,
    locate_clips,
    parse_clip,
    read_files,
    size_indices,
)
from training.config import DataConfig, SystemConfig
from training.streamed_clips import StreamedClips

KEY_FILE = "key.json"
AGAIN = "run python -m training.precompute with this configuration"


def open_source(cfg: SystemConfig, data: DataConfig, split: str) -> ClipSource:
    """The clips of a split: of `data.webdataset`, of `data.cache`, or of the shards.

    Raises BadData where the shards are outdated, see `check_selection`, or have no clip to train
    on.
    """
    if data.webdataset:  # all of it is for training
        if split != "train":
            return ClipList([])
        return StreamedClips(data.webdataset, cfg.size, cfg.sizes, data.shuffle_clips)
    if not data.use_outdated_shards:
        check_selection(data.dataset)
    source: ClipSource
    if data.cache:
        source = LatentCache(cfg, data, split)
    else:
        source = ShardedClips(data.dataset, split, cfg.size, data.memory_mb, cfg.sizes, data.reader)
    if split == "train" and not source.clip_ids:
        raise BadData(
            f"{data.dataset}: no clip to train on\n  fix: its report.html shows which rules reject "
            "the clips; curate it with other rules or more videos, or give another output of "
            "`make curate` as data.dataset"
        )
    return source


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


def check_key(cache: Folder, key: dict[str, Any]) -> None:
    """BadData where the cache is missing, damaged or of another key; weights that are missing here
    are not compared."""
    try:
        made: dict[str, Any] = parse_object(cache.read(KEY_FILE))
    except FileNotFoundError:
        raise BadData(f"{cache.url}: no latent cache there; {AGAIN}") from None
    except ValueError as error:
        raise BadData(
            f"{cache.path(KEY_FILE)} is damaged ({error}); delete {cache.url}, and {AGAIN}"
        ) from error
    changed = [
        line
        for line in config.differences(made, key)
        if not (line.startswith(("codec.weights:", "text.weights:")) and line.endswith("-> None"))
    ]
    if changed:
        raise BadData(
            f"{cache.url} was made with other settings ({'; '.join(changed)}); "
            f"give another data.cache, and {AGAIN}"
        )


def origin_of(location: ClipLocation) -> tuple[str, str, str]:
    """clip_id, and the hashes of the clip's mp4 and JSON."""
    row = location.row
    if not row.get("json_sha256"):
        raise BadData(
            "shards.parquet has no json_sha256, which identifies the captions; pack the "
            "dataset again: longtake export"
        )
    return row["clip_id"], row["sha256"], row["json_sha256"]


def texts_of(clip: Clip) -> list[str]:
    """The texts whose tokens are cached, in their order."""
    return ["", clip.caption, *clip.sub_captions]


class LatentCache:
    """The clips of one split, with cached latents and texts. BadData where the cache is not of this
    dataset, these captions, sizes and encoders."""

    def __init__(self, cfg: SystemConfig, data: DataConfig, split: str):
        self.cache, cache = data.cache, Folder(data.cache)
        self.is_remote = is_remote(data.dataset) or is_remote(data.cache)
        check_key(cache, cache_key(cfg))
        if not cache.exists("shards.parquet"):
            raise BadData(f"{cache.url}: incomplete; {AGAIN}")
        in_dataset = locate_clips(Folder(data.dataset), split)
        self.locations = locate_clips(cache, split)
        cached = {clip_id: tuple(at.row["of"]) for clip_id, at in self.locations.items()}
        changed = [
            clip_id
            for clip_id, at in in_dataset.items()
            if cached.get(clip_id) != origin_of(at)[1:]
        ]
        if changed:
            raise BadData(
                f"{len(changed)} of {len(in_dataset)} clips of {data.dataset} are not in "
                f"{self.cache} or have changed since, for example {changed[0]}; {AGAIN}"
            )
        self.clip_ids: Sequence[str] = list(in_dataset)
        self.size_indices = size_indices(in_dataset, cfg.all_sizes)

    def __getitem__(self, index: int, /) -> Clip:
        clip_id = self.clip_ids[index]
        location = self.locations[clip_id]
        shards = Folder(self.cache) / "shards"
        try:
            metadata, data = read_files(shards, location, ".safetensors")
            tensors = read_tensors(data)
            clip = parse_clip(clip_id, metadata, torch.empty(0, dtype=torch.uint8))
            texts = texts_of(clip) if "text.0" in tensors else []
            by_text = {text: tensors[f"text.{i}"] for i, text in enumerate(texts)}
            return replace(clip, latents=tensors["latents"], texts=by_text)
        except UNREADABLE as error:
            raise BadData(
                f"clip {clip_id} in {shards.path(location.shard)}: "
                f"{error or type(error).__name__}; delete this shard, and {AGAIN}"
            ) from error
