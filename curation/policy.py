"""The policy: thresholds that turn scores into reasons against clips. Pure functions on tables.

`decide_table` decides a whole table column by column; `decide` is the same for one row.
"""

from __future__ import annotations

import difflib
import json
import math
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.config import ConfigError
from curation.renames import OLD_VERSION, SCORES
from curation.stage import PlanError, Row

CLIP_COLUMNS = ("width", "height", "fps", "duration_s", *records.TAG_NAMES)  # of every clip
TYPES = {c.name: c.type for c in records.CLIP}
RULE_COLUMNS = (*CLIP_COLUMNS, *records.SCORE_NAMES)  # what a policy may name


@dataclass(frozen=True)
class Range:
    """The values that pass a rule, both ends included; None is no limit."""

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

    def passes(self, value: Any) -> bool:
        is_low = self.min is not None and value < self.min
        return not is_low and (self.max is None or value <= self.max)

    def is_within(self, other: Rule) -> bool:
        """Whether everything that passes this range passes the other rule."""
        if isinstance(other, Values):
            return self.min == self.max and other.passes(self.min)
        low = other.min is None or (self.min is not None and self.min >= other.min)
        high = other.max is None or (self.max is not None and self.max <= other.max)
        return low and high


class Values:
    """The values that pass a rule: `{is: false}`, `{in: [bt709, unknown]}` in YAML."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __str__(self) -> str:
        return " or ".join(map(_text, self.values))

    def passes(self, value: Any) -> bool:
        return value in self.values

    def is_within(self, other: Rule) -> bool:
        """Whether everything that passes this rule passes the other."""
        return all(map(other.passes, self.values))

    def as_setting(self) -> dict[str, Any]:
        return {"in": list(self.values)} if len(self.values) > 1 else {"is": self.values[0]}

    @staticmethod
    def is_setting(rule: Any) -> bool:
        return isinstance(rule, dict) and not rule.keys().isdisjoint(("is", "in"))

    @classmethod
    def from_setting(cls, rule: dict[str, Any]) -> Values:
        values = rule.get("in", [rule.get("is")])
        if len(rule) != 1 or not isinstance(values, list) or not values:
            raise ConfigError(f"policy: {rule} is no rule; expected {{is: …}} or {{in: [… , …]}}")
        return cls(*values)


Rule = Range | Values


class Policy(dict[str, Rule]):
    """Column -> rule, in the order of reasons.

    In YAML: `brightness: {min: 20, max: 180}`, `interlaced: {is: false}`; `null` removes a rule
    (`policy.text_share=null`).
    """

    def __init__(self, rules: Mapping[str, Rule | None] | None = None, **more: Rule) -> None:
        named = {**(rules or {}), **more}
        super().__init__({k: v for k, v in named.items() if v is not None})
        for column in named:  # also of a rule that is removed
            if column not in RULE_COLUMNS:
                near = difflib.get_close_matches(column, RULE_COLUMNS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(RULE_COLUMNS)}"
                if column in SCORES:
                    hint = f"in version {OLD_VERSION} it was; in this one it is {SCORES[column]}"
                raise ConfigError(f"policy: {column} is not a score; {hint}")
        for column, rule in self.items():
            _check_values(column, rule)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def read(rules: Any, read_ranges: Callable[[Any], dict[str, Range | None]]) -> Policy:
            if not isinstance(rules, dict):
                return cls(read_ranges(rules))
            values = {k: Values.from_setting(v) for k, v in rules.items() if Values.is_setting(v)}
            values |= {k: v for k, v in rules.items() if isinstance(v, Values)}
            ranges = read_ranges({k: v for k, v in rules.items() if k not in values})
            both: dict[str, Rule | None] = {**ranges, **values}
            return cls({name: both[name] for name in rules})

        ranges = handler.generate_schema(dict[str, Range | None])
        return core_schema.no_info_wrap_validator_function(read, ranges)

    def without(self, columns: Collection[str]) -> Policy:
        """The rules for all other columns."""
        return Policy({k: v for k, v in self.items() if k not in columns})


def _check_values(column: str, rule: Rule) -> None:
    """Raises ConfigError where a rule is not of the kind of its column's values."""
    kind = TYPES[column]
    if isinstance(rule, Range):
        if kind in (pa.bool_(), pa.string()):
            raise ConfigError(f"policy: {column} has no range; expected {{is: …}} or {{in: […]}}")
        return
    if not all(_can_hold(kind, value) for value in rule.values):
        expected = {pa.bool_(): "true or false", pa.string(): "texts", pa.int32(): "whole numbers"}
        raise ConfigError(
            f"policy: {column}: {rule} can't be compared; expected {expected.get(kind, 'numbers')}"
        )


