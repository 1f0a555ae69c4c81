"""What `longtake diff` and a new selection print: clips gained and lost, by rule."""

from __future__ import annotations

import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from curation import config
from curation.stage import PlanError
from curation.storage import Folder
from pipelines import diff, select
from pipelines.settings import DEFAULT_CONFIG, Settings
from stages.report.difference import COMPARED, compare_clips, texts_differ
from tests.support.small_input import SETTINGS


@pytest.fixture
def compare(capsys):
    def compare(*args: object) -> str:
        diff.main([str(arg) for arg in args])
        return capsys.readouterr().out

    return compare


def rows(text: str) -> dict[tuple[str, str], int]:
    """(gained or lost, rule) -> clips."""
    found = [line.split() for line in text.splitlines()]
    return {(c[0], c[1]): int(c[2]) for c in found if c[:1] in (["gained"], ["lost"])}


def test_changed_setting_gains_and_loses_clips_by_rule(dataset, compare):
    before = {p: p.stat().st_mtime_ns for p in dataset.out.rglob("*") if p.is_file()}
    text = compare(dataset.out, "select.policy.height={min: 720}")
    clips = pq.read_table(dataset.out / "clips.parquet")
    [static] = clips.filter(pc.equal(clips["rule"], "static_share")).to_pylist()
    assert text.startswith("kept clips: 4 -> 1, 0 gained, 3 lost\n")
    assert rows(text) == {("lost", "height"): 3}
    text = compare(
        dataset.out, "select.policy.static_share=null", "select.policy.frozen_share=null"
    )
    assert rows(text) == {("gained", "static_share"): 1}
    assert static["clip_id"] in text
    assert {p: p.stat().st_mtime_ns for p in dataset.out.rglob("*") if p.is_file()} == before


def test_two_policies_on_one_ledger_are_compared(dataset, compare, tmp_path):
    paths = []
    for height in (700, 2000):
        policy = config.as_dict(config.load(Settings, DEFAULT_CONFIG, SETTINGS).select)["policy"]
        policy["height"] = {"min": height}
        path = tmp_path / f"{height}.yaml"
        path.write_text(yaml.safe_dump({"select": {"policy": policy}}))
        paths.append(path)
    assert rows(compare(dataset.out, *paths)) == {("lost", "height"): 1}
    assert rows(compare(dataset.out, paths[0])) == {("lost", "height"): 3}
    text = compare(dataset.out, *paths, "select.policy.height=null")
    assert rows(text) == {("gained", "height"): 3}


def test_two_outputs_are_compared_with_their_captions(dataset, compare, tmp_path):
    assert compare(dataset.out, dataset.out) == "kept clips: 4 -> 4, 0 gained, 0 lost\n"
    clips = pq.read_table(dataset.out / "clips.parquet")
    kept = pc.equal(clips["status"], "kept").to_pylist()
    texts = clips["caption"].to_pylist()
    texts[kept.index(True)] = "Another caption."
    place = clips.column_names.index("caption")
    changed = clips.set_column(place, clips.schema.field("caption"), pa.array(texts))
    last = len(kept) - 1 - kept[::-1].index(True)
    pq.write_table(changed.take([i for i in range(6) if i != last]), tmp_path / "clips.parquet")
    text = compare(dataset.out, tmp_path)
    assert text.splitlines()[0] == "kept clips: 4 -> 3, 0 gained, 1 lost"
    assert "not in the other output" in text
    assert "captions: 1 of 3 clips kept by both differ" in text
    assert "1 gained, 0 lost" in compare(tmp_path, dataset.out)


@pytest.fixture
def reselect(dataset, tmp_path, capsys, unused_cluster):
    """Selects again in a copy of the dataset; returns what is printed: stdout and stderr."""
    out = shutil.copytree(dataset.out, tmp_path / "out")

    def reselect(*given: str) -> tuple[str, str]:
        settings = config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, f"output={out}", *given])
        select.select_and_publish(settings, Folder(str(out)), unused_cluster)
        return tuple(capsys.readouterr())

    reselect.out = out
    return reselect


def test_new_selection_prints_its_difference_to_the_previous_one(reselect):
    text, _ = reselect("select.policy.height={min: 720}")
    assert "compared with the previous tables: kept clips: 4 -> 1, 0 gained, 3 lost" in text
    assert rows(text) == {("lost", "height"): 3}
    text, _ = reselect()
    assert rows(text) == {("gained", "height"): 3}
    assert "kept clips: 4 -> 4, 0 gained, 0 lost" in reselect()[0]


def test_settings_and_captions_that_differ_from_those_before_are_named(reselect):
    """So that a command without the CONFIG of the run does not replace its policy unseen."""
    changed = "select  changed since the last selection: "
    _, errors = reselect("select.policy.height={min: 720}")
    assert f"{changed}policy.height: None -> {{'min': 720.0, 'max': None}}\n" in errors
    _, errors = reselect()
    assert f"{changed}policy.height: {{" in errors
    assert changed not in reselect()[1]
    with pytest.raises(PlanError, match=r"(?s)have the captions 'measured', .*none of .*'other'"):
        reselect("caption.name=other")
    captions = reselect.out / "ledger/captions"
    for name in ("", ".settings.json"):
        (captions / f"measured{name}").rename(captions / f"other{name}")
    assert "captions in the tables: other, before measured" in reselect("caption.name=other")[1]


def test_clip_that_failed_in_the_other_output_is_counted_as_failed():
    def table(status: str) -> pa.Table:
        row = ("a", status, None, 3600.0, None, None)
        fields = [pa.string()] * 3 + [pa.float64(), pa.string()]
        fields.append(pa.list_(pa.struct([("text", pa.string())])))
        schema = pa.schema(list(zip(COMPARED, fields, strict=True)))
        return pa.Table.from_pylist([dict(zip(COMPARED, row, strict=True))], schema)

    found = compare_clips(table("failed"), table("kept"))
    [change] = found.gained
    assert (change.rule, change.clips, change.hours, change.examples) == ("failed", 1, 1.0, ["a"])
    assert found.lost == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "UsageError: expected A B, OUT CONFIG, OUT CONFIG CONFIG2 or OUT key=value"),
        (["{out}", "select.seed=1"], "UsageError: select.seed=1: two outputs are compared"),
        (["select.policy.brightnes=null"], "ConfigError: policy: brightnes is not"),
        (["nowhere"], "PlanError: "),
        (["nowhere.yaml"], "ConfigError: nowhere.yaml: no such file"),
    ],
)
def test_mistake_is_refused_in_one_message(dataset, args, message):
    with pytest.raises(SystemExit) as error:
        diff.main([str(dataset.out), *(arg.format(out=dataset.out) for arg in args)])
    assert str(error.value.code).startswith(message)


def test_comparison_makes_python_objects_of_some_clips_at_a_time():
    parts = [{"start_s": 0.0, "end_s": 3.0, "text": f"part {i}"} for i in range(5)]
    some = pa.array([parts] * 1000)
    table = pa.table({"caption": ["a"] * 20_000, "sub_captions": pa.chunked_array([some] * 20)})
    other = table.set_column(0, "caption", [["a"] * 19_999 + ["b"]])
    tracemalloc.start()
    found = texts_differ(table, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.flatnonzero(found).tolist() == [19_999]
    assert peak < 40e6  # all rows: 70 MB
