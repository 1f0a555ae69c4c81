"""Caption: writes progressive sub-captions and an overall caption of each kept clip.

    python -m pipelines.caption [CONFIG] output=OUT [key=value …]

Clips that have captions made from their present frames are skipped. For captions of a second model
in the same output, give caption.name=NAME here, to select and to export.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.ledger import Ledger, check_settings
from curation.partitions import as_bytes
from curation.policy import Range
from curation.progress import Progress
from curation.records import hash_frames, stored_frame_hashes
from curation.runner.cluster import Cluster
from curation.stage import Row, RunContext
from curation.storage import Folder
from pipelines.settings import (
    Settings,
    main,
    stop_if_all_failed,
    stop_if_too_many_fail,
    timed_batches,
)
from pipelines.tables import (
    SMALL_CLIP_COLUMNS,
    captions_ledger,
    rows_of,
    scan_selection,
    stream_clips,
)
from stages.captioning.vlm import VlmCaptioner
from stages.selection.caption_rules import clips_to_caption

FRAMES_CHARS = 16  # of the hash of the frames that are kept in memory; export compares all
ROWS_PER_BATCH = 64  # turned into Python's objects in one step


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    captioner, name = settings.caption.chosen, settings.caption.set_name
    check_settings(
        out / "ledger",
        f"captions/{name}",
        captioner.provenance(),
        type(captioner)().provenance(),
        "use these settings, or another name for the captions: caption.name=NAME",
    )
    ledger = captions_ledger(out, name)
    wanted, is_todo = find_todo(out, ledger, settings.retry_failed)
    if is_todo.any():
        captioner.check()
    with Progress("caption", len(wanted), "clips") as progress:
        progress.update(done=len(wanted) - int(is_todo.sum()))
        context = _make_context(settings, (out / "ledger").url)
        todo = read_rows(out, wanted[is_todo], name)
        rows = cluster.stream(
            [captioner], todo, progress.show_wait_reason, context, progress.print_error
        )
        for batch in timed_batches(_counted(rows, settings.max_failed_share, progress)):
            ledger.append(batch)
            ledger.compact_if_many()
    ledger.compact()
    ids = pa.array(wanted.tolist(), pa.binary()).cast(pa.string())
    errors = rows_of(ids, ledger.read(["error"]), "clip_id")["error"]
    stop_if_all_failed(errors, "clips to caption")


def find_todo(out: Folder, ledger: Ledger, retry_failed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clip_ids of the clips that need captions, (n,) sorted bytes, and (n,) bool:
    whether their captions are still to be written. Raises PlanError."""
    selection = scan_selection(out, ["clip_id", "reasons"])
    chosen = np.sort(_joined(as_bytes(clips_to_caption(table)) for table in selection))
    known = _Captions(ledger)
    found, todo = [], []
    for clips in stream_clips(out, ["clip_id", "segments"]):
        ids = as_bytes(clips["clip_id"])
        rows = np.flatnonzero(_is_in(ids, chosen))
        found.append(ids[rows])
        todo.append(
            np.array(
                [
                    known.must_be_written(name, segments, retry_failed)
                    for name, segments in zip(
                        ids[rows], _to_python(clips["segments"], rows), strict=True
                    )
                ],
                bool,
            )
        )
    wanted = _joined(found)
    order = np.argsort(wanted)
    return wanted[order], np.concatenate([np.empty(0, bool), *todo])[order]


def _to_python(column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[Any]:
    for start in range(0, len(rows), ROWS_PER_BATCH):
        yield from column.take(pa.array(rows[start : start + ROWS_PER_BATCH])).to_pylist()


class _Captions:
    """The captions in the ledger: about 60 bytes of memory each."""

    def __init__(self, ledger: Ledger) -> None:
        ids, frames, failed = [], [], [np.empty(0, bool)]
        for table in ledger.batches(["clip_id", "frames_sha256", "error"]):
            ids.append(as_bytes(table["clip_id"]))
            frames.append(
                as_bytes(pc.utf8_slice_codeunits(table["frames_sha256"], 0, FRAMES_CHARS))
            )
            failed.append(pc.is_valid(table["error"]).to_numpy())
        names = _joined(ids)
        order = np.argsort(names, kind="stable")  # of several rows of a clip the last one counts
        self._ids = names[order]
        self._frames, self._failed = _joined(frames)[order], np.concatenate(failed)[order]

    def must_be_written(self, clip_id: bytes, segments: list[Row], retry_failed: bool) -> bool:
        """Whether the clip has no captions of these frames, or is to be tried again."""
        row = np.searchsorted(self._ids, clip_id, "right") - 1
        if row < 0 or self._ids[row] != clip_id:
            return True
        if self._failed[row]:
            return retry_failed
        hashes = stored_frame_hashes(segments)
        return None in hashes or self._frames[row] != hash_frames(hashes)[:FRAMES_CHARS].encode()


def read_rows(out: Folder, ids: np.ndarray, name: str) -> Iterator[Row]:
    """The rows of these clips for the captioner. ids: sorted."""
    for clips in stream_clips(out, SMALL_CLIP_COLUMNS) if len(ids) else ():
        clips = clips.filter(pa.array(_is_in(as_bytes(clips["clip_id"]), ids)))
        for batch in clips.to_batches(max_chunksize=ROWS_PER_BATCH):
            yield from (row | {"error": None, "captioner": name} for row in batch.to_pylist())


def _is_in(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) bool. known: sorted."""
    if not len(known):
        return np.zeros(len(ids), bool)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return known[place] == ids


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, "S1"), *parts])


def _make_context(settings: Settings, ledger_url: str) -> RunContext:
    captioner = settings.caption.chosen
    column = captioner.similarity_column if isinstance(captioner, VlmCaptioner) else ""
    rule = settings.select.policy.get(column)
    return RunContext(
        ledger_url,
        caption_set=settings.caption.set_name,
        similarity_limit=rule.max if isinstance(rule, Range) else None,
        api_key=captioner.api_key(),
    )


def _counted(rows: Iterable[Row], max_failed_share: float, progress: Progress) -> Iterator[Row]:
    """Yields the rows and counts them. Raises RunError where too many fail."""
    failed = Counter[str]()
    for done, row in enumerate(rows, 1):
        if row["error"] is not None:
            failed[row["error"]] += 1
            progress.add_error(f"{row['clip_id']}: {row['error']}")
        progress.update(
            done=1, failed=int(row["error"] is not None), rejected=int(bool(row.get("rejected")))
        )
        yield row
        stop_if_too_many_fail(failed, done, max_failed_share, "clips")


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
