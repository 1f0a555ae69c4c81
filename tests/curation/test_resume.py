"""Interrupted anywhere and run again: the same dataset, nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import config
from curation.progress import Progress
from curation.runner.cluster import Cluster
from curation.stage import OutputError, RunError
from curation.storage import Folder
from pipelines import caption, export, score, select
from pipelines.score import _with_status
from pipelines.settings import DEFAULT_CONFIG, Settings, timed_batches
from pipelines.tables import captions_ledger, read_videos, stream_clips
from tests.support.small_input import SETTINGS, scene, write_video
from tests.support.whole_run import (
    commands_with_mark,
    curate,
    descendants,
    differences,
    kill_when,
    unfinished_files,
    wait_for,
    wait_for_end,
)

TWO = "cluster.workers=2"  # `dataset` is made by one


def settings(source: Path, out: Path, *overrides: str) -> Settings:
    given = [*SETTINGS, f"input={source}", f"output={out}", *overrides]
    return config.load(Settings, DEFAULT_CONFIG, given)


def run_all(run: Settings, cluster: Cluster) -> None:
    """As pipelines.curate does, on the tests' Ray."""
    run_to_selection(run, cluster)
    export.run(run, Folder(run.output), cluster)


def run_to_selection(run: Settings, cluster: Cluster) -> None:
    out = Folder(run.output)
    score.run(run, out, cluster)
    select.run(run, out)
    caption.run(run, out, cluster)
    select.run(run, out)


def videos(out: Path) -> dict[str, tuple[str, str | None]]:
    rows = read_videos(Folder(str(out)), []).to_pylist()
    return {os.path.basename(row["video"]): (row["status"], row["error"]) for row in rows}


def files(out: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(out.glob(pattern))


def worker_of(process: subprocess.Popen[str], name: str) -> int:
    return next((pid for pid, line in descendants(process.pid) if name in line), 0)


def test_run_killed_while_scoring_and_exporting_resumes_to_the_same_dataset(dataset, tmp_path):
    out = tmp_path / "out"
    process = curate(dataset.source, out)
    assert kill_when(process, files(out, "ledger/key_frames/*/*_2.jpg"))
    process = curate(dataset.source, out)
    assert kill_when(process, files(out, "extracted/*"))
    assert json.loads((out / "status.json").read_text())["state"] == "running"
    (out / "extracted/.tmp-half").write_bytes(b"as a kill in the middle of a write leaves it")
    last = wait_for_end(curate(dataset.source, out))
    assert last.exit_code == 0, last.stderr
    assert differences(dataset.out, out) == []
    assert unfinished_files(out) == []
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["command"]) == ("finished", "curate")
    assert [phase["phase"] for phase in status["phases"]] == ["score", "caption", "export"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "ledger/input.parquet",
        "ledger/.tmp-*",
        "ledger/videos/part-00000000-*.parquet",
        "ledger/videos/part-00000001-*.parquet",
        "ledger/selection.parquet",
        "ledger/captions/measured",
        "ledger/captions/measured/part-*",
        "extracted/*.mp4",
        "extracted/*.json",
        "shards/*",
        "shards/*.tar",
        "presto/videos/*.mp4",
        "ledger/shards/*.json",
        "presto/meta.parquet",
        "clips.parquet",
        "stats.parquet",
        ".tmp-*clips.parquet*",
    ],
)
def test_run_killed_in_any_phase_resumes_to_the_same_dataset(dataset, tmp_path, pattern):
    out = tmp_path / "out"
    kill_when(curate(dataset.source, out, TWO), files(out, pattern))
    last = wait_for_end(curate(dataset.source, out, TWO))
    assert last.exit_code == 0, last.stderr
    assert differences(dataset.out, out) == []
    assert unfinished_files(out) == []


@pytest.mark.slow
def test_killed_run_leaves_no_process_of_ray_for_long(dataset, tmp_path):
    """Ray's agents try for 60 s to report that their node died."""
    mark = f"longtake-killed-{os.getpid()}"
    process = curate(dataset.source, tmp_path / "out", LONGTAKE_MARK=mark)
    assert kill_when(process, files(tmp_path / "out", "ledger/key_frames/*/*"))
    until = time.monotonic() + 100
    while (left := commands_with_mark(mark)) and time.monotonic() < until:
        time.sleep(0.5)
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ray::Worker", "curation.isolate"])
@pytest.mark.parametrize("pattern", ["ledger/key_frames/*/*", "extracted/.tmp-*"])
def test_killed_worker_or_child_does_not_change_the_dataset(dataset, tmp_path, victim, pattern):
    out = tmp_path / "out"
    process = curate(dataset.source, out, TWO)
    assert wait_for(process, files(out, pattern))
    os.kill(worker_of(process, victim), signal.SIGKILL)
    last = wait_for_end(process)
    assert last.exit_code == 0, last.stderr
    assert differences(dataset.out, out) == []


