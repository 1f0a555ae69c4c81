import dataclasses
import functools
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curation import records
from curation.config import ConfigError
from curation.ledger import (
    MAX_PARTS,
    VIDEO_COLUMNS,
    Ledger,
    check_settings,
    flatten_clips,
    with_schema,
)
from curation.policy import Policy, Range, decide_table
from curation.stage import OutputError, PlanError
from curation.storage import Folder

VERSION = records.with_schema_version(pa.schema([])).metadata
SCHEMA = pa.schema([("video", pa.string()), ("n", pa.int64())])


def ledger(tmp_path):
    return Ledger(Folder(str(tmp_path)), "videos", SCHEMA, "video")


def test_rows_are_read_in_order_of_key_and_the_later_part_counts(tmp_path):
    first = ledger(tmp_path)
    first.append([{"video": "b", "n": 1}, {"video": "a", "n": 1}])
    first.append([])
    again = ledger(tmp_path)  # another run resumes
    again.append([{"video": "b", "n": 2}])
    assert again.read().to_pylist() == [{"video": "a", "n": 1}, {"video": "b", "n": 2}]
    assert again.read(["n"]).column_names == ["video", "n"]


@pytest.mark.parametrize("bad", ["\ud800", 7, ["x"], 10**30, 1.5])
def test_row_that_does_not_fit_fails_alone(tmp_path, bad):
    schema = pa.schema(
        [("id", pa.string()), ("error", pa.string()), ("text", pa.list_(pa.string()))]
    )
    parts = Ledger(Folder(str(tmp_path)), "captions", schema, "id")
    rows = [{"id": name, "error": None, "text": ["a", "b"]} for name in "abc"]
    rows[1]["text"] = [bad]
    parts.append(rows)
    first, failed, last = parts.read().to_pylist()
    assert (first, last) == (rows[0], rows[2])
    assert failed["id"] == "b"
    assert failed["error"].startswith("a value does not fit the ledger: ")
    assert failed["text"] is None


def test_new_ledger_is_an_empty_table(tmp_path):
    assert ledger(tmp_path).read().num_rows == 0


def test_compacting_leaves_one_part_with_the_same_rows(tmp_path):
    parts = ledger(tmp_path)
    for n in range(MAX_PARTS + 2):
        parts.append([{"video": str(n % 7), "n": n}])
    before = parts.read()
    parts.compact()
    assert len(Folder(str(tmp_path)).names("videos")) == 1
    assert parts.read() == before


def test_parts_are_merged_during_a_run(tmp_path):
    parts, most = ledger(tmp_path), 0
    for n in range(4 * MAX_PARTS):
        parts.append([{"video": str(n % 7), "n": n}, {"video": f"only {n}", "n": n}])
        parts.compact_if_many()
        most = max(most, len(Folder(str(tmp_path)).names("videos")))
    assert most <= MAX_PARTS + 5
    assert parts.read().num_rows == 7 + 4 * MAX_PARTS
    assert ledger(tmp_path).read() == parts.read()


def test_large_parts_are_not_merged_again(tmp_path, monkeypatch):
    monkeypatch.setattr("curation.ledger.MAX_SMALL_BYTES", 10)
    parts = ledger(tmp_path)
    for n in range(MAX_PARTS + 2):
        parts.append([{"video": str(n), "n": n}])
    parts.compact()
    assert len(Folder(str(tmp_path)).names("videos")) == MAX_PARTS + 2


def test_rows_that_count_are_those_of_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("curation.parquet.BYTES_PER_BATCH", 100)
    rng = np.random.default_rng(0)
    parts = ledger(tmp_path)
    for n in range(30):
        videos = rng.integers(0, 200, 40).tolist()
        parts.append([{"video": str(video), "n": 1000 * n + i} for i, video in enumerate(videos)])
    keys = pa.array([str(i) for i in range(0, 300, 2)])
    pieces = list(parts.last_batches(["video", "n"], keys))
    assert len(pieces) > 10
    expected = parts.read().filter(pc.is_in(parts.read()["video"], value_set=keys))
    assert pa.concat_tables(pieces).sort_by("video").to_pylist() == expected.to_pylist()
    assert list(ledger(tmp_path / "new").last_batches(["n"], keys)) == []