def _can_hold(kind: pa.DataType, value: Any) -> bool:
    """Whether a column of this type can hold the value; a float32 holds the nearest one."""
    if value is None or isinstance(value, bool) != (kind == pa.bool_()):
        return False
    try:
        stored = pa.scalar(value, kind).as_py()
    except (pa.ArrowException, OverflowError, UnicodeError):  # UnicodeError: half of a pair
        return False
    if pa.types.is_floating(kind):
        return math.isclose(stored, value, rel_tol=1e-6)
    return stored == value


def decide(row: Row, policy: Policy) -> list[str]:
    """The reasons against one clip; empty if it passes."""
    columns = {name: pa.array([row.get(name)], TYPES[name]) for name in policy}
    null_reasons = list(dict(row.get("null_reasons") or {}).items())
    columns["null_reasons"] = pa.array([null_reasons], records.NULL_REASONS)
    return decide_table(pa.table(columns), policy)[0].as_py()


def decide_table(clips: pa.Table, policy: Policy) -> pa.ListArray:
    """The reasons against each clip, a list of strings per row.

    Failed thresholds come first, in the policy's order, then scores that were not measured; so the
    first reason has a number where any has. A column that the table lacks was not measured. Scores
    that were not computed, because the video is not decoded or the clip fails the prefilter, are
    no reasons where a threshold gives one.
    """
    found = [_failed_rule(name, rule, clips) for name, rule in policy.items()]
    has_reason = np.zeros(clips.num_rows, bool)
    for rows, _ in found:
        has_reason[rows] = True
    found += [_not_measured(name, clips, has_reason) for name in policy]
    rows = np.concatenate([np.empty(0, np.int64), *(r for r, _ in found)])
    texts = pa.concat_arrays([pa.array([], pa.string()), *(t for _, t in found)])
    return group_by_row(rows, texts, clips.num_rows)


def group_by_row(rows: np.ndarray, texts: pa.Array, n: int) -> pa.ListArray:
    """n lists; the list of row rows[i] has texts[i], in the order given."""
    offsets = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=offsets[1:])
    order = pa.array(np.argsort(rows, kind="stable"))
    return pa.ListArray.from_arrays(pa.array(offsets), texts.take(order))


def _values(clips: pa.Table, name: str) -> np.ndarray:
    """(n,) the column in its own precision, NaN for null.

    Thresholds are compared in that precision too: a float32 0.05 is not above 0.05.
    """
    kind = np.float32 if TYPES[name] == pa.float32() else np.float64
    if name not in clips.column_names:
        return np.full(clips.num_rows, np.nan, kind)
    values = clips[name].cast(pa.from_numpy_dtype(kind)).to_numpy()
    return np.round(values, 6) if kind is np.float64 else values  # 15 s may be 14.999999999999998


Reasons = tuple[np.ndarray, pa.Array]  # row numbers, and a reason for each


