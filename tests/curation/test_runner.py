import logging
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from curation.runner import pool
from curation.runner.cluster import MAX_CONSECUTIVE_OPEN_ROWS, drop_open_rows
from curation.runner.cluster_messages import PRINT_FUNCTION, log_cluster_messages
from curation.stage import (
    OPEN,
    Needs,
    OutputError,
    PlanError,
    RunContext,
    RunError,
    Stage,
    check_plan,
)
from tests.support.memory_group import memory_group
from tests.support.paths import REPOSITORY
from tests.support.runner_stages import (
    Batched,
    Concurrent,
    Double,
    FailOnRequest,
    Isolated,
    MarkedStart,
    NotImportable,
    OtherWeights,
    RaiseNotPickled,
    SetupFails,
    SlowToStart,
    TakeMemory,
    Unread,
    WaitForFile,
)


def rows(count, **failures):
    return [{"n": n, "error": None} | failures.get(f"row{n}", {}) for n in range(count)]


def test_every_row_is_returned_once_through_all_stages(two_workers):
    stages = [Double(), Isolated()]
    done = list(two_workers.stream(stages, rows(20, row3={"failure": "bad"})))
    assert sorted(r["n"] for r in done) == list(range(20))
    assert all(r["doubled"] == 2 * r["n"] for r in done)
    assert [r["error"] for r in done if r["error"]] == ["no moov"]


def test_crash_hang_and_bug_fail_one_row_each(two_workers):
    failures = {f"row{i}": {"failure": f} for i, f in enumerate(["crash", "hang", "bug"])}
    done = {r["n"]: r["error"] for r in two_workers.stream([Isolated()], rows(8, **failures))}
    assert "SIGSEGV" in done[0]
    assert done[1] == "no result after 3 s"
    assert "KeyError" in done[2]
    assert [done[n] for n in range(3, 8)] == [None] * 5


def test_row_that_kills_its_worker_fails_alone(two_workers):
    found = two_workers.stream([FailOnRequest()], rows(12, row5={"failure": "crash"}))
    done = {r["n"]: r["error"] for r in found}
    assert done.pop(5) == "the worker process died twice on this row"
    assert set(done.values()) == {None}
    assert len(done) == 11


def test_rows_of_a_killed_worker_are_retried(two_workers, tmp_path):
    crash_once = {"failure": "crash once", "mark": str(tmp_path / "mark")}
    done = list(two_workers.stream([FailOnRequest()], rows(6, row2=crash_once)))
    assert sorted(r["n"] for r in done) == list(range(6))
    assert all(r["error"] is None for r in done)


def test_row_whose_workers_the_machine_has_no_memory_for_is_retried(two_workers, tmp_path):
    with memory_group() as group:
        group.limit(100 << 20)
        stage = TakeMemory(str(group.folder), str(tmp_path), limited=3)
        [row] = two_workers.stream([stage], rows(1))
        assert group.kills() == 3
    assert (row["error"], row["doubled"]) == (None, 0)


def test_output_error_stops_the_run(two_workers):
    with pytest.raises(OutputError, match="disk full"):
        list(two_workers.stream([Double(), Isolated()], rows(6, row2={"failure": "full"})))


def test_stage_that_needs_more_than_the_cluster_has_is_refused(cluster):
    @dataclass
    class Large(Stage):
        needs = Needs(gpus=4)

    with pytest.raises(RunError, match="Large needs 1 CPUs and 4 GPUs a worker"):
        list(cluster.stream([Large()], rows(1)))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:many"])
