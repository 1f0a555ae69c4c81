"""What each rule costs, on tables whose answers are counted by hand."""

import pyarrow as pa
import pytest

from curation.policy import Policy, Range
from stages.report.rule_losses import columns_read, format_loss, rule_losses

POLICY = Policy(static_share=Range(max=0.5), duration_s=Range(min=15), text_share=Range(max=0.1))


def clip(duration_s, static_share, text_share, reasons, rules, prefilter=None, status="rejected"):
    found = (status, rules[0] if rules else None, rules, reasons, prefilter, duration_s)
    names = ("status", "rule", "rules", "reasons", "prefilter", "duration_s")
    scores = {"static_share": static_share, "text_share": text_share}
    return dict(zip(names, found, strict=True)) | scores


def static(share, **more):
    return clip(36.0, share, 0.0, [f"static_share {share} > 0.5"], ["static_share"], **more)


SHORT = clip(
    *(9.0, 0.0, None),
    ["9.0 s < 15 s", "text_share not measured: prefilter"],
    ["duration_s", "text_share"],
    prefilter="duration_s",
)
BOTH = clip(*(20.0, 0.9, 0.3), ["static_share 0.9 > 0.5", "text_share 0.3 > 0.1"], [*POLICY][::2])
DUPLICATE = clip(20.0, 0.0, 0.0, ["duplicate of x"], ["duplicate"])
KEPT = clip(20.0, 0.0, 0.0, [], [], status="kept")


def losses(*rows):
    table = pa.Table.from_pylist(
        list(rows),
        pa.schema(
            [
                *((n, pa.string()) for n in ("status", "rule", "prefilter")),
                *((n, pa.list_(pa.string())) for n in ("rules", "reasons")),
                *((n, pa.float64()) for n in ("duration_s", "static_share", "text_share")),
            ]
        ),
    )
    return {loss.rule: loss for loss in rule_losses(table.select(columns_read(POLICY)), POLICY)}


def test_rule_alone_loses_the_clips_that_no_other_rule_rejects():
    found = losses(*map(static, (0.6, 0.7, 0.8, 0.9, 1.0)), BOTH, DUPLICATE, KEPT)
    assert [*found] == ["static_share", "duplicate", "text_share"]
    loss = found["static_share"]
    assert (loss.first, loss.alone, loss.measured) == (6, 5, 8)
    assert loss.alone_hours == pytest.approx(5 * 36 / 3600)
    assert (loss.looser, loss.looser_alone) == (0.8, 2)
    assert found["text_share"].alone == 0
    assert format_loss(loss) == (
        "static_share (max: 0.5) alone loses 5 of 8 scored clips, 0.05 h; at 0.8 it would lose 2"
    )
    assert format_loss(found["duplicate"]) == "duplicate alone loses 1 clips, 0.0056 h"


def test_scores_unknown_because_of_the_prefilter_are_no_reason_of_their_own():
    loss = losses(SHORT, KEPT)["duration_s"]
    assert (loss.alone, loss.not_scored) == (1, 1)
    assert (loss.looser, loss.looser_alone) == (9.0, 0)
    assert "1 of these fail the prefilter: not all scores are known" in format_loss(loss)


def test_looser_threshold_has_two_digits_and_is_never_tighter_than_its_count():
    values = [0.5311, 0.5322, 0.5333, 0.5344]
    loss = losses(*map(static, values))["static_share"]
    assert loss.looser == 0.54
    assert loss.looser_alone == sum(value > 0.54 for value in values) == 0


def test_table_without_rejected_clips_has_no_losses():
    assert losses(KEPT) == losses() == {}
