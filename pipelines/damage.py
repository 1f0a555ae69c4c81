"""What is damaged or missing in an output: each check reads files and yields what is wrong.

Nothing is written. pipelines/verify.py runs the checks and prints the findings.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.checksums import changed_files, parse_checksums
from curation.images import DamagedFrame, decode_image
from curation.json_text import parse_hashed, parse_json
from curation.ledger import damaged_parts
from curation.records import SELECTION as SELECTION_COLUMNS
from curation.records import schema
from curation.stage import OutputError, Row
from curation.storage import Folder
from pipelines.checksums import CHECKSUMS, hash_files
from pipelines.outdated import MANIFEST, SHARDS
from pipelines.reviews import REVIEWS
from pipelines.tables import (
    INPUT,
    SELECTION,
    SKIPPED,
    captions_ledger,
    embeddings_ledger,
    rows_of,
    stream_videos,
    videos_ledger,
)
from stages.export.export_stages import EXTRACTED, RECEIPTS, mp4_errors
from stages.export.shards import parse_receipt

PHASES = ("score", "select", "caption", "export")
OTHER_FIXES = ("train", "restore")  # of a checkpoint; of what no command writes again
EMBEDDED = "richness_clip_l14"  # the score of a model that stores a clip's embeddings too


@dataclass(frozen=True)
class Finding:
    """A damaged or missing file, or rows that a table lacks, and what repairs it."""

    name: str  # of the file or table, below the output
    what: str  # is wrong, as `is missing`
    phase: str  # of PHASES, which writes it again; or one of OTHER_FIXES
    arguments: str = ""  # of the phase
    remove: tuple[str, ...] = ()  # files that --repair deletes
    video: str | None = None  # that --repair marks as failed


def caption_sets(out: Folder) -> list[str]:
    """The names of the sets of captions, each of which has a file of settings."""
    end = ".settings.json"
    names = out.names("ledger/captions")
    return [name.removesuffix(end) for name in names if name.endswith(end)]


def caption_name(name: str) -> str:
    """The setting that names a set of captions, for a command line."""
    return f"caption.name={shlex.quote(name)}"


def check_ledger_parts(out: Folder) -> Iterator[Finding]:
    """Checks the parts of the ledger by the hashes in their names."""
    tables = {"videos": ("score", ""), "embeddings": ("score", "")}
    for name in caption_sets(out):
        tables[f"captions/{name}"] = ("caption", caption_name(name))
    for table, (phase, arguments) in tables.items():
        for part, what in damaged_parts(out / f"ledger/{table}").items():
            name = f"ledger/{table}/{part}"
            yield Finding(name, what, phase, arguments, remove=(name,))
    for part, what in damaged_parts(out / f"ledger/{REVIEWS}").items():
        yield Finding(f"ledger/{REVIEWS}/{part}", what, "restore")


def check_tables_of_ledger(out: Folder) -> Iterator[Finding]:
    """Checks the tables and settings without a recorded hash: checksums of pages, columns, form of
    settings."""
    expected = {
        INPUT: ("score", {"video", "bytes", "version"}),
        SKIPPED: ("score", {"suffix", "files"}),
        SELECTION: ("select", set(schema(SELECTION_COLUMNS).names)),
    }
    ledger = out / "ledger"
    for name, (phase, columns) in expected.items():
        if not ledger.exists(name):
            continue
        try:
            found = ledger.read_schema(name).names
            for _ in ledger.table_batches(name, found):
                pass  # reading compares the pages with their checksums
            missing = columns - set(found)
            what = f"lacks the columns {', '.join(sorted(missing))}" if missing else None
        except OutputError as error:
            what = f"can't be read: {error}"
        if what:
            yield Finding(f"ledger/{name}", what, phase, remove=(f"ledger/{name}",))
    phases = {"videos": ("score", ""), "models": ("score", ""), "selection": ("select", "")}
    phases |= {f"captions/{name}": ("caption", caption_name(name)) for name in caption_sets(out)}
    for table, (phase, arguments) in phases.items():
        name = f"{table}.settings.json"
        if ledger.exists(name):
            try:
                parse_hashed(ledger.read(name))
            except ValueError as error:
                what, remove = f"is damaged: {error}", (f"ledger/{name}",)
                yield Finding(f"ledger/{name}", what, phase, arguments, remove)


def check_stored_frames(out: Folder) -> Iterator[Finding]:
    """Checks that the stored frames and embeddings of all scored clips exist and are unchanged."""
    if not (out / "ledger").exists(INPUT):
        return
    for videos in stream_videos(out, ["clips.segments"]):
        scored = videos.filter(pc.equal(videos["status"], "ok"))
        yield from _check_frames(out, scored.to_pylist())
    yield from _check_embeddings(out)


def _check_embeddings(out: Folder) -> Iterator[Finding]:
    """Checks that each clip with a score of the embedding model has embeddings."""
    names: list[str] = []  # of the videos with such clips
    counts: list[int] = []  # of such clips of each
    clip_ids: list[pa.Array] = []
    for videos in stream_videos(out, ["weights", "clips.clip_id", f"clips.{EMBEDDED}"]):
        has_model = pc.is_valid(pc.map_lookup(videos["weights"], EMBEDDED, "first"))
        videos = videos.filter(pc.and_(has_model, pc.equal(videos["status"], "ok")))
        clips = videos["clips"].combine_chunks()
        values = pc.list_flatten(clips)
        is_scored = pc.is_valid(pc.struct_field(values, EMBEDDED))
        clip_ids.append(pc.struct_field(values, "clip_id").filter(is_scored))
        names += videos["video"].to_pylist()
        parents = pc.list_parent_indices(clips).filter(is_scored).to_numpy()
        counts += np.bincount(parents, minlength=len(clips)).tolist()
    embedded = embeddings_ledger(out).read([])["clip_id"]
    found = pc.is_in(pa.chunked_array(clip_ids, pa.string()), embedded.combine_chunks())
    missing_before = np.append(0, np.cumsum(~found.to_numpy()))  # each clip
    missing_of = np.diff(missing_before[np.cumsum([0, *counts])]).tolist()
    for name, count, missing in zip(names, counts, missing_of, strict=True):
        if missing:
            what = f"lacks {missing} of {count} clips of {name}"
            yield Finding("ledger/embeddings", what, "score", video=name)


def _check_frames(out: Folder, rows: list[Row]) -> Iterator[Finding]:
    expected: dict[str, str] = {}
    without_hash: set[str] = set()
    video_of: dict[str, str] = {}
    for row in rows:
        for segment in (segment for clip in row["clips"] for segment in clip["segments"] or ()):
            stored = {segment["key_frame"]: segment["key_frame_sha256"]}
            stored |= {segment["next_frame"]: segment["next_frame_sha256"]}
            stored |= {s["file"]: s["sha256"] for s in segment["frame_samples"] or ()}
            stored.pop(None, None)
            for name, sha256 in stored.items():
                video_of[f"ledger/{name}"] = row["video"]
                if sha256 is None:  # of an older version
                    without_hash.add(f"ledger/{name}")
                else:
                    expected[f"ledger/{name}"] = sha256
    found = hash_files(out, expected)
    errors = changed_files(expected, found.get)
    for name in sorted(without_hash):
        try:
            decode_image(out.read(name), name)
        except FileNotFoundError:
            errors[name] = "is missing"
        except DamagedFrame:
            errors[name] = "is not a readable image"
    for name, what in errors.items():
        yield Finding(name, what, "score", video=video_of[name])


def check_rows(out: Folder) -> Iterator[Finding]:
    """Checks that each video has a row, and each clip one in the table of each phase that has
    run."""
    ledger = out / "ledger"
    if not ledger.exists(INPUT):
        return
    listed = ledger.read_table(INPUT, ["video"])["video"]
    videos = videos_ledger(out)
    if missing := rows_of(listed, videos.read(["status"]), "video")["status"].null_count:
        what = f"lacks {missing} of {len(listed)} videos of the input"
        yield Finding("ledger/videos", what, "score")
    if not ledger.exists(SELECTION):
        return
    selection = ledger.read_table(SELECTION, ["clip_id", "status"])
    found = videos.last_batches(["clips.clip_id"], listed.combine_chunks())
    ids = [pc.struct_field(pc.list_flatten(table["clips"]), "clip_id") for table in found]
    clip_ids = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    if missing := rows_of(clip_ids, selection, "clip_id")["status"].null_count:
        yield Finding(f"ledger/{SELECTION}", f"lacks {missing} clips", "select")
    kept = selection.filter(pc.equal(selection["status"], "kept"))["clip_id"]
    names = caption_sets(out)
    if len(names) != 1:  # of several, each may hold the clips of another selection
        return
    captioned = captions_ledger(out, names[0]).read([])
    if missing := rows_of(kept, captioned, "clip_id")["clip_id"].null_count:
        what = f"lacks {missing} of {len(kept)} kept clips"
        yield Finding(f"ledger/captions/{names[0]}", what, "caption", caption_name(names[0]))


def check_extracted(out: Folder) -> Iterator[Finding]:
    """Checks the clips that are extracted but not packed, by their receipts."""
    for name in out.names(EXTRACTED):
        if not name.endswith(".json"):
            continue
        clip_id = name.removesuffix(".json")
        files = (f"{EXTRACTED}/{name}", f"{EXTRACTED}/{clip_id}.mp4")
        try:
            receipt = parse_hashed(out.read(files[0]))
            errors = mp4_errors(out, clip_id, receipt)
        except (ValueError, TypeError, KeyError, AttributeError, FileNotFoundError) as error:
            errors = {files[0]: f"is damaged: {error}"}
        for file, what in errors.items():
            yield Finding(file, what, "export", remove=files)


def check_shards(out: Folder) -> Iterator[Finding]:
    """Checks shards and the clips in presto/ by the receipts of the shards."""
    tars: dict[str, str | None] = {}
    for name in out.names(RECEIPTS):
        path = f"{RECEIPTS}/{name}"
        try:
            receipt = parse_receipt(out.read(path), out.path(path))
        except (OutputError, FileNotFoundError) as error:
            what = f"is damaged: {str(error).partition('; ')[0]}"
            yield Finding(path, what, "export", remove=(path,))
            continue
        if receipt.bytes:
            tars[f"shards/{receipt.shard}"] = receipt.sha256
        mp4s = {
            f"presto/{row['path']}": row["sha256"] for row in receipt.extra if row.get("sha256")
        }
        for mp4, what in changed_files(mp4s, hash_files(out, mp4s).get).items():
            yield Finding(mp4, what, "export", remove=(mp4, path))
    for name, what in changed_files(tars, hash_files(out, tars).get).items():
        yield Finding(name, what, "export", remove=(name,))


def check_checksums(out: Folder) -> Iterator[Finding]:
    """Checks all files in OUT/SHA256SUMS; shards only if there are no receipts, as in a copy."""
    phase = "export" if out.exists(MANIFEST) or out.exists(SHARDS) else "select"
    if not out.exists(CHECKSUMS):
        if out.exists(MANIFEST):
            yield Finding(CHECKSUMS, "is missing", phase)
        return
    try:
        recorded = parse_checksums(out.read(CHECKSUMS))
    except ValueError as error:
        yield Finding(CHECKSUMS, f"is damaged: {error}", phase, remove=(CHECKSUMS,))
        return
    if out.names(RECEIPTS):  # check_shards has read them
        recorded = {n: sha256 for n, sha256 in recorded.items() if not n.startswith("shards/")}
    for name, what in changed_files(recorded, hash_files(out, recorded).get).items():
        yield Finding(name, what, phase, remove=(name,))
    if out.exists(MANIFEST):
        try:
            parse_json(out.read(MANIFEST))
        except ValueError as error:
            yield Finding(MANIFEST, f"is damaged: {error}", phase, remove=(MANIFEST,))


def check_checkpoints(out: Folder) -> Iterator[Finding]:
    """Checks the checkpoints of the trainer, whose own reader checks the same hashes."""
    if not out.is_local:
        return
    for folder in sorted(Path(out.url, "checkpoints").glob("step-*[0-9]")):
        checkpoint = out / f"checkpoints/{folder.name}"
        recorded: dict[str, str] = {}
        try:
            for name in checkpoint.names():
                if name.endswith(".sha256"):
                    recorded |= parse_checksums(checkpoint.read(name))
            files = {n: recorded.get(n) for n in checkpoint.names() if not n.endswith(".sha256")}
            files |= recorded
            errors = changed_files(files, hash_files(checkpoint, files).get) if recorded else {}
        except ValueError as error:
            errors = {name: f"is damaged: {error}"}
        for name, what in errors.items():
            yield Finding(f"checkpoints/{folder.name}/{name}", what, "train")
