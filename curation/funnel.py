"""Counts what became of every video and clip, by reason and rule; raises where the sums do not
agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.policy import RULE_COLUMNS
from curation.progress import printable
from curation.records import Column, schema

VIDEO_STATUSES = ("ok", "duplicate", "failed")
CLIP_STATUSES = ("kept", "rejected", "failed")
MAX_REASONS = 20  # listed per status; the others are summed

# Of rules, for the summary line; the others are the column and "low" or "high".
SHORT_LABELS = {
    "duration_s <": "short",
    "static_share >": "static",
    "motion_dis <": "static",
    "motion_dis >": "hectic",
    "sharpness <": "blurry",
    "brightness <": "dark",
    "brightness >": "bright",
    "colourfulness <": "colourless",
    "text_share >": "text",
    "overlay_share >": "overlay",
    "seam_share >": "several views",
    "screen_share >": "screen",
    "border_share >": "borders",
    "artifact_share >": "artifacts",
    "ken_burns_share >": "Ken Burns",
    "frozen_share >": "frozen",
    "damaged_share >": "damaged",
    "frozen_longest_s >": "frozen",
    "key_psnr >": "unchanging",
    "key_ssim >": "unchanging",
    "width <": "small",
    "height <": "small",
    "text_similarity_tfidf >": "repetitive captions",
    "text_similarity_minilm >": "repetitive captions",
}

# The rules that are no columns of a policy, by how their reasons begin.
OTHER_RULES = {
    "duplicate of ": "duplicate",
    "shows the same as ": "semantic_similarity",
    "embeddings not measured": "semantic_similarity",
    "outside where": "where",
    "limit: ": "limit",
    "flagged": "flagged",
    "caption repeated": "max_equal_captions",
    "caption": "caption_check",
}

FUNNEL = (
    Column("unit", pa.string(), "videos | clips: what the row counts"),
    Column("status", pa.string(), "all, or the status of these videos or clips"),
    Column("rule", pa.string(), "as in clips.parquet; null where the row is about no rule"),
    Column("reason", pa.string(), "without measured values and names; null: whatever the reason"),
    Column(
        "count", pa.int64(), "those with this first reason; without a reason, all of the status"
    ),
    Column("any", pa.int64(), "those that have it among their reasons"),
    Column("hours", pa.float64(), "length of those in `count`, h; unknown lengths count as 0"),
    Column("not_decoded", pa.int64(), "those of `count` that are rejected by the header alone"),
    Column("hours_not_decoded", pa.float64(), "length of those in `not_decoded`, h"),
)

_LIMIT = re.compile(r"([A-Za-z_]\w*) \S+ ([<>]=?) (.*)", re.S)  # static_share 0.90 > 0.5
_LENGTH = re.compile(r"\S+ s ([<>]=?) (.*)", re.S)  # 9.3 s < 15 s
_UNMEASURED = re.compile(r"([A-Za-z_]\w*) not measured")
_NAMES_AND_NUMBERS = re.compile(r"(?<!\w)(?:'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?)")


class Unaccounted(Exception):
    """A video or clip has no known status, or two: a bug, so the run must not end with success."""


@dataclass(frozen=True)
class ReasonCount:
    """How many clips (or videos) have a reason."""

    name: str  # without measured values: `normalize_reason`
    first: int  # rows whose first reason it is; these add up to the rows of the status
    any: int  # rows that have it among their reasons


@dataclass(frozen=True)
class Funnel:
    videos: dict[str, int]  # status -> count
    clips: dict[str, int]
    takes: int | None  # None where the table has no such column
    duplicate_videos: list[ReasonCount]
    failed_videos: list[ReasonCount]
    rejected: list[ReasonCount]
    failed: list[ReasonCount]
    not_decoded: int = 0  # clips, each a whole video, that are rejected by the header alone
    hours: tuple[float, float] = (0.0, 0.0)  # of all clips, and of those not decoded


def normalize_reason(reason: str) -> str:
    """The reason without measured values, `static_share > 0.5`, or names: these become `…`."""
    for start in ("duplicate of", "shows the same as", "same bytes as"):
        if reason.startswith(start):
            return f"{start} another"
    if match := _LIMIT.fullmatch(reason):
        return printable(" ".join(match.groups()), 80)
    if match := _LENGTH.fullmatch(reason):
        return printable(f"duration_s {match[1]} {match[2]}", 80)
    if match := _UNMEASURED.match(reason):
        return f"{printable(match[1], 60)} not measured"
    head = re.split(r"[:\n]", reason, maxsplit=1)[0]
    return printable(_NAMES_AND_NUMBERS.sub("…", head).strip(), 80) or "no reason given"


def normalize_reasons(reasons: pa.ChunkedArray) -> pa.ChunkedArray:
    """`normalize_reason` of each; a million reasons have only some thousand different texts."""
    encoded = reasons.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # pyarrow keeps zero chunks chunked
        return reasons
    names = pa.array(map(normalize_reason, encoded.dictionary.to_pylist()), pa.string())
    return pa.chunked_array([names.take(encoded.indices)])


def rule_of(reason: str) -> str | None:
    """The rule of a reason: the policy's column, or one of OTHER_RULES; None for an error."""
    column = "duration_s" if _LENGTH.fullmatch(reason) else reason.partition(" ")[0]
    if column in RULE_COLUMNS:
        return column
    return next((rule for start, rule in OTHER_RULES.items() if reason.startswith(start)), None)


