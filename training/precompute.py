"""Computes once what never changes during training: every clip's latents and text tokens.

    python -m training.precompute CONFIG [key=value …]
    torchrun --nproc-per-node N -m training.precompute CONFIG …   # several GPUs take a shard each

CONFIG is the one of training.train; its `data.cache` names the folder (training/latent_cache.py has
its format). An interrupted run resumes at the clip; after the dataset has changed, the same command
computes the changed shards again.
"""

from __future__ import annotations

from curation.cli import Arguments, check_command_line, run_command
from curation.json_text import parse_object
from training.config import DataConfig, SystemConfig, TrainConfig

if __name__ == "__main__":  # before torch is imported: a mistyped setting is refused at once
    check_command_line(__doc__, TrainConfig, "CONFIG")

import hashlib
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save as tensor_bytes
from torch import Tensor
from torch.utils.data import DataLoader

from curation.atomic import atomic_path, write_atomic
from curation.config import ConfigError
from curation.storage import Folder
from curation.urls import is_remote
from training.clips import Clip, ClipLocation, ShardedClips, check_selection
from training.data import as_tensors, reraise_user_errors, start_method
from training.latent_cache import KEY_FILE, cache_key, check_key, origin_of, texts_of
from training.pretrained import check_weights
from training.text_to_video import Codec, TextEncoder, build_codec, build_text_encoder

SPLITS = ("train", "validation")


def precompute(cfg: SystemConfig, data: DataConfig, rank: int = 0, ranks: int = 1) -> None:
    """Writes this rank's shards of the cache, and the table once all shards are complete."""
    if not data.cache:
        raise ConfigError("data.cache is empty: expected the folder to write to")
    if is_remote(data.cache):
        raise ConfigError(
            f"data.cache is {data.cache}: expected a local folder to write to; training also reads "
            "a cache that was copied to an object store"
        )
    for config in (cfg.codec, cfg.text):
        check_weights(config)
    if not data.use_outdated_shards:
        check_selection(data.dataset)
    cache = Path(data.cache)
    (cache / "shards").mkdir(parents=True, exist_ok=True)
    write_or_check_key(cache, cache_key(cfg))
    sources = [
        ShardedClips(data.dataset, split, cfg.size, 0, cfg.sizes, data.reader) for split in SPLITS
    ]
    by_shard: dict[str, tuple[ShardedClips, list[int]]] = {}
    for source in sources:
        for index, location in enumerate(source.locations.values()):
            by_shard.setdefault(location.shard, (source, []))[1].append(index)
    names = sorted(by_shard)
    for name in names[rank::ranks]:
        source, indices = by_shard[name]
        if complete_rows(cache, name, _locations(source, indices)) is None:
            start = time.perf_counter()
            write_shard(cfg, cache, name, source, indices, data.workers)
            seconds = (time.perf_counter() - start) / len(indices)
            print(f"{name}: {len(indices)} clips, {seconds:.2f} s a clip", flush=True)
    found = [complete_rows(cache, name, _locations(*by_shard[name])) for name in names]
    if all(rows is not None for rows in found):  # true for the last rank to finish
        table = pa.Table.from_pylist([row for rows in found for row in rows or []])
        with atomic_path(cache / "shards.parquet") as part:
            pq.write_table(table, part)
        print(f"{cache}: {table.num_rows} clips in {len(names)} shards", flush=True)


def _locations(source: ShardedClips, indices: Sequence[int]) -> list[ClipLocation]:
    return [source.locations[source.clip_ids[i]] for i in indices]


def write_or_check_key(cache: Path, key: dict[str, Any]) -> None:
    """Writes the key of a new cache; BadData where an existing one has another key."""
    path = cache / KEY_FILE
    if path.exists():
        check_key(Folder(str(cache)), key)
        return
    write_atomic(path, json.dumps(key, indent=1))


