"""Caption: five progressive sub-captions and an overall one for every kept clip -> ledger/captions.

    python -m pipelines.caption [CONFIG] output=OUT [key=value …]

Clips that have captions made from their present stills are skipped. Captions of another model go
beside those that are there: give caption.name=NAME, here and to select and export.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from curation.ledger import check_settings
from curation.progress import Progress
from curation.records import hash_frames, stored_frame_hashes
from curation.runner.cluster import Cluster
from curation.stage import Row, RunContext
from curation.storage import Folder
from pipelines.settings import Settings, batches, main, stop_where_most_fail
from pipelines.tables import captions_ledger, matched, read_clips, read_selection
from stages.captioning.openai_server import OpenAICaptioner
from stages.captioning.vlm import VlmCaptioner
from stages.selection.clip_selection import clips_to_caption

HEAVY = ("fingerprint", "overlay_mask")  # no captioner reads them


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    captioner, name = settings.caption.chosen, settings.caption.set_name
    clips = read_clips(out)
    check_settings(
        out / "ledger",
        f"captions/{name}",
        captioner.provenance(),
        type(captioner)().provenance(),
        "take these settings back, or write captions of another name: caption.name=NAME",
    )
    ledger = captions_ledger(out, name)
    clips = clips.filter(
        pc.is_in(clips["clip_id"], value_set=clips_to_caption(read_selection(out)))
    )
    done = ledger.read(["clip_id", "frames_sha256", "error"])
    todo = _todo(clips, done, settings.retry_failed, name)
    if todo:
        captioner.check()
    with Progress("caption", clips.num_rows, "clips") as progress:
        progress.update(done=clips.num_rows - len(todo))
        context = _context_of(settings, (out / "ledger").url)
        rows = cluster.stream([captioner], todo, progress.show_wait_reason, context)
        for batch in batches(_finished(rows, settings.max_failed_share, progress)):
            ledger.append(batch)
    ledger.compact()


def _context_of(settings: Settings, ledger_url: str) -> RunContext:
    captioner = settings.caption.chosen
    compared = isinstance(captioner, VlmCaptioner) and settings.select.policy.get(
        captioner.similarity_column
    )
    return RunContext(
        ledger_url,
        caption_set=settings.caption.set_name,
        similarity_limit=compared.max if compared else None,
        api_key=captioner.api_key() if isinstance(captioner, OpenAICaptioner) else None,
    )


def _todo(clips: pa.Table, done: pa.Table, retry_failed: bool, name: str) -> list[Row]:
    said = matched(clips["clip_id"], done, "clip_id")
    todo = []
    for clip, row in zip(clips.drop_columns(HEAVY).to_pylist(), said.to_pylist(), strict=True):
        hashes = stored_frame_hashes(clip["segments"])
        current = None not in hashes and row["frames_sha256"] == hash_frames(hashes)
        failed = row["error"] is not None
        if not (current or failed) or (failed and retry_failed):
            todo.append(clip | {"error": None, "captioner": name})
    return todo


def _finished(rows: Iterable[Row], max_failed_share: float, progress: Progress) -> Iterator[Row]:
    """The rows as they come, counted. Raises RunError where too many fail."""
    failed = Counter[str]()
    for done, row in enumerate(rows, 1):
        failed.update([row["error"]] if row["error"] is not None else [])
        progress.update(
            done=1, failed=int(row["error"] is not None), rejected=int(bool(row.get("rejected")))
        )
        yield row
        stop_where_most_fail(failed, done, max_failed_share, "clips")


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
