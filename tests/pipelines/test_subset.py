"""select.where, select.limit and select.balance on the output of a whole run."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from curation import config
from curation.storage import Folder
from pipelines import plan, select
from pipelines.settings import DEFAULT_CONFIG, Settings
from pipelines.subset import WHERE_COLUMNS
from pipelines.tables import read_clips
from tests.support.small_input import SETTINGS


def settings(*given: str) -> Settings:
    return config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, *given])


@pytest.fixture
def reselect(dataset, tmp_path, unused_cluster):
    out = shutil.copytree(dataset.out, tmp_path / "out")

    def reselect(*given: str) -> list[dict]:
        select.select_and_publish(
            settings(f"output={out}", *given), Folder(str(out)), unused_cluster
        )
        return pq.read_table(out / "clips.parquet").to_pylist()

    reselect.out = out
    return reselect


def by_rule(clips: list[dict]) -> dict[str | None, int]:
    rules = [clip["rule"] for clip in clips]
    return {rule: rules.count(rule) for rule in set(rules)}


def test_clips_outside_the_condition_are_rejected_by_the_rule_where(reselect):
    clips = reselect("select.where=height >= 720 AND video LIKE '%HD%'")
    assert by_rule(clips) == {None: 1, "where": 3, "duration_s": 1, "static_share": 1}
    recorded = json.loads((reselect.out / "ledger/selection.settings.json").read_text())
    assert recorded["where"] == "height >= 720 AND video LIKE '%HD%'"
    assert by_rule(reselect())[None] == 4


def test_condition_on_captions_is_decided_once_there_are_captions(reselect):
    texts = {c["clip_id"]: c["caption"] for c in reselect() if c["caption"]}
    word = min((w for t in texts.values() for w in t.split()), key=lambda w: sum(
        w in t for t in texts.values()
    ))  # fmt: skip
    inside = {clip_id for clip_id, text in texts.items() if word in text}
    where = "select.where=contains(caption, '{}')".format(word.replace("'", "''"))
    clips = reselect(where)
    assert {c["clip_id"] for c in clips if c["status"] == "kept"} == inside
    assert by_rule(clips)["where"] == 4 - len(inside)
    one = reselect("select.where=len(caption) > 0", "select.limit=2")
    assert by_rule(one) == {None: 2, "limit": 2, "duration_s": 1, "static_share": 1}
    shutil.rmtree(reselect.out / "ledger/captions")
    assert by_rule(reselect(where, "select.limit=1"))[None] == 4  # none is decided yet


def test_limit_draws_clips_balanced_over_a_column(reselect):
    clips = reselect("select.limit=3", "select.balance=video")
    assert by_rule(clips)["limit"] == 1
    videos = [clip["video"] for clip in clips if clip["status"] == "kept"]
    assert len(set(videos)) == 3  # two of the four clips are of one video


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["select.where=motion_diss > 2"], r"^select\.where: [^\n]*motion_diss[^\n]*$"),
        (["select.where=caption ILIK 'x'"], r"^select\.where: [^\n]*$"),
        (
            ["select.where=EXISTS (FROM read_text('/etc/hostname'))"],
            r"^select\.where: Permission Error[^\n]*$",
        ),
        (["select.where=fingerprint IS NULL"], r"^select\.where: [^\n]*fingerprint[^\n]*$"),
        (["select.limit=2", "select.balance=motion"], "select.balance is 'motion': expected one"),
        (["select.limit=2", "select.balance=segments"], "select.balance is 'segments': expected"),
        (["select.limit=2", "select.balance=embeddings"], "needs the clips' embeddings"),
    ],
)
def test_mistake_in_a_subset_is_refused_before_anything_runs(dataset, given, message):
    with pytest.raises(Exception, match=message):
        select.check(settings(*given), Folder(str(dataset.out)))


def test_balance_without_a_limit_is_refused():
    with pytest.raises(config.ConfigError, match=r"select\.balance: expected a limit with it"):
        settings("select.balance=video")


def test_plan_counts_the_clips_inside_the_condition(dataset):
    videos = pq.read_table(dataset.out / "ledger/videos").to_pylist()
    rows = [video | {"embeddings": []} for video in videos]
    inside = plan._select(settings("select.where=height >= 720"), rows)
    assert len(inside) == 1


def test_all_columns_of_conditions_are_those_of_the_ledger(dataset):
    names = set(read_clips(Folder(str(dataset.out))).column_names)
    assert set(WHERE_COLUMNS) <= names
