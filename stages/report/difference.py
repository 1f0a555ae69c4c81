"""What differs between two tables of clips: kept clips gained and lost by rule, and captions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.report.terminal import align

COMPARED = ("clip_id", "status", "rule", "duration_s", "caption", "sub_captions")
ABSENT = "not in the other output"  # in place of a rule
FAILED = "failed"
MAX_EXAMPLES = 3  # clip_ids named per rule
ROWS_PER_BATCH = 4096  # turned into Python's objects in one step


@dataclass(frozen=True)
class Change:
    """Kept clips gained or lost, by the rule that rejects them in the other table."""

    rule: str
    clips: int
    hours: float
    examples: list[str]  # clip_ids


@dataclass(frozen=True)
class Difference:
    kept: tuple[int, int]  # in A, in B
    gained: list[Change]  # kept in B alone
    lost: list[Change]  # kept in A alone
    captions: int  # clips that both keep, whose texts differ
    kept_by_both: int


def compare_clips(a: pa.Table, b: pa.Table) -> Difference:
    """Returns the difference between two outputs. a, b: the columns COMPARED of their
    clips.parquet."""
    kept_a, kept_b = (t.filter(pc.equal(t["status"], "kept")) for t in (a, b))
    both_a = kept_a.filter(_is_in(kept_a, kept_b)).sort_by("clip_id")
    both_b = kept_b.filter(_is_in(kept_b, kept_a)).sort_by("clip_id")
    return Difference(
        (kept_a.num_rows, kept_b.num_rows),
        _changes(kept_b.filter(pc.invert(_is_in(kept_b, kept_a))), a),
        _changes(kept_a.filter(pc.invert(_is_in(kept_a, kept_b))), b),
        int(texts_differ(both_a, both_b).sum()),
        both_a.num_rows,
    )


def join_differences(found: Iterable[Difference]) -> Difference:
    """The difference of tables that are compared in pieces, in order of clip_id."""
    kept_a = kept_b = captions = kept_by_both = 0
    changes: tuple[dict[str, Change], dict[str, Change]] = ({}, {})
    for one in found:
        kept_a, kept_b = kept_a + one.kept[0], kept_b + one.kept[1]
        captions, kept_by_both = captions + one.captions, kept_by_both + one.kept_by_both
        for joined, new in zip(changes, (one.gained, one.lost), strict=True):
            for c in new:
                before = joined.get(c.rule, Change(c.rule, 0, 0.0, []))
                examples = [*before.examples, *c.examples][:MAX_EXAMPLES]
                sums = before.clips + c.clips, before.hours + c.hours
                joined[c.rule] = Change(c.rule, *sums, examples)
    gained, lost = (
        sorted(joined.values(), key=lambda change: (-change.clips, change.rule))
        for joined in changes
    )
    return Difference((kept_a, kept_b), gained, lost, captions, kept_by_both)


def _is_in(table: pa.Table, other: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(table["clip_id"], value_set=other["clip_id"].combine_chunks())


def texts_differ(a: pa.Table, b: pa.Table) -> np.ndarray:
    """(n,) bool: whether the captions or sub-captions of the same rows of both tables differ."""
    texts = [t.select(["caption", "sub_captions"]) for t in (a, b)]
    found: list[bool] = []
    for start in range(0, a.num_rows, ROWS_PER_BATCH):
        rows = (table.slice(start, ROWS_PER_BATCH).to_pylist() for table in texts)
        found += [_texts(x) != _texts(y) for x, y in zip(*rows, strict=True)]
    return np.array(found, bool)


def _texts(clip: dict[str, object]) -> tuple[object, ...]:
    parts = clip["sub_captions"]
    return clip["caption"], *(part["text"] for part in parts or ())  # type: ignore[attr-defined]


def _changes(clips: pa.Table, other: pa.Table) -> list[Change]:
    """The clips by their rule in the other table, the most frequent first."""
    row = pc.index_in(clips["clip_id"], value_set=other["clip_id"].combine_chunks())
    rule = pc.if_else(pc.is_null(row), ABSENT, pc.fill_null(other["rule"].take(row), FAILED))
    named = clips.select(["clip_id", "duration_s"]).append_column("rule", rule).sort_by("clip_id")
    found = []
    for name in pc.unique(named["rule"]).to_pylist():
        of_rule = named.filter(pc.equal(named["rule"], name))
        hours = (pc.sum(of_rule["duration_s"]).as_py() or 0.0) / 3600
        examples = of_rule["clip_id"].slice(0, MAX_EXAMPLES).to_pylist()
        found.append(Change(name, of_rule.num_rows, hours, examples))
    return sorted(found, key=lambda change: (-change.clips, change.rule))


def format_difference(found: Difference) -> str:
    """Lines for a terminal. The table has the rule that rejects a clip in the other selection."""
    before, after = found.kept
    gained, lost = (sum(c.clips for c in changes) for changes in (found.gained, found.lost))
    lines = [f"kept clips: {before} -> {after}, {gained} gained, {lost} lost"]
    rows: list[list[object]] = [["", "by rule", "clips", "hours", "for example"]]
    for name, changes in (("gained", found.gained), ("lost", found.lost)):
        rows += [[name, c.rule, c.clips, c.hours, " ".join(c.examples)] for c in changes]
    if len(rows) > 1:
        lines.append(align(rows, max_chars=80))
    if found.captions:
        lines.append(
            f"captions: {found.captions} of {found.kept_by_both} clips kept by both differ"
        )
    return "\n".join(lines)
