"""Every video and clip has exactly one status, and the sums agree."""

import pyarrow as pa
import pytest

from curation.funnel import (
    Funnel,
    RowCounter,
    Unaccounted,
    format_funnel,
    normalize_reason,
    rule_of,
    rules_of,
    short_label,
)
from curation.policy import RULE_COLUMNS, TYPES, Policy, Range, Values, decide


def clips_of(*rows: tuple[str, list[str]]) -> pa.Table:
    """rows: (status, reasons)."""
    return pa.table(
        {
            "clip_id": pa.array([f"{i:024x}" for i in range(len(rows))], pa.string()),
            "status": pa.array([status for status, _ in rows], pa.string()),
            "reason": pa.array([r[0] if r else None for _, r in rows], pa.string()),
            "reasons": pa.array([r for _, r in rows], pa.list_(pa.string())),
            "duration_s": pa.array([15.0] * len(rows), pa.float64()),
        }
    )


def videos_of(*rows: tuple[str, str | None, int]) -> pa.Table:
    """rows: (status, error, clips)."""
    return pa.table(
        {
            "video": pa.array([f"{i}.mp4" for i in range(len(rows))], pa.string()),
            "status": pa.array([r[0] for r in rows], pa.string()),
            "error": pa.array([r[1] for r in rows], pa.string()),
            "takes": pa.array([r[2] for r in rows], pa.int64()),
            "clips": pa.array([r[2] for r in rows], pa.int64()),
            "duration_s": pa.nulls(len(rows), pa.float64()),
        }
    )


def count_rows(videos: pa.Table, clips: pa.Table) -> Funnel:
    counter = RowCounter()
    counter.add_videos(videos)
    counter.add_clips(clips)
    return counter.funnel()


def text_of(videos: pa.Table, clips: pa.Table) -> str:
    return format_funnel(count_rows(videos, clips))


CLIPS = clips_of(
    ("kept", []),
    ("kept", []),
    ("rejected", ["static_share 0.90 > 0.5", "sharpness 12.00 < 60"]),
    ("rejected", ["static_share 0.71 > 0.5"]),
    ("rejected", ["sharpness 3.00 < 60"]),
    ("rejected", ["9.3 s < 15 s"]),
    ("rejected", ["duplicate of 00ff"]),
    ("failed", ["no frame decoded"]),
)


def test_skipped_files_are_below_the_table_with_the_rare_suffixes_summed():
    counted = count_rows(videos_of(("ok", None, 8)), CLIPS)
    skipped = {".jpg": 40, "": 3} | {f".{n}": 1 for n in range(25)}
    [line] = [x for x in format_funnel(counted, skipped).splitlines() if ".jpg" in x]
    assert line.startswith("files that are no videos by their suffix: .jpg 40, no suffix 3, .0 1")
    assert line.endswith(", others 7")


def test_summary_line_counts_every_clip_by_status_and_reason():
    text = text_of(videos_of(("ok", None, 8)), CLIPS)
    assert text.splitlines()[-1] == (
        "8 clips: 2 kept, 5 rejected (static 2, blurry 1, duplicate 1, short 1), "
        "1 failed (no frame decoded 1)"
    )


def test_reason_counts_the_rows_that_have_it_first_and_those_that_have_it_at_all():
    found = {r.name: r for r in count_rows(videos_of(("ok", None, 8)), CLIPS).rejected}
    assert (found["static_share > 0.5"].first, found["static_share > 0.5"].any) == (2, 2)
    assert (found["sharpness < 60"].first, found["sharpness < 60"].any) == (1, 2)
    assert sum(r.first for r in found.values()) == 5


def test_failed_and_duplicate_videos_are_counted_by_reason():
    videos = videos_of(
        ("ok", None, 8),
        ("duplicate", "same bytes as a.mp4", 0),
        ("failed", "moov atom not found: truncated at 1500000", 0),
        ("failed", "moov atom not found: truncated at 77", 0),
    )
    lines = [line.split() for line in text_of(videos, CLIPS).splitlines()]
    assert ["videos", "4"] in lines
    assert ["moov", "atom", "not", "found", "2", "50.0", "%"] in lines
    assert ["same", "bytes", "as", "another", "1", "25.0", "%"] in lines


def test_empty_input_has_a_funnel():
    assert text_of(videos_of(), clips_of()).splitlines()[-1] == (
        "0 clips: 0 kept, 0 rejected, 0 failed"
    )


@pytest.mark.parametrize(
    ("videos", "clips", "message"),
    [
        ([("ok", None, 1)], [("lost", [])], r"1 rows, but 0 kept.*unaccounted for: 1 lost"),
        ([("ok", None, 1)], [("rejected", [])], "1 of 1 rejected without a reason"),
        ([("ok", None, 1)], [("kept", ["text_share 0.2 > 0.1"])], "1 kept with a reason"),
        ([("ok", None, 2)], [("kept", [])], "videos: 2 clips in all, but there are 1"),
        ([("failed", None, 0)], [], "videos: 1 of 1 failed without a reason"),
        ([(None, None, 0)], [], "unaccounted for: 1 None"),
    ],
)
def test_sums_that_disagree_raise_an_error(videos, clips, message):
    with pytest.raises(Unaccounted, match=message):
        text_of(videos_of(*videos), clips_of(*clips))


