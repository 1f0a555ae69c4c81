"""Outputs of many clips: the same results in pieces, memory that is bounded, one row per file."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.selection import POLICY, write_ledger
from curation import partitions
from curation.storage import Folder
from pipelines import score, select
from pipelines.outdated import SHARDS
from pipelines.publish import recorded_config, write_report, write_tables
from pipelines.settings import SelectSettings, Settings
from pipelines.tables import (
    INPUT,
    SELECTION,
    read_clips,
    read_videos,
    stream_clips,
    videos_ledger,
)
from stages.report.difference import compare_clips, join_differences
from stages.selection.clip_selection import select_clips

CLIPS = 3000


@pytest.fixture
def out(tmp_path) -> Folder:
    folder = Folder(str(tmp_path / "out"))
    write_ledger(folder, CLIPS)
    return folder


def selected(out: Folder, rows_per_range: int, monkeypatch, **chosen) -> pa.Table:
    monkeypatch.setattr(partitions, "ROWS_PER_RANGE", rows_per_range)
    settings = Settings(output=out.url, select=SelectSettings(policy=POLICY, **chosen))
    select.run(settings, out)
    return (out / "ledger").read_table(SELECTION)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"where": "brightness > (SELECT avg(brightness) FROM clips)"},
        {"where": "brightness > 100 AND width = 1280", "validation_share": 0.3},
        {"limit": 50, "balance": "width"},
    ],
)
def test_selection_in_ranges_is_that_of_all_clips_at_once(out, monkeypatch, chosen):
    whole = selected(out, CLIPS, monkeypatch, **chosen)
    assert selected(out, 70, monkeypatch, **chosen).equals(whole)
    assert whole["clip_id"].to_pylist() == sorted(whole["clip_id"].to_pylist())
    if not chosen:
        assert select_clips(read_clips(out), POLICY).equals(whole)
        assert "duplicate of" in str(whole["reason"].to_pylist())


def test_tables_do_not_depend_on_the_size_of_the_ranges(out, monkeypatch):
    files = ("clips.parquet", "videos.parquet", "stats.parquet", "funnel.parquet", "report.html")
    found = []
    for size in (CLIPS, 90):
        selected(out, size, monkeypatch)
        settings = Settings(output=out.url)
        write_report(out, write_tables(settings, out), recorded_config(settings, out), {})
        found.append([out.read(name) for name in files])
    assert found[0] == found[1]
    clips = out.read_table("clips.parquet")
    assert clips.num_rows == CLIPS
    assert pq.ParquetFile(f"{out.url}/clips.parquet").num_row_groups == 1


def test_differences_of_pieces_add_up_to_those_of_the_tables():
    rng = random.Random(0)
    rows = [
        {
            "clip_id": f"{i:04d}",
            "status": rng.choice(["kept", "rejected"]),
            "rule": rng.choice(["width", "brightness"]),
            "duration_s": 3600.0,
            "caption": rng.choice(["a", "b"]),
            "sub_captions": None,
        }
        for i in range(400)
    ]
    before, now = pa.Table.from_pylist(rows[:350]), pa.Table.from_pylist(rows[20:])
    now = now.set_column(1, "status", pa.array(rng.sample(now["status"].to_pylist(), len(now))))
    bounds = [f"{i:04d}" for i in range(0, 401, 37)] + ["9999"]

    def piece(table: pa.Table, low: str, high: str) -> pa.Table:
        return table.filter(pa.array([low <= i < high for i in table["clip_id"].to_pylist()]))

    pieces = [compare_clips(piece(before, a, b), piece(now, a, b)) for a, b in pairwise(bounds)]
    whole = compare_clips(before, now)
    joined = join_differences(pieces)
    assert vars(joined).keys() == vars(whole).keys()
    assert str(joined) == str(whole)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_of_files_with_the_same_bytes_one_has_the_clips_whatever_was_scored_first(tmp_path, order):
    out = Folder(str(tmp_path))
    names = ["b.mp4", "a.mp4", "c.mp4"]
    clip = {"clip_id": "0" * 24, "start_s": 0.0, "end_s": 15.0}
    rows = [
        {"video": n, "sha256": "5" * 64, "status": "ok", "duration_s": 20.0, "clips": [clip]}
        for n in names
    ]
    for i in order:
        videos_ledger(out).append([rows[i]])
    (out / "ledger").write_table(INPUT, pa.table({"video": names}))
    [clips] = [table.to_pylist() for table in stream_clips(out, ["clip_id", "video"])]
    assert clips == [{"clip_id": "0" * 24, "video": "a.mp4"}]
    videos = read_videos(out, ["duration_s", "clips.clip_id"]).to_pylist()
    assert [(v["video"], v["status"], v["error"]) for v in videos] == [
        ("a.mp4", "ok", None),
        ("b.mp4", "duplicate", "same bytes as a.mp4"),
        ("c.mp4", "duplicate", "same bytes as a.mp4"),
    ]
    assert [len(v["clips"]) for v in videos] == [1, 0, 0]


def test_thumbnails_are_limited_by_clips_and_not_by_videos():
    gigabytes = pa.chunked_array([[10**9] * 1000])
    assert score.thumbnail_share(gigabytes) == pytest.approx(0.02)  # of about 250,000 clips
    assert score.thumbnail_share(pa.chunked_array([[10**6] * 100_000])) == pytest.approx(0.05)
    assert score.thumbnail_share(pa.chunked_array([[10**8, -1]])) == 1


def test_stored_frame_is_whole_while_another_worker_writes_the_same(tmp_path):
    folder, data = Folder(str(tmp_path)), bytes(range(256)) * 400
    folder.write("a.jpg", data, durable=False)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            folder.write("a.jpg", data, durable=False)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(folder.read("a.jpg") == data for _ in range(500))
    finally:
        stop.set()
        thread.join()
    folder.write("a.jpg", data[:100], durable=False)
    assert folder.read("a.jpg") == data[:100]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_select_tables_caption_and_export_need_at_most_200_bytes_a_clip(tmp_path):
    command = [sys.executable, "-m", "benchmarks.selection", "--folder", str(tmp_path)]
    command += ["--limit-mb", "2500", "--slope", "200000", "400000", "600000"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    slopes = re.findall(r"^(\w+): \d+ MB and (-?\d+) bytes a clip", done, re.MULTILINE)
    assert len(slopes) == 4, done
    assert all(int(slope) <= 200 for _, slope in slopes), done


def test_planted_duplicates_are_found_in_limited_memory(tmp_path):
    command = [sys.executable, "-m", "benchmarks.selection", "--folder", str(tmp_path / "out")]
    command += ["--clips", "8000", "--limit-mb", "1500"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    match = re.search(r"(\d+) of (\d+) planted pairs found .*, (\d+) others", done)
    found, planted, others = map(int, match.groups())
    assert planted > 30
    assert found >= 0.95 * planted
    assert others <= 1  # of a million clips, 56
    assert not (tmp_path / "out" / SHARDS).exists()
    assert np.load(tmp_path / "out" / "planted.npy").shape[1] == 2
