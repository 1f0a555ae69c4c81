"""Counts what became of every video and clip, by reason and rule; raises where the sums do not
agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

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
    "motion_dis <": "little motion",
    "motion_dis >": "hectic",
    "sharpness <": "blurry",
    "brightness <": "dark",
    "brightness >": "bright",
    "colourfulness <": "colourless",
    "text_share >": "text",
    "overlay_share >": "overlay",
    "cut_probability >": "possible cut",
    "gradual_probability >": "possible transition",
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


# Videos without frames that no header rule rejected.
NEVER_DECODED = (("videos", "failed"), ("videos", "duplicate"))
DECODED_COPY = "same bytes as another, known after its decode"


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
    takes: int
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


class RowCounter:
    """Counts videos and clips that come table by table; tables of clips have no clip in common."""

    def __init__(self) -> None:
        self._statuses: dict[str, Counter[str]] = {"videos": Counter(), "clips": Counter()}
        self._first: Counter[tuple[str, str, str]] = Counter()  # unit, status, reason
        self._any: Counter[tuple[str, str, str]] = Counter()
        # by unit, status, and maybe reason: lengths in microseconds, and those not decoded
        self._us: Counter[tuple[str, ...]] = Counter()
        self._skipped: Counter[tuple[str, ...]] = Counter()
        self._skipped_us: Counter[tuple[str, ...]] = Counter()
        self._takes = 0
        self._expected = 0  # clips

    def add_videos(self, videos: pa.Table) -> None:
        """Counts videos: status, error, clips and takes (numbers), num_frames, duration_s."""
        self._add("videos", videos, VIDEO_STATUSES, "error")
        self._expected += pc.sum(videos["clips"], min_count=0).as_py()
        self._takes += pc.sum(videos["takes"], min_count=0).as_py()

    def add_clips(self, clips: pa.Table) -> None:
        """Counts the rows.

        clips: clip_id, status, reason, reasons, duration_s; num_frames for those not decoded.

        Raises Unaccounted."""
        ids = pc.count_distinct(clips["clip_id"], mode="all").as_py()
        if ids != clips.num_rows:
            raise Unaccounted(f"clips: {clips.num_rows} rows, but {ids} different clip_ids")
        with_reason = pc.and_(pc.equal(clips["status"], "kept"), pc.is_valid(clips["reason"]))
        if n := pc.sum(with_reason).as_py():
            raise Unaccounted(f"clips: {n} kept with a reason against them")
        self._add("clips", clips, CLIP_STATUSES, "reason")

    def _add(self, unit: str, table: pa.Table, statuses: tuple[str, ...], column: str) -> None:
        names = ("status", column, "reasons", "duration_s", "num_frames")
        table = table.select([name for name in names if name in table.column_names])
        self._statuses[unit] += count_values(table["status"])
        for status in statuses:
            rows = table.filter(pc.equal(table["status"], status))
            self._add_lengths(rows, (unit, status), (unit, "all"))
            if status != statuses[0] and rows.num_rows:  # no reason against the others
                self._add_reasons(unit, status, rows, column)

    def _add_reasons(self, unit: str, status: str, rows: pa.Table, column: str) -> None:
        if missing := rows[column].null_count:
            raise Unaccounted(f"{unit}: {missing} of {rows.num_rows} {status} without a reason")
        firsts = normalize_reasons(rows[column])
        if status == "duplicate":
            was_decoded = pc.is_valid(rows["duration_s"])
            firsts = pc.if_else(was_decoded, DECODED_COPY, firsts)
        of_any = count_values(firsts)
        for name, n in of_any.items():
            self._first[unit, status, name] += n
            self._add_lengths(rows.filter(pc.equal(firsts, name)), (unit, status, name))
        if "reasons" in rows.column_names:
            names = normalize_reasons(pc.list_flatten(rows["reasons"]))
            pairs = pa.table({"row": pc.list_parent_indices(rows["reasons"]), "reason": names})
            of_any |= count_values(pairs.group_by(["row", "reason"]).aggregate([])["reason"])
        for name, n in of_any.items():
            self._any[unit, status, name] += n

    def _add_lengths(self, rows: pa.Table, *keys: tuple[str, ...]) -> None:
        """keys: the first one begins with the unit and the status of the rows."""
        skipped = rows.slice(0, 0)
        if "num_frames" in rows.column_names and keys[0][:2] not in NEVER_DECODED:
            skipped = rows.filter(pc.is_null(rows["num_frames"]))
        for key in keys:
            self._us[key] += _microseconds(rows)
            self._skipped[key] += skipped.num_rows
            self._skipped_us[key] += _microseconds(skipped)

    def funnel(self) -> Funnel:
        """Returns the counts so far. Raises Unaccounted where they do not add up."""
        clips = self._counts("clips", CLIP_STATUSES)
        if self._expected != sum(clips.values()):
            raise Unaccounted(
                f"videos: {self._expected} clips in all, but there are {sum(clips.values())}"
            )
        return Funnel(
            videos=self._counts("videos", VIDEO_STATUSES),
            clips=clips,
            takes=self._takes,
            duplicate_videos=_shortened(self._reasons("videos", "duplicate")),
            failed_videos=_shortened(self._reasons("videos", "failed")),
            rejected=_shortened(self._reasons("clips", "rejected")),
            failed=_shortened(self._reasons("clips", "failed")),
            not_decoded=self._skipped["clips", "all"],
            hours=(
                _hours(self._us["clips", "all"]),
                _hours(self._skipped_us["clips", "all"]),
            ),
        )

    def table(self) -> pa.Table:
        """A table of FUNNEL: per unit and status a row for all, then one per reason."""
        found: list[dict[str, object]] = []
        for unit, statuses in (("videos", VIDEO_STATUSES), ("clips", CLIP_STATUSES)):
            counts = self._counts(unit, statuses)
            rows = {"all": sum(counts.values()), **counts}
            for status, n in rows.items():
                found.append(self._row(unit, status, n, n))
                for r in self._reasons(unit, status):
                    row = self._row(unit, status, r.first, r.any, r.name)
                    rule = rule_of(r.name) if status == "rejected" else None
                    found.append(row | {"rule": rule, "reason": r.name})
        return pa.Table.from_pylist(found, schema=schema(FUNNEL))

    def _row(self, unit: str, status: str, count: int, any_: int, *name: str) -> dict[str, object]:
        key = (unit, status, *name)
        row = {"unit": unit, "status": status, "count": count, "any": any_}
        row |= {"hours": _hours(self._us[key]), "not_decoded": self._skipped[key]}
        return row | {"hours_not_decoded": _hours(self._skipped_us[key])}

    def _counts(self, unit: str, known: tuple[str, ...]) -> dict[str, int]:
        found = Counter(self._statuses[unit])
        counts = {name: found.pop(name, 0) for name in known}
        if found:
            sums = " + ".join(f"{n} {name}" for name, n in counts.items())
            other = ", ".join(f"{n} {printable(name, 40)}" for name, n in found.items())
            rows = self._statuses[unit].total()
            raise Unaccounted(f"{unit}: {rows} rows, but {sums}; unaccounted for: {other}")
        return counts

    def _reasons(self, unit: str, status: str) -> list[ReasonCount]:
        """The reasons of the rows of one status, the most frequent first."""
        found = [
            ReasonCount(key[2], self._first[key], n)
            for key, n in self._any.items()
            if key[:2] == (unit, status)
        ]
        return sorted(found, key=lambda r: (-r.first, -r.any, r.name))


def _hours(microseconds: int) -> float:
    return round(microseconds / 3.6e9, 6)


def _microseconds(rows: pa.Table) -> int:
    """The total length: a sum of whole numbers does not depend on the order of the rows."""
    return int(np.rint(np.nan_to_num(rows["duration_s"].to_numpy()) * 1e6).sum())


def _shortened(found: list[ReasonCount]) -> list[ReasonCount]:
    """Returns at most MAX_REASONS reasons; the last stands for those that are left out."""
    if len(found) <= MAX_REASONS:
        return found
    rest = found[MAX_REASONS - 1 :]
    name = f"{len(rest)} other reasons"
    other = ReasonCount(name, sum(r.first for r in rest), sum(r.any for r in rest))
    return [*found[: MAX_REASONS - 1], other]


def count_values(column: pa.ChunkedArray) -> Counter[str]:
    """Value -> how many rows have it."""
    counts = pc.value_counts(column).to_pylist()
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
