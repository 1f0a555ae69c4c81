"""stats.parquet: the distribution of each score, by status of the clips."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from curation.funnel import normalize_reason
from curation.parquet import scan
from curation.records import FAILED_PREFILTER, SCORE_NAMES, Column, null_reason_entries, schema

STATUSES = ("kept", "rejected", "failed", "all")
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
MEASUREMENTS = ("duration_s", "width", "height", "fps", *SCORE_NAMES)  # what a policy may name
MAX_NULL_REASONS = 50  # per score and status; all others are counted together

STATS = (
    Column("score", pa.string(), "name of the score"),
    Column(
        "status", pa.string(), "kept | rejected | failed | all: the clips that the row is about"
    ),
    Column("count", pa.int64(), "clips of that status"),
    Column("nulls", pa.int64(), "of them without a finite value"),
    Column("null_reasons", pa.map_(pa.string(), pa.int64()), "why null -> clips; adds up to nulls"),
    Column("mean", pa.float64(), "in the score's unit, as are all that follow"),
    Column("min", pa.float64(), ""),
    *(Column(f"p{p:02d}", pa.float64(), f"{p} % of the values are smaller") for p in PERCENTILES),
    Column("max", pa.float64(), ""),
    Column("edges", pa.list_(pa.float64()), "of the bins; the same in all rows of a score"),
    Column("counts", pa.list_(pa.int64()), "clips per bin (the last includes its upper edge)"),
)


def bin_edges(values: np.ndarray, about: int = 30) -> np.ndarray:
    """About `about` bins with round edges over the values; outliers share a bin at each end.

    values: (N,) finite. Returns (bins + 1,) edges, with every value in a bin; empty for no values.
    """
    if not len(values):
        return np.empty(0)
    lowest, low, high, highest = np.percentile(values, [0, 1, 99, 100])
    width = high - low or highest - lowest
    # A value within half of that width of the range from 1 % to 99 % is no outlier.
    low, high = max(lowest, low - width / 2), min(highest, high + width / 2)
    step, decimals = _round_step((high - low) / about or abs(high) / about or 0.1)
    scale = 10.0**decimals
    # A value on an edge belongs to the bin above, also the highest one: 15 s isn't "under 15 s".
    first, last = math.floor(low / step + 1e-6), math.floor(high / step + 1e-6) + 1
    if low == high:  # a single value: some empty bins around it
        first, last = max(first - 5, min(first, 0)), last + 5
    edges = np.arange(first, last + 1) * round(step * scale) / scale
    below = [lowest] if lowest < edges[0] else []
    above = [highest] if highest > edges[-1] else []
    return np.concatenate([below, edges, above])


def _round_step(step: float) -> tuple[float, int]:
    """The next larger 1, 2 or 5 times a power of ten, and its number of decimals."""
    power = math.floor(math.log10(step))
    factor = next(f for f in (1, 2, 5, 10) if f >= step / 10.0**power * (1 - 1e-9))
    return factor * 10.0**power, max(0, -power)


def score_statistics(clips: pa.Table | ds.Dataset) -> pa.Table:
    """A table of STATS: one row per score and status. Of a dataset one score is read at a time.

    clips: status, the scores (any of MEASUREMENTS), null_reasons (map score -> why it is null).
    """
    data = ds.dataset(clips) if isinstance(clips, pa.Table) else clips
    status = pa.chunked_array(
        [c for table in scan(data, ["status"]) for c in table["status"].chunks], pa.string()
    )
    members = {s: pc.equal(status, s).to_numpy() for s in STATUSES[:-1]}
    members["all"] = np.ones(len(status), bool)
    null_reasons = _null_reasons(data)
    rows = []
    for score in MEASUREMENTS:
        if score not in data.schema.names:
            continue
        parts = [c for table in scan(data, [score]) for c in table[score].chunks]
        column = pa.chunked_array(parts, data.schema.field(score).type)
        column = column.cast(pa.float64()).combine_chunks()
        values = column.to_numpy(zero_copy_only=False)  # null becomes NaN
        measured = np.isfinite(values)
        not_finite = column.is_valid().to_numpy(zero_copy_only=False) & ~measured
        edges = bin_edges(values[measured])
        for name, member in members.items():
            nulls = member & ~measured
            rows.append(
                {
                    "score": score,
                    "status": name,
                    "count": int(member.sum()),
                    "nulls": int(nulls.sum()),
                    "null_reasons": _count_reasons(
                        int(nulls.sum()),
                        int((member & not_finite).sum()),
                        null_reasons[score, name],
                    ),
                    **_distribution(values[member & measured], edges),
                }
            )
    return pa.Table.from_pylist(rows, schema=schema(STATS))


def _distribution(values: np.ndarray, edges: np.ndarray) -> dict[str, object]:
    """The columns of STATS from `mean` on. values: (N,) finite. edges: (B + 1,) or empty."""
    counts = np.histogram(values, edges)[0].tolist() if len(edges) else []
    found: dict[str, object] = {"edges": edges.tolist(), "counts": counts}
    if len(values):
        found |= {"mean": values.mean(), "min": values.min(), "max": values.max()}
        found |= {
            f"p{p:02d}": v
            for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
        }
    return found


def _null_reasons(clips: ds.Dataset) -> dict[tuple[str, str], Counter[str]]:
    """score, status -> null reason -> clips; of scores that have a value none."""
    found: dict[tuple[str, str], Counter[str]] = {
        (score, status): Counter() for score in MEASUREMENTS for status in STATUSES
    }
    known = [score for score in MEASUREMENTS if score in clips.schema.names]
    if "null_reasons" not in clips.schema.names:
        return found
    for table in scan(clips, ["status", "null_reasons", *known]):
        rows, scores, reasons = null_reason_entries(table["null_reasons"])
        for score in set(pc.unique(scores).to_pylist()).intersection(known):
            values = table[score].cast(pa.float64()).to_numpy()
            of_score = np.flatnonzero(pc.equal(scores, score))
            place = of_score[~np.isfinite(values[rows[of_score]])]
            texts = pc.fill_null(reasons.take(pa.array(place)), "no cause recorded")
            status = table["status"].take(pa.array(rows[place]))
            pairs = pa.table({"status": status, "reason": pa.chunked_array([texts])})
            for row in (
                pairs.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
            ):
                for name in (row["status"], "all"):
                    if (score, name) in found:
                        found[score, name][_without_values(row["reason"])] += row["count_all"]
    return found


def _without_values(null_reason: str) -> str:
    """The null reason; if the clip failed the prefilter, with the rule but without the value."""
    if not null_reason.startswith(FAILED_PREFILTER):
        return null_reason
    return FAILED_PREFILTER + normalize_reason(null_reason.removeprefix(FAILED_PREFILTER))


def _count_reasons(nulls: int, not_finite: int, counted: Counter[str]) -> dict[str, int]:
    """Null reason -> clips, which add up to `nulls`."""
    found = Counter(counted)
    found["not finite"] += not_finite
    found["no cause recorded"] += nulls - found.total()
    # Of equal counts, in order of the text: whatever the order of the clips.
    common = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MAX_NULL_REASONS]
    common.append(("other causes", found.total() - sum(n for _, n in common)))
    return {reason: n for reason, n in common if n}
