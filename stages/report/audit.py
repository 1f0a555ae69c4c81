"""Audit: a stratified sample of clips, and the precision and recall that people's marks of it give.

Strata are the kept clips and, by the rule of their first reason, the rejected ones. A clip of
stratum h stands for N_h / n_h clips, of the N_h in the stratum of which n_h are marked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of a two-sided interval of 95 %
KEPT = "kept"  # the name of the first stratum; a rule never has it


@dataclass(frozen=True)
class Share:
    """A share of clips, with its 95 % interval."""

    value: float | None  # None: no marked clip to estimate it from
    low: float | None
    high: float | None
    marked: int  # clips that it was estimated from


@dataclass(frozen=True)
class RuleShares:
    rule: str
    precision: Share  # of the clips that the rule rejects, those that are bad
    recall: Share  # of the bad clips, those that the rule rejects


@dataclass(frozen=True)
class Audit:
    """What the marks of one reviewer give."""

    marked: int
    precision: Share  # of the kept clips, those that are good
    recall: Share  # of the good clips, those that are kept
    rules: list[RuleShares]
    unmarked_strata: list[str]  # their clips are left out


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa of two reviewers, over the clips that both marked."""

    clips: int
    equal: int
    kappa: float | None  # None where one value is all that both gave
    low: float | None
    high: float | None


