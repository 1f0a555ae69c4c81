"""A cluster of several nodes writes the same dataset, whichever node a row goes to or dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.whole_run import REPOSITORY, differences, unfinished_files


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
def test_row_whose_node_dies_twice_is_finished_on_a_third(tmp_path):
    """The worker dies with its node: that does not count against the row."""
    *events, error = run_on_nodes("lost_nodes", tmp_path).splitlines()
    assert error == "None"
    lost = [re.fullmatch(r"(a|2) nodes? left: \d of \d remain; the rows .*", e) for e in events]
    assert sum(1 if line[1] == "a" else int(line[1]) for line in lost) == 2
