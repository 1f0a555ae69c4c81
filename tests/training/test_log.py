"""The log of a run, without a run."""

import math
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from training.log import draw_curve, moving_mean, read_metrics


def write_losses(folder: Path, losses: list[float]) -> Path:
    rows = [f"{step},loss,{loss!r}\n" for step, loss in enumerate(losses, 1)]
    (folder / "metrics.csv").write_text("step,name,value\n" + "".join(rows))
    return folder


def test_moving_mean_leaves_out_steps_whose_loss_is_not_finite():
    values = np.array([1.0, math.nan, 3.0, math.inf, 5.0, math.nan, math.nan, math.nan])
    means = moving_mean(values, 3)
    expected = [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, math.nan]
    assert means == pytest.approx(expected, nan_ok=True)
    assert not len(moving_mean(np.empty(0), 3))


def test_curve_of_many_steps_is_drawn_in_seconds(tmp_path):
    write_losses(tmp_path, [1 + i % 7 for i in range(100_000)])
    started_s = time.process_time()
    assert draw_curve(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert time.process_time() - started_s < 10  # the sums of all windows took 20 s


def test_metrics_are_read_without_an_incomplete_last_line(tmp_path):
    path = write_losses(tmp_path, [0.5, math.nan]) / "metrics.csv"
    for part in ("", "3", "3,", "3,loss", "3,loss,"):
        path.write_text(path.read_text().partition("3")[0] + part)
        assert list(read_metrics(path)) == [(1, "loss", "0.5"), (2, "loss", "nan")]
    assert list(read_metrics(tmp_path / "none.csv")) == []