def rules_of(reasons: pa.Array) -> pa.Array:
    """`rule_of` of each reason, or of each in lists; null for null."""
    if pa.types.is_list(reasons.type):
        flat = rules_of(reasons.flatten())
        lengths = pc.fill_null(pc.list_value_length(reasons), 0).to_numpy()
        offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
        return pa.ListArray.from_arrays(offsets, flat, mask=reasons.is_null())
    encoded = reasons.dictionary_encode()
    rules = pa.array(map(rule_of, encoded.dictionary.to_pylist()), pa.string())
    return rules.take(encoded.indices)


def short_label(name: str) -> str:
    """A normalized reason in a word or two."""
    column, _, rest = name.partition(" ")
    if rest.startswith(("<", ">")):
        side = "low" if rest[0] == "<" else "high"
        return SHORT_LABELS.get(f"{column} {rest[0]}", f"{column.replace('_', ' ')} {side}")
    if rest == "not measured":
        return rest
    return column if column in ("duplicate", "caption") else name


def count_rows(videos: pa.Table, clips: pa.Table) -> Funnel:
    """Counts the rows of both tables. Raises Unaccounted.

    videos: video, status, error, clips (how many), takes (spans, or how many).
    clips: clip_id, status, reason, reasons; num_frames and duration_s for those not decoded.
    """
    video_counts = _count_statuses("videos", videos["status"], VIDEO_STATUSES)
    clip_counts = _count_statuses("clips", clips["status"], CLIP_STATUSES)
    if (ids := pc.count_distinct(clips["clip_id"], mode="all").as_py()) != clips.num_rows:
        raise Unaccounted(f"clips: {clips.num_rows} rows, but {ids} different clip_ids")
    expected = _total(videos["clips"]) if "clips" in videos.column_names else None
    if expected not in (None, clips.num_rows):
        raise Unaccounted(f"videos: {expected} clips in all, but there are {clips.num_rows}")
    kept_with_reason = pc.and_(pc.equal(clips["status"], "kept"), pc.is_valid(clips["reason"]))
    if n := pc.sum(kept_with_reason).as_py():
        raise Unaccounted(f"clips: {n} kept with a reason against them")
    return Funnel(
        videos=video_counts,
        clips=clip_counts,
        takes=_total(videos["takes"]) if "takes" in videos.column_names else None,
        duplicate_videos=_count_reasons("videos", videos, "duplicate", "error"),
        failed_videos=_count_reasons("videos", videos, "failed", "error"),
        rejected=_count_reasons("clips", clips, "rejected", "reason"),
        failed=_count_reasons("clips", clips, "failed", "reason"),
        **_count_not_decoded(clips),
    )


