"""A full temporary folder is one line, and decides nothing about a video or a clip."""

import tempfile

import numpy as np
import pyarrow as pa
import pytest

from curation.partitions import hash_bounds, scratch_partitions
from curation.scratch import scratch_file, write_all
from curation.stage import OutputError, TransientError
from curation.video_files import local_copy
from stages.meters.fingerprint import CODE
from stages.selection import near_duplicates
from stages.selection.clip_fingerprints import ClipFingerprints, FingerprintFile
from tests.support.full_disk import full_disk
from tests.support.stores import create_bucket, run_server

FULL = rf"can't write to {tempfile.gettempdir()}: .*\n  fix: .*TMPDIR"


@pytest.mark.parametrize("size", [2001, 5000, 100_000])
def test_file_whose_end_cannot_be_written_is_an_error(size):
    """Also where the end is small: a buffered file has it in memory until it is closed."""
    with full_disk(), scratch_file() as file, pytest.raises(OSError, match="File too large"):
        write_all(file, bytes(size))
    with full_disk(), scratch_file() as file:
        write_all(file, bytes(2000))


@pytest.mark.parametrize("ticks", [130, 200, 5000])  # of 16 bytes
def test_fingerprints_that_do_not_fit_stop_the_selection(ticks):
    codes = ClipFingerprints(np.zeros(ticks, CODE), np.array([0, ticks]))
    file = FingerprintFile()
    with full_disk(), pytest.raises(OutputError, match=FULL):
        file.append(codes)


def test_search_for_duplicates_that_has_no_room_stops_the_selection(monkeypatch):
    monkeypatch.setattr(near_duplicates, "TICKS_PER_SLICE", 1 << 6)
    ticks = np.ones(200, CODE)
    ticks["motion"] = np.random.default_rng(0).integers(1 << 63, 1 << 64, 200, np.uint64)
    codes = ClipFingerprints(ticks, np.arange(0, 201, 20))
    near_duplicates.find_pairs(codes, np.arange(10))
    with full_disk(), pytest.raises(OutputError, match=FULL):
        near_duplicates.find_pairs(codes, np.arange(10))


def test_tables_that_do_not_fit_stop_the_command():
    ids = [f"{i * 2654435761 % 2**32:08x}" for i in range(1000)]
    table = pa.table({"clip_id": ids})
    with (
        scratch_partitions("clip_id", hash_bounds(1)) as parts,
        full_disk(),
        pytest.raises(OutputError, match=FULL),
    ):
        parts.write([table], {"clips": ["clip_id"]})


def test_temporary_folder_that_does_not_exist_is_one_line(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        gone = pytest.raises(OutputError, match=r"can't write to .*/gone: .*\n  fix: .*TMPDIR")
        with gone, scratch_partitions("clip_id", hash_bounds(1)):
            pass
        with gone:
            FingerprintFile()


@pytest.mark.parametrize("size", [2001, 5000, 100_000])
def test_video_that_does_not_fit_leaves_its_row_open(size):
    with run_server("s3") as address:
        bucket = create_bucket("s3", address, "videos")
        bucket.put("a.mp4", bytes(size))
        full = pytest.raises(TransientError, match=r"can't write to .*: File too large")
        with full_disk(), full, local_copy(bucket.url("a.mp4"), size):
            pass