def complete_rows(
    cache: Path, name: str, expected: Iterable[ClipLocation]
) -> list[dict[str, Any]] | None:
    """The table's rows of a shard that is complete and was made from the expected clips and
    captions; None for other shards."""
    try:
        receipt = parse_object((cache / "shards" / f"{name}.json").read_bytes())
        is_complete = (cache / "shards" / name).stat().st_size == receipt["bytes"]
        origins = [(row["clip_id"], *row["of"]) for row in receipt["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_current = origins == [origin_of(location) for location in expected]
    return receipt["rows"] if is_complete and is_current else None


def write_shard(
    cfg: SystemConfig,
    cache: Path,
    name: str,
    source: ShardedClips,
    indices: list[int],
    workers: int,
) -> None:
    """Writes a file per clip first, so that an interrupted run resumes at the clip."""
    scratch = cache / "shards" / f"{name}.part"
    scratch.mkdir(exist_ok=True)
    files = []
    for location in _locations(source, indices):
        clip_id, sha256, json_sha256 = origin_of(location)
        origin = hashlib.sha256(f"{sha256}{json_sha256}".encode()).hexdigest()[:16]
        files.append(scratch / f"{clip_id}-{origin}")
    codec = build_codec(cfg.codec)
    text = build_text_encoder(cfg.text) if cfg.text.pretrained else None
    todo = [(i, file) for i, file in zip(indices, files, strict=True) if not file.exists()]
    clips: DataLoader[Clip] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=[i for i, _ in todo],
        num_workers=min(workers, len(todo)),
        collate_fn=as_tensors,  # type: ignore[arg-type]  # gets an item where batch_size is None
        multiprocessing_context=start_method(source, min(workers, len(todo))),
    )
    for clip, (_, file) in zip(reraise_user_errors(clips), todo, strict=True):
        tensors = encode_clip(codec, text, clip)
        write_atomic(file, tensor_bytes(tensors, {"clip": json.dumps(clip_json(clip))}))
    if text and (cut := text.cut.summary()):
        print(f"{name}: {cut}", flush=True)
    pack(cache, name, _locations(source, indices), files)
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()


def encode_clip(codec: Codec, text: TextEncoder | None, clip: Clip) -> dict[str, Tensor]:
    """A clip's latents and, where the text encoder is pretrained, its text tokens; on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoded = codec.encode(clip.video[None].to(device))[0].cpu()
    if encoded.ndim == 5:  # mean and log-variance; fp16 is more precise than the codec's products
        encoded = encoded.half()
    found = {"latents": encoded.contiguous()}
    if text:
        encoded_text = text([texts_of(clip)])
        parts = encoded_text.tokens.cpu().split(list(encoded_text.lengths[0]))
        found |= {f"text.{i}": part.clone() for i, part in enumerate(parts)}
    return found


def clip_json(clip: Clip) -> dict[str, Any]:
    """What `parse_clip` reads, and the frame rate and size."""
    spans = zip(clip.spans, clip.sub_captions, strict=True)
    return {
        "clip_id": clip.clip_id,
        "duration_s": clip.duration_s,
        "fps": len(clip.video) / clip.duration_s,
        "size": list(clip.video.shape[:3]),
        "caption": clip.caption,
        "sub_captions": [{"start_s": a, "end_s": b, "text": text} for (a, b), text in spans],
    }


def pack(cache: Path, name: str, origins: Sequence[ClipLocation], files: Sequence[Path]) -> None:
    """Writes the clips' files as one tar, and its receipt."""
    path, rows = cache / "shards" / name, []
    with (
        atomic_path(path) as part,
        part.open("wb") as out,
        tarfile.open(fileobj=out, mode="w") as tar,
    ):
        for location, file in zip(origins, files, strict=True):
            clip_id, sha256, json_sha256 = origin_of(location)
            data = file.read_bytes()
            end, clip_json_bytes = 0, _clip_json_in(data)
            for suffix, content in ((".json", clip_json_bytes), (".safetensors", data)):
                info = tarfile.TarInfo(clip_id + suffix)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                end = out.tell()
            padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            rows.append(
                {
                    "clip_id": clip_id,
                    "shard": name,
                    "split": location.row["split"],
                    "offset": end - padded,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "json_sha256": hashlib.sha256(clip_json_bytes).hexdigest(),
                    "error": None,
                    "of": [sha256, json_sha256],  # hashes of the mp4 and JSON that it was made from
                }
            )
    receipt = {"bytes": path.stat().st_size, "rows": rows}
    write_atomic(path.with_name(f"{name}.json"), json.dumps(receipt))


def _clip_json_in(data: bytes) -> bytes:
    """The clip_json in a safetensors file's metadata."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]["clip"].encode()


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        run,
        argv,
        settings=TrainConfig,
        arguments="CONFIG",
        stopped="the same command resumes here",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[TrainConfig]) -> None:
    rank, ranks = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    precompute(arguments.settings.system, arguments.settings.data, rank, ranks)


if __name__ == "__main__":
    main(sys.argv[1:])
