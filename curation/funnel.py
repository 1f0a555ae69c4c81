"""Where every video and clip went: counted by rule, and refused where the sums don't agree."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curation.progress import printable

VIDEO_STATUSES = ("ok", "duplicate", "failed")
CLIP_STATUSES = ("kept", "rejected", "failed")
MOST_RULES = 20  # per status; errors can be of any number of kinds

# What the last line calls a rule; any other is called by its column and "low" or "high".
WORDS = {
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
    "border_share >": "borders",
    "artifact_share >": "artifacts",
    "ken_burns_share >": "fake motion",
    "frozen_share >": "frozen",
    "frozen_longest_s >": "frozen",
    "key_psnr >": "unchanging",
    "key_ssim >": "unchanging",
    "width <": "small",
    "height <": "small",
    "text_similarity_tfidf >": "repetitive captions",
    "text_similarity_minilm >": "repetitive captions",
}

_LIMIT = re.compile(r"([A-Za-z_]\w*) \S+ ([<>]=?) (.*)", re.S)  # static_share 0.90 > 0.5
_LENGTH = re.compile(r"\S+ s ([<>]=?) (.*)", re.S)  # 9.3 s < 15 s
_UNMEASURED = re.compile(r"([A-Za-z_]\w*) not measured")
_NAMES_AND_NUMBERS = re.compile(r"(?<!\w)(?:'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?)")


class Unaccounted(Exception):
    """A video or clip is in no column, or in two: our fault, and never exit code 0."""


@dataclass(frozen=True)
class Rule:
    """What was held against clips (or videos), without the number that each of them had."""

    name: str
    first: int  # rows whose first reason it is: these add up to the status's count
    any: int  # rows that have it among their reasons: these don't


@dataclass(frozen=True)
class Funnel:
    videos: dict[str, int]  # status -> count
    clips: dict[str, int]
    takes: int | None  # None where the table doesn't say
    duplicate_videos: list[Rule]
    failed_videos: list[Rule]
    rejected: list[Rule]
    failed: list[Rule]


def rule(reason: str) -> str:
    """The reason without measured values: `static_share > 0.5`. Names in an error become dots."""
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


def rules(reasons: pa.ChunkedArray) -> pa.ChunkedArray:
    """The rule of each reason. Numbers repeat, so a million reasons are some thousand texts."""
    encoded = reasons.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # pyarrow keeps zero chunks chunked
        return reasons
    names = pa.array([rule(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([names.take(encoded.indices)])


def word(name: str) -> str:
    """The rule in the last line's words."""
    column, _, rest = name.partition(" ")
    if rest.startswith(("<", ">")):
        side = "low" if rest[0] == "<" else "high"
        return WORDS.get(f"{column} {rest[0]}", f"{column.replace('_', ' ')} {side}")
    if rest == "not measured":
        return rest
    return column if column in ("duplicate", "caption") else name


def count(videos: pa.Table, clips: pa.Table) -> Funnel:
    """Counts both tables as users find them; Unaccounted where a row is in no column or in two.

    videos: video, status, error, clips (how many), takes (spans, or how many).
    clips: clip_id, status, reason, reasons.
    """
    video_counts = _statuses("videos", videos["status"], VIDEO_STATUSES)
    clip_counts = _statuses("clips", clips["status"], CLIP_STATUSES)
    if (ids := pc.count_distinct(clips["clip_id"], mode="all").as_py()) != clips.num_rows:
        raise Unaccounted(f"clips: {clips.num_rows} rows, but {ids} different clip_ids")
    said = _total(videos["clips"]) if "clips" in videos.column_names else None
    if said not in (None, clips.num_rows):
        raise Unaccounted(f"videos say that they have {said} clips, but there are {clips.num_rows}")
    spite = pc.and_(pc.equal(clips["status"], "kept"), pc.is_valid(clips["reason"]))
    if n := pc.sum(spite).as_py():
        raise Unaccounted(f"clips: {n} kept in spite of a reason against them")
    return Funnel(
        videos=video_counts,
        clips=clip_counts,
        takes=_total(videos["takes"]) if "takes" in videos.column_names else None,
        duplicate_videos=_rules("videos", videos, "duplicate", "error"),
        failed_videos=_rules("videos", videos, "failed", "error"),
        rejected=_rules("clips", clips, "rejected", "reason"),
        failed=_rules("clips", clips, "failed", "reason"),
    )


def _statuses(what: str, status: pa.ChunkedArray, known: tuple[str, ...]) -> dict[str, int]:
    found = {row["values"]: row["counts"] for row in pc.value_counts(status).to_pylist()}
    counts = {name: found.pop(name, 0) for name in known}
    if found:
        sums = " + ".join(f"{n} {name}" for name, n in counts.items())
        other = ", ".join(f"{n} {printable(name, 40)}" for name, n in found.items())
        raise Unaccounted(f"{what}: {len(status)} rows, but {sums}; unaccounted for: {other}")
    return counts


def _total(column: pa.ChunkedArray) -> int:
    """How many things the rows have together: a column of lists, or of counts."""
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pc.sum(pc.list_value_length(column) if lists else column, min_count=0).as_py()


def _rules(what: str, table: pa.Table, status: str, column: str) -> list[Rule]:
    """The rules behind the rows of one status, the commonest first."""
    names = [column] + [c for c in ("reasons",) if c in table.column_names]
    rows = table.select(names).filter(pc.equal(table["status"], status))
    if missing := rows[column].null_count:
        raise Unaccounted(f"{what}: {missing} of {rows.num_rows} {status} without a reason")
    first = _tally(rules(rows[column]))
    of_any = dict(first)
    if "reasons" in names and rows.num_rows:
        lists = rows["reasons"]
        pairs = pa.table(
            {"row": pc.list_parent_indices(lists), "rule": rules(pc.list_flatten(lists))}
        )
        of_any |= _tally(pairs.group_by(["row", "rule"]).aggregate([])["rule"])
    found = [
        Rule(name, first.get(name, 0), max(n, first.get(name, 0))) for name, n in of_any.items()
    ]
    found.sort(key=lambda r: (-r.first, -r.any, r.name))
    if len(found) <= MOST_RULES:
        return found
    rest = found[MOST_RULES - 1 :]
    other = Rule(f"{len(rest)} other reasons", sum(r.first for r in rest), sum(r.any for r in rest))
    return [*found[: MOST_RULES - 1], other]


def _tally(names: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(names).to_pylist()}


def last_line(funnel: Funnel) -> str:
    """`1204 clips: 806 kept, 371 rejected (static 212, blurry 97, text 62), 27 failed (…)`"""
    parts = []
    for status, found in (("rejected", funnel.rejected), ("failed", funnel.failed)):
        words: Counter[str] = Counter()
        for r in found:
            words[word(r.name)] += r.first
        why = ", ".join(f"{name} {n}" for name, n in words.most_common() if n)
        parts.append(f"{funnel.clips[status]} {status}" + (f" ({why})" if why else ""))
    return f"{sum(funnel.clips.values())} clips: {funnel.clips['kept']} kept, {', '.join(parts)}"


def as_text(funnel: Funnel) -> str:
    """The funnel as a table for a terminal, the last line being `last_line`."""
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
    return "\n".join([*lines, "", last_line(funnel)])


def funnel(videos: pa.Table, clips: pa.Table) -> str:
    """The table at the end of a run; raises Unaccounted where the sums don't agree."""
    return as_text(count(videos, clips))
