"""The comparison of two outputs, on small tables."""

import copy
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.compare_outputs import compare, main
from curation.records import NULL_REASONS
from tests.support.version_1 import with_old_names

CLIPS = [
    {
        "clip_id": "a",
        "status": "rejected",
        "reason": "static_share 0.90 > 0.5",
        "reasons": ["static_share 0.90 > 0.5"],
        "static_share": 0.9,
        "prefilter": "static_share 0.90 > 0.5",
        "null_reasons": [("text_share", "failed the prefilter: static_share 0.90 > 0.5")],
        "segments": [{"frame_samples": [{"s": 1.0}]}],
    },
    {
        "clip_id": "b",
        "status": "kept",
        "reason": None,
        "reasons": [],
        "static_share": 0.1,
        "prefilter": None,
        "null_reasons": [],
        "segments": [],
    },
]


def write(folder: Path, clips: list[dict], cuts_s: tuple[float, ...] = (1.0,)) -> Path:
    folder.mkdir()
    table = pa.Table.from_pylist(clips)
    name = "null_reasons" if "null_reasons" in table.column_names else "causes"
    at = table.column_names.index(name)
    reasons = pa.array([clip[name] for clip in clips], NULL_REASONS)
    pq.write_table(table.set_column(at, name, reasons), folder / "clips.parquet")
    video = {"video": "v.mp4", "cuts_s": list(cuts_s), "version": str(folder)}
    pq.write_table(pa.Table.from_pylist([video]), folder / "videos.parquet")
    return folder


def test_output_of_the_old_version_equals_the_same_output_of_this_one(tmp_path, capsys):
    old, new = write(tmp_path / "old", with_old_names(CLIPS)), write(tmp_path / "new", CLIPS)
    assert "still_share" in pq.read_schema(old / "clips.parquet").names
    assert compare(old, new) == []
    main([str(old), str(new)])
    assert capsys.readouterr().out == "1 videos, 2 clips compared: no differences\n"


@pytest.mark.parametrize(
    ("clip", "column", "value"),
    [
        (0, "status", "kept"),
        (0, "reasons", ["static_share 0.90 > 0.6"]),
        (1, "static_share", 0.1001),
        (1, "static_share", None),
        (0, "segments", [{"frame_samples": [{"s": 1.5}]}]),
        (0, "null_reasons", [("text_share", "not measurable")]),
    ],
)
def test_changed_value_is_a_difference(tmp_path, capsys, clip, column, value):
    changed = copy.deepcopy(CLIPS)
    changed[clip][column] = value
    old, new = write(tmp_path / "old", CLIPS), write(tmp_path / "new", changed)
    [difference] = compare(old, new)
    assert (difference.table, difference.column, difference.rows) == ("clips", column, 1)
    with pytest.raises(SystemExit) as end:
        main([str(old), str(new)])
    assert end.value.code == 1
    assert column in capsys.readouterr().out


def test_numbers_may_differ_by_the_tolerance(tmp_path):
    changed = copy.deepcopy(CLIPS)
    changed[1]["static_share"] = 0.1001
    old, new = write(tmp_path / "old", CLIPS), write(tmp_path / "new", changed)
    assert [d.largest for d in compare(old, new, 0.00001)] == [pytest.approx(0.0001)]
    assert compare(old, new, 0.001) == []


def test_other_cuts_and_missing_clips_are_differences(tmp_path):
    old, new = write(tmp_path / "old", CLIPS), write(tmp_path / "new", CLIPS[:1], (1.0, 2.0))
    assert [(d.table, d.column, d.rows) for d in compare(old, new)] == [
        ("videos", "cuts_s", 1),
        ("clips", "only in OLD", 1),
    ]
