"""Calibrate: converts a rule on one score to a threshold of another score.

    python -m pipelines.calibrate OUT 'motion_dis: {min: 13}' motion_raft
    python -m pipelines.calibrate OUT semantic_similarity

OUT is a scored output; nothing is written. The first command prints the rule on motion_raft that as
many clips pass as the rule on motion_dis, and on how many clips both agree. The second compares the
clips' embeddings: select.semantic_similarity should be above the similarity of clips of different
videos, and below that of copies of the same footage (known by their fingerprints). Ranges in
brackets are 95 % intervals, by a bootstrap over the videos.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from curation.cli import Arguments, NoSettings, run_command
from curation.config import ConfigError
from curation.policy import Policy, Range
from curation.progress import printable
from curation.records import CAPTION_SCORES
from curation.stage import PlanError
from curation.storage import Folder
from pipelines.tables import read_clips, read_embeddings
from stages.selection.clip_fingerprints import read_fingerprints
from stages.selection.clip_selection import quality_ranks, selected_columns
from stages.selection.near_duplicates import connected_components, find_pairs
from stages.selection.semantic_duplicates import find_semantic_duplicates

BOOTSTRAP_DRAWS = 200
RANGE_PERCENTILES = (2.5, 97.5)
MAX_COMPARED_CLIPS = 2000  # each with each other
UNRELATED_SHARE_BELOW = 0.9999  # of the pairs of different videos, below the lower bound
COPIES_SHARE_BELOW = 0.05  # of the pairs of copies, below the upper bound
SHOWN_LIMITS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def bootstrap_range(
    statistic: Callable[[np.ndarray], float], video: np.ndarray
) -> tuple[float, float]:
    """The RANGE_PERCENTILES of a statistic over videos drawn with replacement.

    statistic: row numbers -> its value.  video: (n,) int. The clips of a video are similar, so they
    are drawn together.
    """
    order, rng = np.argsort(video, kind="stable"), np.random.default_rng(0)
    rows_of = np.split(order, np.flatnonzero(np.diff(video[order])) + 1)
    drawn = rng.integers(0, len(rows_of), (BOOTSTRAP_DRAWS, len(rows_of)))
    found = [statistic(np.concatenate([rows_of[v] for v in draw])) for draw in drawn]
    low, high = np.nanpercentile(found, RANGE_PERCENTILES)
    return float(low), float(high)


def matching_threshold(known: np.ndarray, other: np.ndarray, at: float, *, lowest: bool) -> float:
    """The threshold of `other` that as many values pass as `known` passes with the threshold `at`.

    lowest: thresholds are minima, else maxima. Returns the middle of the two nearest values.
    """
    under = int((known < at).sum() if lowest else (known <= at).sum())
    values = np.sort(other)
    return float(values[[max(under - 1, 0), min(under, len(values) - 1)]].mean())


def match_rule(name: str, rule: Range, other: str, clips: pa.Table) -> list[str]:
    """Lines of text with the rule on `other`. Raises PlanError where none matches."""
    clips = clips.filter(pc.and_(pc.is_valid(clips[name]), pc.is_valid(clips[other])))
    known, values = (clips[column].to_numpy().astype(float) for column in (name, other))
    video = pc.rank(clips["sha256"], tiebreaker="min").to_numpy().astype(int)
    if not clips.num_rows:
        raise PlanError(
            f"no clip has both {name} and {other}; score OUT with settings that measure both"
        )
    ends, lines = {}, []
    for end, at in (("min", rule.min), ("max", rule.max)):
        if at is None:
            continue
        lowest = end == "min"
        passes = known >= at if lowest else known <= at
        if passes.all() or not passes.any():
            raise PlanError(
                f"{passes.sum()} of {len(passes)} clips pass {name} {end} {at:g}: there is no "
                f"threshold to match; the values are {known.min():.4g} to {known.max():.4g}"
            )

        def matching(rows: np.ndarray, at: float = at, lowest: bool = lowest) -> float:
            return matching_threshold(known[rows], values[rows], at, lowest=lowest)

        found = ends[end] = matching(np.arange(len(values)))
        low, high = bootstrap_range(matching, video)
        agreement = np.mean(passes == (values >= found if lowest else values <= found))
        lines.append(
            f"{end}: {found:.4g} ({low:.4g} to {high:.4g}) passes {passes.mean():.1%} as "
            f"{name} {end} {at:g} does; both agree on {agreement:.1%} of the clips"
        )
    ranks = [pc.rank(clips[column]).to_numpy() for column in (name, other)]
    correlation = np.asarray(np.corrcoef(ranks))[0, 1]
    about = f"{clips.num_rows} clips of {len(np.unique(video))} videos"
    rule_text = ", ".join(f"{end}: {value:.4g}" for end, value in ends.items())
    return [
        f"{about}; rank correlation {correlation:.3f}",
        *lines,
        f"select.policy.{other}='{{{rule_text}}}'",
    ]


def compare_embeddings(clips: pa.Table, v: np.ndarray) -> list[str]:
    """Lines of text with the bounds and a table of limits. Raises PlanError.

    v: (n, D) `mean_embeddings` of the clips, NaN where one has none.
    """
    rows = np.flatnonzero(~np.isnan(v[:, 0]))
    if len(rows) < 2:
        raise PlanError("no clips with embeddings; score OUT with score.models.clip.weights")
    total = len(rows)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_COMPARED_CLIPS])
    clips, v = clips.take(pa.array(rows)), v[rows]
    cosine, rank = v @ v.T, quality_ranks(clips)
    video = pc.rank(clips["sha256"], tiebreaker="min").to_numpy().astype(int)
    copies = np.zeros(cosine.shape, bool)
    edges = find_pairs(read_fingerprints(clips["fingerprint"]), video)
    copies[edges[:, 0], edges[:, 1]] = True
    _, number = np.unique(video, return_inverse=True)
    linked = connected_components(number[edges], int(number.max()) + 1)[number]
    pairs = {
        "copies of the same footage": copies,
        "other clips of one video": np.triu(video[:, None] == video, 1) & ~copies,
        "clips of different videos": np.triu(linked[:, None] != linked, 1),
    }
    lines = [
        f"{len(rows)} of {total} clips with embeddings, of {len(np.unique(video))} videos; "
        + ", ".join(f"{mask.sum()} pairs of {what}" for what, mask in pairs.items())
    ]
    for what, share, bound in (
        ("clips of different videos", UNRELATED_SHARE_BELOW, f"{UNRELATED_SHARE_BELOW:.2%} below"),
        ("copies of the same footage", COPIES_SHARE_BELOW, f"{1 - COPIES_SHARE_BELOW:.0%} above"),
    ):
        mask = pairs[what]
        if not mask.any():
            lines.append(f"{what}: none here")
            continue

        def quantile(drawn: np.ndarray, mask: np.ndarray = mask, share: float = share) -> float:
            values = cosine[np.ix_(drawn, drawn)][mask[np.ix_(drawn, drawn)]]
            return float(np.quantile(values, share)) if len(values) else np.nan

        low, high = bootstrap_range(quantile, video)
        value = quantile(np.arange(len(rows)))
        lines.append(f"{what}: {bound} {value:.4f} ({low:.4f} to {high:.4f})")
    lines.append("limit   " + "   ".join(pairs) + "   clips rejected")
    for limit in SHOWN_LIMITS:
        shares = [f"{np.mean(cosine[m] > limit):.2%}" if m.any() else "-" for m in pairs.values()]
        rejected = (find_semantic_duplicates(v, rank, limit)[0] >= 0).mean()
        cells = [s.rjust(len(w)) for s, w in zip(shares, pairs, strict=True)]
        lines.append(f"{limit:<8g}" + "   ".join(cells) + f"   {rejected:13.1%}")
    return lines


def parse_rule(text: str) -> tuple[str, Range]:
    """'motion_dis: {min: 13}' -> name and range. Raises ConfigError."""
    try:
        [(name, ends)] = yaml.safe_load(text).items()
        rule = Range(**ends)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise ConfigError(
            f"{printable(text)}: expected a rule, 'motion_dis: {{min: 13}}'"
        ) from None
    check_score(str(name), rule)
    return name, rule


def check_score(name: str, rule: Range) -> None:
    """Raises ConfigError where `rule` can't be a rule on `name`, or no scored output has `name`."""
    Policy({name: rule})
    if name in CAPTION_SCORES:
        raise ConfigError(f"{name} is a score of captions; expected one of clips")


def work(given: Arguments[NoSettings]) -> None:
    folder, rule_text, *other = given.values
    out = Folder(folder)
    if other:
        name, rule = parse_rule(rule_text)
        check_score(other[0], rule)
        clips = read_clips(out, [name, other[0], "sha256"])
        print("\n".join(match_rule(name, rule, other[0], clips)))
    elif rule_text == "semantic_similarity":
        clips = read_clips(out, selected_columns(Policy()))
        print("\n".join(compare_embeddings(clips, read_embeddings(out, clips["clip_id"]))))
    else:
        raise ConfigError(f"{printable(rule_text)}: expected semantic_similarity, or two scores")


def main(argv: Sequence[str]) -> None:
    run_command(__doc__, work, argv, arguments="OUT RULE [SCORE]")


if __name__ == "__main__":
    main(sys.argv[1:])
