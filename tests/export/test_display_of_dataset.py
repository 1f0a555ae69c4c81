"""Videos that are scored, extracted and packed: the mp4 in the shard, the clip in presto/ and what
the trainer reads show what Debian's ffmpeg shows of the source's span."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.records import hash_frames, stored_frame_hashes
from curation.stage import Row, RunContext
from curation.storage import Folder
from curation.video_list import stat_video
from stages.decode_pass import DecodePass
from stages.export.export_stages import ExtractClips, PackShard
from stages.export.presto import NUM_FRAMES, meta_tables
from stages.export.shards import Receipt, plan_shards, shards_table
from tests.export.test_display import (
    FPS,
    MATRICES,
    assert_same_pictures,
    draw,
    draw_interlaced,
    remuxed,
    with_clean_aperture,
    with_pixel_crop,
)
from tests.support import video_files
from tests.support.ffmpeg import needs_ffmpeg
from tests.support.independent_reader import (
    SQUARE_PIXELS,
    number_of,
    probe_stream,
    shown_frames,
)
from training.clips import ShardedClips
from training.config import Size

pytestmark = needs_ffmpeg

HD = (1280, 720)  # the smallest size in presto/
SMALL = (320, 180)
FRAMES = 30  # of each part: one clip of 1 s fits
FAST = {"preset": "ultrafast", "crf": "16"}
# The source's frames as ffmpeg shows them, one array per part.
Expected = list[np.ndarray]


def draw_fast(path: Path, size: tuple[int, int] = SMALL, **more: Any) -> Path:
    settings: dict[str, Any] = {"frames": FRAMES, "options": FAST}
    return draw(path, size=size, **(settings | more))


def mirrored(folder: Path) -> tuple[Path, Expected]:
    source = draw_fast(folder / "in.mp4", HD, matrix=MATRICES["mirrored"])
    return source, [shown_frames(source)]


def turned(folder: Path) -> tuple[Path, Expected]:
    """In a codec that is not copied."""
    more = {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2"}}
    source = draw_fast(folder / "in.mp4", HD[::-1], matrix=MATRICES["90"], **more)
    return source, [shown_frames(source)]


def wide_pixels(folder: Path) -> tuple[Path, Expected]:
    """As only the container states."""
    plain = draw_fast(folder / "plain.mp4", (960, 720))
    source = remuxed(folder / "in.mp4", plain, "-aspect", "16:9")
    return source, [shown_frames(source)]


def clean_aperture(folder: Path) -> tuple[Path, Expected]:
    """ffmpeg 5.1 ignores it: it is given the crop."""
    plain = draw_fast(folder / "plain.mp4", (328, 188))
    source = with_clean_aperture(folder / "in.mp4", plain, 320, 1, 180, 1, 2, 1, -2, 1)
    return source, [shown_frames(source, "crop=320:180:6:2")]


def pixel_crop(folder: Path) -> tuple[Path, Expected]:
    plain = draw_fast(folder / "plain.mkv", (328, 188))
    source = with_pixel_crop(folder / "in.mkv", plain, 6, 2, 2, 6)
    return source, [shown_frames(source, "crop=320:180:6:2")]


def interlaced(folder: Path) -> tuple[Path, Expected]:
    source = draw_interlaced(folder / "tff.mp4")
    return source, [shown_frames(source, "bwdif=mode=send_frame")]


def size_change(folder: Path) -> tuple[Path, Expected]:
    sizes = [SMALL, (160, 90)]
    parts = [draw_fast(folder / f"{i}.ts", size, first=i * FRAMES) for i, size in enumerate(sizes)]
    return video_files.spliced(folder / "in.mkv", *parts), [shown_frames(p) for p in parts]


def time_jump(folder: Path) -> tuple[Path, Expected]:
    parts = [draw_fast(folder / f"{i}.ts", first=i * FRAMES) for i in range(2)]
    source = video_files.spliced(folder / "in.ts", *parts, gap_s=3600.0)
    return source, [shown_frames(p) for p in parts]


# The first three are HD, and so in presto/, which is made from the mp4 in the shard: a copy with a
# display matrix, an encode, and a copy with a pixel aspect. Those of the others are plain encodes.
KINDS: dict[Callable[[Path], tuple[Path, Expected]], list[str]] = {  # method of each clip
    mirrored: ["copy"],
    turned: ["encode"],
    wide_pixels: ["copy"],
    clean_aperture: ["encode"],
    pixel_crop: ["encode"],
    interlaced: ["encode"],
    size_change: ["copy", "encode"],
    time_jump: ["encode", "encode"],
}


def score(video: Path, out: Path) -> list[Row]:
    """The clips of a video as export has them, with captions."""
    stage = DecodePass(clip_s=1.0, max_clip_s=1.0)
    stage.setup(RunContext(str(out)))
    file = stat_video(str(video))
    known = {"video": str(video), "bytes": file.bytes, "version": file.version}
    (row,) = stage.process([known])
    columns = known | {name: row[name] for name in ("sha256", "time_jumps")}
    return [columns | captions_of(clip) | clip for clip in row["clips"]]


def captions_of(clip: Row) -> Row:
    spans = [(s["start_s"], s["end_s"]) for s in clip["segments"]]
    parts = [{"start_s": a, "end_s": b, "text": f"from {a:g} s"} for a, b in spans]
    hashes = hash_frames(stored_frame_hashes(clip["segments"]))
    more = {"caption": "A clip.", "sub_captions": parts, "captioner": "none", "provenance": None}
    return more | {"split": "train", "frames_sha256": hashes}


@pytest.fixture(scope="module")
def extract(tmp_path_factory) -> Iterator[ExtractClips]:
    """One for all tests: it starts a child process."""
    stage = ExtractClips(str(tmp_path_factory.mktemp("out")), presto=True)
    stage.setup(RunContext())
    yield stage
    stage._child.close()


def export(clips: list[Row], extract: ExtractClips, out: Path) -> list[Row]:
    """Packs the clips into one shard, and writes presto/. Returns the rows of presto/."""
    pack = PackShard(str(out), presto=True, tone_map=False)
    extracted = extract.process([{"clips": clips}])[0]["extracted"]
    by_id = {clip["clip_id"]: clip for clip in clips}
    (plan,) = plan_shards(clips, 10**9, 100)
    errors = {i: found for i, found in extracted.items() if isinstance(found, str)}
    row = {"plan": vars(plan), "clips": by_id, "errors": errors}
    receipt = Receipt(**pack.process([row])[0]["receipt"])
    pq.write_table(shards_table([receipt]), out / "shards.parquet")
    with meta_tables(Folder(str(out)) / "presto") as tables:
        tables.add(receipt.extra)
    return receipt.extra


def assert_shows(shown: np.ndarray, expected: np.ndarray) -> None:
    assert [number_of(f) for f in shown] == [number_of(f) for f in expected]
    assert shown.shape == expected.shape
    assert_same_pictures(shown[::12], expected[::12], mean=3)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_shard_presto_and_trainer_show_what_a_player_shows_of_the_span(tmp_path, extract, kind):
    source, parts = kind(tmp_path)
    out = Path(extract.out_url)
    clips = score(source, out)
    assert len(clips) == len(parts) == len(KINDS[kind])
    presto_rows = {row["clip_id"]: row for row in export(clips, extract, out)}
    first_of_part = 0
    for clip, frames, method in zip(clips, parts, KINDS[kind], strict=True):
        first = round(clip["start_s"] * FPS) - first_of_part
        first_of_part += len(frames)
        expected = frames[first : first + FPS]
        height, width = expected.shape[1:3]
        assert (clip["num_frames"], clip["width"], clip["height"]) == (FPS, width, height)

        name = clip["clip_id"]
        with tarfile.open(out / "shards" / "train-000000.tar") as tar:
            tar.extractall(tmp_path / "members", filter="data")
        metadata = json.loads((tmp_path / "members" / f"{name}.json").read_bytes())
        assert (metadata["width"], metadata["height"]) == (width, height)
        assert (metadata["num_frames"], metadata["method"]) == (FPS, method)
        mp4 = tmp_path / "members" / f"{name}.mp4"
        assert_shows(shown_frames(mp4, SQUARE_PIXELS), expected)

        dataset = ShardedClips(out, "train", Size(FPS, height, width))
        assert_shows(dataset[dataset.clip_ids.index(name)].video.numpy(), expected)

        if (width, height) != HD:
            assert presto_rows[name]["skipped"] == "smaller than 1280x720"
            continue
        assert_presto_clip_shows(out / "presto" / presto_rows[name]["path"], expected)


def assert_presto_clip_shows(path: Path, expected: np.ndarray) -> None:
    """That trainer reads the stored frames: without a turn, and as square pixels."""
    stream = probe_stream(path)
    assert int(stream["nb_frames"]) == NUM_FRAMES
    assert stream.get("sample_aspect_ratio", "1:1") == "1:1"
    assert "side_data_list" not in stream
    repeats = NUM_FRAMES // len(expected)
    assert_shows(shown_frames(path, rf"select=not(mod(n\,{repeats}))"), expected)