def _count_not_decoded(clips: pa.Table) -> dict[str, Any]:
    """The fields `not_decoded` and `hours` of Funnel."""
    if not {"num_frames", "duration_s"} <= {*clips.column_names}:
        return {}
    skipped = clips["duration_s"].filter(pc.is_null(clips["num_frames"]))
    return {"not_decoded": len(skipped), "hours": (_hours(clips["duration_s"]), _hours(skipped))}


def _count_statuses(what: str, status: pa.ChunkedArray, known: tuple[str, ...]) -> dict[str, int]:
    found = {row["values"]: row["counts"] for row in pc.value_counts(status).to_pylist()}
    counts = {name: found.pop(name, 0) for name in known}
    if found:
        sums = " + ".join(f"{n} {name}" for name, n in counts.items())
        other = ", ".join(f"{n} {printable(name, 40)}" for name, n in found.items())
        raise Unaccounted(f"{what}: {len(status)} rows, but {sums}; unaccounted for: {other}")
    return counts


def _total(column: pa.ChunkedArray) -> int:
    """The sum of a column of counts, or of the lengths of lists."""
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pc.sum(pc.list_value_length(column) if lists else column, min_count=0).as_py()


def _count_reasons(what: str, table: pa.Table, status: str, column: str) -> list[ReasonCount]:
    """The reasons of the rows of one status, the most frequent first; at most MAX_REASONS."""
    found = _count_all_reasons(what, table, status, column)
    if len(found) <= MAX_REASONS:
        return found
    rest = found[MAX_REASONS - 1 :]
    name = f"{len(rest)} other reasons"
    other = ReasonCount(name, sum(r.first for r in rest), sum(r.any for r in rest))
    return [*found[: MAX_REASONS - 1], other]


def _count_all_reasons(what: str, table: pa.Table, status: str, column: str) -> list[ReasonCount]:
    columns = [column] + [c for c in ("reasons",) if c in table.column_names]
    rows = table.select(columns).filter(pc.equal(table["status"], status))
    if missing := rows[column].null_count:
        raise Unaccounted(f"{what}: {missing} of {rows.num_rows} {status} without a reason")
    first = _count_values(normalize_reasons(rows[column]))
    of_any = Counter(first)
    if "reasons" in columns and rows.num_rows:
        lists = rows["reasons"]
        names = normalize_reasons(pc.list_flatten(lists))
        pairs = pa.table({"row": pc.list_parent_indices(lists), "reason": names})
        of_any |= _count_values(pairs.group_by(["row", "reason"]).aggregate([])["reason"])
    found = [ReasonCount(name, first.get(name, 0), n) for name, n in of_any.items()]
    return sorted(found, key=lambda r: (-r.first, -r.any, r.name))


def funnel_table(videos: pa.Table, clips: pa.Table) -> pa.Table:
    """A table of FUNNEL: per unit and status a row for all, then one per reason.

    videos, clips: as `count_rows` takes them, with `duration_s`. Raises Unaccounted.
    """
    found: list[dict[str, object]] = []
    for unit, table, statuses, column in (
        ("videos", videos, VIDEO_STATUSES, "error"),
        ("clips", clips, CLIP_STATUSES, "reason"),
    ):
        lengths = table.select(["status", column, "duration_s"])
        is_skipped = pa.array(np.zeros(table.num_rows, bool))
        if "num_frames" in table.column_names:
            is_skipped = pc.is_null(table["num_frames"])
            if unit == "videos":
                is_skipped = pc.and_(is_skipped, pc.equal(table["status"], "ok"))
        lengths = lengths.append_column("is_skipped", is_skipped)
        found.append(_funnel_row(unit, "all", lengths))
        for status in statuses:
            rows = lengths.filter(pc.equal(lengths["status"], status))
            found.append(_funnel_row(unit, status, rows))
            if status == statuses[0]:  # no reason against these
                continue
            names = normalize_reasons(rows[column])
            for counted in _count_all_reasons(unit, table, status, column):
                of_reason = rows.filter(pc.equal(names, counted.name))
                row = _funnel_row(unit, status, of_reason) | {"any": counted.any}
                rule = rule_of(counted.name) if status == "rejected" else None
                found.append(row | {"rule": rule, "reason": counted.name})
    return pa.Table.from_pylist(found, schema=schema(FUNNEL))


