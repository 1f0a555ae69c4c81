"""A finished run that several files of tests use."""

import pytest


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a run of six steps, and its losses. Tests do not change it."""
    pytest.importorskip("torch")
    from tests.support.tiny_run import CLIPS, HELD_OUT, tiny_config
    from training.train import train

    folder = tmp_path_factory.mktemp("run")
    return folder, train(tiny_config(folder), CLIPS, HELD_OUT)
