"""Runs that faults disturb end, after the same command ran again, with the same dataset."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("seed", [1295])  # in S3: cut connections, then a killed driver
def test_disturbed_run_ends_with_the_dataset_of_an_undisturbed_one(seed):
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.chaos", str(seed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=950)
    assert done.returncode == 0, done.stdout