def test_clip_that_occurs_twice_raises_an_error():
    twice = pa.concat_tables([CLIPS, CLIPS.slice(0, 1)])
    with pytest.raises(Unaccounted, match="9 rows, but 8 different clip_ids"):
        text_of(videos_of(("ok", None, 9)), twice)


def test_tables_in_many_chunks_have_the_same_funnel():
    pieces = pa.concat_tables([CLIPS.slice(i, 1) for i in range(CLIPS.num_rows)])
    assert pieces["reasons"].num_chunks == 8
    videos = videos_of(("ok", None, 8))
    assert text_of(videos, pieces) == text_of(videos, CLIPS)


def test_hundreds_of_different_errors_are_listed_as_twenty_lines_with_the_same_sum():
    names = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(300)]
    found = count_rows(videos_of(("ok", None, 300)), clips_of(*[("failed", [n]) for n in names]))
    assert len(found.failed) == 20
    assert found.failed[-1].name == "281 other reasons"
    assert sum(r.first for r in found.failed) == 300


@pytest.mark.parametrize(
    ("reason", "name", "label"),
    [
        ("static_share 0.90 > 0.5", "static_share > 0.5", "static"),
        ("brightness 12.00 < 20", "brightness < 20", "dark"),
        ("motion_dis 0.20 < 2", "motion_dis < 2", "little motion"),
        ("camera_motion 3.00 < 5", "camera_motion < 5", "camera motion low"),
        ("9.3 s < 15 s", "duration_s < 15 s", "short"),
        ("text_share not measured: no weights", "text_share not measured", "not measured"),
        ("duplicate of 00ff17", "duplicate of another", "duplicate"),
        ("caption repeats itself: 'a a a'", "caption repeats itself", "caption"),
        ("can't open '/a/b.mp4'", "can't open …", "can't open …"),
        ("16384 x 16384 frames", "… x … frames", "… x … frames"),
        ("\x1b[31mred\nsecond line", r"\x1b[…mred", r"\x1b[…mred"),
        ("", "no reason given", "no reason given"),
    ],
)
def test_reason_has_a_name_without_values_and_a_short_label(reason, name, label):
    assert normalize_reason(reason) == name
    assert short_label(name) == label


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("name", RULE_COLUMNS)
def test_every_reason_of_a_policy_names_its_rule(name, measured):
    low, high, value = {
        pa.bool_(): (Values(False), Values(False), True),
        pa.string(): (Values("bt709 > 3 s"), Values("bt709"), "9.3 s < 15 s"),
    }.get(TYPES[name], (Range(min=15), Range(max=1), 7))
    for rule in (low, high):
        [reason] = decide({name: value if measured else None}, Policy({name: rule}))
        assert rule_of(reason) == rule_of(normalize_reason(reason)) == name


@pytest.mark.parametrize(
    ("reason", "rule"),
    [
        ("duplicate of 00ff17", "duplicate"),
        ("shows the same as 00ff17", "semantic_similarity"),
        ("embeddings not measured", "semantic_similarity"),
        ("caption repeated: on 25 clips", "max_equal_captions"),
        ("caption mentions instructions: 'static_share 0.9 > 0.5'", "caption_check"),
        ("export failed: no space", None),
    ],
)
def test_reasons_that_are_no_thresholds_have_rules_too(reason, rule):
    assert rule_of(reason) == rule_of(normalize_reason(reason)) == rule


def test_rules_of_lists_keep_order_empty_lists_and_nulls_also_of_a_slice():
    lists = pa.array([["x"], ["9.3 s < 15 s", "static_share 0.90 > 0.5"], [], None])
    expected = [["duration_s", "static_share"], [], None]
    assert rules_of(lists.slice(1)).to_pylist() == expected


def test_table_of_the_funnel_adds_up_with_hours_and_sums_no_reason_into_others():
    errors = [("failed", [chr(97 + i // 26) + chr(97 + i % 26)]) for i in range(30)]
    clips = pa.concat_tables([CLIPS, clips_of(*errors)])
    lengths = pa.array([3600.0] * 7 + [None] * 31)
    clips = clips.drop_columns("duration_s").append_column("duration_s", lengths)
    videos = videos_of(("ok", None, 38)).drop_columns("duration_s")
    videos = videos.append_column("duration_s", pa.array([7200.0]))
    counter = RowCounter()
    counter.add_videos(videos)
    for start in range(0, 38, 5):  # table by table
        counter.add_clips(clips.slice(start, 5))
    rows = counter.table().to_pylist()
    assert next((r["count"], r["hours"]) for r in rows if r["unit"] == "videos") == (1, 2.0)
    totals = {r["status"]: r for r in rows if r["unit"] == "clips" and r["reason"] is None}
    assert totals["all"]["count"] == 38
    assert [totals[s]["count"] for s in ("kept", "rejected", "failed")] == [2, 5, 31]
    for status in ("rejected", "failed"):
        of_status = [r for r in rows if r["status"] == status and r["reason"]]
        of_clips = [r for r in of_status if r["unit"] == "clips"]
        assert sum(r["count"] for r in of_clips) == totals[status]["count"]
        assert sum(r["hours"] for r in of_clips) == totals[status]["hours"]
        assert len(of_clips) == {"rejected": 4, "failed": 31}[status]
    [blurry] = [r for r in rows if r["reason"] == "sharpness < 60"]
    assert (blurry["rule"], blurry["count"], blurry["any"]) == ("sharpness", 1, 2)