def _failed_rule(name: str, rule: Rule, clips: pa.Table) -> Reasons:
    if isinstance(rule, Values):
        return _failed_values(name, rule, clips)
    values = _values(clips, name)
    low, high = np.empty(0, np.int64), np.empty(0, np.int64)
    if rule.min is not None:
        low = np.flatnonzero(values < values.dtype.type(rule.min))
    if rule.max is not None:
        high = np.flatnonzero(values > values.dtype.type(rule.max))
    texts = _reasons(name, values[low], "<", rule.min) + _reasons(name, values[high], ">", rule.max)
    return np.concatenate([low, high]), pa.array(texts, pa.string())


def _failed_values(name: str, rule: Values, clips: pa.Table) -> Reasons:
    """`interlaced is true`, `transfer is smpte2084`."""
    if name not in clips.column_names:
        return np.empty(0, np.int64), pa.array([], pa.string())
    column = clips[name].combine_chunks().cast(TYPES[name])
    passes = pc.is_in(column, value_set=pa.array(rule.values, TYPES[name]))
    rows = np.flatnonzero(pc.and_(pc.is_valid(column), pc.invert(passes)))
    texts = [f"{name} is {_text(value)}" for value in column.take(pa.array(rows)).to_pylist()]
    return rows, pa.array(texts, pa.string())