def _funnel_row(unit: str, status: str, rows: pa.Table) -> dict[str, object]:
    """rows: duration_s, is_skipped."""
    n, durations_s = rows.num_rows, rows["duration_s"]
    skipped_s = durations_s.filter(rows["is_skipped"])
    hours = {"hours": _hours(durations_s), "hours_not_decoded": _hours(skipped_s)}
    counts = {"count": n, "any": n, "not_decoded": len(skipped_s)}
    return {"unit": unit, "status": status} | counts | hours


def _hours(durations_s: pa.ChunkedArray) -> float:
    return round((pc.sum(durations_s).as_py() or 0.0) / 3600, 6)


def _count_values(names: pa.ChunkedArray) -> Counter[str]:
    counts = pc.value_counts(names).to_pylist()
    return Counter({row["values"]: row["counts"] for row in counts})


def summary_line(funnel: Funnel) -> str:
    """`1204 clips: 806 kept, 371 rejected (static 212, blurry 97, text 62), 27 failed (…)`"""
    parts = []
    for status, found in (("rejected", funnel.rejected), ("failed", funnel.failed)):
        labels: Counter[str] = Counter()
        for r in found:
            labels[short_label(r.name)] += r.first
        why = ", ".join(f"{name} {n}" for name, n in labels.most_common() if n)
        parts.append(f"{funnel.clips[status]} {status}" + (f" ({why})" if why else ""))
    return f"{sum(funnel.clips.values())} clips: {funnel.clips['kept']} kept, {', '.join(parts)}"


def format_skipped(skipped: Mapping[str, int]) -> str:
    """`.jpg 12, .txt 3, no suffix 1`. skipped: suffix -> files, most frequent first."""
    names = [f"{printable(name, 20) or 'no suffix'} {n}" for name, n in skipped.items()]
    if more := sum(list(skipped.values())[MAX_REASONS:]):
        names[MAX_REASONS:] = [f"others {more}"]
    return ", ".join(names)


def format_funnel(funnel: Funnel, skipped: Mapping[str, int] | None = None) -> str:
    """The funnel as a table for a terminal; its last line is `summary_line`.

    skipped: suffix -> files in the input's folders that were not read."""
    n_videos, n_clips = sum(funnel.videos.values()), sum(funnel.clips.values())
    rows: list[tuple[str, str, str, str]] = [("", "", "share", "any reason")]

    def add(label: str, n: int, of: int, any_: int | None = None) -> None:
        share = f"{100 * n / of:.1f} %" if of else ""
        rows.append((label, str(n), share, "" if any_ is None else str(any_)))

    add("videos", n_videos, 0)
    for status, found in zip(
        VIDEO_STATUSES, ([], funnel.duplicate_videos, funnel.failed_videos), strict=True
    ):
        add(f"  {status}", funnel.videos[status], n_videos)
        for r in found:
            add(f"    {r.name}", r.first, n_videos)
    if funnel.takes is not None:
        add("takes", funnel.takes, 0)
    add("clips", n_clips, 0)
    for status, found in zip(CLIP_STATUSES, ([], funnel.rejected, funnel.failed), strict=True):
        add(f"  {status}", funnel.clips[status], n_clips)
        for r in found:
            add(f"    {r.name}", r.first, n_clips, r.any if status == "rejected" else None)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3))]).rstrip()
        for row in rows
    ]
    if funnel.not_decoded:
        total_h, skipped_h = funnel.hours
        lines.append(
            f"rejected by their headers, not decoded: {funnel.not_decoded} of {n_clips} clips, "
            f"{skipped_h:.3g} of {total_h:.3g} hours"
        )
    if skipped:
        lines.append(f"files that are no videos by their suffix: {format_skipped(skipped)}")
    return "\n".join([*lines, "", summary_line(funnel)])
