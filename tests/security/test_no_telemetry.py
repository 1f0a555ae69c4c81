"""Libraries that send or store data about the machine are kept from it."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import REPOSITORY

LOAD = "from stages.shots.gradual_network import load_session; load_session()"


def test_onnxruntime_writes_nothing_to_the_home_folder(tmp_path):
    """It would store an id of the machine, and events that it sends."""
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}  # in CI it stores nothing anyway
    subprocess.run([sys.executable, "-c", LOAD], cwd=REPOSITORY, env=env, check=True)
    assert list(tmp_path.rglob("*")) == []
