"""Captions of a real ledger by a chat server: several sets, and runs that are killed."""

import hashlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curation import config
from curation.config import ConfigError
from curation.records import hash_frames, stored_frame_hashes
from curation.storage import Folder
from pipelines import caption, curate, export, select
from pipelines.settings import DEFAULT_CONFIG, Settings
from tests.curation.test_resume import worker_of
from tests.support.chat_server import ChatRequest, ChatServer, wait_until
from tests.support.drawn_key_frames import caption_of
from tests.support.small_input import SETTINGS
from tests.support.whole_run import kill_when, start, wait_for, wait_for_end


def number_of(hashes) -> int:
    return int(hashlib.sha256("".join(hashes).encode()).hexdigest()[:8], 16)


def model(request: ChatRequest) -> str:
    """Names the key frames that it was given, and the segment that it was requests about."""
    part = int(request.question[5]) - 1 if request.question.startswith("Part ") else None
    return json.dumps({"caption": caption_of(number_of(request.images[:5]), part)})


def settings(out, server: ChatServer, *overrides: str) -> Settings:
    return config.load(Settings, DEFAULT_CONFIG, [*chat(out, server), *overrides])


def chat(out, server: ChatServer) -> list[str]:
    return [
        *SETTINGS,
        f"output={out}",
        f"caption.openai.url={server.url}",
        "caption.openai.model=tiny",
        "caption.openai.image_side=1280",  # images are sent as they are stored
        "caption.openai.backoff_s=0.01",
        "caption.name=other-model",
    ]


@pytest.fixture
def out(dataset, tmp_path):
    shutil.copytree(dataset.out, tmp_path / "out")
    return tmp_path / "out"


def clips_of(out) -> dict[str, dict]:
    videos = pq.read_table(out / "ledger/videos").to_pylist()
    return {clip["clip_id"]: clip for video in videos for clip in video["clips"]}


def assert_captions_are_correct(out) -> None:
    """Each kept clip has one row of captions, made from its own frames and segments."""
    clips = clips_of(out)
    selected = pq.read_table(out / "ledger/selection.parquet")
    kept = selected.filter(pc.equal(selected["status"], "kept"))["clip_id"].to_pylist()
    rows = pq.read_table(out / "ledger/captions/other-model").to_pylist()
    assert sorted(row["clip_id"] for row in rows) == sorted(kept)
    for row in rows:
        assert row["error"] is row["rejected"] is None
        hashes = stored_frame_hashes(clips[row["clip_id"]]["segments"])
        texts = [part["text"] for part in row["sub_captions"]]
        assert texts == [caption_of(number_of(hashes[:5]), part) for part in range(5)]
        assert row["frames_sha256"] == hash_frames(hashes)