@pytest.fixture
def source(tmp_path):
    """Two videos that differ, of which one is there twice."""
    write_video(tmp_path / "in" / "b.mp4", scene(1))
    shutil.copy(tmp_path / "in" / "b.mp4", tmp_path / "in" / "c.mp4")
    return tmp_path / "in"


def test_files_added_changed_and_removed_between_runs_are_handled(source, tmp_path, cluster):
    out = tmp_path / "out"
    run = settings(source, out)
    run_all(run, cluster)
    assert videos(out) == {
        "b.mp4": ("ok", None),
        "c.mp4": ("duplicate", f"same bytes as {source}/b.mp4"),
    }
    first = pq.read_table(out / "clips.parquet")
    assert first["video"].to_pylist() == [f"{source}/b.mp4"]

    # The same bytes under a name that is listed first: it has the clips, which do not depend on it.
    shutil.copy(source / "b.mp4", source / "a.mp4")
    run_all(run, cluster)
    assert videos(out)["a.mp4"] == ("ok", None)
    assert videos(out)["b.mp4"] == ("duplicate", f"same bytes as {source}/a.mp4")
    clips = pq.read_table(out / "clips.parquet")
    assert clips["video"].to_pylist() == [f"{source}/a.mp4"]
    assert clips.drop_columns(["video"]).equals(first.drop_columns(["video"]))

    # New bytes under the name of a copy: it is scored again.
    write_video(source / "b.mp4", scene(9))
    score.run(run, Folder(run.output), cluster)
    assert videos(out)["b.mp4"] == ("ok", None)
    assert videos(out)["a.mp4"] == ("ok", None)
    assert videos(out)["c.mp4"] == ("duplicate", f"same bytes as {source}/a.mp4")
    clips = pa.concat_tables(stream_clips(Folder(run.output), ["clip_id", "video"]))
    assert sorted(clips["video"].to_pylist()) == [f"{source}/a.mp4", f"{source}/b.mp4"]
    assert first["clip_id"].to_pylist()[0] in clips["clip_id"].to_pylist()  # the same bytes

    # The original is gone from the input: its copy takes its place, its clip is not lost.
    (source / "a.mp4").unlink()
    run_all(run, cluster)
    table = pq.read_table(out / "videos.parquet")
    assert dict(zip(table["video"].to_pylist(), table["status"].to_pylist(), strict=True)) == {
        f"{source}/b.mp4": "ok",
        f"{source}/c.mp4": "ok",
    }
    clips = pq.read_table(out / "clips.parquet")
    assert first["clip_id"].to_pylist()[0] in clips["clip_id"].to_pylist()


def test_video_deleted_or_changed_before_export_fails_only_its_clips(tmp_path, cluster):
    source, out = tmp_path / "in", tmp_path / "out"
    for name, seed in (("changed", 1), ("gone", 2), ("good", 3), ("touched", 4)):
        write_video(source / f"{name}.mp4", scene(seed))
    run = settings(source, out)
    run_to_selection(run, cluster)
    (source / "gone.mp4").unlink()
    write_video(source / "changed.mp4", scene(11))
    os.utime(source / "touched.mp4", (0, 0))  # another time, the same bytes
    export.run(run, Folder(run.output), cluster)
    rows = {
        os.path.basename(row["video"]): (row["status"], row["reason"], row["shard"] is None)
        for row in pq.read_table(out / "clips.parquet").to_pylist()
    }
    assert rows == {
        "changed.mp4": (
            "failed",
            "export failed: the video changed after it was scored; run longtake score again",
            True,
        ),
        "gone.mp4": ("failed", "export failed: no such file", True),
        "good.mp4": ("kept", None, False),
        "touched.mp4": ("kept", None, False),
    }


def test_failed_video_is_retried_once_it_changed_or_with_retry_failed(tmp_path, cluster):
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text(f"{tmp_path}/a.mp4\n{tmp_path}/b.mp4\n")
    run = settings(listed, out)
    for _ in range(2):  # the second run computes nothing
        with pytest.raises(
            RunError, match=r"all 2 videos failed: no such file \(2\)\n  fix: .*ret"
        ):
            score.run(run, Folder(run.output), cluster)
    write_video(tmp_path / "b.mp4", scene(2))  # it changed by coming: no need to ask
    score.run(run, Folder(run.output), cluster)
    assert videos(out) == {"a.mp4": ("failed", "no such file"), "b.mp4": ("ok", None)}
    parts = set((out / "ledger/videos").iterdir())
    score.run(run, Folder(run.output), cluster)
    assert set((out / "ledger/videos").iterdir()) == parts  # nothing was done
    score.run(settings(listed, out, "retry_failed=true"), Folder(run.output), cluster)
    assert len(list((out / "ledger/videos").iterdir())) == len(parts) + 1


