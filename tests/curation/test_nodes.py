"""A cluster of several nodes writes the same dataset, whichever node a row goes to or dies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.whole_run import REPOSITORY, differences, unfinished_files


def on_two_nodes(source, out, *more):
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.support.two_nodes", str(source), str(out), *more]
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done


def test_two_nodes_write_the_same_dataset_as_one(dataset, tmp_path):
    on_two_nodes(dataset.source, tmp_path / "out")
    assert differences(dataset.out, tmp_path / "out") == []


@pytest.mark.slow
def test_node_that_dies_during_a_run_does_not_change_the_dataset(dataset, tmp_path):
    on_two_nodes(dataset.source, tmp_path / "out", "kill")
    assert differences(dataset.out, tmp_path / "out") == []
    assert unfinished_files(tmp_path / "out") == []
