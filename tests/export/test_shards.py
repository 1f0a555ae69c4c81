"""Shards: the plan, the metadata of a sample, packing, and reading with other libraries."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.records import SCORE_NAMES
from curation.stage import BadVideo, OutputError
from curation.storage import Folder
from stages.export.export_stages import up_to_date_receipt
from stages.export.extraction import ExtractedClip
from stages.export.shards import (
    check_captions_match,
    estimate_bytes,
    pack_shard,
    parse_receipt,
    plan_shards,
    sample_metadata,
    shards_table,
    to_json,
)
from tests.export.test_extraction import write_video
from tests.support import drawn_clips, video_files


def row(number, split="train", **more):
    """A clip's row as export has it."""
    return {
        **drawn_clips.row(number, split),
        "video": f"in/a video {number}.mp4",
        "caption": f"Clip {number}: “a square” runs ☀",
        "provenance": '{"captioner": "measured", "version": 1}',
        "brightness": float(np.float32(101.3)),
        **more,
    }


EXTRACTED = ExtractedClip("copy", "h264", 50, 0, 160, 96, 25.0, 4, 0.0)


def write_known_bytes(clip, target):
    """Instead of a video, for the tests of packing."""
    target.write_bytes(clip["clip_id"].encode() * 100)
    return EXTRACTED


def pack(plans, rows, folder, extract=write_known_bytes, **more):
    by_id = {r["clip_id"]: r for r in rows}
    return [pack_shard(p, by_id, folder, folder / "receipts", extract, **more) for p in plans]


# ---------------------------------------------------------------- the plan


def test_every_clip_is_in_exactly_one_shard_of_its_split():
    rows = [row(i, "validation" if i % 7 == 0 else "train") for i in range(200)]
    plans = plan_shards(rows, 150_000, 1000)
    planned = [(p.split, clip_id) for p in plans for clip_id in p.clip_ids]
    assert sorted(planned) == sorted((r["split"], r["clip_id"]) for r in rows)
    assert len({p.name for p in plans}) == len(plans)
    assert plans[0].name == "train-000000.tar"
    assert plans[-1].name.startswith("validation-0000")


def test_shards_are_of_even_size_up_to_the_target():
    rng = np.random.default_rng(0)
    rows = [row(i, packet_bytes=int(rng.integers(1_000, 20_000))) for i in range(500)]
    plans = plan_shards(rows, 300_000, 1000)
    sizes = [p.bytes for p in plans]
    assert sum(sizes) == sum(r["packet_bytes"] for r in rows)
    assert max(sizes) <= 300_000 + 20_000  # the last clip of a shard may exceed the target
    assert min(sizes) > 0.85 * max(sizes)


@pytest.mark.parametrize("most", [1, 3, 7, 50])
def test_no_shard_has_more_clips_than_the_limit(most):
    rng = np.random.default_rng(most)
    rows = [row(i, packet_bytes=int(rng.integers(1, 90_000))) for i in range(100)]
    plans = plan_shards(rows, 100_000, most)
    assert max(len(p.clip_ids) for p in plans) <= most
    assert sum(len(p.clip_ids) for p in plans) == 100


def test_clip_larger_than_a_shard_leaves_no_gap_in_the_names():
    rows = [row(i, packet_bytes=1_000_000 if i == 3 else 100) for i in range(20)]
    plans = plan_shards(rows, 10_000, 100)
    assert [p.name for p in plans] == [f"train-{i:06d}.tar" for i in range(len(plans))]
    assert all(p.clip_ids for p in plans)


def test_plan_depends_on_the_seed_and_not_on_the_order_of_the_clips():
    rows = [row(i) for i in range(50)]
    assert plan_shards(rows, 90_000, 20) == plan_shards(rows[::-1], 90_000, 20)
    assert plan_shards(rows, 90_000, 20) != plan_shards(rows, 90_000, 20, seed="other")


def test_clips_are_shuffled_over_the_shards():
    rows = [row(i) for i in range(100)]
    first = set(plan_shards(rows, 10_000 * 100, 10)[0].clip_ids)
    assert first != {r["clip_id"] for r in rows[:10]}


def test_empty_input_gives_no_shards():
    assert plan_shards([], 1000, 10) == []


def test_size_of_an_encoded_clip_is_estimated_from_its_area():
    clip = row(0, starts_on_keyframe=False, num_frames=450, width=1280, height=720)
    assert 2e6 < estimate_bytes(clip) < 8e6


# ---------------------------------------------------------------- the sample


