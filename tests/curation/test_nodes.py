"""A cluster of several nodes writes the same dataset, whichever node a row goes to or dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.chaos.runs import start_nodes
from tests.support.memory_group import UNLIMITED_BYTES, memory_group
from tests.support.whole_run import (
    REPOSITORY,
    curate,
    descendants,
    differences,
    unfinished_files,
    wait_for,
    wait_for_end,
)


def run_on_nodes(module, *args):
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", f"tests.support.{module}", *map(str, args)]
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "[state-dump]" not in done.stderr
    return done.stdout


def on_two_nodes(source, out, *more):
    return run_on_nodes("two_nodes", source, out, *more)


def test_two_nodes_write_the_same_dataset_as_one(dataset, tmp_path):
    on_two_nodes(dataset.source, tmp_path / "out")
    assert differences(dataset.out, tmp_path / "out") == []


@pytest.mark.slow
def test_node_that_dies_during_a_run_does_not_change_the_dataset(dataset, tmp_path):
    on_two_nodes(dataset.source, tmp_path / "out", "kill")
    assert differences(dataset.out, tmp_path / "out") == []
    assert unfinished_files(tmp_path / "out") == []


@pytest.mark.slow
def test_row_whose_node_dies_twice_is_finished_on_a_third_that_joins_later(tmp_path):
    """The worker dies with its node: that does not count against the row."""
    *lines, error = run_on_nodes("lost_nodes", tmp_path).splitlines()
    assert error == "None"
    needed = "WaitOnLostNodes needs 1 CPUs and 0 GPUs a worker; the cluster has 0 and 0"
    lines.remove(f"{needed}: waiting for a node to join")
    lost = [
        re.fullmatch(r"(a|2) nodes? left: \d of \d remain; the rows .*", line) for line in lines
    ]
    assert sum(1 if line[1] == "a" else int(line[1]) for line in lost) == 2


@pytest.mark.slow
def test_nodes_without_free_memory_fail_no_video(dataset, tmp_path):
    """The kernel ends workers and decoders, until the nodes have memory again."""
    with memory_group() as group:
        nodes = start_nodes()
        for pid, _ in [(nodes.process.pid, ""), *descendants(nodes.process.pid)]:
            group.add(pid)
        address = f"cluster.address={nodes.address}"
        process = curate(dataset.source, tmp_path / "out", address, "cluster.workers=2")
        assert wait_for(process, lambda: any((tmp_path / "out").glob("ledger/input.parquet")))
        group.limit(300 << 20)
        assert wait_for(process, lambda: group.kills() >= 4)
        group.limit(UNLIMITED_BYTES)
        done = wait_for_end(process)
        nodes.end()
    assert done.exit_code == 0, done.stderr
    assert differences(dataset.out, tmp_path / "out") == []
