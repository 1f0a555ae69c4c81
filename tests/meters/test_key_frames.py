"""Frames that the decode pass stores of a clip: key frames, frame samples and thumbnails."""

import hashlib
from collections import deque

import cv2
import numpy as np
import pytest

from curation.policy import Policy, Range
from curation.stage import RunContext, TransientError
from stages.decode_pass import DecodePass
from stages.meters import scratch_file
from stages.meters.clip_frames import THUMBNAIL_SIDE
from stages.meters.key_frames import KeyFrames
from tests.support.full_disk import full_disk
from tests.support.small_input import scene, write_video


def test_segment_has_frame_samples_around_its_key_frame_and_one_shortly_after_it(tmp_path):
    source = write_video(tmp_path / "take.mp4", scene(1), 16)
    decode = DecodePass(key_frames=KeyFrames(pair_gap_s=0.1))
    decode.setup(RunContext(str(tmp_path / "ledger")))
    [row] = decode.process([{"video": str(source), "bytes": source.stat().st_size}])
    [clip] = row["clips"]
    files = set()
    for segment in clip["segments"]:
        before, after = segment["frame_samples"]
        assert segment["start_s"] <= before["s"] < segment["key_frame_s"] < after["s"]
        assert after["s"] < segment["end_s"]
        assert after["s"] - before["s"] > 1.5
        for sample in (before, after):
            data = (tmp_path / "ledger" / sample["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == sample["sha256"]
            files.add(sample["sha256"])
        files.add(segment["key_frame_sha256"])
        data = (tmp_path / "ledger" / segment["next_frame"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == segment["next_frame_sha256"]
        files.add(segment["next_frame_sha256"])
    assert len(files) == 20


def test_clip_that_fails_the_prefilter_has_thumbnails_and_no_costly_scores(tmp_path):
    source = write_video(tmp_path / "take.mp4", scene(1), 16)
    decode = DecodePass(prefilter=Policy(motion_dis=Range(min=1e6)))
    decode.setup(RunContext(str(tmp_path / "ledger")))
    [row] = decode.process([{"video": str(source), "bytes": source.stat().st_size}])
    [clip] = row["clips"]
    assert clip["overlay_share"] is None
    assert clip["null_reasons"]["overlay_share"].startswith("failed the prefilter: motion_dis")
    for segment in clip["segments"]:
        thumbnail = cv2.imread(str(tmp_path / "ledger" / segment["key_frame"]))
        assert max(thumbnail.shape) == THUMBNAIL_SIDE


def test_full_temporary_folder_leaves_the_row_open_and_the_worker_usable(monkeypatch):
    monkeypatch.setattr(scratch_file, "MAX_FILE_IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(scratch_file, "MAX_PENDING_BYTES", 0)
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    full = scratch_file.ScratchFile(90)
    with full_disk():
        with pytest.raises(TransientError, match=r"can't write to .*: File too large"):
            deque(map(full.append, [image] * 20))
        full.close()
    free = scratch_file.ScratchFile(90)
    free.append(image)
    assert free.image(0).shape == image.shape
