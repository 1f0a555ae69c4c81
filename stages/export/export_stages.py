"""The two stages of export: clips are extracted, then packed into shards.

Extraction decodes the source again, so it runs in a child process like the decode pass: a clip that
crashes a decoder is one row with an error. An extracted clip stays in `extracted/` until its shard
is packed, so an interrupted run continues from there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curation.atomic import TEMPORARY
from curation.checksums import changed_files
from curation.isolate import Isolated
from curation.json_text import parse_hashed, with_hash
from curation.stage import (
    BadVideo,
    Needs,
    OutputError,
    Row,
    RunContext,
    Stage,
    TransientError,
)
from curation.storage import Folder
from curation.texts import MAX_ERROR_CHARS, clean_outside_text
from curation.video.reader import read_timeout_s
from curation.video_files import compute_sha256, local_copy
from curation.video_list import FileError, file_error, stat_video
from stages.export.extraction import ClipSource, ExtractedClip, extract_clip
from stages.export.presto import write_presto_clip
from stages.export.shards import (
    Receipt,
    ShardPlan,
    check_captions_match,
    clip_signature,
    pack_shard,
    parse_receipt,
    shard_signature,
    to_json,
)

EXTRACTED, RECEIPTS = "extracted", "ledger/shards"  # folders of the output


@dataclass
class ExtractClips(Stage):
    """Writes the mp4s of a video's clips and their receipts, and if asked the mp4s for Presto's
    trainer. The video is fetched once, and read in one pass where it has no index."""

    out_url: str
    presto: bool
    tone_map: bool = False
    memory_gib: float = 4.0

    reads = ("clips",)  # of one video
    writes = ("extracted",)  # clip_id -> the receipt, or the error as text
    needs = Needs(cpus=1)

    def setup(self, context: RunContext) -> None:
        self._child = Isolated(_run_in_child, memory_gib=self.memory_gib)

    def process(self, rows: list[Row]) -> list[Row]:
        return [row | {"extracted": self._extract_all(row["clips"])} for row in rows]

    def _extract_all(self, clips: list[Row]) -> dict[str, dict[str, Any] | str]:
        clips = sorted(clips, key=lambda clip: clip["start_s"])
        out, settings = Folder(self.out_url), settings_text(self.presto, self.tone_map)
        signatures = {clip["clip_id"]: clip_signature(clip, settings) for clip in clips}
        earlier = {i: _earlier_receipt(out, i, signature) for i, signature in signatures.items()}
        found: dict[str, dict[str, Any] | str] = {i: r for i, r in earlier.items() if r}
        todo = [clip for clip in clips if clip["clip_id"] not in found]
        if not todo:
            return found
        try:
            _check_unchanged(todo[0])
            with local_copy(todo[0]["video"], todo[0]["bytes"]) as source:
                for clip in todo:
                    signature = signatures[clip["clip_id"]]
                    found[clip["clip_id"]] = self._extract_or_error(clip, source, signature, out)
                self._child("close", ())
        except BadVideo as error:
            text = clean_outside_text(str(error), MAX_ERROR_CHARS)
            for clip in todo:
                found.setdefault(clip["clip_id"], text)
        except Exception:  # the child may still have the video open
            self._child.close()
            raise
        return found

    def _extract_or_error(
        self, clip: Row, source: str, signature: str, out: Folder
    ) -> dict[str, Any] | str:
        try:
            return self._extract(clip, source, signature, out)
        except BadVideo as error:
            return clean_outside_text(str(error), MAX_ERROR_CHARS)

    def _extract(self, clip: Row, source: str, signature: str, out: Folder) -> dict[str, Any]:
        """The receipt: signature, the mp4's SHA-256, the fields of ExtractedClip, the row of
        write_presto_clip."""
        name, encode_s = f"{EXTRACTED}/{clip['clip_id']}.json", _encode_timeout_s(clip)
        read_s = read_timeout_s(clip["bytes"])  # a video without an index is read from its start
        limits = {"timeout_s": read_s + encode_s, "stall_timeout_s": encode_s}
        check_captions_match(clip)
        with _working_folder(out, last=name) as folder:
            mp4 = str(folder / _mp4_name(clip["clip_id"]))
            args: tuple[Any, ...] = (source, bool(clip["time_jumps"]))
            args += (clip["start_s"], clip["end_s"], mp4, clip["num_frames"])
            args += (bool(clip["interlaced"]), self.tone_map)
            extracted = self._child.call_with_retry("extract", args, **limits)
            sha256 = Folder(str(folder)).sha256(_mp4_name(clip["clip_id"]))
            receipt = {"signature": signature, "sha256": sha256, "clip": extracted, "presto": {}}
            if self.presto:
                columns = ("clip_id", "split", "start_s", "end_s", "sub_captions")
                args = ({c: clip[c] for c in columns}, mp4, extracted, str(folder / "presto"))
                try:
                    presto = self._child.call_with_retry("presto", args, timeout_s=encode_s)
                except BadVideo:
                    if Folder(str(folder)).sha256(_mp4_name(clip["clip_id"])) != sha256:
                        raise _changed(mp4) from None  # the output was removed or damaged meanwhile
                    raise
                receipt["presto"] = presto
            Folder(str(folder)).write(name, to_json(with_hash(receipt)))
        return receipt


@dataclass
class PackShard(Stage):
    """Packs the extracted clips of one shard."""

    out_url: str
    presto: bool
    tone_map: bool

    # errors: clip_id -> text, of the clips that could not be extracted
    reads = ("plan", "clips", "errors")
    writes = ("receipt",)
    needs = Needs(cpus=1)

    def process(self, rows: list[Row]) -> list[Row]:
        return [row | {"receipt": asdict(self._pack(row))} for row in rows]

    def _pack(self, row: Row) -> Receipt:
        plan, out = ShardPlan(**row["plan"]), Folder(self.out_url)
        receipts: dict[str, dict[str, Any]] = {}

        def copy_extracted(clip: Row, mp4: Path) -> ExtractedClip:
            if error := row["errors"].get(clip["clip_id"]):
                raise BadVideo(error)
            receipt = receipts[clip["clip_id"]] = _read_extracted(out, clip["clip_id"])
            name = _mp4_name(clip["clip_id"])
            if out.is_local:
                _link_or_copy(out.path(name), mp4)
            else:
                mp4.write_bytes(out.read(name))
            if Folder(str(mp4.parent)).sha256(mp4.name) != receipt["sha256"]:
                raise _changed(out.path(name))
            return ExtractedClip(**receipt["clip"])

        def presto_row(clip: Row, mp4: Path, extracted: ExtractedClip) -> Row:
            return receipts[clip["clip_id"]]["presto"]

        with _working_folder(out, last=f"{RECEIPTS}/{plan.name}.json") as folder:
            shard_receipt = pack_shard(
                plan,
                row["clips"],
                folder / "shards",
                folder / RECEIPTS,
                copy_extracted,
                presto_row if self.presto else None,
                settings_text(self.presto, self.tone_map),
            )
        for clip_id in plan.clip_ids:
            out.delete(f"{EXTRACTED}/{clip_id}.json")
            out.delete(_mp4_name(clip_id))
        return shard_receipt


def _link_or_copy(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def settings_text(presto: bool, tone_map: bool) -> str:
    """The settings that extracted clips and shards depend on."""
    return f"presto={presto}" + (" tone_map=True" if tone_map else "")


def up_to_date_receipt(
    out: Folder, plan: ShardPlan, clips: dict[str, Row], made_with: str, retry_failed: bool
) -> Receipt | None:
    """The receipt of the shard, or None where it must be packed.

    made_with: the settings_text.  retry_failed: a shard with a failed clip must be packed again.
    Of the tar the size alone is compared; pipelines.verify reads all tars and compares the hashes.
    """
    name = f"{RECEIPTS}/{plan.name}.json"
    if not out.exists(name):
        return None
    receipt = parse_receipt(out.read(name), out.path(name))
    if receipt.signature != shard_signature(plan, clips, made_with):
        return None
    if retry_failed and receipt.failed:
        return None
    return receipt if out.size(f"shards/{plan.name}") == receipt.bytes else None


def _read_extracted(out: Folder, clip_id: str) -> dict[str, Any]:
    """The receipt of a clip that this run extracted."""
    name = f"{EXTRACTED}/{clip_id}.json"
    try:
        return parse_hashed(out.read(name))
    except (ValueError, FileNotFoundError):
        raise _changed(out.path(name)) from None


def _changed(path: str) -> OutputError:
    return OutputError(
        f"{path} is not the clip that was extracted\n  fix: run again, which extracts it again"
    )


def _earlier_receipt(out: Folder, clip_id: str, signature: str) -> dict[str, Any] | None:
    """The receipt of a clip that is extracted already; None where it or one of its mp4s is
    damaged."""
    try:
        receipt = parse_hashed(out.read(f"{EXTRACTED}/{clip_id}.json"))
    except (ValueError, FileNotFoundError):
        return None
    if receipt.get("signature") != signature or mp4_errors(out, clip_id, receipt):
        return None
    return receipt


def mp4_errors(out: Folder, clip_id: str, receipt: dict[str, Any]) -> dict[str, str]:
    """Returns mp4 -> what is wrong with it, of an extracted clip."""
    expected = {_mp4_name(clip_id): receipt.get("sha256")}
    presto = receipt.get("presto") or {}
    if "path" in presto:
        expected[f"presto/{presto['path']}"] = presto.get("sha256")
    return changed_files(expected, out.sha256)


def _mp4_name(clip_id: str) -> str:
    return f"{EXTRACTED}/{clip_id}.mp4"


def _check_unchanged(clip: Row) -> None:
    """Raises BadVideo where the video is no longer the one that was scored and captioned,
    TransientError where its store does not answer."""
    now = stat_video(clip["video"])
    if (now.bytes, now.version) == (clip["bytes"], clip["version"]):
        return
    if now.bytes == FileError.UNREACHABLE:
        raise TransientError(f"can't reach {clip['video']}")
    if error := file_error(now.bytes):
        raise BadVideo(error)
    with local_copy(clip["video"], clip["bytes"]) as path:
        if compute_sha256(path) != clip["sha256"]:
            raise BadVideo("the video changed after it was scored; run longtake score again")


def _encode_timeout_s(clip: Row) -> float:
    """Ten times what a slow encode of the clip takes, and a minute."""
    return 60.0 + clip["num_frames"] * clip["width"] * clip["height"] / 1e6


_opened: dict[tuple[str, bool], ClipSource] = {}  # of a child process; one at most


def _open_source(path: str, times_jump: bool) -> ClipSource:
    """Returns the open video; it is kept from one clip of a video to the next."""
    key = (path, times_jump)
    if key not in _opened:
        _close_source()
        _opened[key] = ClipSource(path, times_jump)
    return _opened[key]


def _close_source() -> None:
    while _opened:
        _opened.popitem()[1].close()


def _run_in_child(task: str, args: tuple[Any, ...]) -> dict[str, Any]:
    if task == "close":  # a fetched video takes room on the disk as long as it is open
        _close_source()
        return {}
    if task == "extract":
        path, times_jump, start_s, end_s, mp4, num_frames, interlaced, to_sdr = args
        source, target = _open_source(path, times_jump), Path(mp4)
        extracted = extract_clip(source, start_s, end_s, target, num_frames, interlaced, to_sdr)
        return asdict(extracted)
    clip, mp4, extracted, folder = args
    return write_presto_clip(clip, Path(mp4), ExtractedClip(**extracted), Path(folder))


@contextmanager
def _working_folder(out: Folder, last: str) -> Iterator[Path]:
    """A local folder to write to: the output itself, or scratch space that is copied to it.

    last: the file that is copied last; where it exists, so do the others.
    """
    if out.is_local:
        yield Path(out.url)
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
        folder = Path(scratch)
        yield folder
        # a child that was killed leaves the file that it was writing
        files = [f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(TEMPORARY)]
        names = [str(f.relative_to(folder)) for f in files]
        for name in sorted(names, key=lambda name: (name == last, name)):
            out.upload(name, folder / name)
