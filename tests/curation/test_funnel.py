"""Every video and clip is in exactly one column, and the sums agree."""

import pyarrow as pa
import pytest

from curation.funnel import Unaccounted, count, funnel, rule, word


def clips_of(*rows: tuple[str, list[str]]) -> pa.Table:
    """rows: (status, reasons)."""
    return pa.table(
        {
            "clip_id": pa.array([f"{i:024x}" for i in range(len(rows))], pa.string()),
            "status": pa.array([status for status, _ in rows], pa.string()),
            "reason": pa.array([r[0] if r else None for _, r in rows], pa.string()),
            "reasons": pa.array([r for _, r in rows], pa.list_(pa.string())),
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
        }
    )


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


def test_the_last_line_says_what_became_of_every_clip():
    text = funnel(videos_of(("ok", None, 8)), CLIPS)
    assert text.splitlines()[-1] == (
        "8 clips: 2 kept, 5 rejected (static 2, blurry 1, duplicate 1, short 1), "
        "1 failed (no frame decoded 1)"
    )


def test_a_rule_counts_its_first_reasons_and_all_of_them():
    found = {r.name: r for r in count(videos_of(("ok", None, 8)), CLIPS).rejected}
    assert (found["static_share > 0.5"].first, found["static_share > 0.5"].any) == (2, 2)
    assert (found["sharpness < 60"].first, found["sharpness < 60"].any) == (1, 2)
    assert sum(r.first for r in found.values()) == 5


def test_videos_are_counted_with_why_they_failed():
    videos = videos_of(
        ("ok", None, 8),
        ("duplicate", "same bytes as a.mp4", 0),
        ("failed", "moov atom not found: truncated at 1500000", 0),
        ("failed", "moov atom not found: truncated at 77", 0),
    )
    lines = [line.split() for line in funnel(videos, CLIPS).splitlines()]
    assert ["videos", "4"] in lines
    assert ["moov", "atom", "not", "found", "2", "50.0", "%"] in lines
    assert ["same", "bytes", "as", "another", "1", "25.0", "%"] in lines


def test_an_empty_input_has_a_funnel_too():
    assert funnel(videos_of(), clips_of()).splitlines()[-1] == (
        "0 clips: 0 kept, 0 rejected, 0 failed"
    )


@pytest.mark.parametrize(
    ("videos", "clips", "message"),
    [
        ([("ok", None, 1)], [("lost", [])], r"1 rows, but 0 kept.*unaccounted for: 1 lost"),
        ([("ok", None, 1)], [("rejected", [])], "1 of 1 rejected without a reason"),
        ([("ok", None, 1)], [("kept", ["text_share 0.2 > 0.1"])], "1 kept in spite of a reason"),
        ([("ok", None, 2)], [("kept", [])], "videos say that they have 2 clips, but there are 1"),
        ([("failed", None, 0)], [], "videos: 1 of 1 failed without a reason"),
        ([(None, None, 0)], [], "unaccounted for: 1 None"),
    ],
)
def test_sums_that_disagree_are_refused(videos, clips, message):
    with pytest.raises(Unaccounted, match=message):
        funnel(videos_of(*videos), clips_of(*clips))


def test_a_clip_that_is_there_twice_is_refused():
    twice = pa.concat_tables([CLIPS, CLIPS.slice(0, 1)])
    with pytest.raises(Unaccounted, match="9 rows, but 8 different clip_ids"):
        funnel(videos_of(("ok", None, 9)), twice)


def test_tables_in_many_chunks_count_the_same():
    pieces = pa.concat_tables([CLIPS.slice(i, 1) for i in range(CLIPS.num_rows)])
    assert pieces["reasons"].num_chunks == 8
    videos = videos_of(("ok", None, 8))
    assert funnel(videos, pieces) == funnel(videos, CLIPS)


def test_hundreds_of_kinds_of_errors_are_summed_up_and_still_add_up():
    names = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(300)]
    found = count(videos_of(("ok", None, 300)), clips_of(*[("failed", [n]) for n in names]))
    assert len(found.failed) == 20
    assert found.failed[-1].name == "281 other reasons"
    assert sum(r.first for r in found.failed) == 300


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [
        ("static_share 0.90 > 0.5", "static_share > 0.5", "static"),
        ("brightness 12.00 < 20", "brightness < 20", "dark"),
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
def test_a_reason_names_its_rule_and_the_rule_its_word(reason, kind, said):
    assert rule(reason) == kind
    assert word(kind) == said