def test_metadata_has_the_captions_and_every_score():
    clip = row(1, text_share=float("nan"))
    metadata = json.loads(to_json(sample_metadata(clip, EXTRACTED)))
    assert metadata["clip_id"] == clip["clip_id"]
    assert metadata["sub_captions"] == clip["sub_captions"]
    assert metadata["caption"] == clip["caption"]
    assert set(metadata["scores"]) == set(SCORE_NAMES)
    assert metadata["scores"]["text_share"] is None
    assert np.float32(metadata["scores"]["brightness"]) == np.float32(101.3)
    assert (metadata["duration_s"], metadata["num_frames"], metadata["fps"]) == (2.0, 50, 25.0)
    assert metadata["provenance"] == {"captioner": "measured", "version": 1}


@pytest.mark.parametrize("number", [0.1, 1 / 3, 1e-300, 5e-324, -0.0, float(np.float32(0.1))])
def test_numbers_are_exact_in_json(number):
    assert json.loads(to_json({"x": number}))["x"] == number


def test_file_name_that_is_not_unicode_is_valid_json():
    name = os.fsdecode(b"in/\xff.mp4")
    assert json.loads(to_json({"video": name}).decode("utf-8"))["video"] == name


def test_caption_made_from_other_frames_is_an_error():
    check_captions_match(row(1))
    with pytest.raises(BadVideo, match="made from other frames"):
        check_captions_match(row(1, frames_sha256=row(2)["frames_sha256"]))


# ---------------------------------------------------------------- packing


