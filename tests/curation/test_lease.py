"""Two runs at once on an output are kept apart, and a run stops whose output was removed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from curation import lease
from curation.lease import LEASE, LeaseLost
from curation.ledger import Ledger, locked
from curation.stage import OutputError
from curation.storage import Folder
from tests.chaos.proxy import Proxy
from tests.support.lease_holder import EXPIRY_S, SCHEMA, shorten_times
from tests.support.paths import REPOSITORY
from tests.support.s3_server import s3_bucket, url_options


@pytest.fixture(scope="module")
def options():
    with s3_bucket() as (_, options):
        yield options


@pytest.fixture
def url(options, request, monkeypatch):
    for name in ("RENEWAL_INTERVAL_S", "EXPIRY_S"):
        monkeypatch.setattr(lease, name, getattr(lease, name))  # restored after the test
    shorten_times()
    return f"s3://bucket/{abs(hash(request.node.name))}?{options}"


def lock(out, report=lambda _: None):
    return locked(out, report)


def videos(out):
    return Ledger(out / "ledger", "videos", SCHEMA, "video")


def rows(out):
    return videos(out).read()["video"].to_pylist()


@pytest.fixture
def holder(url):
    """A process that holds the lease and has written rows."""
    command = [sys.executable, "-m", "tests.support.lease_holder", url]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        for _ in range(3):
            assert process.stdout.readline()
        yield process
        process.kill()


def test_second_run_is_refused_while_the_first_renews_its_lease(url):
    lines = []
    with (
        lock(Folder(url)),
        pytest.raises(OutputError, match="another run is writing to s3://"),
        lock(Folder(url), lines.append),
    ):
        pass
    assert [line.partition(":")[2] for line in lines] == [" waiting 1.5 s for a renewal"]
    started_s = time.monotonic()
    with lock(Folder(url)) as _:
        assert time.monotonic() - started_s < EXPIRY_S / 2  # the first run has released it


def test_of_two_runs_that_start_at_once_one_is_refused(url):
    results = []
    both, refused = threading.Barrier(2), threading.Event()

    def run():
        both.wait()
        try:
            with lock(Folder(url)):
                refused.wait(3 * EXPIRY_S)
                results.append("ran")
        except OutputError:
            results.append("refused")
            refused.set()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["ran", "refused"]


def test_stopped_run_that_continues_after_a_takeover_changes_nothing(url, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    out = Folder(url)
    before = rows(out)
    assert len(before) >= 3
    with lock(out):
        videos(out).append([{"video": "of the second run"}])
        os.kill(holder.pid, signal.SIGCONT)
        _, errors = holder.communicate(timeout=20)
        assert holder.returncode == 1
        assert errors.splitlines()[-1].startswith("LeaseLost: another run has taken over this")
        assert "Traceback" not in errors
        assert rows(out) == sorted([*before, "of the second run"])
    assert rows(Folder(url)) == sorted([*before, "of the second run"])


def test_killed_run_is_followed_by_another_without_loss(url, holder):
    holder.kill()
    holder.communicate()
    before = rows(Folder(url))
    with lock(Folder(url)):
        pass
    assert rows(Folder(url)) == before


def test_parts_of_an_older_epoch_that_appear_after_a_takeover_do_not_count(url):
    first = Folder(url)
    with lock(first):
        table = videos(first)
        table.append([{"video": "a"}])
        stale = first.lease
        stale._ended.set()  # renews no more, as a paused process
        stale._thread.join()
        second = Folder(url)
        with lock(second):
            # a write that began before the pause: no check can stop it
            (first / "ledger").lease.check = lambda: None
            table.append([{"video": "late"}])
            Ledger(first / "ledger", "captions/new", SCHEMA, "video").append([{"video": "late"}])
            assert rows(second) == ["a"]
            for n in range(70):
                videos(second).append([{"video": f"b{n:02}"}])
            table.append([{"video": "late"}])
            videos(second).compact()
            assert rows(second) == ["a", *(f"b{n:02}" for n in range(70))]
        del stale.check
        with pytest.raises(LeaseLost):
            stale.renew()
    reader = Folder(url)
    known = rows(reader)
    assert known == ["a", *(f"b{n:02}" for n in range(70))]
    assert Ledger(reader / "ledger", "captions/new", SCHEMA, "video").read().num_rows == 0
    # a run without a lease, as without boto3, has the last epoch: its parts count
    videos(reader).append([{"video": "c"}])
    assert rows(Folder(url)) == [*known, "c"]


def test_renewal_whose_answer_was_lost_keeps_the_lease(url):
    out = Folder(url)
    with lock(out):
        held = out.lease
        with held._lock:
            held._renewals += 1
            held._store.write(held._content(), held._etag)  # done, and its ETag never arrived
        held.renew()
        held.check()
        assert not held.is_lost
        with held._lock:  # the same before the lease is released
            held._renewals += 1
            held._store.write(held._content(), held._etag)
    started_s = time.monotonic()
    with lock(Folder(url)):
        assert time.monotonic() - started_s < EXPIRY_S / 2


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b'{"epoch": 1, "holder": null, "nonce": "a"}'),
        b'{"epoch": "1", "holder": null, "nonce": "a", "cuts": []}',
        b'{"epoch": 1, "holder": null, "nonce": "a", "cuts": [{"epoch": 1}]}',
        b'{"epoch": 1, "holder": null, "nonce": "a", "cuts": [3]}',
    ],
)
def test_damaged_lease_is_one_line(url, content):
    out = Folder(url)
    out.write(f"ledger/{LEASE}", content)
    damaged = r"lease\.json\S* is damaged: .*\n  fix: restore it"
    with pytest.raises(OutputError, match=damaged), lock(out):
        pass
    with pytest.raises(OutputError, match=damaged):  # a command that only reads
        videos(Folder(url))


def test_settings_that_boto3_refuses_are_one_line(url, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    refused = pytest.raises(OutputError, match=r"can't connect to s3://.*no-such-profile")
    with refused, lock(Folder(url)):
        pass


def test_renewal_ends_where_the_connection_is_cut_before_the_body_is_sent():
    connections = []

    def cut():
        while True:
            connection, _ = server.accept()
            connections.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 100 Continue\r\n")
            connection.close()

    def write():
        with pytest.raises(OutputError, match=r"can't write s3://bucket/lease\.json"):
            lease._Object("bucket", "lease.json", url_options(address)).write({}, "etag")
        ended.set()

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        for work in (cut, write):
            threading.Thread(target=work, daemon=True).start()
        assert ended.wait(30)
    assert connections


def test_run_stops_when_its_lease_is_removed_with_the_output(url):
    out = Folder(url)

    def run():
        with lock(out):
            Folder(url).delete(f"ledger/{LEASE}")
            time.sleep(20)  # interrupted

    with pytest.raises(LeaseLost, match=r"output was removed: s3://.*lease\.json.* is gone; this"):
        run()


def test_run_stops_when_another_of_its_threads_finds_first_that_the_lease_is_lost(url):
    """As the one that writes status.json, which ignores failures of the store."""
    found = []

    def write_status(held):
        try:
            held.check(at_once=True)
        except LeaseLost as error:
            found.append(error)

    def run():
        with lock(out):
            Folder(url).delete(f"ledger/{LEASE}")
            threading.Thread(target=write_status, args=[out.lease]).start()
            time.sleep(20)  # interrupted

    out = Folder(url)
    with pytest.raises(LeaseLost, match="output was removed"):
        run()
    assert found


IDLE_COMMAND = """
import sys, time
from curation.cli import run_command
from curation.storage import Folder
from tests.support.lease_holder import shorten_times

