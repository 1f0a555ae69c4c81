"""Training on a dataset in an object store: the clips, frames and losses of the local one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("safetensors")

from curation.config import ConfigError
from curation.stage import OutputError
from tests.chaos.proxy import Proxy
from tests.support.drawn_clips import dataset, row
from tests.support.s3_server import url_options
from tests.support.stores import Bucket, create_bucket, run_server
from tests.support.tiny_run import SYSTEM, children, tiny_config, write_config
from training import checkpoint
from training.clips import BadData, ShardedClips
from training.config import DataConfig
from training.latent_cache import open_source
from training.precompute import precompute
from training.train import main, train

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Five clips for training in two shards, two for validation."""
    rows = [row(i, "validation" if i > 4 else "train") for i in range(7)]
    return dataset(tmp_path_factory.mktemp("dataset"), rows)


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, packed) -> Iterator[Bucket]:
    """A bucket with the dataset in `data`."""
    if request.param == "gs":
        pytest.importorskip("gcp_storage_emulator")
    with run_server(request.param) as address:
        found = create_bucket(request.param, address, "trainer")
        found.put_folder("data", packed)
        yield found


@pytest.fixture(scope="module")
def local_run(packed, tmp_path_factory):
    """The losses and tensors of an uninterrupted run on the local dataset."""
    cfg = configured(tmp_path_factory.mktemp("run"), str(packed))
    return run(cfg), tensors(cfg)


def configured(folder, place: str, workers=0, **changes):
    data = DataConfig(dataset=place, workers=workers)
    return replace(tiny_config(folder, **changes), data=data)


def run(cfg) -> list[float]:
    return train(cfg, *(open_source(cfg.system, cfg.data, split) for split in SPLITS))


def tensors(cfg) -> dict:
    last = checkpoint.list_checkpoints(cfg.run_dir)[-1]
    return {name: tensor.tolist() for name, tensor in checkpoint.read_tensors(last).items()}


def test_clips_in_a_store_are_those_of_the_local_dataset(bucket, packed):
    for split in SPLITS:
        local = ShardedClips(packed, split, SYSTEM.size)
        remote = ShardedClips(bucket.url("data"), split, SYSTEM.size)
        assert list(remote.clip_ids) == list(local.clip_ids)
        for i in range(len(local.clip_ids)):
            assert torch.equal(remote[i].video, local[i].video)
            assert replace(remote[i], video=None) == replace(local[i], video=None)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of two cores
def test_run_on_a_store_resumes_and_equals_the_local_run(bucket, local_run, tmp_path):
    cfg = configured(tmp_path, bucket.url("data"), steps=2)
    first = run(cfg)
    cfg = configured(tmp_path, bucket.url("data"), workers=2)
    assert (first + run(cfg), tensors(cfg)) == local_run