def allocate(sizes: Mapping[str, int], size: int) -> dict[str, int]:
    """Stratum -> clips to draw of it, about `size` in all.

    Half of them are kept clips. The other half is divided among the rules by the square root of
    their sizes, at least one each: power allocation (Bankier 1988, The American Statistician 42,
    174-177) with power 1/2, between equal precision for each rule and for all clips.
    """
    found = {name: min(n, (size + 1) // 2) for name, n in sizes.items() if name == KEPT}
    rules = sorted((n, name) for name, n in sizes.items() if name != KEPT and n)
    left = size - sum(found.values())
    for i, (n, name) in enumerate(rules):  # small ones first: what they lack goes to the others
        roots = sum(math.sqrt(m) for m, _ in rules[i:])
        found[name] = min(n, max(1, round(left * math.sqrt(n) / roots)))
        left -= found[name]
    if left > 0 and sizes.get(KEPT, 0) > found.get(KEPT, 0):
        found[KEPT] = min(sizes[KEPT], found[KEPT] + left)
    return found


def draw_sample(strata: Sequence[str | None], uniform: np.ndarray, size: int) -> np.ndarray:
    """Row numbers of the sample, in the order in which they are marked.

    strata: of each row; None: never drawn. uniform: (n,) a number in [0, 1) per row, by which rows
    are drawn and ordered; so any first part of the sample is a sample too.
    """
    names = np.array([name or "" for name in strata], object)
    sizes = {str(name): int((names == name).sum()) for name in set(names) if name}
    chosen = []
    for name, count in allocate(sizes, size).items():
        rows = np.flatnonzero(names == name)
        chosen.append(rows[np.argsort(uniform[rows], kind="stable")[:count]])
    rows = np.concatenate([np.empty(0, np.int64), *chosen])
    return rows[np.argsort(uniform[rows], kind="stable")]


def audit(
    sizes: Mapping[str, int],
    strata: Sequence[str],
    is_good: Sequence[bool],
    rules: Sequence[frozenset[str]],
) -> Audit:
    """Returns precision and recall of the policy and of each rule.

    sizes: stratum -> clips in the output.  strata, is_good, rules: of each marked clip, its
    stratum, its mark, and the rules that reject it."""
    names, good = np.array(strata, object), np.array(is_good, bool)
    kept = names == KEPT
    every = sorted({rule for of_clip in rules for rule in of_clip})
    by_rule = {rule: np.array([rule in of_clip for of_clip in rules], bool) for rule in every}

    def share(of: np.ndarray, where: np.ndarray) -> Share:
        return estimate_share(of & where, where, names, sizes)

    return Audit(
        len(names),
        estimate_share(good[kept], kept[kept], names[kept], {KEPT: sizes.get(KEPT, 0)}),
        share(kept, good),
        [RuleShares(r, share(~good, hit), share(hit, ~good)) for r, hit in by_rule.items()],
        sorted(name for name, n in sizes.items() if n and name not in set(strata)),
    )


def estimate_share(
    y: np.ndarray, x: np.ndarray, strata: np.ndarray, sizes: Mapping[str, int]
) -> Share:
    """The share of clips with y among those with x; y implies x. All (n,), of the marked clips.

    The combined ratio estimate R and its linearized variance V with finite population correction
    (Cochran, Sampling Techniques, 3rd ed. 1977, sections 6.11 and 6.12; a stratum with one marked
    clip counts with the square of that clip's residual). The interval is Wilson's (1927), with the
    effective sample size R (1 - R) / V (Korn and Graubard 1998, Survey Methodology 24, 193-201), at
    most the number of clips with x; where V is 0, with Kish's effective size of the weights. Where
    every clip of the strata is marked, it is R alone.
    """
    if not x.any():
        return Share(None, None, None, 0)
    weight = np.zeros(len(x))
    variance, is_whole = 0.0, True
    groups = [(sizes[str(name)], strata == name) for name in sorted(set(strata))]
    for total, group in groups:
        weight[group] = total / group.sum()
    domain = float((weight * x).sum())
    ratio = float((weight * y).sum()) / domain
    for total, group in groups:
        n = int(group.sum())
        if n == total:
            continue
        is_whole = False
        residual = y[group] - ratio * x[group]
        spread = float(residual.var(ddof=1)) if n > 1 else float(residual[0] ** 2)
        variance += total**2 * (1 - n / total) * spread / n
    variance /= domain**2
    marked = int(x.sum())
    if is_whole and sum(sizes.values()) == len(x):
        return Share(ratio, ratio, ratio, marked)
    if variance > 0 and 0 < ratio < 1:
        effective = min(ratio * (1 - ratio) / variance, marked)
    else:
        effective = domain**2 / float((weight**2 * x).sum())
    return Share(ratio, *wilson_interval(ratio, effective), marked)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share that was measured on n (Wilson 1927, JASA 22, 209-212)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def agreement(a: Sequence[bool], b: Sequence[bool]) -> Agreement:
    """Cohen's kappa (1960, Educational and Psychological Measurement 20, 37-46) of two people's
    marks of the same clips, with his large-sample interval."""
    one, two = np.array(a, bool), np.array(b, bool)
    n = len(one)
    equal = int((one == two).sum())
    if not n:
        return Agreement(0, 0, None, None, None)
    expected = one.mean() * two.mean() + (1 - one.mean()) * (1 - two.mean())
    if expected == 1:
        return Agreement(n, equal, None, None, None)
    observed = equal / n
    kappa = float((observed - expected) / (1 - expected))
    error = math.sqrt(observed * (1 - observed) / n) / float(1 - expected)
    return Agreement(n, equal, kappa, max(-1.0, kappa - Z * error), min(1.0, kappa + Z * error))


def format_audit(found: Mapping[str, Audit], pairs: Mapping[tuple[str, str], Agreement]) -> str:
    """Lines for a terminal. found: by reviewer."""
    lines: list[str] = []
    for reviewer, of_one in found.items():
        lines += [f"{reviewer}: {of_one.marked} clips marked"]
        lines += [f"  policy: {_pair(of_one.precision, of_one.recall)}"]
        lines += [f"  {rule.rule}: {_pair(rule.precision, rule.recall)}" for rule in of_one.rules]
        if of_one.unmarked_strata:
            names = ", ".join(of_one.unmarked_strata)
            lines.append(f"  left out, as no clip of it is marked: {names}")
    for (one, two), pair in pairs.items():
        line = f"{one} and {two}: {pair.clips} clips marked by both, {pair.equal} alike"
        if pair.kappa is not None:
            line += f"; Cohen's kappa {pair.kappa:.2f} ({pair.low:.2f} to {pair.high:.2f})"
        lines.append(line)
    return "\n".join(lines) or "no clip of the sample is marked yet"


def _pair(precision: Share, recall: Share) -> str:
    return f"precision {_text(precision)}; recall {_text(recall)}"


def _text(share: Share) -> str:
    if share.value is None or share.low is None or share.high is None:
        return "unknown, as no such clip is marked"
    clips = "1 clip" if share.marked == 1 else f"{share.marked} clips"
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, {clips})"
