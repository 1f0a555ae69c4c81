"""Input and output in object stores: an S3 and a Google server on this machine, over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.access_check import AccessCheck
from curation.isolate import Isolated
from curation.stage import BadVideo, OutputError, TransientError
from curation.storage import Folder
from curation.urls import InputError
from curation.video.source import RangeFile
from curation.video_files import local_copy
from curation.video_list import FileError, list_videos, stat_video
from pipelines import show, verify
from stages.export.export_stages import _working_folder
from tests.chaos.proxy import Proxy
from tests.curation.test_resume import run_all, settings
from tests.support.canary import files_with_canary
from tests.support.large_object import object_of_zeros
from tests.support.paths import REPOSITORY
from tests.support.s3_server import url_options
from tests.support.stores import Bucket, create_bucket, run_server
from tests.support.whole_run import curate, kill_when, wait_for_end


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request) -> Iterator[tuple[str, str]]:
    """The scheme of the server, and HOST:PORT."""
    if request.param == "gs":
        pytest.importorskip("gcp_storage_emulator")
    with run_server(request.param) as address:
        yield request.param, address


@pytest.fixture
def bucket(server, request) -> Bucket:
    return create_bucket(*server, f"b{abs(hash(request.node.name))}")


def names(listed, bucket: Bucket) -> list[str]:
    return [v.video.removeprefix(f"{bucket.store}/").partition("?")[0] for v in listed]


def test_input_is_a_prefix_an_object_a_pattern_or_a_list(bucket):
    for name in ("in/a.mp4", "in/sub/b.MKV", "in/sub/deep/c.mp4", "in/notes.txt", "other/d.mp4"):
        bucket.put(name)
    assert names(list_videos(bucket.url("in")), bucket) == [
        *("in/a.mp4", "in/sub/b.MKV", "in/sub/deep/c.mp4")
    ]
    assert names(list_videos(bucket.url("in/a.mp4")), bucket) == ["in/a.mp4"]
    assert names(list_videos(bucket.url("in/*.mp4")), bucket) == ["in/a.mp4"]
    assert names(list_videos(bucket.url("*/*.mp4")), bucket) == ["in/a.mp4", "other/d.mp4"]
    assert names(list_videos(bucket.url("in/**/*.mp4")), bucket) == [
        *("in/a.mp4", "in/sub/deep/c.mp4")
    ]
    assert names(list_videos(bucket.url("in/s*/**")), bucket) == [
        *("in/sub/b.MKV", "in/sub/deep/c.mp4")
    ]
    bucket.put("in/list.txt", f"# two\na.mp4\n{bucket.url('other/d.mp4')}\nmissing.mp4\n".encode())
    listed = list(list_videos(bucket.url("in/list.txt")))
    assert names(listed, bucket) == ["in/a.mp4", "other/d.mp4", "in/missing.mp4"]
    assert [v.bytes for v in listed] == [1, 1, -1]
    assert all(v.video.endswith(bucket.options) for v in listed)


def test_objects_with_unusual_names_are_listed_and_opened(bucket):
    unusual = [
        "with space.mp4",
        "-dash.mp4",
        "ünï.mp4",
        "100%20.mp4",
        "a+b.mp4",
        "what?.mp4",
        "#.mp4",
    ]
    for name in unusual:
        bucket.put(f"in/{name}", name.encode())
    for listed in list_videos(bucket.url("in")):
        with local_copy(listed.video) as path:
            unusual.remove(Path(path).read_text())
        assert stat_video(listed.video) == listed
    assert unusual == []


def test_missing_objects_buckets_and_servers_are_named_in_the_error(bucket, server):
    bucket.put("in/folder/a.mp4")
    for path in ("none", "none/*.mp4", "in/fold*"):
        with pytest.raises(InputError, match="no such file or folder, and no file matches it"):
            list(list_videos(bucket.url(path)))
    with pytest.raises(BadVideo, match="can't be fetched"), local_copy(bucket.url("missing.mp4")):
        pass
    unreachable = bucket.options.replace(server[1].rpartition(":")[2], "9")
    lost = f"{bucket.store}/in/a.mp4?{unreachable}"
    no_bucket = bucket.store.replace(bucket.name, "nobucket")
    access = AccessCheck(None, videos=(lost, bucket.url("missing.mp4")))

    def fetch() -> None:
        with local_copy(lost):
            pass

    with ThreadPoolExecutor() as threads:  # the clients of the stores retry for seconds
        fetched = threads.submit(fetch)
        stat = threads.submit(stat_video, lost)
        checked = threads.submit(access.run)
        listed = threads.submit(lambda: list(list_videos(f"{bucket.store}/in?{unreachable}")))
        written = threads.submit(Folder(f"{no_bucket}/out?{bucket.options}").write, "a.txt", b"")
    with pytest.raises(TransientError, match=r"can't fetch .*a\.mp4"):
        fetched.result()
    assert stat.result().bytes == FileError.UNREACHABLE
    with pytest.raises(InputError, match="can't read the input"):
        checked.result()
    with pytest.raises(InputError, match="can't be reached"):
        listed.result()
    with pytest.raises(OutputError, match=f"can't write {no_bucket}/out/a.txt"):
        written.result()


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from curation.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as part:
    part.write_bytes(b"half of a clip")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_file_that_a_killed_child_was_writing_is_not_copied_to_the_store(bucket):
    out = Folder(bucket.url("out"))
    with _working_folder(out, last="a.json") as folder:
        command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder / "presto/videos/a.mp4")]
        killed = subprocess.run(command, cwd=REPOSITORY)
        assert killed.returncode == -signal.SIGKILL
        assert len(list((folder / "presto/videos").iterdir())) == 1
        for name in ("a.json", "presto/videos/a.mp4"):
            Folder(str(folder)).write(name, b"whole")
    copied = {Path(path).name for path in bucket.files("out")}
    assert copied == {"a.json", "a.mp4"}


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_answers_that_are_cut_off_are_errors_of_the_store_and_no_empty_files(bucket, server):
    """pyarrow takes a header that is cut off for an object without bytes."""
    data = os.urandom(20_000)
    Folder(bucket.url("out")).write("frame.jpg", data)
    Folder(bucket.url("out")).write_table("table.parquet", pa.table({"n": range(1000)}))
    proxy = Proxy(server[1])
    url = f"{bucket.store}/out?{url_options(proxy.address)}"
    out = Folder(url)
    assert out.read("frame.jpg") == data
    proxy.fault = "cut"
    for read in (out.read, out.sha256, out.read_table, out.read_schema):
        name = "frame.jpg" if read in (out.read, out.sha256) else "table.parquet"
        with pytest.raises(OutputError, match="can't read s3://"):
            read(name)
    video = url.replace("/out?", "/out/frame.jpg?")
    with pytest.raises(TransientError, match="can't fetch"), local_copy(video, len(data)):
        pass
    proxy.fault = ""
    too_large = pytest.raises(TransientError, match="the temporary folder has")
    with too_large, local_copy(video, 1 << 50):
        pass
    assert out.read_table("table.parquet").num_rows == 1000
    with local_copy(video, len(data)) as path:
        assert Path(path).read_bytes() == data
    proxy.close()


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_answers_whose_data_never_arrives_are_errors_of_the_store_and_no_data(bucket, server):
    """pyarrow then returns the memory of its buffer, with the size of the object."""
    data = b"a.mp4\n" * 200_000
    bucket.put("in/list.txt", data)
    proxy = Proxy(server[1])
    options = url_options(proxy.address)
    video, folder = f"{bucket.store}/in/list.txt?{options}", Folder(f"{bucket.store}/in?{options}")
    part = RangeFile(video, len(data))

    def fetch() -> None:
        with local_copy(video, len(data)):
            pass

    proxy.fault = "cut data"
    for error, read in (
        (OutputError, lambda: folder.read("list.txt")),
        (OutputError, lambda: folder.sha256("list.txt")),
        (InputError, lambda: list(list_videos(video))),
        (TransientError, fetch),
        (TransientError, lambda: part.read(100)),
    ):
        with pytest.raises(error, match=r"none of \d+ bytes arrived"):
            read()
    proxy.fault = ""
    assert (folder.read("list.txt"), part.read(6)) == (data, b"a.mp4\n")
    proxy.requests.clear()
    folder.read("list.txt")
    assert sum(request.startswith("GET") for request in proxy.requests) == 2
    proxy.close()


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_list_that_is_cut_off_is_no_empty_folder(bucket, server):
    bucket.put("out/videos/a.parquet", b"a")
    proxy = Proxy(server[1])
    folder = Folder(f"{bucket.store}/out?{url_options(proxy.address)}")
    for read in (lambda: folder.names("videos"), folder.subfolders):
        proxy.fault = "cut list"
        assert len(read()) == 1
        assert not proxy.fault
    proxy.close()


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, (1 << 20) - 1, 1 << 20, (9 << 20) + 1])
def test_objects_of_any_size_are_read_whole(bucket, size):
    data = os.urandom(size)
    bucket.put("in/a.mp4.gz", data)  # not unpacked because of its name
    folder = Folder(bucket.url("in"))
    assert folder.read("a.mp4.gz") == data
    assert folder.sha256("a.mp4.gz") == hashlib.sha256(data).hexdigest()
    with local_copy(bucket.url("in/a.mp4.gz"), size) as path:
        assert Path(path).read_bytes() == data


def test_keys_in_a_url_are_refused_and_not_printed():
    for url in ("s3://name:secret@bucket/in", "s3://bucket/in?secret_key=secret"):
        with pytest.raises(InputError, match="they must not contain keys") as refused:
            list(list_videos(url))
        assert "secret@" not in str(refused.value)
        assert "=secret" not in str(refused.value)


def clip_hashes(shards: list[dict]) -> dict[str, str]:
    return {row["clip_id"]: row["sha256"] for row in shards}


def test_clips_in_an_object_store_equal_those_on_a_disk(dataset, bucket, cluster):
    bucket.put("in/a b.mp4", dataset.videos["kept"].read_bytes())
    bucket.put("in/text.mp4", b"not a video at all\n")
    run = settings(bucket.url("in"), bucket.url("out"))  # type: ignore[arg-type]
    run_all(run, cluster)
    rows = {row["video"]: row for row in bucket.table("out/videos.parquet")}
    assert rows[bucket.url("in/a b.mp4")]["clips"] == 1
    assert rows[bucket.url("in/text.mp4")]["error"].startswith("not a video")
    [made] = bucket.table("out/shards.parquet")
    known = clip_hashes(pq.read_table(dataset.out / "shards.parquet").to_pylist())
    assert made["sha256"] == known[made["clip_id"]]

    first = bucket.files("out")
    content = {path: bucket.fs.open_input_stream(path).read() for path in first}
    assert files_with_canary(content) == []  # AWS_SECRET_ACCESS_KEY of all tests
    shard = f"{bucket.name}/out/shards/{made['shard']}"
    bucket.fs.delete_file(shard)  # as if the run had been killed before it was written
    run_all(run, cluster)
    again = bucket.files("out")
    assert again.keys() == first.keys()
    written_once = (
        "/ledger/videos/",
        "/ledger/key_frames/",
        "/ledger/captions/measured/",
        "/shards/",
    )
    rewritten = {
        p for p in again if again[p] != first[p] and any(part in p for part in written_once)
    }
    assert rewritten == {shard, f"{bucket.name}/out/ledger/shards/{made['shard']}.json"}


def exists(bucket: Bucket, part: str) -> Callable[[], bool]:
    return lambda: any(part in path for path in bucket.files("out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["ledger/key_frames/", "ledger/videos/part-", "shards/", "presto/"]
)
def test_killed_run_in_an_object_store_resumes_without_loss(dataset, bucket, part):
    bucket.put_folder("in", dataset.source)
    run = (bucket.url("in"), bucket.url("out"))
    kill_when(curate(*run), exists(bucket, part))  # type: ignore[arg-type]
    last = wait_for_end(curate(*run))  # type: ignore[arg-type]
    assert last.exit_code == 0, last.stderr
    known = clip_hashes(pq.read_table(dataset.out / "shards.parquet").to_pylist())
    assert clip_hashes(bucket.table("out/shards.parquet")) == known
    assert len(bucket.table("out/clips.parquet")) == 6


def test_files_that_a_killed_run_left_in_a_store_are_deleted(bucket):
    out = Folder(bucket.url("out"))
    access = AccessCheck.prepare(out.url, ())
    out.write("clips.parquet", b"")
    assert out.exists(access.file)
    out.delete_unfinished(skip="key_frames")
    assert (out.exists(access.file), out.exists("clips.parquet")) == (False, True)


def test_interrupted_upload_leaves_no_part_of_a_file(bucket, tmp_path):
    source, ended = tmp_path / "source", threading.Event()
    source.write_bytes(os.urandom(64 << 20))

    def interrupt() -> None:
        while not (is_partly_read(source) or ended.is_set()):
            time.sleep(0.0005)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    out, watcher = Folder(bucket.url("upload")), threading.Thread(target=interrupt)

    def upload() -> None:
        watcher.start()
        try:
            out.upload("shard.tar", source)
        finally:
            ended.set()
            watcher.join()

    with pytest.raises(KeyboardInterrupt):
        upload()
    assert not out.exists("shard.tar") or out.read("shard.tar") == source.read_bytes()


def test_upload_of_a_file_that_cannot_be_read_leaves_the_earlier_object(bucket):
    out = Folder(bucket.url("upload"))
    out.write("old.tar", b"earlier")
    for name in ("new.tar", "old.tar"):
        with pytest.raises(OutputError, match=rf"can't write .*{name}.*: .*Input/output error"):
            out.upload(name, "/proc/self/mem")  # a read at its start is an I/O error
    assert (out.names(), out.read("old.tar")) == (["old.tar"], b"earlier")


def test_upload_that_fails_in_the_middle_completes_no_object_when_its_process_ends(bucket):
    started = subprocess.run(
        [sys.executable, "-m", "tests.support.failing_upload", bucket.url("upload/x.tar")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert started.returncode == 3
    assert bucket.files("upload") == {}


def is_partly_read(path: Path) -> bool:
    """Whether this process has the file open, and is beyond its start."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if descriptor.readlink() == path:
                return "pos:\t0\n" not in Path(f"/proc/self/fdinfo/{descriptor.name}").read_text()
    return False


