"""What another policy keeps: the rules at once, and duplicates too by a whole selection."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from curation.funnel import OTHER_RULES, RowCounter
from curation.policy import Policy, Values, decide_table, group_by_row
from curation.records import CAPTION_SCORES, CORRECTED
from curation.stage import Row
from pipelines import select
from pipelines.browse.output import Output, QueryError
from pipelines.diff import settings_of
from pipelines.reviews import flag_reasons, read_reviews
from pipelines.selection_ranges import stream_selection
from pipelines.tables import recorded_policy, rows_of

FLAGGED = "flagged"


class Superseded(Exception):
    """A later request of the same kind has come meanwhile."""


@dataclass(frozen=True)
class Selection:
    """The decisions of a policy: a row per clip of the output, in its order."""

    table: pa.Table  # status, reason, reasons, duration_s
    is_exact: bool  # whether duplicates were searched again

    @property
    def is_kept(self) -> np.ndarray:
        return pc.equal(self.table["status"], "kept").to_numpy()


class Preview:
    """Applies policies to one output."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._selecting = threading.Lock()
        self._latest = 0

    def by_rules(self, policy: Policy, reject_flagged: bool) -> Selection:
        """Decides by the rules alone, without a new search for duplicates: clips that were
        duplicates stay rejected, and clips that a looser rule gains are taken for no duplicates."""
        clips = self._output.clips
        rejected = decide_table(clips, policy.without(CAPTION_SCORES))
        rows = [pc.list_parent_indices(rejected).to_numpy()]
        texts = [pc.list_flatten(rejected)]
        of_captions = policy.without([name for name in policy if name not in CAPTION_SCORES])
        if of_captions:
            is_written = pc.is_valid(clips["caption"]), pc.not_equal(clips["captioner"], CORRECTED)
            captioned = np.flatnonzero(pc.fill_null(pc.and_(*is_written), False).to_numpy())
            found = decide_table(clips.take(pa.array(captioned)), of_captions)
            rows.append(captioned[pc.list_parent_indices(found).to_numpy()])
            texts.append(pc.list_flatten(found))
        for more_rows, more_texts in (self._other_reasons(), self._flags(reject_flagged)):
            rows.append(more_rows)
            texts.append(more_texts)
        reasons = group_by_row(np.concatenate(rows), pa.concat_arrays(texts), clips.num_rows)
        return Selection(self._with_status(reasons), False)

    def by_selection(self, policy: Policy, reject_flagged: bool) -> Selection:
        """Decides as the phase `select`, whose code it calls. Raises Superseded, PlanError,
        ConfigError."""
        self._latest += 1
        number = self._latest
        with self._selecting:
            if number != self._latest:
                raise Superseded("a later request counts in place of this one")
            folder = self._output.folder
            flagged = f"select.reject_flagged={json.dumps(reject_flagged)}"
            settings = settings_of(folder, None, [flagged])
            settings.select.policy = policy
            select.check(settings, folder)
            found = stream_selection(settings, folder)
            selection = pa.concat_tables([part.selection for part in found])
        chosen = rows_of(self._output.clips["clip_id"], selection, "clip_id")
        return Selection(self._with_status(chosen["reasons"].combine_chunks()), True)

    def _other_reasons(self) -> tuple[np.ndarray, pa.Array]:
        """Returns row and text of the recorded reasons that no rule of a policy gave."""
        clips = self._output.clips
        names = [name for name in OTHER_RULES.values() if name != FLAGGED]
        others = pc.is_in(pc.list_flatten(clips["rules"]), pa.array(names)).to_numpy()
        rows = pc.list_parent_indices(clips["rules"]).to_numpy()[others]
        texts = pc.list_flatten(clips["reasons"]).combine_chunks().filter(pa.array(others))
        return rows, texts

    def _flags(self, reject_flagged: bool) -> tuple[np.ndarray, pa.Array]:
        reasons = flag_reasons(read_reviews(self._output.folder)) if reject_flagged else {}
        known = [
            (self._output.rows[i], text) for i, text in reasons.items() if i in self._output.rows
        ]
        rows = np.array([row for row, _ in known], np.int64)
        return rows, pa.array([text for _, text in known], pa.string())

    def _with_status(self, reasons: pa.ListArray) -> pa.Table:
        """The table of a Selection. A clip whose captions or export failed is failed where it
        would be kept."""
        clips = self._output.clips
        lengths = pc.fill_null(pc.list_value_length(reasons), 0)
        is_rejected = pc.greater(lengths, 0)
        failed = pc.and_(
            pc.equal(clips["status"], "failed").combine_chunks(), pc.invert(is_rejected)
        )
        starts = np.cumsum([0, *lengths.to_numpy()])[:-1]
        first = pc.if_else(is_rejected, pa.array(starts), pa.scalar(None, pa.int64()))
        texts = pc.list_flatten(reasons).take(first)
        return pa.table(
            {
                "clip_id": clips["clip_id"],
                "status": pc.if_else(is_rejected, "rejected", pc.if_else(failed, "failed", "kept")),
                "reason": pc.if_else(failed, clips["reason"].combine_chunks(), texts),
                "reasons": reasons,
                "duration_s": clips["duration_s"],
            }
        )


def parse_policy(rules: Any) -> Policy:
    """Returns the policy that the page sends. Raises QueryError with one line about what is
    wrong."""
    try:
        return recorded_policy(rules)
    except ValidationError as error:
        raise QueryError(f"policy: {error.errors()[0]['msg']}") from None
    except Exception as error:
        raise QueryError(str(error).splitlines()[0]) from None


def policy_as_json(policy: Policy) -> dict[str, Any]:
    """Name -> `{"is": …}`, `{"in": […]}`, or the ends of a range."""
    return {
        name: rule.as_setting()
        if isinstance(rule, Values)
        else {end: value for end, value in vars(rule).items() if value is not None}
        for name, rule in policy.items()
    }


def funnel_rows(table: pa.Table) -> list[Row]:
    """Returns status, rule, reason, count, any and hours, as in funnel.parquet, for the clips."""
    counter = RowCounter()
    counter.add_clips(table)
    return [row for row in counter.table().to_pylist() if row["unit"] == "clips"]


def changes(before: np.ndarray, after: np.ndarray, hours: np.ndarray) -> dict[str, Any]:
    """Clips and hours gained and lost. before, after: (n,) whether kept; hours: (n,)."""
    masks = {"gained": after & ~before, "lost": before & ~after}
    return {
        name: {"clips": int(mask.sum()), "hours": round(float(hours[mask].sum()), 4)}
        for name, mask in masks.items()
    }
