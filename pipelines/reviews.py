"""Reviews: flags, corrected captions and audit marks by people, in `ledger/reviews`.

A review is never changed or deleted: a later one of the same clip and kind counts instead.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.ledger import Ledger, locked
from curation.records import CORRECTED, FIELD_NAMES
from curation.stage import Row
from curation.storage import Folder
from curation.texts import clean_outside_text, max_adjacent_similarity
from pipelines.tables import captions_ledger

REVIEWS = "reviews"
FLAG, CAPTION, MARK = "flag", "caption", "mark"  # the kinds
GOOD, BAD = "good", "bad"  # the values of a mark
MAX_FLAG_CHARS, MAX_NAME_CHARS, MAX_CAPTION_CHARS = 200, 60, 4000
RESTORE = "restore it from a copy: a review can't be computed again"

_WRITING = threading.Lock()  # two requests of one process


class ReviewError(ValueError):
    """A review that can't be stored. The message gives the reason, in one line."""


@dataclass(frozen=True)
class Review:
    """One row of records.REVIEW, as a reviewer gives it."""

    clip_id: str
    kind: str
    reviewer: str
    value: str | None = None
    captioner: str | None = None
    caption: str | None = None
    sub_captions: list[Row] | None = None
    frames_sha256: str | None = None


def reviews_ledger(out: Folder) -> Ledger:
    schema = records.schema(records.REVIEW)
    return Ledger(out / "ledger", REVIEWS, schema, "number", RESTORE)


def read_reviews(out: Folder) -> pa.Table:
    """The reviews that count, in the order in which they were written."""
    table = reviews_ledger(out).read()
    is_mark = pc.equal(table["kind"], MARK)
    by = pc.if_else(is_mark, table["reviewer"], "")
    keys = table.select(["clip_id", "kind", "number"]).append_column("by", by)
    last = keys.group_by(["clip_id", "kind", "by"]).aggregate([("number", "max")])
    return table.filter(pc.is_in(table["number"], value_set=last["number_max"].combine_chunks()))


def write_review(out: Folder, review: Review, report: Callable[[str], None]) -> Row:
    """Appends a review and returns its row. report: gets a line where the lock needs one.

    Raises OutputError where a run is writing to the output, ReviewError for one without a reviewer.
    """
    reviewer = clean_outside_text(review.reviewer.strip(), MAX_NAME_CHARS)
    if not reviewer:
        raise ReviewError("a review needs the name of its reviewer")
    row = {**vars(review), "reviewer": reviewer, "unix_s": round(time.time(), 3)}
    folder = Folder(out.url)  # holds the lease of this write alone
    with _WRITING, locked(folder, report):
        ledger = reviews_ledger(folder)
        row["number"] = ledger.next_number
        ledger.append([row])
        ledger.compact()
    return row


def flag_reasons(reviews: pa.Table) -> dict[str, str]:
    """clip_id -> the reason against the clip, of the flagged clips."""
    flags = reviews.filter(pc.and_(pc.equal(reviews["kind"], FLAG), pc.is_valid(reviews["value"])))
    return {
        row["clip_id"]: f"flagged: {row['value']}" if row["value"] else "flagged"
        for row in flags.select(["clip_id", "value"]).to_pylist()
    }


def stream_captions(out: Folder, name: str) -> Iterator[pa.Table]:
    """The captions of a set, some at a time, in which corrected ones replace those of the
    captioner. Of several rows of a clip the last one counts.

    A correction counts while the captions are of the frames that it was made for.
    """
    reviews = read_reviews(out)
    of_set = pc.and_(pc.equal(reviews["captioner"], name), pc.is_valid(reviews["caption"]))
    is_correction = pc.and_(pc.equal(reviews["kind"], CAPTION), of_set)
    corrections = {row["clip_id"]: row for row in reviews.filter(is_correction).to_pylist()}
    ids = pa.array(corrections, pa.string())
    schema = records.schema(records.CAPTION)
    for table in captions_ledger(out, name).batches(schema.names):
        found = pc.is_in(table["clip_id"], value_set=ids)
        if pc.any(found).as_py():
            rows = [
                _corrected_if_same(row, corrections.get(row["clip_id"]))
                for row in table.to_pylist()
            ]
            table = pa.Table.from_pylist(rows, schema=schema)
        yield table


def _corrected_if_same(written: Row, correction: Row | None) -> Row:
    frames = written["frames_sha256"]
    if correction is None or not (frames == correction["frames_sha256"] is not None):
        return written
    return _corrected(written, correction)


def _corrected(written: Row, correction: Row) -> Row:
    """The row of records.CAPTION with the corrected texts. Its scores are measured again; what a
    model measured of the captioner's texts, and their fields, are null."""
    provenance = json.loads(written["provenance"] or "{}")
    provenance["corrected"] = {
        "captioner": written["captioner"],
        "reviewer": correction["reviewer"],
    }
    texts = [part["text"] for part in correction["sub_captions"]]
    return written | {
        "captioner": CORRECTED,
        "rejected": None,
        "caption": correction["caption"],
        "sub_captions": correction["sub_captions"],
        "field_null_reasons": list(dict.fromkeys(FIELD_NAMES, "the text was corrected").items()),
        "provenance": json.dumps(provenance, sort_keys=True),
        "text_similarity_tfidf": max_adjacent_similarity(texts),
        "text_similarity_minilm": None,
    }


def correction_of(
    captions: Row, caption: str, texts: list[str], reviewer: str, withdraw: bool = False
) -> Review:
    """A correction of the captions of a clip.

    captions: its row of records.CAPTION.  texts: of its sub-captions, in order. Raises ReviewError.
    """
    parts = captions["sub_captions"] or []
    if not parts:
        raise ReviewError("the clip has no captions to correct")
    of_set = {
        "captioner": captions["captioner"],
        "frames_sha256": captions["frames_sha256"],
    }
    if withdraw:
        return Review(captions["clip_id"], CAPTION, reviewer, **of_set)
    if len(texts) != len(parts):
        raise ReviewError(f"the clip has {len(parts)} sub-captions, found {len(texts)}")
    cleaned = [
        " ".join(clean_outside_text(t, MAX_CAPTION_CHARS).split()) for t in (caption, *texts)
    ]
    if not all(cleaned):
        raise ReviewError("a caption and each sub-caption need a text")
    nothing = dict.fromkeys(FIELD_NAMES)
    sub_captions = [
        {"start_s": part["start_s"], "end_s": part["end_s"], "text": text} | nothing
        for part, text in zip(parts, cleaned[1:], strict=True)
    ]
    return Review(
        captions["clip_id"],
        CAPTION,
        reviewer,
        caption=cleaned[0],
        sub_captions=sub_captions,
        **of_set,
    )
