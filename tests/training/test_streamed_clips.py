"""Training on WebDataset shards that other tools wrote."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from dataclasses import replace
from itertools import islice

import pytest

torch = pytest.importorskip("torch")
wds = pytest.importorskip("webdataset")

from curation.config import ConfigError
from curation.stage import OutputError
from tests.chaos.proxy import Proxy
from tests.support.drawn_clips import dataset, row, write_mp4
from tests.support.s3_server import url_options
from tests.support.stores import create_bucket, run_server
from tests.support.tiny_run import SYSTEM, tiny_config, write_config
from tests.support.video_files import draw
from training import checkpoint
from training.clips import BadData, ShardedClips
from training.config import DataConfig, Size
from training.data import LocalBatch, stream_batches
from training.latent_cache import open_source
from training.sca import segment_starts
from training.streamed_clips import StreamedClips
from training.train import main, train

SMALL = Size(10, 24, 40)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    """2 s of 160 x 96 px."""
    path = tmp_path_factory.mktemp("mp4") / "clip.mp4"
    write_mp4({"video": "1"}, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, mp4):
    """The pattern of six shards with 3, 2, 3, 2 … clips, as img2dataset names them."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(6):
        with wds.TarWriter(str(folder / f"{number:05d}.tar")) as out:
            for i in range(3 - number % 2):
                sample = {"__key__": f"{number:05d}{i:04d}", "mp4": mp4, "txt": "unused"}
                out.write(sample | {"json": {"caption": f"clip {i} of {number}", "url": "-"}})
    return f"{folder}/{{00000..00005}}.tar"


