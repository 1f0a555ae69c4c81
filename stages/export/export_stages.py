"""Export's two stages: each clip is cut, with what Presto's trainer reads; then shards are packed.

Cutting decodes the source again, so it runs in a child process like the decode pass: a clip that
crashes a decoder is one row with an error. A cut waits in `cuts/` until its shard is packed; a run
that is interrupted in between finds it there.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curation.isolate import Isolated
from curation.stage import BadVideo, Needs, Row, Stage
from curation.storage import TEMPORARY, WRONG, Folder, fetched, look_at
from stages.export.extraction import Cut, cut
from stages.export.presto import make_presto
from stages.export.shards import (
    Receipt,
    ShardPlan,
    check_caption,
    pack_shard,
    parse_receipt,
    sign,
    sign_clip,
    to_json,
)
from stages.file_hash import sha256_of

CUTS, RECEIPTS = "cuts", "ledger/shards"


@dataclass
class CutClip(Stage):
    """A clip's mp4 and, beside it, a note of what it is; also its mp4 for Presto's trainer."""

    out_url: str
    presto: bool
    memory_gib: float = 4.0

    _child: Isolated | None = field(init=False, default=None, repr=False)

    reads = ("clip",)
    writes = ("made",)
    needs = Needs(cpus=1)

    def setup(self) -> None:
        self._child = Isolated(_run, memory_gib=self.memory_gib)

    def process(self, rows: list[Row]) -> list[Row]:
        return [row | {"made": self._made(row["clip"])} for row in rows]

    def _made(self, clip: Row) -> dict[str, Any]:
        assert self._child is not None
        out, note = Folder(self.out_url), f"{CUTS}/{clip['clip_id']}.json"
        signature = sign_clip(clip, settings_text(self.presto))
        if out.exists(note) and (made := json.loads(out.read(note)))["signature"] == signature:
            return made
        check_caption(clip)
        _check_unchanged(clip)
        timeout_s = _timeout_s(clip)
        with _workplace(out, last=note) as place:
            mp4 = str(place / _cut_name(clip["clip_id"]))
            with fetched(clip["video"]) as source:
                args: tuple[Any, ...] = (source, clip["start_s"], clip["end_s"], mp4)
                done = self._child.call_with_retry(
                    "cut", (*args, clip["num_frames"]), timeout_s=timeout_s
                )
            made = {"signature": signature, "cut": done, "presto": {}}
            if self.presto:
                known = ("clip_id", "split", "start_s", "end_s", "sub_captions")
                args = ({key: clip[key] for key in known}, mp4, done, str(place / "presto"))
                made["presto"] = self._child.call_with_retry("presto", args, timeout_s=timeout_s)
            Folder(str(place)).write(note, to_json(made))
        return made


@dataclass
class Pack(Stage):
    """One shard of cuts."""

    out_url: str
    presto: bool

    reads = ("plan", "clips", "cuts")  # cuts: per clip what CutClip made, or why there is none
    writes = ("receipt",)
    needs = Needs(cpus=1)

    def process(self, rows: list[Row]) -> list[Row]:
        return [
            row | {"receipt": asdict(self._packed(ShardPlan(**row["plan"]), row))} for row in rows
        ]

    def _packed(self, plan: ShardPlan, row: Row) -> Receipt:
        out, cuts = Folder(self.out_url), row["cuts"]

        def make(clip: Row, mp4: Path) -> Cut:
            made = cuts[clip["clip_id"]]
            if isinstance(made, str):
                raise BadVideo(made)
            if out.is_local:
                os.link(out.path(_cut_name(clip["clip_id"])), mp4)
            else:
                mp4.write_bytes(out.read(_cut_name(clip["clip_id"])))
            return Cut(**made["cut"])

        def also(clip: Row, mp4: Path, cut: Cut) -> Row:
            return cuts[clip["clip_id"]]["presto"]

        with _workplace(out, last=f"{RECEIPTS}/{plan.name}.json") as place:
            receipt = pack_shard(
                plan,
                row["clips"],
                place / "shards",
                place / RECEIPTS,
                make,
                also if self.presto else None,
                settings_text(self.presto),
            )
        for clip_id in plan.clip_ids:
            out.delete(f"{CUTS}/{clip_id}.json")
            out.delete(_cut_name(clip_id))
        return receipt


def settings_text(presto: bool) -> str:
    """What a cut and a shard depend on beside the clips."""
    return f"presto={presto}"


def standing(
    out: Folder, plan: ShardPlan, clips: dict[str, Row], presto: bool, retry_failed: bool
) -> Receipt | None:
    """The receipt of a shard that is packed from these very clips.

    retry_failed: one that lacks a clip doesn't stand.
    """
    name = f"{RECEIPTS}/{plan.name}.json"
    if not out.exists(name):
        return None
    receipt = parse_receipt(out.read(name), out.path(name))
    if receipt.signature != sign(plan, clips, settings_text(presto)):
        return None
    if retry_failed and receipt.failed:
        return None
    return receipt if out.size(f"shards/{plan.name}") == receipt.bytes else None


def _cut_name(clip_id: str) -> str:
    return f"{CUTS}/{clip_id}.mp4"


def _check_unchanged(clip: Row) -> None:
    """Raises BadVideo where the video isn't the one that was scored: its captions tell of that."""
    now = look_at(clip["video"])
    if (now.bytes, now.version) == (clip["bytes"], clip["version"]):
        return
    if now.bytes in WRONG:
        raise BadVideo(WRONG[now.bytes])
    with fetched(clip["video"]) as path:
        if sha256_of(path) != clip["sha256"]:
            raise BadVideo("the video changed after it was scored; run pipelines.score again")


def _timeout_s(clip: Row) -> float:
    """A slow encode of every pixel, ten times over, and a minute."""
    return 60.0 + clip["num_frames"] * clip["width"] * clip["height"] / 1e6


def _run(what: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """In the child."""
    if what == "cut":
        source, start_s, end_s, mp4, num_frames = args
        return asdict(cut(source, start_s, end_s, Path(mp4), num_frames))
    clip, mp4, made, folder = args
    return make_presto(clip, Path(mp4), Cut(**made), Path(folder))


@contextmanager
def _workplace(out: Folder, last: str) -> Iterator[Path]:
    """Where files are made: the output itself, or scratch that is then copied there.

    last: the name of the file that is copied last; with it, the others are whole.
    """
    if out.is_local:
        yield Path(out.url)
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
        place = Path(scratch)
        yield place
        names = [str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()]
        for name in sorted(names, key=lambda name: (name == last, name)):
            out.put(name, place / name)
