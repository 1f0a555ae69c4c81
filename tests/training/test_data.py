import gzip
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import tarfile
import time
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from curation.stage import BadVideo
from curation.storage import Folder
from tests.support import drawn_clips
from tests.support.drawn_clips import FRAMES, dataset, row, write_mp4
from training.clips import (
    BadData,
    Clip,
    ClipList,
    ClipLocation,
    ShardedClips,
    nearest_size,
    read_files,
)
from training.config import DataConfig, Size, SystemConfig
from training.data import (
    LocalBatch,
    SampleOrder,
    clip_ids_digest,
    report_rare_sizes,
    seeded_generator,
    stream_batches,
)
from training.frames import resize_and_crop
from training.latent_cache import open_source
from training.precompute import precompute

SMALL = Size(10, 24, 40)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Seven clips for training in three shards, two for validation; one could not be cut."""

    def make(clip, target):
        if clip["video"] == "5":
            raise BadVideo("the file went away")
        return write_mp4(clip, target)

    rows = [row(i, "validation" if i > 7 else "train") for i in range(10)]
    return dataset(tmp_path_factory.mktemp("dataset"), rows, make=make)


def test_every_clip_of_a_split_is_read_with_its_captions(packed):
    source = ShardedClips(packed, "train", SMALL)
    assert sorted(source.clip_ids) == sorted(row(i)["clip_id"] for i in range(8) if i != 5)
    for index, clip_id in enumerate(source.clip_ids):
        number = next(i for i in range(10) if row(i)["clip_id"] == clip_id)
        clip = source[index]
        assert clip.clip_id == clip_id
        assert clip.sub_captions == [f"clip {number}, part {i}" for i in range(5)]
        assert clip.caption == f"All of {number} ☀"
        assert clip.spans[4] == pytest.approx((1.6, 2.0))
        left = clip.video[:, :, :18].float().mean()
        assert left == pytest.approx(drawn_clips.frame(number, 0)[0, 0, 0], abs=3)
    assert len(ShardedClips(packed, "validation", SMALL).clip_ids) == 2


def test_dataset_with_a_newer_selection_is_refused_unless_its_shards_are_asked_for(
    packed, tmp_path
):
    folder = shutil.copytree(packed, tmp_path / "data")
    system, data = SystemConfig(size=SMALL), DataConfig(dataset=str(folder))
    clips = len(open_source(system, data, "train").clip_ids)
    note = {"what": "3 kept clips are in no shard", "fix": "longtake export output=x"}
    (folder / "manifest.json").write_text(json.dumps({"outdated_shards": note}))
    use = r"data\.use_outdated_shards=true$"
    with pytest.raises(BadData, match=rf"3 kept clips.*\n  fix: {note['fix']}\n.*{use}"):
        open_source(system, data, "train")
    with pytest.raises(BadData, match=use):
        precompute(system, replace(data, cache=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()
    asked = replace(data, use_outdated_shards=True)
    assert len(open_source(system, asked, "train").clip_ids) == clips
    (folder / "manifest.json").write_text("{}")
    assert len(open_source(system, data, "train").clip_ids) == clips
    for damaged in ("{", "[" * 200_000):
        (folder / "manifest.json").write_text(damaged)
        with pytest.raises(BadData, match=r"manifest\.json is damaged"):
            open_source(system, data, "train")


@pytest.mark.parametrize("frames", [1, 7, 10, 50, 88])
def test_frames_are_sampled_evenly_over_the_clip(packed, frames):
    every = grey(ShardedClips(packed, "train", Size(FRAMES, 24, 40))[0])
    assert (np.diff(every) > 2).all()  # the clip grows lighter with every frame
    shown = np.floor((np.arange(frames) + 0.5) * FRAMES / frames + 1e-6).astype(int)  # mid-part
    clip = ShardedClips(packed, "train", Size(frames, 24, 40))[0]
    assert clip.video.shape == (frames, 24, 40, 3)
    assert np.array_equal(grey(clip), every[shown])


def grey(clip):
    return clip.video[:, :, 30:].float().mean((1, 2, 3)).numpy()


def test_a_frame_of_another_aspect_is_cropped_to_its_middle_undistorted():
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[:, 32:128] = 200  # the middle square, 96 wide
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    square = resize_and_crop(frame, Fraction(1), Size(1, 48, 48))
    assert square.shape == (48, 48, 3)
    assert square.min() > 150
    # pixels twice as wide as high: the picture is 320 x 96, and its middle is 96 of them
    assert (
        resize_and_crop(frame, Fraction(2), Size(1, 48, 160))[24].mean(-1).tolist()[:30] == [0] * 30
    )


def test_decoded_clips_stay_in_memory_up_to_the_limit(packed, monkeypatch):
    def opened(source):
        before = len(calls)
        source[0], source[1], source[0], source[1]
        return len(calls) - before

    calls, open_ = [], av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: calls.append(a) or open_(*a, **k))
    one_mb = 10 * 24 * 40 * 3 / 1e6
    assert opened(ShardedClips(packed, "train", SMALL)) == 4
    assert opened(ShardedClips(packed, "train", SMALL, memory_mb=1.5 * one_mb)) == 3
    assert opened(ShardedClips(packed, "train", SMALL, memory_mb=2 * one_mb)) == 2


def test_a_damaged_clip_is_reported_with_its_shard(tmp_path):
    folder = dataset(tmp_path, [row(i) for i in range(3)])
    table = pq.read_table(folder / "shards.parquet").to_pylist()
    path = folder / "shards" / table[1]["shard"]
    data = bytearray(path.read_bytes())
    data[table[1]["offset"] + 60] ^= 1
    path.write_bytes(data)
    source = ShardedClips(folder, "train", SMALL)
    with pytest.raises(BadData, match=rf"clip {table[1]['clip_id']} in .*{path.name}: its mp4"):
        source[1]
    assert source[0].clip_id == table[0]["clip_id"]
    os.truncate(path, table[2]["offset"] + 100)
    with pytest.raises(BadData, match="unexpected end of data"):
        source[2]
    path.unlink()
    with pytest.raises(BadData, match="no such file"):
        source[0]


def test_a_clip_with_too_few_frames_is_refused(tmp_path):
    folder = dataset(tmp_path, [row(0)], make=lambda c, t: write_mp4(c, t, frames=FRAMES - 20))
    with pytest.raises(BadData, match="30 of 50 frames can be decoded"):
        ShardedClips(folder, "train", SMALL)[0]


def test_a_folder_without_a_dataset_or_without_clips_is_refused(tmp_path, packed):
    with pytest.raises(BadData, match=r"shards.parquet: no such file; expected the output of"):
        ShardedClips(tmp_path, "train", SMALL)
    with pytest.raises(BadData, match="the source has no clip to train on"):
        stream_batches(ShardedClips(packed, "test", SMALL), LocalBatch(2), seed=0)


def test_changed_caption_in_a_shard_is_refused(tmp_path):
    folder = dataset(tmp_path, [row(0)])
    [shard] = (folder / "shards").iterdir()
    shard.write_bytes(shard.read_bytes().replace(b"clip 0, part 1", b"clip 0, part 7"))
    with pytest.raises(BadData, match=r"its json does not have the hash in shards\.parquet"):
        ShardedClips(folder, "train", SMALL)[0]


def test_compressed_shard_is_refused_before_it_fills_the_memory(tmp_path):
    folder = dataset(tmp_path, [row(0)])
    [shard] = (folder / "shards").iterdir()
    shard.write_bytes(gzip.compress(shard.read_bytes() + bytes(10 << 20)))
    with pytest.raises(BadData, match="invalid header"):
        ShardedClips(folder, "train", SMALL)[0]


@pytest.mark.parametrize("column", ["shard", "clip_id"])
@pytest.mark.parametrize("name", ["../../secret", "/secret", "a\x1b[2J"])
def test_name_in_a_table_of_shards_that_is_a_path_or_not_printable_is_refused(
    tmp_path, column, name
):
    folder = dataset(tmp_path, [row(0)])
    rows = pq.read_table(folder / "shards.parquet")
    at = rows.schema.get_field_index(column)
    pq.write_table(rows.set_column(at, column, [[name]]), folder / "shards.parquet")
    with pytest.raises(BadData, match="is not the name of a file"):
        ShardedClips(folder, "train", SMALL)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offset", -(1 << 40), "is at bytes 0 to -"),
        ("offset", None, "a clip has no place in a shard"),
        ("bytes", -(1 << 40), "is at bytes 0 to -"),
        ("height", 0, "lacks the clips' width, height or clip_s"),
        ("clip_s", math.nan, "lacks the clips' width, height or clip_s"),
    ],
)
def test_table_of_shards_with_impossible_numbers_is_refused(tmp_path, name, value, message):
    folder = dataset(tmp_path, [row(0)])
    rows = pq.read_table(folder / "shards.parquet")
    at, field = rows.schema.get_field_index(name), rows.schema.field(name)
    rows = rows.set_column(at, field, pa.array([value], field.type))
    pq.write_table(rows, folder / "shards.parquet")
    with pytest.raises(BadData, match=message):
        ShardedClips(folder, "train", SMALL, sizes=[Size(10, 40, 24)])[0]


def test_link_to_itself_in_a_shard_is_refused(tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        link = tarfile.TarInfo("a.json")
        link.type, link.linkname = tarfile.SYMTYPE, "a.json"
        tar.addfile(link)
    (tmp_path / "a.tar").write_bytes(data.getvalue())
    location = ClipLocation("a.tar", 0, len(data.getvalue()), {"clip_id": "a", "sha256": ""})
    with pytest.raises(BadData, match=r"a\.mp4 not at byte 0"):
        read_files(Folder(str(tmp_path)), location, ".mp4")


# ---- order


def read_samples(source, batches, share, first=0, workers=0):
    """(number, clip_id, the frames' sum) of each sample."""
    return [
        (n, clip.clip_id, int(clip.video.sum()))
        for batch in islice(stream_batches(source, share, 3, first, workers), batches)
        for n, clip in zip(batch.numbers, batch.clips, strict=True)
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of two cores
def test_the_number_of_workers_does_not_change_the_batches(packed):
    source = ShardedClips(packed, "train", SMALL)
    alone = read_samples(source, 9, LocalBatch(2))
    assert [n for n, _, _ in alone] == list(range(18))
    assert read_samples(source, 9, LocalBatch(2), workers=2) == alone
    assert read_samples(source, 9, LocalBatch(2), workers=4) == alone


def test_every_epoch_has_each_clip_once_in_a_new_order():
    source = ClipList([drawn_clips.clip(i) for i in range(7)])
    ids = [clip_id for _, clip_id, _ in read_samples(source, 14, LocalBatch(2))]
    epochs = [ids[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == source.clip_ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_memory_of_the_order_does_not_grow_with_the_epochs():
    source = ClipList([drawn_clips.clip(0)] * 20_000)
    order = SampleOrder(source, seed=0, global_batch=8)
    order[0]
    tracemalloc.start()
    for epoch in range(20):
        order[epoch * 20_000]
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 4 * 8 * 20_000  # four shuffles


@pytest.mark.parametrize("first", [1, 6, 12])
def test_batches_can_start_at_any_sample(first):
    source = ClipList([drawn_clips.clip(i) for i in range(5)])
    assert (
        read_samples(source, 4, LocalBatch(3), first)
        == read_samples(source, 24, LocalBatch(1))[first : first + 12]
    )


@pytest.mark.parametrize(("ranks", "batch"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
def test_several_ranks_read_the_same_samples_as_one(ranks, batch):
    source = ClipList([drawn_clips.clip(i) for i in range(5)])
    alone = read_samples(source, 36, LocalBatch(1))
    parts = [read_samples(source, 3, LocalBatch(batch, rank, ranks)) for rank in range(ranks)]
    for step in range(3):
        together = [s for part in parts for s in part[step * batch : (step + 1) * batch]]
        assert together == alone[step * 12 : (step + 1) * 12]


def test_random_numbers_depend_on_the_key_only():
    import torch

    def numbers(*key):
        return torch.rand(4, generator=seeded_generator(*key)).tolist()

    assert numbers(1, "noise", 7) == numbers(1, "noise", 7)
    keys = [(1, "noise", 7), (1, "noise", 8), (2, "noise", 7), (1, "drop", 7), (1, 17), (11, 7)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


def test_other_clips_have_another_digest():
    clips = [drawn_clips.clip(i) for i in range(3)]
    marks = {clip_ids_digest(ClipList(c)) for c in (clips, clips[:2], clips[::-1])}
    assert len(marks) == 3


# ---- several sizes


def test_a_clip_gets_the_size_of_the_nearest_aspect_and_length():
    sizes = [Size(88, 720, 1280), Size(88, 1280, 720), Size(40, 720, 1280), Size(176, 720, 1280)]
    for width, height, seconds, expected in (
        (1920, 1080, 15.0, 0),
        (1080, 1920, 15.0, 1),
        (608, 1080, 60.0, 1),
        (1280, 720, 7.0, 2),
        (1280, 720, 28.0, 3),
        (1300, 720, 15.4, 0),
    ):
        assert nearest_size(sizes, width, height, seconds) == expected


class SizedClips:
    def __init__(self, size_indices):
        self.size_indices = size_indices
        self.clip_ids = [str(i) for i in range(len(size_indices))]


@pytest.mark.parametrize("counts", [(20, 10, 7), (7, 3, 1), (1000, 3)])
def test_steps_have_one_size_and_all_clips_are_shown_equally_often(counts):
    sizes = [size for size, count in enumerate(counts) for _ in range(count)]
    order = SampleOrder(SizedClips(sizes), seed=3, global_batch=16)
    epochs = 16 if sum(counts) < 100 else 6
    steps = order.steps_before(epochs)
    shown = np.array([order[i] for i in range(16 * steps)]).reshape(-1, 16)
    of_step = np.array(sizes)[shown]
    assert (of_step == of_step[:, :1]).all()
    times = np.bincount(shown.ravel(), minlength=len(sizes))
    for size in range(len(counts)):
        of_size = times[np.array(sizes) == size]
        assert of_size.max() - of_size.min() <= 1
        assert abs(of_size.mean() - epochs) <= 8 / counts[size]  # half a batch
    assert [order.epoch_of(order.steps_before(e)) for e in range(1, 4)] == [1, 2, 3]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 4), (2, 2), (2, 8), (4, 1), (4, 4)])
def test_clips_of_several_sizes_are_the_same_for_any_ranks_and_split(ranks, accumulate):
    sizes = [0] * 20 + [1] * 10 + [2] * 7
    source = ClipList([drawn_clips.clip(i) for i in range(37)])
    source.size_indices = sizes
    alone = read_samples(source, 6, LocalBatch(16))
    size = 16 // ranks // accumulate
    parts = [
        read_samples(source, 6 * accumulate, LocalBatch(size, rank, ranks, accumulate))
        for rank in range(ranks)
    ]
    assert sorted(sample for part in parts for sample in part) == alone
    resumed = read_samples(source, 4 * accumulate, LocalBatch(size, 0, ranks, accumulate), 32)
    assert resumed == parts[0][2 * 16 // ranks :]


def test_a_size_with_fewer_clips_than_a_step_is_reported():
    sizes = [Size(88, 720, 1280), Size(88, 1280, 720)]
    assert report_rare_sizes(SizedClips([0] * 500), sizes, 256) == []
    (line,) = report_rare_sizes(SizedClips([0] * 500 + [1] * 4), sizes, 256)
    assert line == (
        "size 88 x 1280 x 720: 4 clips, fewer than the 256 samples of a step; one epoch in 64 has "
        "such a step, which shows each of them 64 times"
    )


class LongCaptions:
    """Clips whose captions fill a pipe."""

    clip_ids = tuple("abcd")

    def __init__(self, is_remote):
        self.is_remote = is_remote  # starts readers by forkserver

    def __getitem__(self, _index):
        video = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
        return Clip("a", video, 1.0, [(0.0, 1.0)], ["x" * 100_000], "all")


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_reader_that_is_killed_while_it_sends_is_an_error_and_never_waited_for(is_remote):
    batches = stream_batches(LongCaptions(is_remote), LocalBatch(1), 0, workers=1)
    next(batches)
    (reader,) = multiprocessing.active_children()
    time.sleep(1)  # two more batches are read and on their way
    os.kill(reader.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(islice(batches, 4))
