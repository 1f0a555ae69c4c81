"""Selection: one row per clip, the best of near-duplicates kept, the split by source."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from curation import records
from curation.policy import Policy, Range
from stages.meters.fingerprint import CODE
from stages.selection.caption_rules import apply_caption_rules, clips_to_caption
from stages.selection.clip_selection import select_clips
from stages.selection.selection_table import SCHEMA
from tests.selection.test_near_duplicates import drawn_film, film_clips

POLICY = Policy(width=Range(min=1280), brightness=Range(min=20, max=235))
COLUMNS = {c.name: c.type for c in records.CLIP} | {"video": pa.string(), "sha256": pa.string()}


def sha(name) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def random_fingerprint(seed: int, ticks: int = 60) -> bytes:
    """Of 15 s in which something moves all the time."""
    rng = np.random.default_rng(seed)
    code = np.empty(ticks, CODE)
    code["picture"] = rng.integers(0, 2**64, dtype=np.uint64)
    code["motion"] = rng.integers(2**63, 2**64, ticks, dtype=np.uint64)
    return code.tobytes()


def clip(name, source, **columns):
    row = {"clip_id": sha(name)[:24], "video": f"{source}.mp4", "sha256": sha(source)}
    row |= {"width": 1280, "height": 720, "brightness": 100.0, "duration_s": 15.0}
    row |= {
        "sharpness": 50.0,
        "packet_bytes": 10**6,
        "fingerprint": random_fingerprint(int(sha(name)[:8], 16)),
    }
    return row | columns


def table(rows) -> pa.Table:
    schema = pa.schema([(k, t) for k, t in COLUMNS.items()])
    return pa.Table.from_pylist(rows, schema=schema)


def by_id(selection: pa.Table) -> dict:
    return {row["clip_id"]: row for row in selection.to_pylist()}


def test_every_clip_has_one_row_kept_or_rejected_with_its_reasons():
    rows = [clip(i, i, width=1280 if i % 2 else 640, brightness=10.0 * i) for i in range(30)]
    selection = select_clips(table(rows), POLICY)
    assert selection.schema == SCHEMA
    assert sorted(selection["clip_id"].to_pylist()) == sorted(r["clip_id"] for r in rows)
    for row in selection.to_pylist():
        assert row["status"] == ("rejected" if row["reasons"] else "kept")
        assert row["reason"] == (row["reasons"][0] if row["reasons"] else None)
        assert (row["split"] is None) == (row["status"] == "rejected")
    found = by_id(selection)
    assert found[rows[0]["clip_id"]]["reasons"] == ["width 640 < 1280", "brightness 0.00 < 20"]
    assert found[rows[3]["clip_id"]]["status"] == "kept"


def test_largest_of_duplicates_is_kept_and_the_reasons_of_the_others_name_it():
    same = random_fingerprint(1)
    rows = [
        clip("small", "s", fingerprint=same, height=720),
        clip("large", "l", fingerprint=same, width=1920, height=1080),
        clip("middle", "m", fingerprint=same, width=1440, height=810),
        clip("other", "o", fingerprint=random_fingerprint(2)),
    ]
    found = by_id(select_clips(table(rows), POLICY))
    large = rows[1]["clip_id"]
    assert found[large]["status"] == found[rows[3]["clip_id"]]["status"] == "kept"
    for row in (rows[0], rows[2]):
        assert found[row["clip_id"]]["reasons"] == [f"duplicate of {large}"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"sharpness": 60.0}, {"packet_bytes": 2 * 10**6}),
        ({"packet_bytes": 2 * 10**6}, {"packet_bytes": None}),
        ({"duration_s": 16.0, "packet_bytes": 16 * 10**6}, {"packet_bytes": 15 * 10**6}),
    ],
)
def test_sharper_then_less_compressed_then_longer_of_duplicates_is_kept(better, worse):
    same = random_fingerprint(1)
    rows = [clip(f"{k}", k, fingerprint=same, **c) for k, c in enumerate((better, worse))]
    found = by_id(select_clips(table(rows), POLICY))
    assert found[rows[1]["clip_id"]]["reason"] == f"duplicate of {rows[0]['clip_id']}"


def test_clip_rejected_by_the_policy_suppresses_no_duplicate():
    same = random_fingerprint(1)
    rows = [
        clip("dark", "d", fingerprint=same, width=1920, height=1080, brightness=3.0),
        clip("light", "l", fingerprint=same),
    ]
    found = by_id(select_clips(table(rows), POLICY))
    assert found[rows[1]["clip_id"]]["status"] == "kept"
    assert found[rows[0]["clip_id"]]["reasons"] == ["brightness 3.00 < 20"]


def test_order_of_the_clips_changes_nothing():
    rng = np.random.default_rng(0)
    rows = [
        clip(i, i // 3, fingerprint=random_fingerprint(i % 40), width=int(rng.choice([1280, 1920])))
        for i in range(120)
    ]
    one = select_clips(table(rows), POLICY, validation_share=0.3)
    other = select_clips(
        table([rows[i] for i in rng.permutation(120)]), POLICY, validation_share=0.3
    )
    assert one.equals(other)
    assert 0 < pc.sum(pc.equal(one["status"], "rejected")).as_py() < 120


def test_video_that_loops_keeps_one_clip_of_each_scene():
    rounds, scenes, seconds = 3, 3, 4
    film = drawn_film(range(scenes), seconds, rounds)
    prints = film_clips(film, rounds, scenes, seconds)
    rows = [clip(k, "loop", fingerprint=code) for k, code in enumerate(prints)]
    rows.append(clip("other", "loop", fingerprint=random_fingerprint(0)))
    found = by_id(select_clips(table(rows), POLICY))
    for scene in range(scenes):
        same = [row["clip_id"] for row in rows[scene : rounds * scenes : scenes]]
        [kept] = [name for name in same if found[name]["status"] == "kept"]
        rejected = [found[name]["reasons"] for name in same if name != kept]
        assert rejected == [[f"duplicate of {kept}"]] * (rounds - 1)
    assert found[rows[-1]["clip_id"]]["status"] == "kept"


@pytest.mark.parametrize("ticks", [4, 12, 60])  # clips of 1, 3 and 15 s
def test_train_and_validation_never_share_a_source_or_duplicates_of_one(ticks):
    # For even k, the second clip of source k duplicates the first of source k + 1.
    rows = []
    for k in range(60):
        first = random_fingerprint(1000 + k if k % 2 == 0 else 2000 + k - 1, ticks)
        rows += [
            clip((k, 0), k, fingerprint=first),
            clip((k, 1), k, fingerprint=random_fingerprint(2000 + k, ticks)),
        ]
    found = by_id(select_clips(table(rows), POLICY, validation_share=0.4))
    sides: dict[int, set] = {}
    for row in rows:
        pair = int(row["video"].removesuffix(".mp4")) // 2
        sides.setdefault(pair, set()).add(found[row["clip_id"]]["split"])
    assert all(len(s - {None}) == 1 for s in sides.values())
    assert {"train", "validation"} <= set().union(*sides.values())
    assert sum(row["status"] == "rejected" for row in found.values()) == 30


def test_identical_files_under_two_names_are_in_one_split():
    rows = [clip((name, k), name, sha256=sha(k)) for k in range(20) for name in ("a", "b")]
    found = by_id(select_clips(table(rows), POLICY, validation_share=0.5))
    for k in range(20):
        assert len({found[r["clip_id"]]["split"] for r in rows if r["sha256"] == sha(k)}) == 1


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_both_splits_have_clips_whatever_the_validation_share(share):
    rows = [clip(i, i) for i in range(6)]
    sides = select_clips(table(rows), POLICY, validation_share=share)["split"].to_pylist()
    assert set(sides) == {"train", "validation"}
    assert set(select_clips(table(rows), POLICY, validation_share=0.0)["split"].to_pylist()) == {
        "train"
    }


def test_validation_share_is_met_and_another_seed_gives_another_split():
    rows = [clip(i, i, fingerprint=None) for i in range(1000)]
    one = select_clips(table(rows), POLICY, validation_share=0.2, seed=1)["split"].to_pylist()
    other = select_clips(table(rows), POLICY, validation_share=0.2, seed=2)["split"].to_pylist()
    assert 150 < one.count("validation") < 250
    assert one != other


def test_captions_reject_kept_clips_and_never_keep_rejected_ones():
    rows = [clip(i, i, width=1280 if i else 640) for i in range(5)]
    policy = Policy(POLICY, text_similarity_tfidf=Range(max=0.75))
    first = select_clips(table(rows), policy, validation_share=0.0)
    captions = [
        {"clip_id": rows[1]["clip_id"], "text_similarity_tfidf": 0.9},
        {"clip_id": rows[2]["clip_id"], "text_similarity_tfidf": 0.5},
        {"clip_id": rows[3]["clip_id"], "rejected": "captions repeat each other"},
        {"clip_id": rows[4]["clip_id"], "error": "server gone"},
    ]
    schema = records.schema(records.CAPTION)
    second = apply_caption_rules(first, pa.Table.from_pylist(captions, schema=schema), policy)
    assert second.schema == SCHEMA
    assert second["clip_id"] == first["clip_id"]
    found = by_id(second)
    reasons = [found[row["clip_id"]]["reasons"] for row in rows]
    assert reasons == [
        ["width 640 < 1280"],
        ["text_similarity_tfidf 0.90 > 0.75"],
        [],
        ["captions repeat each other", "text_similarity_tfidf not measured"],
        [],
    ]
    assert [found[row["clip_id"]]["split"] for row in rows] == [None, None, "train", None, "train"]


def test_caption_of_more_clips_than_allowed_rejects_them_all():
    rows = [clip(i, i) for i in range(6)]
    selection = select_clips(table(rows), POLICY, validation_share=0.0)
    texts = [
        "A dog runs.",
        "a dog, RUNS",
        "A dog runs!",
        "A cat sits.",
        "A cat sits.",
        "A cow eats.",
    ]
    captions = [
        {
            "clip_id": row["clip_id"],
            "caption": text,
            "sub_captions": [{"start_s": 0.0, "end_s": 3.0, "text": f"Part {row['clip_id']}."}],
            "text_similarity_tfidf": 0.1,
        }
        for row, text in zip(rows, texts, strict=True)
    ]
    for number in (3, 4, 5):
        captions[number]["sub_captions"][0]["text"] = "The same in each."
    captions = pa.Table.from_pylist(captions, schema=records.schema(records.CAPTION))
    for limit, rejected in ((None, 0), (3, 0), (2, 6), (5, 0)):
        checked = by_id(apply_caption_rules(selection, captions, POLICY, limit))
        reasons = [checked[row["clip_id"]]["reason"] for row in rows]
        assert reasons == (["caption repeated: on 3 clips"] * 6 if rejected else [None] * 6)
    assert len(clips_to_caption(apply_caption_rules(selection, captions, POLICY, 2))) == 6


def test_empty_input_gives_an_empty_selection():
    empty = select_clips(table([]), POLICY)
    assert empty.num_rows == 0
    assert empty.schema == SCHEMA
    none = pa.Table.from_pylist([], schema=records.schema(records.CAPTION))
    assert apply_caption_rules(empty, none, POLICY).num_rows == 0


def test_clips_rejected_only_for_their_captions_are_captioned_by_another_captioner():
    rows = [clip(name, name) for name in "abcd"] + [clip("small", "small", width=640)]
    selection = select_clips(table(rows), POLICY)
    accepted = {"error": None, "rejected": None, "text_similarity_tfidf": 0.1}
    rows_of_captions = [
        {"clip_id": rows[0]["clip_id"]} | accepted | {"rejected": "caption refusal: sub-caption 1"},
        {"clip_id": rows[1]["clip_id"]} | accepted | {"text_similarity_tfidf": 0.9},
        {"clip_id": rows[2]["clip_id"]} | accepted,
        {"clip_id": rows[3]["clip_id"]} | accepted | {"error": "no answer"},
    ]
    captions = pa.Table.from_pylist(rows_of_captions, records.schema(records.CAPTION))
    policy = Policy({**POLICY, "text_similarity_tfidf": Range(max=0.75)})
    checked = apply_caption_rules(selection, captions, policy)
    statuses = {row["clip_id"]: row["status"] for row in checked.to_pylist()}
    assert [statuses[row["clip_id"]] for row in rows] == [
        *("rejected", "rejected", "kept", "kept", "rejected")
    ]
    assert sorted(clips_to_caption(checked).to_pylist()) == sorted(
        row["clip_id"] for row in rows[:4]
    )


def test_flagged_clip_suppresses_no_duplicate_and_flags_of_other_clips_do_nothing():
    code = random_fingerprint(7)
    rows = [clip("best", "a", width=1920, fingerprint=code), clip("second", "b", fingerprint=code)]
    flags = {rows[0]["clip_id"]: "flagged: a logo", "0" * 24: "flagged"}
    found = by_id(select_clips(table(rows), POLICY, flags=flags))
    assert found[rows[0]["clip_id"]]["reasons"] == ["flagged: a logo"]
    assert found[rows[1]["clip_id"]]["status"] == "kept"