def test_latent_cache_of_a_dataset_in_a_store_trains_like_the_shards(bucket, local_run, tmp_path):
    cfg = configured(tmp_path / "run", bucket.url("data"))
    data = replace(cfg.data, cache=str(tmp_path / "cache"))
    precompute(cfg.system, data)
    bucket.put_folder("cache", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    cfg = replace(cfg, data=replace(data, cache=bucket.url("cache")))
    assert (run(cfg), tensors(cfg)) == local_run
    with pytest.raises(ConfigError, match="expected a local folder to write to"):
        precompute(cfg.system, cfg.data)


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_killed_reader_of_a_store_stops_the_run_in_one_line(bucket, tmp_path):
    """It is no child of the trainer, which gets no signal of its death."""
    path = write_config(tmp_path, tiny_config(tmp_path / "run", steps=100_000, save_every=2))
    settings = [f"data.dataset={bucket.url('data')}", "data.workers=1"]
    command = [sys.executable, "-m", "training.train", path, *settings]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not checkpoint.list_checkpoints(tmp_path / "run"):
            assert running.poll() is None
            time.sleep(0.1)
        (reader,) = [reader for child in children(running.pid) for reader in children(child)]
        os.kill(reader, signal.SIGKILL)
        _, message = running.communicate()
    finally:
        running.kill()
    assert running.returncode == 1
    assert message.startswith("WorkerDied: DataLoader worker")
    assert "Traceback" not in message
    assert "resumes from the last checkpoint" in message


def test_missing_buckets_folders_and_shards_are_reported_in_one_line(bucket, packed, tmp_path):
    path = write_config(tmp_path, tiny_config(tmp_path / "run"))
    bucket.put("partial/shards.parquet", (packed / "shards.parquet").read_bytes())
    nowhere = replace(bucket, store=bucket.store.replace("trainer", "nowhere"))
    for url, message in (
        (bucket.url("none"), r"BadData: .*/none/shards\.parquet.*: no such file; expected the"),
        (nowhere.url("data"), r"BadData: .*nowhere/data/shards\.parquet.*: no such file"),
        (bucket.url("partial"), r"BadData: clip \w{24} in .*partial/shards/train-000000\.tar"),
        ("s3:///data", r"OutputError: s3:///data.*: has no bucket; expected s3://BUCKET/FOLDER"),
        ("s3://a:b@c/data", r"OutputError: s3://…: URLs .* set AWS_ACCESS_KEY_ID"),
    ):
        with pytest.raises(SystemExit, match=message) as stopped:
            main([path, f"data.dataset={url}", "data.workers=0"])
        assert len(str(stopped.value).splitlines()) == 1


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Before an S3 server that has the bucket `proxied`. (Google's client holds the GIL while it
    waits, so it can't reach a server in its own process.)"""
    with run_server("s3") as address:
        create_bucket("s3", address, "proxied")
        found = Proxy(address)
        yield found
        found.close()


@pytest.fixture
def remote(proxy, packed) -> ShardedClips:
    """The clips for training, none of them read yet."""
    url = f"s3://proxied/data?{url_options(proxy.address)}"
    bucket = create_bucket("s3", proxy.address, "proxied")
    bucket.put_folder("data", packed)
    return ShardedClips(url, "train", SYSTEM.size)


def test_a_clip_is_one_request_and_a_shard_one_more(proxy, remote):
    proxy.requests.clear()
    assert len({location.shard for location in remote.locations.values()}) == 2
    for _ in range(3):
        for i in range(len(remote.clip_ids)):
            remote[i]
    kinds = [line.split()[0] for line in proxy.requests]
    assert (kinds.count("GET"), kinds.count("HEAD"), len(kinds)) == (3 * 5, 2, 3 * 5 + 2)
    assert not any("parquet" in line for line in proxy.requests)


def test_a_cut_connection_is_retried_and_never_a_bad_clip(proxy, remote, packed):
    def end_fault():
        while proxy.faults_done < 3:
            time.sleep(0.01)
        proxy.fault = ""

    expected = ShardedClips(packed, "train", SYSTEM.size)
    proxy.fault = "cut"
    threading.Thread(target=end_fault, daemon=True).start()
    assert torch.equal(remote[0].video, expected[0].video)
    assert proxy.faults_done >= 3
    for fault, i in (("cut data", 1), ("cut", 1), ("cut", 4)):  # 4 is in a shard not open yet
        proxy.fault = fault
        proxy.requests.clear()
        with pytest.raises(OutputError, match=r"^can't read s3://proxied/data/shards/train-"):
            remote[i]
        assert len(proxy.requests) < 40
    proxy.fault = ""
    assert torch.equal(remote[4].video, expected[4].video)


def test_a_shard_that_ends_early_is_bad_data(proxy, remote, packed):
    shard = (packed / "shards/train-000000.tar").read_bytes()
    bucket = create_bucket("s3", proxy.address, "proxied")
    bucket.put("data/shards/train-000000.tar", shard[: remote.locations[remote.clip_ids[2]].start])
    assert remote[1].clip_id == remote.clip_ids[1]
    with pytest.raises(BadData, match=rf"clip {remote.clip_ids[2]} in .*train-000000\.tar"):
        remote[2]
    bucket.put("data/shards/train-000000.tar", shard)
    assert remote[2].clip_id == remote.clip_ids[2]
