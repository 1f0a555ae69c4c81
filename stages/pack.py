"""Pack: cuts the clips of one planned shard and writes it, with what Presto's trainer reads.

Cutting decodes the source again, so it runs in a child process like the decode pass: a clip that
crashes a decoder is one row with an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curation.isolate import Isolated
from curation.stage import BadVideo, Needs, Row, Stage
from curation.storage import WRONG, Folder, fetched, look_at
from stages.cut import Cut, cut
from stages.identify import sha256_of
from stages.presto import make_presto
from stages.shards import ShardPlan, pack_shard, read_receipt, sign

RECEIPTS = "ledger/shards"


@dataclass
class Pack(Stage):
    out_url: str
    presto: bool
    retry_failed: bool
    memory_gib: float = 4.0

    _child: Isolated | None = field(init=False, default=None, repr=False)

    reads = ("plan", "clips")
    writes = ("receipt",)
    needs = Needs(cpus=1)

    def setup(self) -> None:
        self._child = Isolated(_run, memory_gib=self.memory_gib)

    def process(self, rows: list[Row]) -> list[Row]:
        return [
            row | {"receipt": self._pack(ShardPlan(**row["plan"]), row["clips"])} for row in rows
        ]

    def _pack(self, plan: ShardPlan, clips: dict[str, Row]) -> dict[str, Any]:
        settings = f"presto={self.presto}"
        out, signature = Folder(self.out_url), sign(plan, clips, settings)
        with _workplace(out, plan, signature, self.retry_failed) as place:

            def presto(clip: Row, mp4: Path, made: Cut) -> Row:
                return self._presto(clip, mp4, made, place / "presto")

            receipt = pack_shard(
                plan,
                clips,
                place / "shards",
                place / RECEIPTS,
                self._cut,
                presto if self.presto else None,
                settings,
                self.retry_failed,
            )
        return asdict(receipt)

    def _cut(self, clip: Row, mp4: Path) -> Cut:
        assert self._child is not None
        _check_unchanged(clip)
        with fetched(clip["video"]) as source:
            args = (source, clip["start_s"], clip["end_s"], str(mp4), clip["num_frames"])
            return Cut(**self._child.twice("cut", args, deadline_s=_deadline_s(clip)))

    def _presto(self, clip: Row, mp4: Path, made: Cut, folder: Path) -> Row:
        assert self._child is not None
        known = {key: clip[key] for key in ("clip_id", "split", "start_s", "end_s", "sub_captions")}
        args = (known, str(mp4), asdict(made), str(folder))
        return self._child.twice("presto", args, deadline_s=_deadline_s(clip))


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


def _deadline_s(clip: Row) -> float:
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
def _workplace(out: Folder, plan: ShardPlan, signature: str, again: bool) -> Iterator[Path]:
    """Where a shard is written: the output itself, or scratch that is then copied there.

    again: whether a shard that stands may be packed once more.
    """
    if out.is_local:
        yield Path(out.url)
        return
    with tempfile.TemporaryDirectory(prefix="shard-") as scratch:
        place = Path(scratch)
        receipt = f"{RECEIPTS}/{plan.name}.json"
        if out.exists(receipt) and not again:
            (place / RECEIPTS).mkdir(parents=True)
            (place / receipt).write_bytes(out.read(receipt))
            known = read_receipt(place / RECEIPTS, plan.name)
            size = out.size(f"shards/{plan.name}")
            if known is not None and known.signature == signature and size == known.bytes:
                # The shard stands: a file of its size, without its bytes, says so to pack_shard.
                (place / "shards").mkdir()
                with open(place / "shards" / plan.name, "wb") as sparse:
                    sparse.truncate(size)
                yield place
                return
        yield place
        for file in sorted(place.rglob("*")):
            if file.is_file() and not str(file.relative_to(place)).startswith("ledger/"):
                out.put(str(file.relative_to(place)), file)
        out.put(receipt, place / receipt)  # last: with it, the shard is whole
