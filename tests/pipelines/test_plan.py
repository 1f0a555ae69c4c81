"""What a run would give and cost: exact where all is tried, and honest about its spread."""

from __future__ import annotations

import re
import shutil
import time

import numpy as np
import pytest

from curation import config
from curation.stage import PlanError
from curation.storage import Folder
from pipelines import headers, plan, score
from pipelines.settings import DEFAULT_CONFIG, Settings
from tests.support.runner_stages import FailOnEveryVideo
from tests.support.small_input import SETTINGS
from tests.support.stores import create_bucket, run_server


def settings(*given: str) -> Settings:
    return config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, *given])


def number(text: str, name: str) -> tuple[float, float, float]:
    """low, value, high of a line."""
    value = r"([\d.,e+-]+)"
    found = re.search(rf"^ *{re.escape(name)} +{value} \({value} to {value}\)", text, re.M)
    assert found, f"{name} is not in\n{text}"
    value_, low, high = (float(f.replace(",", "")) for f in found.groups())
    return low, value_, high


def test_trial_of_the_whole_input_predicts_the_results_of_the_run(dataset, cluster, tmp_path):
    out = Folder(str(tmp_path / "out"))
    chosen = settings(f"input={dataset.source}", f"output={out.url}")
    text = plan.make_report(chosen, out, cluster, score.list_input(chosen))
    assert number(text, "kept") == (4, 4, 4)
    assert number(text, "clips") == (6, 6, 6)
    assert "with the shorter ones: a take below" in text
    assert number(text, "videos that fail") == (1, 1, 1)
    assert number(text, "hours of video")[1] == pytest.approx((5 * 4 + 1.5 + 4) / 3600, rel=0.01)
    assert number(text, "GPU hours to score") == (0, 0, 0)
    low, cpu, high = number(text, "CPU hours to score")
    assert low == cpu == high
    assert 0.05 < cpu * 3600 < 600
    assert "static_share > 0.9" in text
    frames = sum(f.stat().st_size for f in (dataset.out / "ledger/key_frames").rglob("*.jpg"))
    shards = sum(f.stat().st_size for f in (dataset.out / "shards").iterdir())
    stored = number(text, "GB on disk")[1] * 1e9
    assert 0.8 * (frames + shards) < stored < 1.2 * (frames + shards)
    assert not (tmp_path / "out" / "plan").exists()
    assert not (tmp_path / "out" / "ledger").exists()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_trial_leaves_nothing_in_a_store(dataset, cluster, scheme):
    if scheme == "gs":
        pytest.importorskip("gcp_storage_emulator")
    with run_server(scheme) as address:
        bucket = create_bucket(scheme, address, "plans")
        chosen = settings(f"input={dataset.videos['kept']}", f"output={bucket.url('out')}")
        out = Folder(bucket.url("out"))
        text = plan.make_report(chosen, out, cluster, score.list_input(chosen))
        assert number(text, "clips") == (1, 1, 1)
        assert number(text, "GB on disk")[1] > 0
        assert bucket.files("out") == {}


def test_clips_of_a_video_that_a_later_stage_fails_on_do_not_count(dataset, cluster, tmp_path):
    (tmp_path / "list.txt").write_text(str(dataset.videos["kept"]))
    chosen = settings(f"input={tmp_path}/list.txt", f"output={tmp_path}/out")
    chosen.score.ocr = FailOnEveryVideo()
    text = plan.make_report(chosen, Folder(f"{tmp_path}/out"), cluster, score.list_input(chosen))
    assert number(text, "videos that fail") == (1, 1, 1)
    assert number(text, "takes") == number(text, "clips") == (0, 0, 0)


