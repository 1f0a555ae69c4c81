import pyarrow as pa
import pytest

from curation.config import ConfigError
from curation.ledger import COMPACT_ABOVE, VIDEO_COLUMNS, Ledger, check_settings, flatten_clips
from curation.storage import Folder

SCHEMA = pa.schema([("video", pa.string()), ("n", pa.int64())])


def ledger(tmp_path):
    return Ledger(Folder(str(tmp_path)), "videos", SCHEMA, "video")


def test_rows_come_back_in_order_of_key_and_the_later_part_counts(tmp_path):
    first = ledger(tmp_path)
    first.append([{"video": "b", "n": 1}, {"video": "a", "n": 1}])
    first.append([])
    again = ledger(tmp_path)  # another run goes on
    again.append([{"video": "b", "n": 2}])
    assert again.read().to_pylist() == [{"video": "a", "n": 1}, {"video": "b", "n": 2}]
    assert again.read(["n"]).column_names == ["video", "n"]


def test_a_new_ledger_is_an_empty_table(tmp_path):
    assert ledger(tmp_path).read().num_rows == 0


def test_compacting_leaves_one_part_and_the_same_rows(tmp_path):
    parts = ledger(tmp_path)
    for n in range(COMPACT_ABOVE + 2):
        parts.append([{"video": str(n % 7), "n": n}])
    before = parts.read()
    parts.compact()
    assert len(Folder(str(tmp_path)).names("videos")) == 1
    assert parts.read() == before


def test_what_is_large_is_compacted_into_some_parts_and_an_interruption_changes_nothing(
    tmp_path, monkeypatch
):
    parts, folder = ledger(tmp_path), Folder(str(tmp_path))
    for n in range(COMPACT_ABOVE + 20):
        parts.append([{"video": str(n % 7), "n": n}, {"video": f"only {n}", "n": n}])
    before, first = parts.read(), folder.read_table("videos/part-00000000.parquet")
    monkeypatch.setattr("curation.ledger.COMPACT_BYTES", 10 * first.nbytes)
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


def test_clips_come_out_of_their_videos_with_the_videos_name():
    clips = pa.array([[{"clip_id": "1"}, {"clip_id": "2"}], [], None, [{"clip_id": "3"}]])
    names = pa.array(["a", "b", "c", "d"])
    of_the_video = dict.fromkeys(VIDEO_COLUMNS, names)
    videos = pa.table({**of_the_video, "clips": clips})
    flat = flatten_clips(videos).select(["video", "clip_id"]).to_pydict()
    assert flat == {"video": ["a", "a", "d"], "clip_id": ["1", "2", "3"]}


def test_other_settings_than_the_recorded_are_refused_by_name(tmp_path):
    folder = Folder(str(tmp_path))
    check_settings(folder, "videos", {"decode": {"clip_s": 20.0}}, "take them back")
    check_settings(folder, "videos", {"decode": {"clip_s": 15.0}}, "no row yet: these count")
    ledger(tmp_path).append([{"video": "a", "n": 1}])
    check_settings(folder, "videos", {"decode": {"clip_s": 15.0}}, "take them back")
    with pytest.raises(ConfigError, match=r"decode.clip_s: 15.0 -> 20.0\n  fix: take them back"):
        check_settings(folder, "videos", {"decode": {"clip_s": 20.0}}, "take them back")