def _text(value: Any) -> str:
    """The value as it is written in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reasons(name: str, values: np.ndarray, sign: str, bound: float | None) -> list[str]:
    """A reason per value; each distinct value is formatted once."""
    if bound is None or not len(values):
        return []
    distinct, which = np.unique(values, return_inverse=True)
    texts = np.array([format_reason(name, float(v), sign, bound) for v in distinct], object)
    return texts[which].tolist()


def format_reason(name: str, value: float, sign: str, bound: float) -> str:
    """`static_share 0.90 > 0.5`, `9.3 s < 15 s`: with enough digits to be true as written."""
    if name == "duration_s":
        return f"{_format_outside(value, sign, bound, 1)} s {sign} {bound:g} s"
    decimals = 0 if TYPES[name] == pa.int32() else 2
    return f"{name} {_format_outside(value, sign, bound, decimals)} {sign} {bound:g}"


def _format_outside(value: float, sign: str, bound: float, decimals: int) -> str:
    """The value with at least `decimals` digits, and more until the text is outside the bound."""
    for digits in range(decimals, 10):
        text = f"{value:.{digits}f}"
        if (float(text) < bound) if sign == "<" else (float(text) > bound):
            return text
    return f"{value!r}"


def _not_measured(name: str, clips: pa.Table, has_reason: np.ndarray) -> Reasons:
    if name in clips.column_names:
        rows = np.flatnonzero(pc.is_null(clips[name].combine_chunks(), nan_is_null=True))
    else:
        rows = np.arange(clips.num_rows)
    plain = pa.array([f"{name} not measured"] * len(rows), pa.string())
    if "null_reasons" not in clips.column_names or not len(rows):
        return rows, plain
    null_reasons = clips["null_reasons"].combine_chunks().take(pa.array(rows))
    null_reason = pc.map_lookup(null_reasons, pa.scalar(name), "first")
    texts = pc.coalesce(pc.binary_join_element_wise(plain, null_reason, ": "), plain)
    was_skipped = pc.or_(
        pc.equal(null_reason, records.NOT_DECODED),
        pc.starts_with(null_reason, records.FAILED_PREFILTER),
    )
    was_skipped = pc.fill_null(was_skipped, False).to_numpy(zero_copy_only=False)
    counts = ~(has_reason[rows] & was_skipped)
    return rows[counts], texts.filter(pa.array(counts))


def check_columns(policy: Policy, have: Iterable[str]) -> None:
    """Raises PlanError where the policy needs a score that nothing measures.

    have: the columns that the stages of this run or the ledger have.
    """
    known = {*CLIP_COLUMNS, *have}
    missing = [name for name in policy if name not in known]
    if not missing:
        return
    models = {c.name: c.model for c in records.SCORES}
    needed = {name: models[name] or "a detector that gives it" for name in missing}
    lines = [f"  {name}: needs {what}" for name, what in needed.items()]
    raise PlanError(
        f"the policy needs {len(missing)} scores that nothing configured measures: "
        f"{', '.join(missing)}\n" + "\n".join(lines) + "\n"
        "  fix: configure what measures them, or remove the rules: "
        + " ".join(f"select.policy.{name}=null" for name in missing)
    )


def check_prefilter(
    policy: Policy, prefilter: Policy, costly: Collection[str], also: Collection[str] = ()
) -> None:
    """Raises PlanError where a policy is looser than the recorded prefilter and needs a costly
    score: a clip that passes the policy might then have none.

    costly: the scores that only clips that pass the prefilter have.
    also: scores that are needed in addition to the policy's.
    """
    needed = [name for name in (*policy, *also) if name in costly]
    looser = _looser_rules(policy, prefilter)
    if not needed or not looser:
        return
    lines = _looser_lines(looser, "scored", policy, prefilter)
    raise PlanError(
        "the policy is looser than the prefilter (score.decode.prefilter) in "
        f"{', '.join(looser)}; clips that fail the prefilter are scored only in part and have no "
        f"{', '.join(needed)}, which the policy needs\n"
        + "\n".join([*lines, _fix(looser, prefilter)])
    )


def _looser_lines(looser: Iterable[str], done: str, policy: Policy, prefilter: Policy) -> list[str]:
    return [
        f"  {name}: {done} for {_span(prefilter[name])}, "
        f"the policy asks for {_span(policy.get(name))}"
        for name in looser
    ]


def check_decoded(
    policy: Policy, prefilter: Policy, header_rules: Collection[str], videos: pa.Table | None
) -> None:
    """Raises PlanError where a policy is looser than the prefilter for videos that the prefilter
    rejects by their headers: these have no score at all.

    videos: the columns `header_rules` of such videos; None: they are not known yet.
    """
    prefilter = prefilter.without(prefilter.keys() - set(header_rules))
    looser = _looser_rules(policy, prefilter)
    if not looser:
        return
    found = "videos are"
    if videos is not None:
        of_header = policy.without(policy.keys() - set(header_rules))
        passing = pc.equal(pc.list_value_length(decide_table(videos, of_header)), 0)
        if not (count := pc.sum(passing).as_py()):
            return
        found = f"{count} videos were"
    lines = _looser_lines(looser, "decoded", policy, prefilter)
    raise PlanError(
        "the policy is looser than the prefilter (score.decode.prefilter) in "
        f"{', '.join(looser)}, by which {found} rejected without decoding them: they have no "
        "scores\n" + "\n".join([*lines, _fix(looser, prefilter)])
    )


def _looser_rules(policy: Policy, prefilter: Policy) -> list[str]:
    """The rules of the prefilter that reject something that the policy does not."""
    return [
        name
        for name, rule in prefilter.items()
        if name not in policy or not policy[name].is_within(rule)
    ]


def _fix(looser: list[str], prefilter: Policy) -> str:
    """The settings that keep the policy within the prefilter, or the command that scores without
    its rules."""
    keep = " ".join(f"select.policy.{n}={_as_setting(prefilter[n])}" for n in looser)
    without = " ".join(f"score.decode.prefilter.{n}=null" for n in looser)
    return (
        f"  fix: keep {keep}, or score the videos into another output: "
        f"python -m pipelines.score CONFIG input=INPUT output=OTHER_OUT {without}"
    )


def _as_setting(rule: Rule) -> str:
    """The rule as YAML in a shell's quotes."""
    values = rule.as_setting() if isinstance(rule, Values) else None
    return shlex.quote(json.dumps(values) if values else f"{{{rule}}}")


def _span(rule: Rule | None) -> str:
    if rule is None:
        return "any value"
    if isinstance(rule, Values):
        return str(rule)
    ends = (("at least", rule.min), ("at most", rule.max))
    return " and ".join(f"{limit} {end:g}" for limit, end in ends if end is not None)
