"""The stills that a clip's captioner is given: a key frame a segment, and others beside it."""

import hashlib

from stages.watch import Watch
from tests.small_input import scene, video


def test_a_segment_has_stills_of_its_own_time_on_both_sides_of_its_key_frame(tmp_path):
    source = video(tmp_path / "take.mp4", scene(1), 16)
    watch = Watch()
    watch.ledger_url = str(tmp_path / "ledger")
    [row] = watch.process([{"video": str(source), "bytes": source.stat().st_size}])
    [clip] = row["clips"]
    files = set()
    for segment in clip["segments"]:
        before, after = segment["neighbours"]
        assert segment["start_s"] <= before["s"] < segment["key_frame_s"] < after["s"]
        assert after["s"] < segment["end_s"]
        assert after["s"] - before["s"] > 1.5
        for still in (before, after):
            data = (tmp_path / "ledger" / still["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == still["sha256"]
            files.add(still["sha256"])
        files.add(segment["key_frame_sha256"])
    assert len(files) == 15
