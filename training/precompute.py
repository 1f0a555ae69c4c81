"""What never changes during training, computed once: the codec's latents and the text encoder's
tokens of every clip.

    python -m training.precompute CONFIG [key=value …]
    torchrun --nproc-per-node N -m training.precompute CONFIG …   # several GPUs take a shard each

CONFIG is the one of training.train; its `data.cache` names the folder. Interrupted, the same
command goes on at the clip; after the dataset has changed, it does the changed shards again. Each
shard of the dataset becomes one here, of the same name: per clip a JSON and a safetensors file with

    latents       mean and log-variance (2, C, t, h, w) fp16; of codecs without chance (C, t, h, w)
    text.0 …      tokens of '', of the caption and of each sub-caption, without padding

No text where the text encoder is trained along. key.json says what all of it was made with, and
training refuses a cache that was made with something else, or of other clips or captions.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor
from torch.utils.data import DataLoader

from curation import config
from curation.config import ConfigError
from training.clips import BadData, Clip, Place, Shards, groups, members, parse, places
from training.data import DataConfig, plainly
from training.pretrained import T5, Allegro
from training.text_to_video import SystemConfig
from training.weights import BadWeights

SPLITS = ("train", "validation")
KEY = "key.json"
AGAIN = "run python -m training.precompute with this configuration"


def key_of(cfg: SystemConfig) -> dict[str, Any]:
    """What latents and texts depend on beside the clips. Digests are None where the weights are not
    at hand."""
    codec: dict[str, Any] = config.as_dict(cfg.codec) | {"kind": type(cfg.codec).__name__}
    text: dict[str, Any] = {"kind": "trained along"}
    if isinstance(cfg.codec, Allegro):
        codec = {"kind": "Allegro", "weights": cfg.codec.weights_digest()}
    if isinstance(cfg.text, T5):
        text = {"kind": "T5", "weights": cfg.text.weights_digest()}
        text |= {"width": cfg.text.width, "max_tokens": cfg.text.max_tokens}
    sizes = [asdict(size) for size in (cfg.size, *cfg.sizes)]
    return {"format": 1, "codec": codec, "text": text, "sizes": sizes}


def precompute(cfg: SystemConfig, data: DataConfig, rank: int = 0, ranks: int = 1) -> None:
    if not data.cache:
        raise ConfigError("data.cache is empty: expected the folder to compute to")
    cache = Path(data.cache)
    (cache / "shards").mkdir(parents=True, exist_ok=True)
    claim(cache, key_of(cfg))
    sources = [Shards(data.dataset, split, cfg.size, 0, cfg.sizes) for split in SPLITS]
    by_shard: dict[str, tuple[Shards, list[int]]] = {}
    for source in sources:
        for index, place in enumerate(source.places.values()):
            by_shard.setdefault(place.shard, (source, []))[1].append(index)
    names = sorted(by_shard)
    for name in names[rank::ranks]:
        source, indices = by_shard[name]
        if receipt(cache, name, _places(source, indices)) is None:
            start = time.perf_counter()
            make_shard(cfg, cache, name, source, indices, data.workers)
            took = (time.perf_counter() - start) / len(indices)
            print(f"{name}: {len(indices)} clips, {took:.2f} s a clip", flush=True)
    found = [receipt(cache, name, _places(*by_shard[name])) for name in names]
    if all(rows is not None for rows in found):  # the last rank to end writes the table
        table = pa.Table.from_pylist([row for rows in found for row in rows or []])
        part = cache / f"shards.parquet.{rank}.part"
        pq.write_table(table, part)
        part.replace(cache / "shards.parquet")
        print(f"{cache}: {table.num_rows} clips in {len(names)} shards", flush=True)


def _places(source: Shards, indices: Sequence[int]) -> list[Place]:
    return [source.places[source.clip_ids[i]] for i in indices]


def claim(cache: Path, key: dict[str, Any]) -> None:
    """Marks a new cache as of this key; BadData where it is of another."""
    path = cache / KEY
    if path.exists():
        compare(cache, key)
        return
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(key, indent=1))
    part.replace(path)


def compare(cache: Path, key: dict[str, Any]) -> None:
    try:
        made: dict[str, Any] = json.loads((cache / KEY).read_text())
    except FileNotFoundError:
        raise BadData(f"{cache}: nothing computed ahead there; {AGAIN}") from None
    except ValueError as error:
        raise BadData(f"{cache / KEY} is damaged ({error}); delete {cache}, and {AGAIN}") from error
    changed = [line for line in config.differences(made, key) if not line.endswith("-> None")]
    if changed:
        raise BadData(
            f"{cache} was made with something else ({'; '.join(changed)}); "
            f"give another data.cache, and {AGAIN}"
        )


def receipt(cache: Path, name: str, wanted: Iterable[Place]) -> list[dict[str, Any]] | None:
    """The rows of a shard that is whole and of these very clips and captions; None where not."""
    try:
        told = json.loads((cache / "shards" / f"{name}.json").read_text())
        whole = (cache / "shards" / name).stat().st_size == told["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    made = [(row["clip_id"], *row["of"]) for row in told["rows"]]
    return told["rows"] if whole and made == [_origin(place) for place in wanted] else None


def _origin(place: Place) -> tuple[str, str, str]:
    row = place.row
    if not row.get("json_sha256"):
        raise BadData(
            "shards.parquet has no json_sha256, which says whether captions have changed; pack the "
            "dataset again: python -m pipelines.export"
        )
    return row["clip_id"], row["sha256"], row["json_sha256"]


def make_shard(
    cfg: SystemConfig, cache: Path, name: str, source: Shards, indices: list[int], workers: int
) -> None:
    """Each clip's file is written beside, so that an interrupted shard goes on at the clip."""
    scratch = cache / "shards" / f"{name}.part"
    scratch.mkdir(exist_ok=True)
    files = []
    for place in _places(source, indices):
        clip_id, sha256, json_sha256 = _origin(place)
        of = hashlib.sha256(f"{sha256}{json_sha256}".encode()).hexdigest()[:16]
        files.append(scratch / f"{clip_id}-{of}")
    todo = [(i, file) for i, file in zip(indices, files, strict=True) if not file.exists()]
    clips: DataLoader[Clip] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=[i for i, _ in todo],
        num_workers=min(workers, len(todo)),
        collate_fn=_same,
    )
    for clip, (_, file) in zip(plainly(clips), todo, strict=True):
        part = file.with_suffix(".new")
        part.write_bytes(tensor_bytes(ahead(cfg, clip), {"told": json.dumps(told_of(clip))}))
        part.replace(file)
    pack(cache, name, _places(source, indices), files)
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()


