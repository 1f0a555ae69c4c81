"""What each rule costs: clips that it alone rejects, and how many a looser threshold would."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.funnel import count_values
from curation.policy import Policy, Range


@dataclass(frozen=True)
class RuleLoss:
    rule: str
    allowed: str  # as in the policy; empty for a rule that is no column of it
    first: int  # clips of which it is the first reason
    alone: int  # clips that no other rule rejects, of the scores that they have
    alone_hours: float
    not_scored: int  # of these, clips that fail the prefilter: costly scores are unknown
    looser: float | None  # the threshold that about half of these clips would pass
    looser_alone: int | None  # clips that the rule alone would reject then
    measured: int | None  # clips that have the score; None for a rule that is no score


def columns_read(policy: Policy) -> list[str]:
    """The columns of clips.parquet that `rule_losses` reads."""
    needed = ["status", "rule", "rules", "reasons", "prefilter", "duration_s", *policy]
    return list(dict.fromkeys(needed))


def rule_losses(clips: pa.Table, policy: Policy) -> list[RuleLoss]:
    """Returns the loss of every rule that rejects a clip. First comes the rule that rejects the
    most clips alone."""
    rejected = clips.filter(pc.equal(clips["status"], "rejected"))
    first = count_values(rejected["rule"])
    pairs = rules_that_count(rejected)
    sizes = np.bincount(pairs["row"].to_numpy(), minlength=rejected.num_rows)
    only = pairs.filter(pa.array(sizes[pairs["row"].to_numpy()] == 1))
    found = []
    for rule in pc.unique(pairs["rule"]).to_pylist():
        alone = rejected.take(only["row"].filter(pc.equal(only["rule"], rule)))
        found.append(_loss(rule, first[rule], alone, clips, policy))
    return sorted(found, key=lambda loss: (-loss.alone, -loss.first, loss.rule))


def rules_that_count(rejected: pa.Table) -> pa.Table:
    """Returns row and rule of each rejection. If a clip fails the prefilter, the rules on costly
    scores, which it lacks, do not count."""
    row = pc.list_parent_indices(rejected["reasons"]).combine_chunks()
    unmeasured = pc.match_substring_regex(
        pc.list_flatten(rejected["reasons"]), r"^\w+ not measured"
    )
    counts = pc.invert(pc.and_(unmeasured, pc.is_valid(rejected["prefilter"].take(row))))
    rules = pc.list_flatten(rejected["rules"])
    pairs = pa.table({"row": pa.chunked_array([row]), "rule": rules}).filter(counts)
    return pairs.filter(pc.is_valid(pairs["rule"])).group_by(["row", "rule"]).aggregate([])


def _loss(rule: str, first: int, alone: pa.Table, clips: pa.Table, policy: Policy) -> RuleLoss:
    """Returns the loss of one rule. alone: the clips that only this rule rejects."""
    hours = (pc.sum(alone["duration_s"]).as_py() or 0.0) / 3600
    not_scored = alone.num_rows - alone["prefilter"].null_count
    allowed, looser, looser_alone, measured = policy.get(rule), None, None, None
    if rule in policy and rule in clips.column_names:
        measured = clips.num_rows - clips[rule].null_count
        if isinstance(allowed, Range):
            looser, looser_alone = _looser(alone[rule], allowed)
    return RuleLoss(
        *(rule, str(allowed or ""), first, alone.num_rows, hours, not_scored),
        *(looser, looser_alone, measured),
    )


def _looser(column: pa.ChunkedArray, allowed: Range) -> tuple[float | None, int | None]:
    """A threshold of two digits that about half of the values pass, and how many do not.

    Values are on both sides of a range that has both ends: the side with more of them counts.
    """
    values = column.cast(pa.float64()).drop_null().to_numpy()
    above = values[values > allowed.max] if allowed.max is not None else values[:0]
    below = values[values < allowed.min] if allowed.min is not None else values[:0]
    side = above if len(above) >= len(below) else below
    if not len(side):
        return None, None
    step = 10.0 ** (math.floor(math.log10(abs(middle))) - 1) if (middle := np.median(side)) else 1.0
    turn = math.ceil if side is above else math.floor
    threshold = float(f"{turn(middle / step - 1e-9 * (side is above)) * step:.2g}")
    fails = side > threshold if side is above else side < threshold
    other = len(values) - len(side)
    return threshold, int(np.count_nonzero(fails)) + other + (len(column) - len(values))


def format_loss(loss: RuleLoss) -> str:
    """`static_share (max: 0.5) alone loses 212 of 1204 scored clips, 1.2 h; at 0.8 it would lose
    96`"""
    if not loss.alone:
        return f"{loss.rule} alone loses none; it is the first reason of {loss.first}"
    allowed = f" ({loss.allowed})" if loss.allowed else ""
    of = f" of {loss.measured} scored clips" if loss.measured is not None else " clips"
    line = f"{loss.rule}{allowed} alone loses {loss.alone}{of}, {loss.alone_hours:.2g} h"
    if loss.looser is not None:
        line += f"; at {loss.looser:g} it would lose {loss.looser_alone}"
    if loss.not_scored:
        line += f"; {loss.not_scored} of these fail the prefilter: not all scores are known"
    return line