def run(given):
    shorten_times()
    with Folder(given.values[0]).locked():
        print("holds the lease", flush=True)
        time.sleep(60)

run_command("", run, sys.argv[1:], arguments="OUT")
"""


def test_run_in_the_background_stops_when_its_lease_is_removed_with_the_output(url):
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "-", sys.executable, "-c", IDLE_COMMAND, url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout.readline()
        Folder(url).delete(f"ledger/{LEASE}")
        _, errors = process.communicate(timeout=30)
    assert errors.startswith("LeaseLost: this output was removed")


def test_part_that_is_stored_late_after_the_output_was_removed_does_not_count(url):
    first = Folder(url)
    with lock(first):
        table = videos(first)
        table.append([{"video": "a"}])
        first.lease._ended.set()  # a write that began before the removal: no check can stop it
        first.lease._thread.join()
        (first / "ledger").lease.check = lambda: None
        (Folder(url) / "ledger").delete_all()
        second = Folder(url)
        time.sleep(1)  # an epoch is a time, in seconds
        with lock(second):
            table.append([{"video": "late"}])
            assert rows(second) == []
            videos(second).append([{"video": "b"}])
    assert rows(Folder(url)) == ["b"]


def test_parts_of_an_output_whose_lease_alone_was_deleted_count(url):
    for name in ("a", "b"):
        with lock(Folder(url)):
            videos(Folder(url)).append([{"video": name}])
    Folder(url).delete(f"ledger/{LEASE}")
    with lock(Folder(url)):
        assert rows(Folder(url)) == ["a", "b"]


def test_parts_that_are_copied_from_a_disk_after_a_lease_was_taken_count(url, tmp_path):
    with lock(Folder(url)):
        pass
    local = Folder(str(tmp_path))
    videos(local).append([{"video": "a"}])
    for part in local.names("ledger/videos"):
        Folder(url).upload(f"ledger/videos/{part}", local.path(f"ledger/videos/{part}"))
    assert rows(Folder(url)) == ["a"]


@pytest.mark.parametrize("is_begun_again", [False, True], ids=["removed", "begun again"])
def test_run_on_a_disk_writes_nothing_to_an_output_that_was_removed(tmp_path, is_begun_again):
    out = Folder(str(tmp_path / "out"))
    with lock(out):
        table = videos(out)
        table.append([{"video": "a"}])
        shutil.rmtree(out.url)
        second = Folder(out.url)
        with lock(second) if is_begun_again else nullcontext():
            removed = rf"^this output was removed: {out.url}/ledger/\.lock is gone; this run st"
            for write in (
                lambda: table.append([{"video": "b"}]),
                lambda: out.write("clips.parquet", b""),
                lambda: out.upload("clips.parquet", __file__),
                lambda: out.delete("clips.parquet"),
            ):
                with pytest.raises(LeaseLost, match=removed):
                    write()
            assert rows(second) == second.names() == []


@pytest.mark.parametrize("is_local", [True, False], ids=["disk", "s3"])
def test_run_that_fails_after_its_output_was_removed_names_the_removal(url, tmp_path, is_local):
    out = Folder(str(tmp_path / "out") if is_local else url)

    def run():
        with lock(out):
            out.write("clips.parquet", b"")
            Folder(out.url).delete_all()
            out.read("clips.parquet")

    with pytest.raises(LeaseLost, match="this output was removed"):
        run()


def test_server_that_ignores_conditions_is_noticed(url):
    address = re.search(r"endpoint_override=([^&]*)", url)[1].replace("%3A", ":")
    proxy = Proxy(address)
    proxy.fault = "unconditional"
    lines = []
    with lock(Folder(f"{url.partition('?')[0]}?{url_options(proxy.address)}"), lines.append):
        pass
    proxy.close()
    [line] = lines
    assert "ignores If-None-Match: two runs at once on this output are not kept apart" in line


def test_runs_that_cannot_be_kept_apart_are_one_line(url, monkeypatch):
    lines = []
    monkeypatch.setitem(sys.modules, "boto3", None)
    with lock(Folder(url), lines.append):
        assert not Folder(url).exists(f"ledger/{LEASE}")
    assert lines == [
        "boto3 is not installed: two runs at once on this output are not kept apart: start only "
        "one, or install the extra s3"
    ]
    lines.clear()
    with lock(Folder("gs://anonymous@bucket/out"), lines.append):
        pass
    assert lines == [
        "gs://anonymous@bucket/out: two runs at once on this output are not kept apart: start only "
        "one"
    ]
