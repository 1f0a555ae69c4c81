"""The sample of an audit, and the marks of it that are in `ledger/reviews`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.browse.output import Output
from pipelines.reviews import GOOD, MARK
from stages.report.audit import KEPT, Agreement, Audit, agreement, audit, draw_sample
from stages.report.rule_losses import rules_that_count
from stages.selection.clip_selection import uniform_hash


@dataclass(frozen=True)
class AuditSettings:
    seed: int
    size: int  # clips


@dataclass(frozen=True)
class AuditSample:
    clip_ids: list[str]  # in the order in which they are marked
    strata: dict[str, str]  # of each of them
    sizes: dict[str, int]  # stratum -> clips in the output
    rules: dict[str, frozenset[str]]  # that reject each of them

    @classmethod
    def draw(cls, output: Output, settings: AuditSettings) -> AuditSample:
        """A function of the seed, the size and the selection. Failed clips are in no sample."""
        clips = output.clips
        is_kept = pc.equal(clips["status"], "kept")
        is_rejected = pc.equal(clips["status"], "rejected")
        strata = pc.if_else(is_kept, KEPT, pc.if_else(is_rejected, clips["rule"], None)).to_pylist()
        ids = clips["clip_id"].to_pylist()
        uniform = np.array([uniform_hash(clip_id, settings.seed) for clip_id in ids])
        rows = draw_sample(strata, uniform, settings.size).tolist()
        names = np.array([name or "" for name in strata])
        sizes = {
            str(name): int(n) for name, n in zip(*np.unique(names, return_counts=True), strict=True)
        }
        sizes.pop("", None)
        chosen = clips.take(pa.array(rows, pa.int64()))
        pairs = rules_that_count(chosen.filter(pc.is_valid(chosen["reasons"])))
        rules: dict[int, set[str]] = {}
        for row, rule in zip(pairs["row"].to_pylist(), pairs["rule"].to_pylist(), strict=True):
            rules.setdefault(row, set()).add(rule)
        return cls(
            [ids[row] for row in rows],
            {ids[row]: strata[row] for row in rows},
            sizes,
            {ids[row]: frozenset(rules.get(i, ())) for i, row in enumerate(rows)},
        )

    def marks(self, output: Output, reviewer: str) -> dict[str, str]:
        """clip_id -> good | bad, of the clips of the sample that the reviewer marked."""
        found = {i: output.review(i, MARK, reviewer) for i in self.clip_ids}
        return {i: row["value"] for i, row in found.items() if row and row["value"]}

    def results(self, output: Output) -> tuple[dict[str, Audit], dict[tuple[str, str], Agreement]]:
        """Returns the audit of each reviewer, and the agreement of each pair of reviewers."""
        names = sorted({key[2] for key in list(output.reviews) if key[1] == MARK})
        marks = {name: of_one for name in names if (of_one := self.marks(output, name))}
        by_reviewer = {
            name: audit(
                self.sizes,
                [self.strata[i] for i in of_one],
                [mark == GOOD for mark in of_one.values()],
                [self.rules[i] for i in of_one],
            )
            for name, of_one in marks.items()
        }
        pairs = {}
        for one, two in combinations(marks, 2):
            both = [i for i in marks[one] if i in marks[two]]
            values = [[marks[name][i] == GOOD for i in both] for name in (one, two)]
            pairs[one, two] = agreement(*values)
        return by_reviewer, pairs