def _same(clip: Any) -> Any:
    return clip


def ahead(cfg: SystemConfig, clip: Clip) -> dict[str, Tensor]:
    """A clip's latents and texts, on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoded = cfg.codec.encode(clip.video[None].to(device))[0].cpu()
    if encoded.ndim == 5:  # chance: 11 bits are more than the codec's products have
        encoded = encoded.half()
    found = {"latents": encoded.contiguous()}
    if isinstance(cfg.text, T5):
        text = cfg.text([texts_of(clip)])
        parts = text.tokens.cpu().split(list(text.lengths[0]))
        found |= {f"text.{i}": part.clone() for i, part in enumerate(parts)}
    return found


def texts_of(clip: Clip) -> list[str]:
    return ["", clip.caption, *clip.sub_captions]


def told_of(clip: Clip) -> dict[str, Any]:
    """The JSON beside the tensors: what `parse` reads, and the rate of the frames."""
    spans = zip(clip.spans, clip.sub_captions, strict=True)
    return {
        "clip_id": clip.clip_id,
        "duration_s": clip.duration_s,
        "fps": len(clip.video) / clip.duration_s,
        "size": list(clip.video.shape[:3]),
        "caption": clip.caption,
        "sub_captions": [{"start_s": a, "end_s": b, "text": text} for (a, b), text in spans],
    }


def pack(cache: Path, name: str, of: Sequence[Place], files: Sequence[Path]) -> None:
    """The clips' files as one tar, and its receipt."""
    path, rows = cache / "shards" / name, []
    part = path.with_suffix(".new")
    with part.open("wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
        for place, file in zip(of, files, strict=True):
            clip_id, sha256, json_sha256 = _origin(place)
            data = file.read_bytes()
            end = 0
            for suffix, content in ((".json", _metadata(data)), (".safetensors", data)):
                info = tarfile.TarInfo(clip_id + suffix)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                end = out.tell()
            padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            rows.append(
                {
                    "clip_id": clip_id,
                    "shard": name,
                    "split": place.row["split"],
                    "offset": end - padded,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "error": None,
                    "of": [sha256, json_sha256],  # the mp4 and the JSON that it was made of
                }
            )
    part.replace(path)
    told = {"bytes": path.stat().st_size, "rows": rows}
    part = path.with_suffix(".receipt")
    part.write_text(json.dumps(told))
    part.replace(path.with_name(f"{name}.json"))


def _metadata(data: bytes) -> bytes:
    """Of a safetensors file: what `told_of` gave."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]["told"].encode()


class Ahead:
    """The clips of one split, computed ahead: a source as Shards is. BadData where the cache is not
    of this dataset, these captions, sizes and encoders."""

    def __init__(self, cfg: SystemConfig, data: DataConfig, split: str):
        self.cache = Path(data.cache)
        compare(self.cache, key_of(cfg))
        if not (self.cache / "shards.parquet").is_file():
            raise BadData(f"{self.cache}: not all is computed yet; {AGAIN}")
        of_dataset = places(Path(data.dataset), split)
        self.places = places(self.cache, split)
        wanted = [_origin(place)[1:] for place in of_dataset.values()]
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
        self.groups = groups(of_dataset, (cfg.size, *cfg.sizes))

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


def main(argv: Sequence[str]) -> None:
    from training.train import TrainConfig

    if not argv or set(argv) & {"-h", "--help"}:
        config.usage(__doc__, argv)
    rank, ranks = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        cfg = config.load(TrainConfig, argv[0], argv[1:])
        for size in (cfg.system.size, *cfg.system.sizes):
            cfg.system.codec.latent_size(size)
        precompute(cfg.system, cfg.data, rank, ranks)
    except (ConfigError, BadData, BadWeights, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main(sys.argv[1:])