def test_field_of_the_clips_is_read_alone_and_is_null_in_older_parts(tmp_path):
    older = records.schema(records.VIDEO)
    at = older.get_field_index("clips")
    fields = [f for f in older.field(at).type.value_type if f.name in ("clip_id", "take")]
    older = older.set(at, pa.field("clips", pa.list_(pa.struct(fields))))
    rows = [{"video": "a", "clips": [{"clip_id": "1", "take": 3}, {"clip_id": "2", "take": 4}]}]
    table = pa.Table.from_pylist(rows, schema=records.with_schema_version(older))
    Folder(str(tmp_path)).write_table("videos/part-00000000.parquet", table)
    columns = ["video", "clips.clip_id", "clips.brightness", "clips.null_reasons"]
    [found] = videos_ledger(tmp_path).batches(columns)
    clips = found.to_pylist(maps_as_pydicts="strict")[0]["clips"]
    assert [list(clip) for clip in clips] == [["clip_id", "brightness", "null_reasons"]] * 2
    assert clips[0]["clip_id"] == "1"
    assert clips[0]["brightness"] is None


def test_large_ledger_is_compacted_into_several_parts_and_interrupting_it_loses_nothing(
    tmp_path, monkeypatch
):
    parts, folder = ledger(tmp_path), Folder(str(tmp_path))
    for n in range(MAX_PARTS + 20):
        parts.append([{"video": str(n % 7), "n": n}, {"video": f"only {n}", "n": n}])
    before, first = parts.read(), folder.read_table(f"videos/{folder.names('videos')[0]}")
    monkeypatch.setattr("curation.ledger.MAX_MERGED_BYTES", 10 * first.nbytes)
    delete, calls = Folder.delete, []

    def stop_at_the_20th(self, name):
        calls.append(name)
        if len(calls) == 20:
            raise KeyboardInterrupt
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", stop_at_the_20th)
    with pytest.raises(KeyboardInterrupt):
        parts.compact()
    monkeypatch.setattr(Folder, "delete", delete)
    assert parts.read() == before
    ledger(tmp_path).append([{"video": "3", "n": -1}])
    newest = ledger(tmp_path).read()
    ledger(tmp_path).compact()
    assert 4 < len(folder.names("videos")) < 20
    assert ledger(tmp_path).read() == newest != before


def test_flattened_clips_have_the_columns_of_their_video():
    clips = pa.array([[{"clip_id": "1"}, {"clip_id": "2"}], [], None, [{"clip_id": "3"}]])
    names = pa.array(["a", "b", "c", "d"])
    of_the_video = dict.fromkeys(VIDEO_COLUMNS, names)
    videos = pa.table({**of_the_video, "clips": clips})
    flat = flatten_clips(videos).select(["video", "clip_id"]).to_pydict()
    assert flat == {"video": ["a", "a", "d"], "clip_id": ["1", "2", "3"]}


def test_settings_that_differ_from_the_recorded_are_refused_by_name(tmp_path):
    folder = Folder(str(tmp_path))

    def check(clip_s: float) -> None:
        check_settings(folder, "videos", {"decode": {"clip_s": clip_s}}, {}, "take them back")

    check(20.0)
    check(15.0)  # no row yet: these count
    ledger(tmp_path).append([{"video": "a", "n": 1}])
    check(15.0)
    with pytest.raises(ConfigError, match=r"decode.clip_s: 15.0 -> 20.0\n  fix: take them back"):
        check(20.0)


def test_a_setting_that_a_later_version_adds_has_its_default_in_older_ledgers(tmp_path):
    folder, defaults = Folder(str(tmp_path)), {"decode": {"clip_s": 15.0, "added": 1}}
    check_settings(folder, "videos", {"decode": {"clip_s": 20.0}}, {}, "take them back")
    ledger(tmp_path).append([{"video": "a", "n": 1}])
    check_settings(folder, "videos", {"decode": {"clip_s": 20.0, "added": 1}}, defaults, "")
    with pytest.raises(ConfigError, match=r"decode\.added: 1 -> 2"):
        check_settings(folder, "videos", {"decode": {"clip_s": 20.0, "added": 2}}, defaults, "")