def write_shard(path, **files):
    """A tar of these files, in their order; _ in a name stands for the dot."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def ids_of(source, batches, local=LocalBatch(1), seed=0, first=0, workers=0):  # noqa: B008
    stream = islice(stream_batches(source, local, seed, first, workers), batches)
    return [(n, c.clip_id) for b in stream for n, c in zip(b.numbers, b.clips, strict=True)]


def test_shards_of_the_project_give_the_same_clips_as_a_stream(tmp_path):
    folder = dataset(tmp_path, [row(i) for i in range(7)])
    by_index = ShardedClips(folder, "train", SMALL)
    stream = StreamedClips(f"{folder}/shards/train-00000{{0..2}}.tar", SMALL, shuffle_clips=4)
    for batch in islice(stream_batches(stream, LocalBatch(1), seed=0), 7):
        clip = by_index[by_index.clip_ids.index(batch.clips[0].clip_id)]
        assert torch.equal(batch.video[0], clip.video)
        [streamed] = batch.clips
        assert replace(streamed, video=None) == replace(clip, video=None)


def test_a_foreign_caption_is_one_segment_of_the_whole_clip(shards):
    clip = StreamedClips(shards, SMALL)[0]
    assert (clip.clip_id, clip.caption, clip.sub_captions) == (
        *("000000000", "clip 0 of 0"),
        ["clip 0 of 0"],
    )
    assert clip.duration_s == pytest.approx(2)
    assert clip.spans == [(0, clip.duration_s)]
    assert clip.video.shape == (10, 24, 40, 3)


def test_every_epoch_has_each_clip_once_in_another_order(shards):
    source = StreamedClips(shards, SMALL, shuffle_clips=5)
    samples = ids_of(source, 30)
    assert [n for n, _ in samples] == list(range(30))
    epochs = [[key for _, key in samples[i : i + 15]] for i in (0, 15)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 15
    assert epochs[0] != epochs[1]
    assert ids_of(source, 30) == samples
    assert ids_of(source, 30, seed=1) != samples
    assert [key for _, key in ids_of(source, 15, first=15)] != epochs[1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of two cores
@pytest.mark.parametrize("workers", [0, 1, 3, 8])
def test_ranks_and_workers_share_the_shards(shards, workers):
    """Two ranks with up to three workers each: the first 15 clips of an epoch, none twice."""
    source = StreamedClips(shards, SMALL, shuffle_clips=0)
    # a shard a worker has at least two clips; with one reader a rank has three shards
    each = 7 if workers < 2 else 6
    parts = [ids_of(source, each, LocalBatch(1, rank, 2), workers=workers) for rank in (0, 1)]
    assert [[n for n, _ in part] for part in parts] == [
        list(range(rank, 2 * each, 2)) for rank in (0, 1)
    ]
    keys = [key for part in parts for _, key in part]
    assert len(set(keys)) == len(keys)


def test_fewer_shards_than_ranks_are_refused(shards):
    with pytest.raises(BadData, match=r"6 shards of data\.webdataset for 7 processes: each needs"):
        ids_of(StreamedClips(shards, SMALL), 1, LocalBatch(1, 0, 7))


def test_clips_get_the_nearest_size_and_a_batch_has_one(tmp_path, mp4):
    tall = draw(tmp_path / "tall.mp4", frames=50, width=96, height=160).read_bytes()
    both = {}
    for i in range(3):
        both |= {f"w{i}_mp4": mp4, f"w{i}_json": {"caption": "wide"}}
        both |= {f"t{i}_mp4": tall, f"t{i}_json": {"caption": "tall"}}
    path = write_shard(tmp_path / "a.tar", **both)
    source = StreamedClips(path, SMALL, (Size(10, 40, 24),))
    for batch in islice(stream_batches(source, LocalBatch(3), seed=0), 4):
        [kind] = {clip.caption for clip in batch.clips}
        assert batch.video.shape[2:4] == ((24, 40) if kind == "wide" else (40, 24))


SPANS = [
    {"start_s": 0, "end_s": 0.5, "text": "a"},
    {"start_s": 0.5, "end_s": 2.0, "text": "b"},
]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"k_json": {"caption": "x"}}, r"key k: no \.mp4; it has \.json"),
        ({"k_mp4": b"", "k_txt": b"x"}, r"key k: no \.json; it has \.mp4, \.txt"),
        (
            {"k_mp4": None, "k_json": {"text": "x"}},
            "key k: its JSON has no text `caption`; .* text",
        ),
        ({"k_mp4": None, "k_json": b"{"}, "key k: Expecting property name"),
        ({"k_mp4": b"none", "k_json": {"caption": "x"}}, "key k: its mp4 can't be decoded"),
        (
            {"k_mp4": None, "k_json": {"caption": "x", "sub_captions": ["a", "b"]}},
            "key k: its sub_captions are not a list of objects with start_s, end_s and text",
        ),
        (
            {
                "k_mp4": None,
                "k_json": {"caption": "x", "sub_captions": [SPANS[0], SPANS[1] | {"end_s": 9}]},
            },
            r"key k: a sub-caption's span is 0\.5 to 9 s; the mp4 has 2\.000 s",
        ),
        (
            {
                "k_mp4": None,
                "k_json": {"caption": "x", "sub_captions": [SPANS[0], SPANS[1] | {"start_s": 1}]},
            },
            r"key k: segment 1 ends at 0\.5 s and segment 2 starts at 1\.0 s",
        ),
        (
            {
                "k_mp4": None,
                "k_json": {
                    "caption": "x",
                    "sub_captions": [SPANS[0], SPANS[1] | {"end_s": 10**400}],
                },
            },
            "key k: int too large to convert to float",
        ),
        ({"k_mp4": None, "l_json": {"caption": "x"}}, r"key k: no \.json; it has \.mp4$"),
    ],
)
def test_an_error_names_shard_and_key(tmp_path, mp4, files, message):
    files = {name: mp4 if data is None else data for name, data in files.items()}
    path = write_shard(tmp_path / "a.tar", **files)
    with pytest.raises(BadData, match=rf"^shard {path}, {message}"):
        StreamedClips(path, SMALL)


def test_sub_captions_with_spans_are_segments(tmp_path, mp4):
    files = {"k_mp4": mp4, "k_json": {"caption": "x", "sub_captions": SPANS}}
    clip = StreamedClips(write_shard(tmp_path / "a.tar", **files), SMALL)[0]
    assert (clip.spans, clip.sub_captions, clip.caption) == ([(0, 0.5), (0.5, 2)], ["a", "b"], "x")


def test_the_first_and_the_last_segment_reach_to_the_ends_of_the_video(tmp_path, mp4):
    parts = [SPANS[0] | {"start_s": 0.2}, SPANS[1] | {"end_s": 1.5}]
    files = {"k_mp4": mp4, "k_json": {"caption": "x", "sub_captions": parts}}
    clip = StreamedClips(write_shard(tmp_path / "a.tar", **files), SMALL)[0]
    assert clip.spans == [(0, 0.5), (0.5, clip.duration_s)]
    assert segment_starts(clip.spans, 8) == [0, 2, 8]  # frames of the whole video


def test_missing_truncated_and_empty_shards_are_named(tmp_path, mp4):
    good = write_shard(tmp_path / "0.tar", k_mp4=mp4, k_json={"caption": "x"})
    for content, message in (
        (None, "no such file"),
        ((tmp_path / "0.tar").read_bytes()[:2000], "unexpected end of data"),
        (b"", "empty file"),
        (b"no tar" * 500, "invalid header"),
    ):
        bad = tmp_path / "1.tar"
        if content is not None:
            bad.write_bytes(content)
        with pytest.raises(BadData, match=rf"^shard {bad}: {message}"):
            StreamedClips(str(bad), SMALL)
        with pytest.raises(BadData, match=rf"^shard {bad}: {message}"):
            ids_of(StreamedClips(f"{tmp_path}/{{0,1}}.tar", SMALL), 3)
    write_shard(tmp_path / "2.tar")
    with pytest.raises(BadData, match="no files in it"):
        StreamedClips(str(tmp_path / "2.tar"), SMALL)
    assert StreamedClips(good, SMALL)[0].caption == "x"
    with pytest.raises(ConfigError, match=r"data\.webdataset is '.*\{0\.\.1': Unbalanced"):
        StreamedClips(f"{tmp_path}/{{0..1", SMALL)


def test_command_of_a_shard_is_not_run(tmp_path):
    with pytest.raises(BadData, match="no such file"):
        StreamedClips(f"pipe:touch {tmp_path}/run", SMALL)
    assert not (tmp_path / "run").exists()


def test_run_on_a_stream_trains_and_resumes_with_a_warning(shards, tmp_path, capsys):
    def run(folder, steps):
        data = DataConfig(webdataset=shards, workers=1)
        cfg = replace(tiny_config(tmp_path / folder, steps=steps), data=data)
        splits = [open_source(cfg.system, cfg.data, split) for split in ("train", "validation")]
        losses = train(cfg, *splits)
        last = checkpoint.list_checkpoints(cfg.run_dir)[-1]
        return losses, {k: v.tolist() for k, v in checkpoint.read_tensors(last).items()}

    first = run("a", 3)
    assert "a run that resumes begins its shards again, in another order" in capsys.readouterr().out
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    assert len(first[0]) == 3
    resumed = run("a", 6)
    assert len(resumed[0]) == 3
    assert run("b", 6) == resumed  # the same resumption gives the same run


def test_settings_that_a_stream_does_not_have_are_refused(shards, tmp_path):
    path = write_config(tmp_path, tiny_config(tmp_path / "run"))
    for setting, message in (
        ("data.cache=x", "ConfigError: .*data.cache holds clips of data.dataset"),
        ("data.reader=decord", "ConfigError: .*data.reader: decord needs the frame counts"),
        ("data.shuffle_clips=-1", "ConfigError: .*shuffle_clips"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([path, f"data.webdataset={shards}", setting])
    main([path, "--dry-run", f"data.webdataset={shards}", "data.workers=0"])


def test_shards_in_an_object_store_are_streamed(shards):
    local = StreamedClips(shards, SYSTEM.size)
    with run_server("s3") as address:
        bucket = create_bucket("s3", address, "foreign")
        for url in local.urls:
            with open(url, "rb") as file:
                bucket.put(f"in/{url[-9:]}", file.read())
        url = bucket.url("in/00000.tar").replace("00000.tar", "{00000..00005}.tar")
        remote = StreamedClips(url, SYSTEM.size)
        for workers in (0, 1):
            assert ids_of(remote, 15, workers=workers) == ids_of(local, 15, workers=workers)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("cut data", r"none of \d+ bytes arrived"), ("cut", r"0 bytes of foreign/a\.tar arrived;.*")],
)
def test_shard_that_the_connection_cuts_off_is_no_bad_shard(shards, fault, reason):
    with open(StreamedClips(shards, SMALL).urls[0], "rb") as file, run_server("s3") as server:
        bucket = create_bucket("s3", server, "foreign")
        bucket.put("a.tar", file.read())
        proxy = Proxy(server)
        url = f"{bucket.store}/a.tar?{url_options(proxy.address)}"
        source = StreamedClips(url, SMALL)
        proxy.fault = fault
        for read in (lambda: StreamedClips(url, SMALL), lambda: next(source.read(0, 1, ""))):
            with pytest.raises(OutputError, match=rf"^can't read {re.escape(url)}: {reason}$"):
                read()
        proxy.fault = ""
        [_, clip] = next(source.read(0, 1, ""))
        assert clip.caption == "clip 0 of 0"
        proxy.close()
