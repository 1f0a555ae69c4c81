"""The policy: thresholds that turn scores into reasons. Pure: no input or output, no decode.

`decide_table` judges a whole table column by column; `decide` is the same on one row.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.config import ConfigError
from curation.renames import OLD_VERSION, SCORES
from curation.stage import PlanError, Row

CLIP_COLUMNS = ("width", "height", "fps", "duration_s")  # measured of every clip, by no meter
TYPES = {c.name: c.type for c in records.CLIP}
RULED = (*CLIP_COLUMNS, *records.SCORE_NAMES)  # what a policy may name


@dataclass(frozen=True)
class Range:
    """What a score must lie in, both ends included; None is open."""

    min: float | None = None
    max: float | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        ends = [v for v in (self.min, self.max) if v is not None]
        if not ends or not all(math.isfinite(v) for v in ends) or ends[0] > ends[-1]:
            raise ConfigError(
                f"policy: min {self.min}, max {self.max} is no range; "
                "expected min, max or both, with min <= max"
            )

    def __str__(self) -> str:
        ends = (("min", self.min), ("max", self.max))
        return ", ".join(f"{name}: {end:g}" for name, end in ends if end is not None)

    def within(self, other: Range) -> bool:
        """Whether everything that passes this range passes the other."""
        low = other.min is None or (self.min is not None and self.min >= other.min)
        high = other.max is None or (self.max is not None and self.max <= other.max)
        return low and high


class Policy(dict[str, Range]):
    """Column -> Range, in the order in which reasons are given.

    In YAML: `brightness: {min: 20, max: 180}`; `null` takes a rule away (`policy.text_share=null`).
    """

    def __init__(self, rules: Mapping[str, Range | None] | None = None, **more: Range) -> None:
        named = {**(rules or {}), **more}
        super().__init__({k: v for k, v in named.items() if v is not None})
        for column in named:  # also of a rule that is taken away
            if column not in RULED:
                near = difflib.get_close_matches(column, RULED, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(RULED)}"
                if column in SCORES:
                    hint = f"in version {OLD_VERSION} it was; in this one it is {SCORES[column]}"
                raise ConfigError(f"policy: {column} is not a score; {hint}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # here: nothing else of this file needs pydantic

        rules = handler.generate_schema(dict[str, Range | None])
        return core_schema.no_info_after_validator_function(cls, rules)

    def without(self, columns: Collection[str]) -> Policy:
        """The rules about other columns."""
        return Policy({k: v for k, v in self.items() if k not in columns})


def decide(row: Row, policy: Policy) -> list[str]:
    """The reasons against this clip; none if it stays."""
    columns = {name: pa.array([row.get(name)], TYPES[name]) for name in policy}
    causes = pa.array([list(dict(row.get("null_reasons") or {}).items())], records.NULL_REASONS)
    return decide_table(pa.table({**columns, "null_reasons": causes}), policy)[0].as_py()


def decide_table(clips: pa.Table, policy: Policy) -> pa.ListArray:
    """The reasons against each clip, a list of strings per row.

    Failed thresholds come first, in the policy's order, then what was not measured: the first
    reason is a number wherever there is one. An absent column was not measured of any clip.
    """
    found = [_failed(name, rule, _column(clips, name)) for name, rule in policy.items()]
    found += [_not_measured(name, _column(clips, name), clips) for name in policy]
    rows = np.concatenate([np.empty(0, np.int64), *(r for r, _ in found)])
    texts = pa.concat_arrays([pa.array([], pa.string()), *(t for _, t in found)])
    return by_row(rows, texts, clips.num_rows)


def by_row(rows: np.ndarray, texts: pa.Array, n: int) -> pa.ListArray:
    """n lists: row rows[i] gets texts[i], in the order given."""
    offsets = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=offsets[1:])
    order = pa.array(np.argsort(rows, kind="stable"))
    return pa.ListArray.from_arrays(pa.array(offsets), texts.take(order))


def _column(clips: pa.Table, name: str) -> np.ndarray:
    """The values in the column's own precision, NaN where there is none.

    Thresholds are compared in that precision too: a float32 0.05 is not above 0.05.
    """
    kind = np.float32 if TYPES[name] == pa.float32() else np.float64
    if name not in clips.column_names:
        return np.full(clips.num_rows, np.nan, kind)
    values = clips[name].cast(pa.from_numpy_dtype(kind)).to_numpy()
    return np.round(values, 6) if kind is np.float64 else values  # 15 s may be 14.999999999999998


Found = tuple[np.ndarray, pa.Array]  # rows, and the text for each of them


def _failed(name: str, rule: Range, values: np.ndarray) -> Found:
    low, high = np.empty(0, np.int64), np.empty(0, np.int64)
    if rule.min is not None:
        low = np.flatnonzero(values < values.dtype.type(rule.min))
    if rule.max is not None:
        high = np.flatnonzero(values > values.dtype.type(rule.max))
    texts = _texts(name, values[low], "<", rule.min) + _texts(name, values[high], ">", rule.max)
    return np.concatenate([low, high]), pa.array(texts, pa.string())


def _texts(name: str, values: np.ndarray, sign: str, bound: float | None) -> list[str]:
    """One text per value, each distinct value written once."""
    if bound is None or not len(values):
        return []
    distinct, which = np.unique(values, return_inverse=True)
    written = np.array([reason(name, float(v), sign, bound) for v in distinct], object)
    return written[which].tolist()


def reason(name: str, value: float, sign: str, bound: float) -> str:
    """`static_share 0.90 > 0.5`, `9.3 s < 15 s`: with as many digits as make it true."""
    if name == "duration_s":
        return f"{_true(value, sign, bound, 1)} s {sign} {bound:g} s"
    decimals = 0 if TYPES[name] == pa.int32() else 2
    return f"{name} {_true(value, sign, bound, decimals)} {sign} {bound:g}"


def _true(value: float, sign: str, bound: float, decimals: int) -> str:
    for digits in range(decimals, 10):
        text = f"{value:.{digits}f}"
        if (float(text) < bound) if sign == "<" else (float(text) > bound):
            return text
    return f"{value!r}"


def _not_measured(name: str, values: np.ndarray, clips: pa.Table) -> Found:
    rows = np.flatnonzero(np.isnan(values))
    plain = pa.array([f"{name} not measured"] * len(rows), pa.string())
    if "null_reasons" not in clips.column_names or not len(rows):
        return rows, plain
    causes = clips["null_reasons"].combine_chunks().take(pa.array(rows))
    cause = pc.map_lookup(causes, pa.scalar(name), "first")
    return rows, pc.coalesce(pc.binary_join_element_wise(plain, cause, ": "), plain)


def check_columns(policy: Policy, have: Iterable[str]) -> None:
    """Refuses, before the start, a policy that needs a score that nothing measures.

    have: the columns that the stages of this run, or those of the ledger, write.
    """
    known = {*CLIP_COLUMNS, *have}
    missing = [name for name in policy if name not in known]
    if not missing:
        return
    models = {c.name: c.model for c in records.SCORES}
    lines = [f"  {m}: " + (f"needs {models[m]}" if models[m] else "no meter") for m in missing]
    raise PlanError(
        f"the policy needs {len(missing)} scores that no configured scorer measures: "
        f"{', '.join(missing)}\n" + "\n".join(lines) + "\n"
        "  fix: configure their scorers, or take the rules out (select.policy.NAME=null)"
    )


def check_prefilter(
    policy: Policy, prefilter: Policy, costly: Mapping[str, str], also: Collection[str] = ()
) -> None:
    """Raises PlanError where a policy is looser than the recorded prefilter in a way that
    would keep clips which lack the costly scores.

    costly: score -> the scorer that clips below the prefilter were spared.
    also: scores that are needed in addition to the policy's.
    """
    needed = {name: costly[name] for name in (*policy, *also) if name in costly}
    looser = [
        name for name in prefilter if name not in policy or not policy[name].within(prefilter[name])
    ]
    if not needed or not looser:
        return
    lines = [
        f"  {name}: scored for {_span(prefilter[name])}, "
        f"the policy asks for {_span(policy.get(name))}"
        for name in looser
    ]
    raise PlanError(
        f"the policy is looser than the prefilter of this ledger in {', '.join(looser)}, and needs "
        f"{', '.join(needed)}, which clips under the prefilter were spared\n"
        + "\n".join(lines)
        + "\n"
        f"  fix: tighten the policy to the prefilter, or score again with a lower prefilter "
        f"(runs {', '.join(sorted(set(needed.values())))})"
    )


def _span(rule: Range | None) -> str:
    if rule is None:
        return "any value"
    ends = (("at least", rule.min), ("at most", rule.max))
    return " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)