def videos_ledger(tmp_path, columns=records.VIDEO) -> Ledger:
    return Ledger(Folder(str(tmp_path)), "videos", records.schema(columns), "video")


def without(kind: pa.DataType, name: str) -> pa.DataType:
    """The type without a field of this name, at any depth."""
    if pa.types.is_list(kind):
        return pa.list_(without(kind.value_type, name))
    if pa.types.is_struct(kind):
        return pa.struct([(f.name, without(f.type, name)) for f in kind if f.name != name])
    return kind


@pytest.mark.parametrize("slices", [1, 2])
def test_column_added_later_is_null_in_older_parts_and_a_score_has_the_null_reason(
    tmp_path, slices
):
    """In the row of the video, in its clips, and in the segments of these."""
    gone = ("key_ssim", "transfer", "subject_at_y")  # a score, a tag, a measure of a segment
    older = tuple(
        dataclasses.replace(c, type=functools.reduce(without, gone, c.type))
        for c in records.VIDEO
        if c.name != "pix_fmt"
    )
    segment = {"start_s": 0.0, "end_s": 3.0, "subject_at_x": 0.5}
    clip = {"clip_id": "1", "key_psnr": 20.0, "segments": [segment] * 5, "width": 1280}
    clips = [clip | {"null_reasons": {"overlay_share": "not measurable"}}, clip]
    rows = [{"video": name, "codec": "h264", "clips": clips} for name in "ab"]
    for number in range(slices):
        videos_ledger(tmp_path, older).append(rows[number::slices])
    videos_ledger(tmp_path).append(
        [{"video": "c", "clips": [clip | {"key_ssim": 0.5, "transfer": "bt709"}]}]
    )
    table = videos_ledger(tmp_path).read()
    assert table.schema == records.schema(records.VIDEO)
    found = {row["video"]: row for row in table.to_pylist(maps_as_pydicts="strict")}
    for name in "ab":
        assert (found[name]["codec"], found[name]["pix_fmt"]) == ("h264", None)
        first, second = found[name]["clips"]
        assert (first["key_psnr"], first["key_ssim"]) == (20.0, None)
        assert first["transfer"] is None
        added = dict.fromkeys(("key_ssim", "transfer"), "scored by an older version")
        assert first["null_reasons"] == {"overlay_share": "not measurable", **added}
        assert second["null_reasons"] == added
        assert [s["subject_at_x"] for s in first["segments"]] == [0.5] * 5
        assert {s["subject_at_y"] for s in first["segments"]} == {None}
    [new] = found["c"]["clips"]
    assert (new["key_ssim"], new["null_reasons"]) == (0.5, None)
    policy = Policy(key_psnr=Range(min=4), key_ssim=Range(max=0.7))
    reasons = decide_table(flatten_clips(table), policy).to_pylist()
    assert reasons == [["key_ssim not measured: scored by an older version"]] * 4 + [[]]
    assert videos_ledger(tmp_path).read(["pix_fmt"]).column_names == ["video", "pix_fmt"]


def test_slice_with_null_and_empty_lists_gets_the_new_columns():
    lists = [[{"a": 1}], None, [{"a": 2}, {"a": 3}], [], None, [{"a": 4}]]
    table = pa.table({"c": pa.array(lists, pa.list_(pa.struct([("a", pa.int64())])))})
    fields = [("a", pa.int64()), ("b", pa.string())]
    schema = pa.schema([("c", pa.list_(pa.struct(fields)))])
    expected = [row and [{**item, "b": None} for item in row] for row in lists]
    for first, last in ((0, 6), (1, 5)):
        part = with_schema(table.slice(first, last - first), schema)
        assert part["c"].to_pylist() == expected[first:last]


