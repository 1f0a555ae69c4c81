"""Caption: writes progressive sub-captions and an overall caption of each kept clip.

    python -m pipelines.caption [CONFIG] output=OUT [key=value …]

Clips that have captions made from their present frames are skipped. For captions of a second model
in the same output, give caption.name=NAME here, to select and to export.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from curation.ledger import check_settings
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
from pipelines.tables import captions_ledger, read_clips, read_selection, rows_of
from stages.captioning.vlm import VlmCaptioner
from stages.selection.clip_selection import clips_to_caption

LARGE_COLUMNS = ("fingerprint", "overlay_mask")  # no captioner reads them


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    captioner, name = settings.caption.chosen, settings.caption.set_name
    clips = read_clips(out)
    check_settings(
        out / "ledger",
        f"captions/{name}",
        captioner.provenance(),
        type(captioner)().provenance(),
        "use these settings, or another name for the captions: caption.name=NAME",
    )
    ledger = captions_ledger(out, name)
    wanted = clips_to_caption(read_selection(out))
    clips = clips.filter(pc.is_in(clips["clip_id"], value_set=wanted))
    done = ledger.read(["clip_id", "frames_sha256", "error"])
    todo = _clips_without_captions(clips, done, settings.retry_failed, name)
    if todo:
        captioner.check()
    with Progress("caption", clips.num_rows, "clips") as progress:
        progress.update(done=clips.num_rows - len(todo))
        context = _make_context(settings, (out / "ledger").url)
        rows = cluster.stream(
            [captioner], todo, progress.show_wait_reason, context, progress.print_error
        )
        for batch in timed_batches(_counted(rows, settings.max_failed_share, progress)):
            ledger.append(batch)
    ledger.compact()
    errors = rows_of(clips["clip_id"], ledger.read(["error"]), "clip_id")["error"]
    stop_if_all_failed(errors, "clips to caption")


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


def _clips_without_captions(
    clips: pa.Table, done: pa.Table, retry_failed: bool, name: str
) -> list[Row]:
    rows = rows_of(clips["clip_id"], done, "clip_id").to_pylist()
    todo = []
    for clip, row in zip(clips.drop_columns(LARGE_COLUMNS).to_pylist(), rows, strict=True):
        hashes = stored_frame_hashes(clip["segments"])
        current = None not in hashes and row["frames_sha256"] == hash_frames(hashes)
        failed = row["error"] is not None
        if not (current or failed) or (failed and retry_failed):
            todo.append(clip | {"error": None, "captioner": name})
    return todo


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