def test_wrong_cluster_address_is_reported_within_seconds(tmp_path, address):
    code = (
        "import sys; from curation.runner.cluster import Cluster\n"
        "from curation.runner.settings import ClusterSettings\n"
        "from curation.stage import RunError\n"
        "try: Cluster(ClusterSettings(sys.argv[1]), sys.argv[2]).start()\n"
        "except RunError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, address, str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.stdout.startswith(f"no Ray cluster at {address}: ")
    assert "fix: check the address" in run.stdout


def test_stage_that_reads_an_unknown_column_is_refused():
    with pytest.raises(PlanError, match="reads 'n', which no earlier stage writes"):
        check_plan([Double()], ["video"])
    check_plan([Double()], ["n"])


def test_failed_setup_of_a_stage_stops_the_run(cluster):
    with pytest.raises(RunError, match=r"SetupFails: the isolated worker did not start: .*weights"):
        list(cluster.stream([SetupFails()], rows(3)))


def test_mistake_that_setup_finds_is_one_line_and_not_the_death_of_a_worker(cluster):
    with pytest.raises(RunError, match=r"^OtherWeights: other weights on this node"):
        list(cluster.stream([OtherWeights()], rows(3)))


def test_worker_that_cannot_read_the_input_gets_no_row(cluster, tmp_path):
    here = RunContext(input_sample=(str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")))
    with pytest.raises(RunError, match=r"Double: the node .* can't read the input: .*a\.mp4"):
        list(cluster.stream([Double()], rows(3), context=here))
    (tmp_path / "b.mp4").touch()
    assert len(list(cluster.stream([Double()], rows(3), context=here))) == 3


def test_finished_phase_does_not_wait_for_a_worker_that_it_no_longer_needs(two_workers, tmp_path):
    holder = ray.remote(num_cpus=1)(type("Holder", (), {})).remote()
    ray.get(holder.__ray_ready__.remote())  # one of two CPUs is left: a second worker can't start
    try:
        assert len(list(two_workers.stream([MarkedStart(str(tmp_path))], rows(4)))) == 4
    finally:
        ray.kill(holder)
    assert len(list(tmp_path.iterdir())) == 1  # at the end no second one was started


def test_bad_row_of_a_batch_fails_alone(cluster):
    failures = {"row3": {"failure": "bad"}, "row9": {"failure": "bug"}}
    done = {r["n"]: r for r in cluster.stream([Double(), Batched()], rows(20, **failures))}
    assert sorted(done) == list(range(20))
    assert all(r["doubled"] == 2 * n for n, r in done.items())
    assert {n: r["error"] for n, r in done.items() if r["error"]} == {
        3: "no moov",
        9: "Batched: KeyError: 'x'",
    }
    assert max(r["batch"] for r in cluster.stream([Batched()], rows(20))) == 4


def test_row_of_a_batch_that_kills_its_worker_fails_alone(two_workers):
    done = {
        r["n"]: r["error"]
        for r in two_workers.stream([Batched()], rows(8, row5={"failure": "crash"}))
    }
    assert done.pop(5) == "the worker process died twice on this row"
    assert set(done.values()) == {None}
    assert len(done) == 7


def test_rows_of_an_async_stage_run_concurrently_in_one_worker(cluster):
    done = list(cluster.stream([Double(), Concurrent()], rows(30)))
    assert sorted(r["n"] for r in done) == list(range(30))
    assert all(r["error"] is None and r["doubled"] == 2 * r["n"] for r in done)
    assert len({r["worker"] for r in done}) == 1


def test_bug_hang_and_bad_input_among_concurrent_rows_cost_one_row_each(cluster):
    failures = {f"row{i}": {"failure": f} for i, f in enumerate(["bug", "hang", "bad"])}
    done = {}
    found = cluster.stream([Concurrent(4)], rows(12, **failures))
    with pytest.raises(RunError, match=r"1 rows stay open.* no result after 3 s \(1\)"):
        done.update((row["n"], row["error"]) for row in found)
    assert "KeyError" in done[0]
    assert 1 not in done  # the server may be slow: the row stays open
    assert done[2] == "no moov"
    assert [done[n] for n in range(3, 12)] == [None] * 9


FAST = RunContext(retry_waits_s=(0.01,))


@pytest.mark.parametrize("stage", [FailOnRequest, Isolated, Batched, Concurrent])
def test_row_whose_storage_fails_is_retried_and_then_stays_open(cluster, tmp_path, stage):
    failing = {"row2": {"failure": "storage"}, "row4": {"failure": "gpu"}}
    failing["row3"] = {"failure": "storage once", "mark": str(tmp_path / "mark")}
    done = []
    with pytest.raises(RunError) as stopped:
        done += cluster.stream([Double(), stage(), Double()], rows(8, **failing), context=FAST)
    assert str(stopped.value).startswith("2 rows stay open, because storage, a server or")
    assert "can't fetch a.mp4 (1)" in str(stopped.value)
    assert "run the same command again" in str(stopped.value)


def test_rows_finished_before_and_after_a_row_that_stays_open_are_returned():
    given = [{"n": n} | ({OPEN: "can't fetch"} if n in (1, 4) else {}) for n in range(6)]
    done = []
    with pytest.raises(RunError, match=r"can't fetch \(2\)"):
        done.extend(row["n"] for row in drop_open_rows(given))
    assert done == [0, 2, 3, 5]


def test_run_stops_where_no_row_can_be_read():
    given = iter([{OPEN: "can't fetch"}] * (2 * MAX_CONSECUTIVE_OPEN_ROWS))
    with pytest.raises(RunError, match="20 rows stay open"):
        list(drop_open_rows(given))
    assert len(list(given)) == MAX_CONSECUTIVE_OPEN_ROWS


@pytest.mark.parametrize("failure", ["crash", "crash once"])
def test_concurrent_rows_of_a_dead_worker_are_retried(cluster, tmp_path, failure):
    row = {"failure": failure, "mark": str(tmp_path / "mark")}
    done = {r["n"]: r["error"] for r in cluster.stream([Concurrent(1)], rows(20, row5=row))}
    assert done.pop(5) == (
        "the worker process died twice on this row" if failure == "crash" else None
    )
    assert sorted(done) == [n for n in range(20) if n != 5]
    assert set(done.values()) == {None}


def test_wait_reason_of_workers_is_reported_and_cleared(cluster, tmp_path):
    reasons, path = [], tmp_path / "answer"

    def report_wait(reason):
        reasons.append(reason)
        if reason == "3 wait for a file":
            path.touch()

    done = list(cluster.stream([WaitForFile(str(path))], rows(8), report_wait))
    assert sorted(r["n"] for r in done) == list(range(8))
    assert "3 wait for a file" in reasons
    assert reasons[-1] is None


def test_slow_start_of_a_worker_is_reported(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SLOW_START_S", 0.5)
    reasons, path = [], tmp_path / "loaded"

    def report_wait(reason):
        reasons.append(reason)
        if reason:
            path.touch()

    assert len(list(cluster.stream([SlowToStart(str(path))], rows(2), report_wait))) == 2
    expected = "the first worker of SlowToStart has been starting for "
    assert any(reason.startswith(expected) for reason in reasons if reason)
    assert reasons[-1] is None


def test_unavailable_service_stops_the_run(cluster):
    with pytest.raises(RunError, match="Concurrent: the server is down"):
        list(cluster.stream([Concurrent(1)], rows(6, row2={"failure": "unavailable"})))


def test_run_without_rows_does_not_import_ray():
    code = (
        "import sys; from pipelines.curate import Cluster, Settings; "
        "assert list(Cluster(Settings().cluster, '').stream([], [])) == []; "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_messages_about_dead_workers_go_to_the_log(monkeypatch, caplog, capsys):
    # If this fails with a new version of Ray, find the function that prints these messages in it.
    monkeypatch.setattr(ray_worker, PRINT_FUNCTION, getattr(ray_worker, PRINT_FUNCTION))
    log_cluster_messages(logging.getLogger("of-the-cluster"))
    data = {"lines": ["A worker died"], "pid": "raylet", "is_err": False}
    ray_worker.print_to_stdstream(data, ignore_prefix=False)
    assert caplog.messages == ["raylet: A worker died"]
    assert capsys.readouterr() == ("", "")


def test_ray_without_the_replaced_function_gives_one_warning(monkeypatch, caplog):
    monkeypatch.delattr(ray_worker, PRINT_FUNCTION)
    log_cluster_messages(logging.getLogger("of-the-cluster"))
    [message] = caplog.messages
    assert "has no print_to_stdstream" in message


def test_run_in_a_temporary_folder_with_a_long_name_ends_with_a_stream_left_unfinished(tmp_path):
    long = tmp_path / ("t" * 100)
    long.mkdir()
    code = (
        "import gc, ray\n"
        "from curation.runner.cluster import Cluster\n"
        "from curation.runner.settings import ClusterSettings\n"
        "from curation.stage import RunContext\n"
        "from stages.decode_pass import DecodePass\n"
        "from tests.support.runner_stages import Double\n"
        f"row = {{'video': {__file__!r}, 'bytes': 1, 'error': None}}\n"
        f"with Cluster(ClusterSettings(workers=1), {str(tmp_path)!r}) as cluster:\n"
        f"    context = RunContext({str(tmp_path)!r})\n"
        "    [row] = cluster.stream([DecodePass()], [row], context=context)\n"
        "    left = cluster.stream([Double()], [{'n': n} for n in range(300)])\n"
        "    next(left)\n"
        "del left; gc.collect()\n"
        "print(row['error'], ray.is_initialized())\n"
    )
    env = {**os.environ, "TMPDIR": str(long), "PYTHONPATH": str(REPOSITORY)}
    env.pop("RAY_TMPDIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert "video" in done.stdout, done  # that the file is none
    assert done.stdout.endswith(" False\n")


@pytest.mark.parametrize("here", ["in the worker", "in the driver"])
def test_row_that_ray_cannot_pass_on_stops_the_run_with_one_line(cluster, here):
    """As where a node has another version of a package than the driver."""
    stages, value = ([Double()], NotImportable()) if here == "in the worker" else ([Unread()], 1)
    cause = "Ray failed: RaySystemError: System error: No module named 'only_elsewhere'"
    with pytest.raises(RunError, match=rf"^{cause}\n  fix: remove the cause, which the logs of"):
        list(cluster.stream(stages, [{"n": value, "error": None}]))


def test_error_of_a_stage_that_cannot_be_pickled_keeps_its_text_and_place(cluster):
    with pytest.raises(RayError, match=r"(?s)runner_stages\.py.*the server is gone"):
        list(cluster.stream([RaiseNotPickled()], [{"n": 1, "error": None}]))


FULL = {"object_store_memory": 80 << 20, "_system_config": {"local_fs_capacity_threshold": 1e-9}}


@pytest.mark.parametrize(
    ("options", "row_bytes", "message"),
    [
        (FULL, 100 << 20, "Ray can't hold a row on a node: the disk of its temporary folder"),
        (FULL, 40 << 20, "Ray can't hold a row on a node: the disk of its temporary folder"),
        (
            {"runtime_env": {"py_modules": ["gcs://_ray_pkg_0.zip"]}},
            1,
            "a node can't set up the code that this process sends it: OSError: Failed to download",
        ),
    ],
    ids=["row does not fit", "result does not fit", "code is missing"],
)
def test_failure_of_ray_whose_cause_is_known_stops_the_run_with_the_fix(
    tmp_path, options, row_bytes, message
):
    code = (
        "import ray\n"
        "from curation.runner.cluster import Cluster\n"
        "from curation.runner.settings import ClusterSettings\n"
        "from curation.stage import RunError\n"
        "from tests.support.runner_stages import Double\n"
        f"ray.init('local', num_cpus=1, include_dashboard=False, **{options})\n"
        f"with Cluster(ClusterSettings(workers=1), {str(tmp_path)!r}) as cluster:\n"
        f"    row = {{'n': 'x' * {row_bytes}, 'error': None}}\n"
        "    try: list(cluster.stream([Double()], [row]))\n"
        "    except RunError as error: print(error)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.startswith(message), done
    assert "run the same command again" in done.stdout
    assert len(done.stdout.splitlines()) == 2