def test_all_invalid_settings_are_reported_together_before_the_run_starts(
    dataset, tmp_path, unused_cluster
):
    given = [f"input={dataset.source}", f"output={tmp_path}/out"]
    given += ["select.policy.motion_raft={min: 1}", "score.models.lpips.weights=/nowhere/a.pth"]
    given += ["caption.captioner=transformers"]
    with pytest.raises(PlanError) as error:
        plan.run(settings(*given), Folder(f"{tmp_path}/out"), unused_cluster)
    for part in ("motion_raft: needs RAFT", "no file /nowhere/a.pth", "caption.transformers.model"):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_too_small_disk_is_a_warning(dataset, cluster, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    given = [f"input={dataset.videos['kept']}", f"output={tmp_path}/out", "plan.videos=1"]
    chosen = settings(*given)
    listed = score.list_input(chosen)
    text = plan.make_report(chosen, Folder(f"{tmp_path}/out"), cluster, listed)
    assert "WARNING" in text
    assert number(text, "kept")[1] == 1


def test_range_contains_the_true_total_in_about_eight_of_ten_trials():
    rng = np.random.default_rng(1)
    sizes = rng.lognormal(0, 1, 4000)
    amounts = rng.poisson(3 * sizes) * (rng.uniform(size=4000) < 0.5)
    held = 0
    for _ in range(100):
        tried = rng.choice(4000, 30, replace=False)
        found = plan.estimate_total(amounts[tried].astype(float), sizes[tried], sizes.sum())
        held += found.low <= amounts.sum() <= found.high
    assert 65 <= held <= 92
    whole = plan.estimate_total(amounts.astype(float), sizes, sizes.sum())
    assert whole.low == whole.value == whole.high == amounts.sum()


def test_images_of_all_requests_are_counted():
    given = [
        "caption.openai.url=http://x/v1",
        "score.decode.frame_samples=2",
        "caption.openai.refine=",
    ]
    for refine, requests in (("false", 5 + 1), ("true", 5 + 5 + 1)):
        chosen = settings(*given[:2], given[2] + refine)
        lines = plan._captions(chosen, [[{}, {}], [{}]], lambda v: plan.Estimate(*3 * [sum(v)]))
        pictures = 3 * (5 * requests + 5 * 2)  # key frames each time, two others of each segment
        assert number("\n".join(lines), "captions: requests")[1] == 3 * requests
        assert number("\n".join(lines), "image tokens")[1] == pictures * 23 * 13  # 640 x 360
        assert f"15 of {pictures // 3} computed" in lines[1]


def test_headers_of_the_whole_input_give_hours_sizes_and_bounds(
    dataset, tmp_path, unused_cluster, capsys
):
    chosen = settings(f"input={dataset.source}", f"output={tmp_path}/out", "plan.videos=0")
    plan.run(chosen, Folder(f"{tmp_path}/out"), unused_cluster)
    text = capsys.readouterr().out
    assert number(text, "headers not readable") == (1, 1, 1)
    assert number(text, "hours of video")[1] == pytest.approx((4 * 4 + 8 + 1.5) / 3600, rel=0.01)
    assert "s, without shorter ones; takes and the policy leave fewer" in text
    assert number(text, "clips, at most") == (6, 6, 6)  # 1 in each of 4 s, 2 in the one of 8 s
    assert "320x180 83%, 1280x720 17%" in text
    assert "h264 100%" in text
    assert "captions by measurements: no weights" in text
    assert "not measured: takes, what the policy keeps" in text
    assert not (tmp_path / "out/ledger/videos").exists()


def test_listing_of_100_000_videos_is_sampled_in_less_than_a_minute(dataset, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(250):
        (folder / f"{i}.mp4").symlink_to(dataset.videos["kept"])
    for i in range(400):
        (tmp_path / f"{i}").symlink_to(folder)
    paths = [f"{tmp_path}/{i}/{j}.mp4" for i in range(400) for j in range(250)]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    began = time.monotonic()
    chosen = settings(f"input={tmp_path}/list.txt")
    listed = score.list_input(chosen)
    text = headers.header_report(chosen, listed)
    assert time.monotonic() - began < 60
    assert listed.num_rows == 100_000
    assert "listing: 100,000 videos" in text
    assert f"headers of {headers.MAX_HEADERS} read" in text
    assert number(text, "hours of video")[1] == pytest.approx(4 / 3600 * 100_000, rel=0.01)


def test_listed_address_of_no_store_is_a_header_that_is_not_readable(dataset, tmp_path):
    (tmp_path / "list.txt").write_text(f"{dataset.videos['kept']}\nnostore://bucket/a.mp4\n")
    found = headers.sample_headers(score.list_input(settings(f"input={tmp_path}/list.txt")))
    assert sorted(facts["error"] is None for facts in found) == [False, True]


def test_reading_headers_stops_after_its_time(dataset, monkeypatch):
    listed = score.list_input(settings(f"input={dataset.source}"))
    monkeypatch.setattr("pipelines.headers.MAX_TIME_S", 0.0)
    assert len(headers.sample_headers(listed)) == 1
