"""`training.train --dry-run`."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from tests.support.drawn_clips import dataset, row
from tests.support.tiny_run import SYSTEM, tiny_config, write_config
from training.config import (
    PixelConfig,
    T5Config,
)
from training.train import main


def test_a_dry_run_prints_the_cost_and_writes_nothing(tmp_path, capsys):
    folder = dataset(tmp_path / "data", [row(i) for i in range(5)])
    path = write_config(tmp_path, tiny_config(tmp_path / "run"))
    main([path, "--dry-run", f"data.dataset={folder}"])
    message = capsys.readouterr().out
    assert "5 clips, 8 tokens a sample" in message
    assert "an epoch: 2.5 such batches" in message
    assert not (tmp_path / "run").exists()


def test_memory_of_the_page_cache_counts_as_free(tmp_path, monkeypatch, capsys):
    unused_pages = {"SC_AVPHYS_PAGES": 0}  # all others hold files
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: unused_pages.get(name, sysconf(name)))
    main([write_config(tmp_path, tiny_config(tmp_path / "run")), "--dry-run"])
    assert "tokens a sample" in capsys.readouterr().out


def test_a_dry_run_replaces_missing_weights_and_clips_by_random_ones(tmp_path, capsys):
    system = replace(SYSTEM, text=T5Config("nowhere", 24), codec=PixelConfig(2, 4))
    cfg = tiny_config(tmp_path / "run", weights="nowhere", system=system)
    main([write_config(tmp_path, cfg), "--dry-run", f"data.dataset={tmp_path}"])
    message = capsys.readouterr().out
    assert "one random clip" in message
    assert "random weights (nowhere: no transformer's config.json" in message
    assert "hf download rhymes-ai/Allegro --include 'transformer/*' --local-dir nowhere" in message
    huge = ["system.model.attention_head_dim=60000"]
    with pytest.raises(SystemExit, match=r"parameters take \d+ GB of one cpu process; \d+ GB are"):
        main([write_config(tmp_path, cfg), "--dry-run", *huge])


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(given, policy):
    code = "import training.train, os; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == policy
