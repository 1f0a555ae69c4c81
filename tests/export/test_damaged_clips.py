"""Extracted clips that a crash of the machine or a disk damaged before they are packed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from curation.stage import OutputError, Row, RunContext
from curation.urls import file_system
from curation.video_files import local_copy
from curation.video_list import stat_video
from stages.export import export_stages
from stages.export.export_stages import EXTRACTED, ExtractClips, PackShard
from stages.export.shards import plan_shards
from tests.export.test_display_of_dataset import score
from tests.support.s3_server import s3_bucket
from tests.support.small_input import scene, write_video


@contextmanager
def extracting(folder: Path, presto: bool) -> Iterator[tuple[ExtractClips, Path, Row, Row]]:
    """The stage, its output with one extracted clip, the clip and its receipt."""
    size = {"width": 1280, "height": 720} if presto else {}
    source, out = write_video(folder / "a.mp4", scene(1), 1.0, **size), folder / "out"
    stage = ExtractClips(str(out), presto)
    stage.setup(RunContext())
    [clip] = score(source, out)
    [row] = stage.process([{"clips": [clip]}])
    yield stage, out, clip, row["extracted"][clip["clip_id"]]
    stage._child.close()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    with extracting(tmp_path_factory.mktemp("extracted"), presto=False) as found:
        yield found


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_bit, Path.unlink])
def test_damaged_extracted_clip_is_extracted_again(extracted, damage):
    assert_extracted_again("extracted/{}.mp4", damage, *extracted)


def test_damaged_clip_of_presto_is_written_again(tmp_path):
    with extracting(tmp_path, presto=True) as found:
        assert_extracted_again("presto/videos/{}.mp4", flip_bit, *found)


def assert_extracted_again(
    name: str,
    damage: Callable[[Path], None],
    stage: ExtractClips,
    out: Path,
    clip: Row,
    receipt: Row,
) -> None:
    mp4 = out / name.format(clip["clip_id"])
    before = mp4.read_bytes()
    damage(mp4)
    [row] = stage.process([{"clips": [clip]}])
    assert row["extracted"] == {clip["clip_id"]: receipt}
    assert mp4.read_bytes() == before


def test_clip_that_is_damaged_after_its_receipt_was_read_is_never_packed(extracted, tmp_path):
    _, out, clip, _ = extracted
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    truncate(copy / EXTRACTED / f"{clip['clip_id']}.mp4")
    [plan] = plan_shards([clip], 10**9, 10)
    by_id = {clip["clip_id"]: clip}
    row = {"plan": vars(plan), "clips": by_id, "errors": {}}
    with pytest.raises(OutputError, match=r"is not the clip that was extracted\n  fix: run again"):
        PackShard(str(copy), presto=False, tone_map=False).process([row])
    assert not (copy / "shards" / plan.name).exists()


def test_shard_is_packed_on_a_file_system_without_hard_links(extracted, tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    _, out, clip, _ = extracted
    shutil.copytree(out, tmp_path / "out")
    [plan] = plan_shards([clip], 10**9, 10)
    row = {"plan": vars(plan), "clips": {clip["clip_id"]: clip}, "errors": {}}
    [packed] = PackShard(str(tmp_path / "out"), presto=False, tone_map=False).process([row])
    assert [found["error"] for found in packed["receipt"]["rows"]] == [None]


def test_failed_clip_is_in_the_shard_once_it_is_extracted(extracted, tmp_path):
    _, out, clip, _ = extracted
    copy, clip_id = tmp_path / "out", clip["clip_id"]
    [plan] = plan_shards([clip], 10**9, 10)
    stage = PackShard(str(copy), presto=False, tone_map=False)
    for errors in ({clip_id: "no room"}, {}):
        shutil.copytree(out, copy, dirs_exist_ok=True)
        row = {"plan": vars(plan), "clips": {clip_id: clip}, "errors": errors}
        [packed] = stage.process([row])
        [found] = packed["receipt"]["rows"]
        assert found["error"] == errors.get(clip_id)
    assert (copy / "shards" / plan.name).stat().st_size == packed["receipt"]["bytes"] > 0


def test_clips_of_a_remote_video_are_extracted_from_one_copy_and_fail_alone(tmp_path, monkeypatch):
    source, out = write_video(tmp_path / "a.mp4", scene(1), 6), tmp_path / "out"
    clips = score(source, out)
    fetched = []

    @contextmanager
    def counted(video: str, size: int | None = None) -> Iterator[str]:
        fetched.append(video)
        with local_copy(video, size) as path:
            yield path

    monkeypatch.setattr(export_stages, "local_copy", counted)
    with s3_bucket() as (_, options):
        url = f"s3://bucket/a.mp4?{options}"
        fs, fs_path = file_system(url)
        with fs.open_output_stream(fs_path) as stream:
            stream.write(source.read_bytes())
        remote = [clip | {"video": url, "version": stat_video(url).version} for clip in clips]
        remote[2] |= {"num_frames": 99}
        stage = ExtractClips(str(out), presto=False)
        stage.setup(RunContext())
        [row] = stage.process([{"clips": remote}])
        [again] = stage.process([{"clips": remote[:2]}])
        stage._child.close()
    assert fetched == [url]
    ids = [clip["clip_id"] for clip in clips]
    assert "but scoring found 99" in row["extracted"][ids[2]]
    assert all(row["extracted"][i]["clip"]["num_frames"] == 10 for i in ids if i != ids[2])
    assert again["extracted"] == {i: row["extracted"][i] for i in ids[:2]}


def test_video_is_closed_after_a_clip_that_can_not_be_written(tmp_path):
    """A fetched video takes room until it is closed: perhaps the room that was lacking."""
    source, out = write_video(tmp_path / "a.avi", scene(1), 6), tmp_path / "out"
    clips = score(source, out)
    (out / EXTRACTED / f"{clips[1]['clip_id']}.mp4" / "in the way").mkdir(parents=True)
    stage = ExtractClips(str(out), presto=False)
    stage.setup(RunContext())
    with pytest.raises(OutputError, match="can't write"):
        stage.process([{"clips": clips}])
    assert list((out / EXTRACTED).glob(f"{clips[0]['clip_id']}.*"))
    assert str(source) not in open_files()
    stage._child.close()


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_clip_that_is_damaged_before_its_presto_encode_does_not_count_as_failed(tmp_path, damage):
    """As where the output is removed during a run: the video is not at fault."""
    source = write_video(tmp_path / "a.mp4", scene(1), 1.0, width=1280, height=720)
    out = tmp_path / "out"
    stage = ExtractClips(str(out), presto=True)
    stage.setup(RunContext())
    clips = score(source, out)
    call = stage._child.call_with_retry

    def damaged_in_between(name: str, args: tuple, **limits: float) -> object:
        if name == "presto":
            damage(out / EXTRACTED / f"{clips[0]['clip_id']}.mp4")
        return call(name, args, **limits)

    stage._child.call_with_retry = damaged_in_between  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="is not the clip that was extracted"):
        stage.process([{"clips": clips}])
    stage._child.close()


def open_files() -> set[str]:
    """The paths of the files that are open in any process that this one may look into."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            found.add(os.readlink(descriptor))
    return found
