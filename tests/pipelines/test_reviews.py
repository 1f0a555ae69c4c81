"""Flags and corrected captions in `ledger/reviews`, and what select and export do with them."""

from __future__ import annotations

import fcntl
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation.ledger import MAX_PARTS
from curation.stage import OutputError
from curation.storage import Folder
from pipelines import verify
from pipelines.reviews import (
    FLAG,
    GOOD,
    MARK,
    Review,
    ReviewError,
    correction_of,
    read_reviews,
    stream_captions,
    write_review,
)
from pipelines.tables import captions_ledger
from tests.support.s3_server import s3_bucket
from tests.support.whole_run import run_here


@pytest.fixture
def out(dataset, tmp_path) -> Path:
    return Path(shutil.copytree(dataset.out, tmp_path / "out"))


def write(out: Path, review: Review) -> dict:
    return write_review(Folder(str(out)), review, print)


def kept_clips(out: Path) -> list[dict]:
    rows = pq.read_table(out / "clips.parquet").to_pylist()
    return [row for row in rows if row["status"] == "kept"]


def correct(out: Path, clip_id: str, caption: str, **more: bool) -> None:
    rows = captions_ledger(Folder(str(out)), "measured").read().to_pylist()
    [captions] = [row for row in rows if row["clip_id"] == clip_id]
    texts = [f"{caption} {i}" for i in range(len(captions["sub_captions"]))]
    write(out, correction_of(captions, caption, texts, "Ada", **more))


def test_flagged_clips_are_rejected_where_the_setting_asks_for_it(out, unused_cluster, capsys):
    clip, other, *_ = kept_clips(out)
    write(out, Review(clip["clip_id"], FLAG, "Ada", "a watermark"))
    write(out, Review(other["clip_id"], FLAG, "Ada", "no"))
    write(out, Review(other["clip_id"], FLAG, "Bo", None))  # withdrawn, by another person
    run_here("select", out, unused_cluster)
    assert clip["clip_id"] in {row["clip_id"] for row in kept_clips(out)}
    capsys.readouterr()
    run_here("select", out, unused_cluster, "select.reject_flagged=true")
    assert "flagged" in capsys.readouterr().out
    assert other["clip_id"] in {row["clip_id"] for row in kept_clips(out)}
    rows = {row["clip_id"]: row for row in pq.read_table(out / "clips.parquet").to_pylist()}
    assert rows[clip["clip_id"]]["reasons"] == ["flagged: a watermark"]
    assert rows[clip["clip_id"]]["rule"] == "flagged"


def test_corrected_caption_is_exported_with_its_origin_and_others_are_not_packed_again(
    out, cluster
):
    clip, *others = kept_clips(out)
    before = {p.name: p.read_bytes() for p in (out / "shards").glob("*.tar")}
    correct(out, clip["clip_id"], "A red square moves")
    run_here("export", out, cluster)
    rows = {row["clip_id"]: row for row in kept_clips(out)}
    assert rows[clip["clip_id"]]["caption"] == "A red square moves"
    assert rows[clip["clip_id"]]["captioner"] == "corrected"
    assert {rows[other["clip_id"]]["captioner"] for other in others} == {"measured"}
    with tarfile.open(out / "shards" / clip["shard"]) as tar:
        sample = json.load(tar.extractfile(f"{clip['clip_id']}.json"))
    assert sample["captioner"] == "corrected"
    assert [part["text"] for part in sample["sub_captions"]][:2] == [
        "A red square moves 0",
        "A red square moves 1",
    ]
    assert sample["provenance"]["corrected"] == {"captioner": "measured", "reviewer": "Ada"}
    assert sample["provenance"]["span_s"] == [clip["start_s"], clip["end_s"]]
    after = {p.name: p.read_bytes() for p in (out / "shards").glob("*.tar")}
    assert {name for name in before if before[name] != after[name]} == {clip["shard"]}
    assert "corrected" in (out / "report.html").read_text()
    # a withdrawn correction gives the captioner's texts, and the shards as before
    correct(out, clip["clip_id"], "", withdraw=True)
    run_here("export", out, cluster)
    assert {p.name: p.read_bytes() for p in (out / "shards").glob("*.tar")} == before