def test_merged_parts_have_the_present_columns(tmp_path):
    older = tuple(c for c in records.VIDEO if c.name != "pix_fmt")
    for number in range(MAX_PARTS + 2):
        videos_ledger(tmp_path, older).append([{"video": str(number)}])
    videos_ledger(tmp_path).compact()
    [part] = Folder(str(tmp_path)).names("videos")
    assert "pix_fmt" in Folder(str(tmp_path)).read_schema(f"videos/{part}").names


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {},
            r"made by version 0\.1\.0 \(schema version 1\); version 0\.2\.0 reads schema version 2",
        ),
        (
            {"schema_version": "9"},
            r"made by a later version \(schema version 9\)(.|\n)*install that",
        ),
    ],
)
def test_table_of_another_schema_version_is_refused(tmp_path, metadata, message):
    table = pa.table({"video": ["a"], "n": [1]}).replace_schema_metadata(metadata)
    Folder(str(tmp_path)).write_table("videos/part-00000000.parquet", table)
    with pytest.raises(PlanError, match=message):
        ledger(tmp_path)


def test_foreign_files_in_a_ledger_folder_are_ignored(tmp_path):
    ledger(tmp_path).append([{"video": "a", "n": 1}])
    part = next((tmp_path / "videos").iterdir())
    for name in (".DS_Store", "part-00000000.parquet~", "part-00000000 copy.parquet", "#part#"):
        (tmp_path / "videos" / name).write_bytes(part.read_bytes()[:-9])
    assert ledger(tmp_path).read().to_pylist() == [{"video": "a", "n": 1}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: part.write_bytes(part.read_bytes()[:-9]),
        lambda part: part.write_bytes(b""),
        lambda part: pq.write_table(pa.table({"video": [["a"]], "n": [1]}, metadata=VERSION), part),
        lambda part: pq.write_table(pa.table({"video": ["a"], "n": ["x"]}, metadata=VERSION), part),
    ],
)
def test_damaged_part_is_named_with_the_fix(tmp_path, damage):
    parts = ledger(tmp_path)
    parts.append([{"video": "a", "n": 1}])
    parts.append([{"video": "b", "n": 2}])
    first, second = sorted((tmp_path / "videos").iterdir())
    damage(first)
    with pytest.raises(OutputError, match=rf"{first.name} can't be read .*\n  fix: if the"):
        ledger(tmp_path).read()
    damage(second)
    with pytest.raises(OutputError, match=r"part-0000000\d-\w+\.parquet can't be read .*\n  fix: "):
        ledger(tmp_path).read()


@pytest.mark.parametrize("text", ['{"a": 1', "[1]", "", "[" * 100_000])
def test_torn_settings_are_named_with_the_fix(tmp_path, text):
    folder = Folder(str(tmp_path))
    ledger(tmp_path).append([{"video": "a", "n": 1}])
    (tmp_path / "videos.settings.json").write_text(text)
    with pytest.raises(PlanError, match=r"videos\.settings\.json is damaged: .*\n  fix: if "):
        check_settings(folder, "videos", {}, {}, "")


def test_name_of_a_part_is_the_hash_of_its_bytes(tmp_path):
    parts = ledger(tmp_path)
    for n in range(MAX_PARTS + 2):
        parts.append([{"video": str(n), "n": n}])
    parts.compact()
    parts.append([{"video": "x", "n": 1}])
    merged, last = sorted((tmp_path / "videos").iterdir())
    for part in (merged, last):
        assert part.stem.split("-")[2] == hashlib.sha256(part.read_bytes()).hexdigest()


def test_flipped_bit_in_a_page_is_an_error_of_reading(tmp_path):
    """Without a checksum many a flipped bit reads as other numbers."""
    rng = np.random.default_rng(0)
    rows = [{"video": rng.bytes(8).hex(), "n": int(rng.integers(1 << 30))} for _ in range(500)]
    parts = ledger(tmp_path)
    parts.append(rows)
    [part] = (tmp_path / "videos").iterdir()
    before, data = parts.read(), part.read_bytes()
    column = pq.ParquetFile(part).metadata.row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    pages = range(start, start + column.total_compressed_size)
    changed = 0
    for place in rng.choice(pages, 60, replace=False):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        part.write_bytes(flipped)
        try:
            changed += parts.read() != before
        except OutputError:
            continue
    assert changed == 0