def test_frame_samples_of_a_segment_are_stored(dataset):
    samples = 0
    for clip in clips_of(dataset.out).values():
        for segment in clip["segments"]:
            for sample in segment["frame_samples"] or []:
                data = (dataset.out / "ledger" / sample["file"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == sample["sha256"]
                assert segment["start_s"] <= sample["s"] < segment["end_s"]
                assert sample["s"] != segment["key_frame_s"]
                samples += 1
        assert clip["prefilter"] is None or all(
            s["frame_samples"] is None for s in clip["segments"]
        )


def test_two_sets_of_captions_exist_together_and_the_export_names_its_set(out, cluster):
    measured = pq.read_table(out / "ledger/captions/measured")
    with ChatServer(model) as server:
        run = settings(out, server)
        caption.run(run, Folder(str(out)), cluster)
        assert_captions_are_correct(out)
        requests = len(server.requests)
        caption.run(run, Folder(str(out)), cluster)
        assert len(server.requests) == requests == 6 * 4  # nothing is requests again
    assert pq.read_table(out / "ledger/captions/measured").equals(measured)
    run, plain = (
        settings(out, server, "export.presto=false", *more)
        for more in ([], ["caption.captioner=measured", "caption.name=null"])
    )
    for chosen, name in ((run, "other-model"), (plain, "measured")):
        select.run(chosen, Folder(str(out)))
        export.run(chosen, Folder(str(out)), cluster)
        manifest = json.loads((out / "manifest.json").read_text())
        clips = pq.read_table(out / "clips.parquet").to_pylist()
        assert manifest["captioner"] == manifest["config"]["caption"]["name"] == name
        assert {c["captioner"] for c in clips if c["status"] == "kept"} == {name}
    assert manifest["config"]["caption"]["captioner"] == "measured"


def test_set_of_captions_has_one_model_but_its_server_may_change(out, cluster):
    with ChatServer(model, models=("tiny", "large")) as server:
        caption.run(settings(out, server), Folder(str(out)), cluster)
        with pytest.raises(ConfigError, match=r"model: 'tiny' -> 'large'(.|\n)*caption.name=NAME"):
            caption.run(
                settings(out, server, "caption.openai.model=large"), Folder(str(out)), cluster
            )
        elsewhere = settings(out, server, "caption.openai.url=http://127.0.0.1:9/v1")
        caption.run(elsewhere, Folder(str(out)), cluster)


def test_missing_server_is_an_error_before_anything_is_scored(dataset, tmp_path, unused_cluster):
    with ChatServer(model) as server:
        run = settings(tmp_path / "out", server, f"input={dataset.source}")
    with pytest.raises(ConfigError, match="no caption server at"):
        curate.run(run, Folder(run.output), unused_cluster)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(Path(DEFAULT_CONFIG).parent.glob("*.yaml")), ids=str)
def test_shipped_configurations_name_an_existing_captioner(path):
    chosen = config.load(Settings, path).caption.chosen
    assert chosen.captioner == ("vllm" if path.name == "cluster.yaml" else "measured")
    with_server = config.load(
        Settings, path, ["caption.captioner=null", "caption.openai.url=http://x"]
    )
    assert with_server.caption.chosen.captioner == "openai"
    assert with_server.caption.chosen.provenance()["captioner"] == "openai"


def test_display_shows_the_unavailable_server_and_every_clip_is_captioned_later(
    out, cluster, capsys
):
    shown = ""

    def shows(text: str) -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return text in shown

    with ChatServer(model, lambda _: "slow", delay_s=0.2) as server:
        chosen = settings(out, server)
        run = threading.Thread(target=caption.run, args=(chosen, Folder(str(out)), cluster))
        run.start()
        wait_until(lambda: len(server.requests) >= 3)
        server.stop()
        wait_until(lambda: shows(f"caption  {server.url} does not answer: "))
        server.start()
        wait_until(lambda: shows("caption  continues"))
        run.join()
        shows("")
    assert "and otherwise stops in about 14 min" in shown
    assert shown.index("caption  continues") < shown.index("caption  4/4 clips · 0 failed · in")
    assert_captions_are_correct(out)


@pytest.mark.parametrize("name", ["../other", ".hidden", "a/b", ""])
def test_name_of_a_set_of_captions_cannot_leave_its_folder(name):
    with pytest.raises(ConfigError, match=r"caption\.name"):
        config.load(Settings, None, [f"caption.name='{name}'"])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "ray::AsyncWorker", "server"])
def test_captions_are_complete_after_a_process_is_killed(out, victim):
    with ChatServer(model, lambda _: "slow", delay_s=0.4) as server:
        process = start("caption", *chat(out, server))
        if victim == "driver":
            assert kill_when(process, lambda: len(server.requests) >= 9)
            process = start("caption", *chat(out, server))
        else:
            assert wait_for(process, lambda: len(server.requests) >= 9)
            if victim == "server":
                server.stop()
                server.start()
            else:
                os.kill(worker_of(process, victim), signal.SIGKILL)
        last = wait_for_end(process)
        assert last.exit_code == 0, last.stderr
    assert_captions_are_correct(out)