def test_correction_of_captions_that_were_written_again_of_other_frames_does_not_count(out):
    clip, *_ = kept_clips(out)
    correct(out, clip["clip_id"], "A red square moves")
    folder = Folder(str(out))
    ledger = captions_ledger(folder, "measured")
    [row] = [row for row in ledger.read().to_pylist() if row["clip_id"] == clip["clip_id"]]
    ledger.append([row | {"frames_sha256": "0" * 64}])
    tables = stream_captions(folder, "measured")
    found = {row["clip_id"]: row for table in tables for row in table.to_pylist()}
    assert found[clip["clip_id"]]["caption"] == clip["caption"]
    assert not list(stream_captions(folder, "other"))


def test_rules_about_captions_do_not_hold_for_corrected_ones(out, unused_cluster):
    clip, *_ = kept_clips(out)
    correct(out, clip["clip_id"], "The same text")
    run_here("select", out, unused_cluster, "select.policy.text_similarity_tfidf={max: 0.0001}")
    rows = pq.read_table(out / "clips.parquet").to_pylist()
    assert [row["clip_id"] for row in rows if row["status"] == "kept"] == [clip["clip_id"]]


def test_reviews_are_never_deleted_and_the_last_one_of_a_reviewer_counts(out):
    clip = kept_clips(out)[0]["clip_id"]
    for i in range(MAX_PARTS + 8):
        write(out, Review(clip, FLAG, "Ada", f"reason {i}"))
    for reviewer, value in (("Ada", "bad"), ("Bo", "bad"), ("Ada", GOOD)):
        write(out, Review(clip, MARK, reviewer, value))
    rows = read_reviews(Folder(str(out))).to_pylist()
    assert [(row["kind"], row["reviewer"], row["value"]) for row in rows] == [
        (FLAG, "Ada", f"reason {MAX_PARTS + 7}"),
        (MARK, "Bo", "bad"),
        (MARK, "Ada", GOOD),
    ]
    parts = list((out / "ledger/reviews").glob("*.parquet"))
    assert len(parts) <= MAX_PARTS
    stored = [n for part in parts for n in pq.read_table(part)["number"].to_pylist()]
    assert sorted(stored) == list(range(MAX_PARTS + 11))


def test_review_is_refused_while_a_run_writes_to_the_output(out):
    review = Review(kept_clips(out)[0]["clip_id"], FLAG, "Ada", "")
    with open(out / "ledger/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is writing"):
            write(out, review)
    write(out, review)
    assert read_reviews(Folder(str(out))).num_rows == 1


def test_incomplete_corrections_and_reviews_without_a_name_are_refused(out):
    clip = kept_clips(out)[0]["clip_id"]
    captions = {"clip_id": clip, "captioner": "measured", "frames_sha256": "0"}
    captions["sub_captions"] = [{"start_s": 0.0, "end_s": 1.0, "text": "a"}] * 5
    for caption, texts, cause in (
        ("a", ["b"] * 4, "5 sub-captions, found 4"),
        ("a", [" "] * 5, "need a text"),
        ("", ["b"] * 5, "need a text"),
    ):
        with pytest.raises(ReviewError, match=cause):
            correction_of(captions, caption, texts, "Ada")
    with pytest.raises(ReviewError, match="no captions"):
        correction_of(captions | {"sub_captions": None}, "a", [], "Ada")
    with pytest.raises(ReviewError, match="name of its reviewer"):
        write(out, Review(clip, FLAG, "  "))


def test_damaged_review_is_found_and_never_deleted_by_the_repair(out, capsys):
    row = write(out, Review(kept_clips(out)[0]["clip_id"], FLAG, "Ada", ""))
    [part] = (out / "ledger/reviews").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit):
        verify.main([str(out), "--repair"])
    assert "fix: restore it from a copy" in capsys.readouterr().out
    assert part.exists()
    assert row["number"] == 0


def test_reviews_of_an_output_in_s3_are_written_under_its_lease(out):
    clip = kept_clips(out)[0]["clip_id"]
    with s3_bucket() as (_, options):
        folder = Folder(f"s3://bucket/reviewed?{options}")
        for value in ("one", "two"):
            write_review(folder, Review(clip, FLAG, "Ada", value), print)
        assert read_reviews(folder)["value"].to_pylist() == ["two"]
        assert len((folder / "ledger/reviews").names()) == 2