def test_run_stops_when_more_than_a_fifth_of_at_least_a_hundred_videos_fail():
    def rows(count, every):
        return (
            {"video": str(n), "error": None if n % every else "no moov"} for n in range(1, count)
        )

    progress = Progress("score", None, "videos", out=open(os.devnull, "w"))  # noqa: SIM115
    assert len(list(_with_status(rows(99, 2), 0.2, progress))) == 98  # too few to judge
    assert len(list(_with_status(rows(300, 6), 0.2, progress))) == 299
    done = []

    def commit():
        for batch in timed_batches(_with_status(rows(300, 2), 0.2, progress)):
            done.extend(batch)

    with pytest.raises(RunError, match=r"no moov \(50\)\n  fix: .* retry_failed=true"):
        commit()
    assert len(done) == 100  # what was done is not lost


@pytest.mark.parametrize("is_removed", [False, True], ids=["replaced", "removed"])
def test_retry_failed_scores_videos_whose_stored_frames_are_damaged_again(
    dataset, tmp_path, cluster, is_removed
):
    out = tmp_path / "out"
    shutil.copytree(dataset.out, out)
    kept = next(r for r in pq.read_table(out / "clips.parquet").to_pylist() if r["shard"])
    frame = out / "ledger" / kept["segments"][0]["key_frame"]
    frame.unlink() if is_removed else frame.write_bytes(b"other")
    for part in ("ledger/captions", "shards", "ledger/shards"):
        shutil.rmtree(out / part)
    with suppress(RunError):  # where it is the only kept clip
        caption.run(settings(dataset.source, out), Folder(str(out)), cluster)
    captions = {
        r["clip_id"]: r for r in pq.read_table(out / "ledger/captions/measured").to_pylist()
    }
    expected = "is missing" if is_removed else "is not the frame that was scored"
    assert expected in captions[kept["clip_id"]]["error"]
    run_all(settings(dataset.source, out, "retry_failed=true"), cluster)
    assert differences(dataset.out, out) == []


def test_parts_that_were_stored_after_the_output_was_removed_are_scored_again(
    dataset, tmp_path, cluster, capsys
):
    """Key frames are stored before the row that names them: the output was removed in between."""
    out = tmp_path / "out"
    shutil.copytree(dataset.out / "ledger/videos", out / "ledger/videos")
    kept = next(r for r in pq.read_table(dataset.out / "clips.parquet").to_pylist() if r["shard"])
    failed = {"clip_id": kept["clip_id"], "error": "its key frame is missing"}
    captions_ledger(Folder(str(out)), "measured").append([failed])
    run_all(settings(dataset.source, out), cluster)
    parts = len(list((dataset.out / "ledger/videos").iterdir())) + 1
    line = f"{out}/ledger has {parts} files but not the settings of their run"
    assert line in capsys.readouterr().err
    assert differences(dataset.out, out) == []
    assert len(list(out.glob("ledger/removed/**/*.parquet"))) == parts


@pytest.mark.slow
def test_run_whose_output_is_removed_while_it_scores_ends_with_a_line_and_starts_again(
    dataset, tmp_path
):
    out = tmp_path / "out"
    process = curate(dataset.source, out)
    assert wait_for(process, files(out, "ledger/key_frames/*/*"))
    shutil.rmtree(out, ignore_errors=True)  # a worker may write to it meanwhile
    done = wait_for_end(process)
    assert done.exit_code == 1
    assert f"LeaseLost: this output was removed: {out}/ledger/.lock is gone" in done.stderr
    assert not files(out, "ledger/videos/*")()
    assert wait_for_end(curate(dataset.source, out)).exit_code == 0
    assert differences(dataset.out, out) == []


@pytest.mark.slow
def test_run_whose_own_node_dies_ends_with_a_line_and_resumes(dataset, tmp_path):
    """Ray reports no error there, and starts no worker: the run waited without end."""
    out = tmp_path / "out"
    health = {"period_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "2000"}
    env = {f"RAY_health_check_{name}": value for name, value in health.items()}
    process = curate(dataset.source, out, **env)
    assert wait_for(process, files(out, "ledger/key_frames/*/*"))
    os.kill(worker_of(process, "raylet/raylet"), signal.SIGKILL)
    done = wait_for_end(process, within_s=100)
    assert done.exit_code == 1
    assert "RunError: Ray's process on the node of this command has ended" in done.stderr
    assert wait_for_end(curate(dataset.source, out)).exit_code == 0
    assert differences(dataset.out, out) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_stops_the_run_which_resumes_with_free_space(dataset, small_disk, cluster):
    out = small_disk / "out"
    run = settings(dataset.source, out)
    (small_disk / "filler").write_bytes(bytes(1_900_000))
    with pytest.raises(OutputError, match="No space left on device"):
        run_all(run, cluster)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    (small_disk / "filler").unlink()
    (small_disk / "filler").write_bytes(bytes(61_000_000))  # room for the scores, not for shards
    with pytest.raises(OutputError, match="No space left on device"):
        run_all(run, cluster)
    (small_disk / "filler").unlink()
    run_all(run, cluster)
    assert differences(dataset.out, out) == []