def test_packing_twice_gives_the_same_bytes(tmp_path):
    rows = [row(i) for i in range(12)]
    plans = plan_shards(rows, 60_000, 100)
    pack(plans, rows, tmp_path / "a")
    pack(plans, rows[::-1], tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").glob("*.tar"))
    assert names == [p.name for p in plans]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tar_contains_neither_time_nor_owner(tmp_path):
    rows = [row(0)]
    pack(plan_shards(rows, 60_000, 100), rows, tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{rows[0]['clip_id']}.{ext}" for ext in ("json", "mp4")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_index_has_the_offset_of_each_mp4_in_its_tar(tmp_path):
    rows = [row(i, clip_id=f"{i}" * (24 if i else 150)) for i in range(8)]  # one long name
    receipts = pack(plan_shards(rows, 40_000, 100), rows, tmp_path)
    pq.write_table(shards_table(receipts), tmp_path / "shards.parquet")
    table = pq.read_table(tmp_path / "shards.parquet").to_pylist()
    assert sorted(r["clip_id"] for r in table) == sorted(r["clip_id"] for r in rows)
    for entry in table:
        with open(tmp_path / entry["shard"], "rb") as tar:
            tar.seek(entry["offset"])
            data = tar.read(entry["bytes"])
        assert data == entry["clip_id"].encode() * 100
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def pack_one(rows, out):
    """Packs the rows as one shard of an output. Returns its plan and the rows by clip_id."""
    [plan] = plan_shards(rows, 10**9, 100)
    by_id = {r["clip_id"]: r for r in rows}
    pack_shard(plan, by_id, out / "shards", out / "ledger/shards", write_known_bytes)
    return plan, by_id


@pytest.mark.parametrize("changed", [None, "tar", "receipt", "caption", "settings"])
def test_shard_is_up_to_date_until_it_is_changed_or_lost(tmp_path, changed):
    plan, by_id = pack_one([row(i) for i in range(3)], tmp_path)
    if changed == "tar":
        (tmp_path / "shards" / plan.name).unlink()
    if changed == "receipt":
        (tmp_path / f"ledger/shards/{plan.name}.json").unlink()
    if changed == "caption":
        by_id |= {plan.clip_ids[1]: by_id[plan.clip_ids[1]] | {"caption": "another"}}
    settings = "other" if changed == "settings" else ""
    found = up_to_date_receipt(Folder(str(tmp_path)), plan, by_id, settings, False)
    assert (found is not None) == (changed is None)


def test_shard_with_a_failed_clip_is_packed_again_with_retry_failed_alone(tmp_path):
    rows = [row(0), row(1, frames_sha256="of others")]
    plan, by_id = pack_one(rows, tmp_path)
    out = Folder(str(tmp_path))
    assert up_to_date_receipt(out, plan, by_id, "", False).failed == 1
    assert up_to_date_receipt(out, plan, by_id, "", True) is None


def test_clip_that_fails_does_not_affect_the_others_of_its_shard(tmp_path):
    rows = [row(i) for i in range(5)]
    rows[3]["frames_sha256"] = "of others"

    def extract(clip, target):
        if clip["clip_id"] == rows[1]["clip_id"]:
            target.write_bytes(b"half a")
            raise BadVideo("the decoder gave up")
        return write_known_bytes(clip, target)

    plans = plan_shards(rows, 60_000, 100)
    (receipt,) = pack(plans, rows, tmp_path, extract)
    errors = {r["clip_id"]: r["error"] for r in receipt.rows if r["error"]}
    assert errors.keys() == {rows[1]["clip_id"], rows[3]["clip_id"]}
    assert errors[rows[1]["clip_id"]] == "the decoder gave up"
    assert receipt.failed == 2
    with tarfile.open(tmp_path / receipt.shard) as tar:
        packed = {n.split(".")[0] for n in tar.getnames()}
    assert packed == {r["clip_id"] for r in rows} - errors.keys()
    (again,) = pack(plans, rows, tmp_path, write_known_bytes)
    assert [r["error"] for r in again.rows].count(None) == 4


def test_shard_whose_clips_all_fail_has_a_receipt_and_no_tar(tmp_path):
    rows = [row(i, frames_sha256="of others") for i in range(3)]
    (receipt,) = pack(plan_shards(rows, 60_000, 100), rows, tmp_path)
    assert (receipt.failed, receipt.bytes) == (3, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["receipts"]


def test_interrupted_packing_leaves_no_partial_shard(tmp_path):
    rows = [row(i) for i in range(4)]
    plans = plan_shards(rows, 60_000, 100)

    def extract(clip, target):
        if clip["clip_id"] == plans[0].clip_ids[2]:
            raise OutputError("disk full")
        return write_known_bytes(clip, target)

    with pytest.raises(OutputError, match="disk full"):
        pack(plans, rows, tmp_path, extract)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    pack(plans, rows, tmp_path)
    pack(plans, rows, tmp_path / "whole")
    name = plans[0].name
    assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_extra_output_of_a_clip_is_in_the_receipt(tmp_path):
    rows = [row(i) for i in range(3)]

    def extra_output(clip, mp4, extracted):
        return {"clip_id": clip["clip_id"], "size": mp4.stat().st_size, "fps": extracted.fps}

    (receipt,) = pack(plan_shards(rows, 60_000, 100), rows, tmp_path, extra_output=extra_output)
    assert {r["clip_id"] for r in receipt.extra} == {r["clip_id"] for r in rows}
    assert {r["size"] for r in receipt.extra} == {2400}
    stored = (tmp_path / "receipts" / f"{receipt.shard}.json").read_bytes()
    assert parse_receipt(stored, "the receipt") == receipt


def test_error_names_a_damaged_receipt():
    with pytest.raises(OutputError, match=r"a\.tar\.json is damaged"):
        parse_receipt(b"{", "ledger/shards/a.tar.json")


# ---------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four clips of two drawn videos, in two shards."""
    folder = tmp_path_factory.mktemp("dataset")
    sources = [write_video(folder / f"{name}.mp4", frames=100 + i) for i, name in enumerate("ab")]
    spans = [(1.0, 3.0), (1.2, 3.2)]
    rows = [
        row(i, video=str(sources[i % 2]), start_s=spans[i // 2][0], end_s=spans[i // 2][1])
        for i in range(4)
    ]

    def cut(clip, target):
        return video_files.extract(
            Path(clip["video"]), clip["start_s"], clip["end_s"], target, clip["num_frames"]
        )

    plans = plan_shards(rows, 20_000, 100)
    assert len(plans) == 2
    pack(plans, rows, folder, cut)
    return folder, {r["clip_id"]: r for r in rows}


def frames_in(mp4: bytes) -> int:
    import av

    with av.open(io.BytesIO(mp4)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_webdataset_reads_the_shards(dataset):
    wds = pytest.importorskip("webdataset")
    folder, rows = dataset
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    samples = {}
    for item in wds.WebDataset(urls, shardshuffle=False).decode():
        samples[item["__key__"]] = item
    assert samples.keys() == rows.keys()
    for clip_id, item in samples.items():
        assert item["json"]["caption"] == rows[clip_id]["caption"]
        assert item["json"]["num_frames"] == frames_in(item["mp4"]) == 50
    assert {item["json"]["method"] for item in samples.values()} == {"copy", "encode"}


def test_hugging_face_datasets_reads_the_shards(dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder, rows = dataset
    urls = sorted(str(path) for path in Path(folder).glob("*.tar"))
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": urls}, split="train", streaming=True, cache_dir=tmp_path
    ).decode(False)
    assert {item["json"]["clip_id"] for item in loaded} == rows.keys()


@pytest.mark.parametrize("clip_id", ["../../mine", "/mine", "..", "", "a\x1b[2J"])
def test_clip_whose_id_can_not_be_a_file_name_is_refused_before_files_are_written(clip_id):
    clip = {"clip_id": clip_id, "split": "train", "starts_on_keyframe": True, "packet_bytes": 1}
    with pytest.raises(OutputError, match="is not the id of a clip"):
        plan_shards([clip], 10, 10)