def test_output_in_a_store_is_shown(bucket, dataset, capsys):
    bucket.put_folder("out", dataset.out)
    show.main([bucket.url("out")])
    assert "static_share (max: 0.9) alone loses 1 of 5 scored clips" in capsys.readouterr().out
    show.main([bucket.url("out"), "--where", "rule = 'static_share'", "--format", "json"])
    [row] = json.loads(capsys.readouterr().out)
    assert row["rule"] == "static_share"


def test_damage_in_an_object_store_is_found_and_repaired(dataset, bucket):
    bucket.put_folder("out", dataset.out)
    out = Folder(bucket.url("out"))
    assert list(verify.find(out)) == []
    part = out.names("ledger/videos")[-1]
    shard = out.names("shards")[0]
    frame = next(p for p in bucket.files("out") if p.endswith("_0.jpg")).partition("/out/")[2]
    for name in (f"ledger/videos/{part}", f"shards/{shard}", frame):
        data = bytearray(out.read(name))
        data[len(data) // 2] ^= 1
        bucket.put(f"out/{name}", bytes(data))
    bucket.put("out/clips.parquet", b"")
    damaged = {f"ledger/videos/{part}", f"shards/{shard}", "clips.parquet"}
    assert {finding.name for finding in verify.find(out)} == damaged
    bucket.put(f"out/ledger/videos/{part}", b"")
    assert {finding.name for finding in verify.find(out)} == damaged
    assert {finding.name for finding in verify.find(out, repair=True)} > damaged
    assert not out.exists(f"ledger/videos/{part}")
    assert not out.exists(f"shards/{shard}")


def copied_bytes(url: str, size: int) -> int:
    with local_copy(url, size) as path:
        return os.stat(path).st_size


@pytest.mark.slow
def test_video_of_3_gb_in_a_store_is_fetched_by_an_isolated_worker():
    size = 3 << 30
    with (
        object_of_zeros(size) as url,
        Isolated(copied_bytes, timeout_s=600, memory_gib=0.5) as fetch,
    ):
        assert fetch(url, size, stall_timeout_s=60) == size
