"""Whole runs as a user meets them: the command line, the screen, the tables."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from curation import config, records
from curation.stage import PlanError
from curation.storage import Folder
from curation.video_list import VIDEO_SUFFIXES
from pipelines import caption, curate, export, score, select
from pipelines.settings import Settings, main
from stages.export.presto import CAPTION_KEYS
from tests.support import video_files
from tests.support.paths import REPOSITORY
from tests.support.small_input import SETTINGS, scene, write_video
from tests.support.whole_run import commands_with_mark, unfinished_files

ALL = {"curate": curate, "score": score, "select": select, "caption": caption, "export": export}


def settings(*overrides: str) -> Settings:
    from pipelines.settings import DEFAULT_CONFIG

    return config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, *overrides])


def run_and_capture(capsys, pipeline: str, *args: str) -> tuple[int, str]:
    """Exit code and error message of a command that fails before it starts a run."""
    with pytest.raises(SystemExit) as e:
        main(ALL[pipeline].__doc__, ALL[pipeline].run, args)
    text = capsys.readouterr().err
    return (1, e.value.code) if isinstance(e.value.code, str) else (e.value.code, text)


def test_run_with_failed_videos_succeeds_and_its_counts_add_up(dataset):
    assert dataset.run.exit_code == 0, dataset.run.stderr
    lines = dataset.run.stdout.splitlines()
    assert "6 clips: 4 kept, 2 rejected (short 1, static 1), 0 failed" in lines
    assert f"report: {dataset.out}/report.html" in lines
    assert "failed: " in dataset.run.stderr
    assert re.search(r"score  7/7 videos · 1 failed", dataset.run.stderr)
    assert re.search(r"export  4/4 clips · 0 failed", dataset.run.stderr)


def test_run_prints_no_ray_messages_and_leaves_no_ray_processes(dataset):
    slow_start = (
        r"\w+  (the first worker of \w+ has been starting for|continues$)"  # on a busy machine
    )
    known = rf"(score|select|caption|export)  \d|failed: |{slow_start}"
    odd = [line for line in dataset.run.stderr.splitlines() if not re.match(known, line)]
    assert odd == []
    assert "ray" not in dataset.run.stdout.lower()
    assert (dataset.out / "logs" / "ray.log").exists()
    until = time.monotonic() + 20
    while (left := commands_with_mark(dataset.mark)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []
    assert unfinished_files(dataset.out) == []


def test_every_input_file_is_one_row_with_its_status(dataset):
    rows = pq.read_table(dataset.out / "videos.parquet").to_pylist()
    by_name = {row["video"]: row for row in rows}
    row_of = {name: by_name.pop(str(path)) for name, path in dataset.videos.items()}
    assert by_name == {}
    assert row_of["no video"]["status"] == "failed"
    assert row_of["no video"]["error"].startswith("not a video")
    assert row_of["copy"]["status"] == "duplicate"
    assert row_of["copy"]["error"] == f"same bytes as {dataset.videos['kept']}"
    assert row_of["copy"]["clips"] == row_of["no video"]["clips"] == 0
    ok = {name: row for name, row in row_of.items() if row["status"] == "ok"}
    assert {name: row["takes"] for name, row in ok.items()} == {
        **{"kept": 1, "two takes": 2, "hd": 1, "short": None, "static": 1}
    }
    assert row_of["two takes"]["cuts_s"] == [pytest.approx(4.0)]
    assert (row_of["hd"]["width"], row_of["hd"]["height"]) == (1280, 720)
    assert row_of["kept"]["duration_s"] == pytest.approx(4.0)


def test_tables_have_the_documented_columns(dataset):
    clips = pq.read_schema(dataset.out / "clips.parquet")
    start = ["clip_id", "video", "start_s", "end_s", "status"]
    start += ["reason", "reasons", "rule", "rules"]
    end = ["caption", "sub_captions", "captioner", "field_null_reasons", "split", "shard"]
    assert clips.names[: len(start) + len(records.SCORE_NAMES) + len(end)] == [
        *(*start, *records.SCORE_NAMES, *end)
    ]
    assert clips.field("sub_captions").type == pa.list_(records.SUB_CAPTION)
    assert clips.field("reasons").type == pa.list_(pa.string())
    assert all(clips.field(c.name).type == c.type for c in records.SCORES)
    assert clips.field("motion_dis").metadata[b"what"].startswith(b"mean DIS optical flow")
    videos = pq.read_schema(dataset.out / "videos.parquet")
    wanted = "video status error duration_s width height fps codec interlaced transfer"
    assert videos.names[:14] == [*wanted.split(), "cuts_s", "gradual", "takes", "clips"]
    assert videos.field("gradual").type == pa.list_(records.SPAN)
    assert videos.field("cuts_s").type == pa.list_(pa.float64())


def test_kept_clips_have_five_sub_captions_and_a_shard_and_other_clips_have_none(dataset):
    rows = pq.read_table(dataset.out / "clips.parquet").to_pylist()
    for row in rows:
        if row["status"] != "kept":
            assert row["reason"] == row["reasons"][0]
            assert row["caption"] is row["shard"] is row["split"] is None
            continue
        assert row["captioner"] == "measured"
        assert row["reason"] is None
        spans = [(part["start_s"], part["end_s"]) for part in row["sub_captions"]]
        assert [a for a, _ in spans] == pytest.approx([0, 0.6, 1.2, 1.8, 2.4])
        assert [b for _, b in spans] == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0])
        assert (dataset.out / "shards" / row["shard"]).exists()
    for row in rows:  # every null has a reason
        null = [name for name in records.SCORE_NAMES if row[name] is None]
        assert set(dict(row["null_reasons"])) & set(records.SCORE_NAMES) == set(null)


def test_rejections_are_grouped_by_rule_and_the_funnel_is_a_table_with_hours(dataset):
    clips = pd.read_parquet(dataset.out / "clips.parquet")
    by_rule = clips[clips.status == "rejected"].groupby("rule").size()
    assert dict(by_rule) == {"duration_s": 1, "static_share": 1}
    assert clips[clips.status == "kept"].rule.isna().all()
    assert all(len(row.rules) == len(row.reasons) for row in clips.itertuples())
    funnel = pd.read_parquet(dataset.out / "funnel.parquet")
    of_clips = funnel[funnel.unit == "clips"]
    assert list(of_clips[of_clips.status == "all"]["count"]) == [6]
    rejected = of_clips[(of_clips.status == "rejected") & of_clips.reason.notna()]
    first = rejected[rejected["count"] > 0]  # others are reasons of clips that have an earlier one
    assert dict(zip(first.rule, first["count"], strict=True)) == dict(by_rule)
    assert (rejected["any"] > 0).all()
    [kept_hours] = of_clips[of_clips.status == "kept"].hours
    seconds = clips[clips.status == "kept"].duration_s.sum()
    assert kept_hours == pytest.approx(seconds / 3600, abs=1e-6)


def test_pandas_reads_the_clips_with_their_lists_and_maps(dataset):
    frame = pd.read_parquet(dataset.out / "clips.parquet")
    assert len(frame) == 6
    kept = frame[frame.status == "kept"].iloc[0]
    assert kept.sub_captions[0]["text"]
    assert dict(kept.null_reasons)["key_lpips"] == "no scorer configured"


def test_webdataset_reads_shards_that_agree_with_the_tables(dataset):
    table = pq.read_table(dataset.out / "shards.parquet").to_pylist()
    clips = {
        row["clip_id"]: row for row in pq.read_table(dataset.out / "clips.parquet").to_pylist()
    }
    seen = 0
    for shard in sorted({row["shard"] for row in table}):
        path = dataset.out / "shards" / shard
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            facts = json.loads(sample["json"])
            row = next(row for row in table if row["clip_id"] == sample["__key__"])
            assert row["shard"] == shard == clips[row["clip_id"]]["shard"]
            assert path.read_bytes()[row["offset"] :][: row["bytes"]] == sample["mp4"]
            assert facts["caption"] == clips[row["clip_id"]]["caption"]
            assert facts["split"] == shard.split("-")[0]
            seen += 1
    assert seen == len(table) == 4


def test_presto_folder_has_the_hd_clip_as_its_trainer_reads_it(dataset):
    rows = []
    for name in ("meta", "meta_validation"):
        rows += pq.read_table(dataset.out / "presto" / f"{name}.parquet").to_pylist()
    [row] = rows
    assert (row["num_frames"], row["width"], row["height"]) == (450, 1280, 720)
    assert list(row["cap"]) == list(CAPTION_KEYS)
    assert all(row["cap"].values())
    assert (dataset.out / "presto" / row["path"]).stat().st_size > 0
    manifest = json.loads((dataset.out / "manifest.json").read_text())
    assert manifest["presto_skipped"] == {"smaller than 1280x720": 3}


def test_train_and_validation_share_no_video(dataset):
    rows = pq.read_table(dataset.out / "clips.parquet", columns=["video", "split"]).to_pylist()
    videos = {
        split: {row["video"] for row in rows if row["split"] == split}
        for split in ("train", "validation")
    }
    assert all(videos.values())  # with more than one video there is something on each side
    assert not videos["train"] & videos["validation"]


def test_report_is_one_complete_page_with_unusual_names_escaped(dataset):
    page = (dataset.out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "</html>" in page
    assert "ünï HD.mp4" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_manifest_records_inputs_settings_and_versions(dataset):
    manifest = json.loads((dataset.out / "manifest.json").read_text())
    assert manifest["videos"] == {"all": 7, "ok": 5, "duplicate": 1, "failed": 1}
    assert manifest["clips"] == {"all": 6, "kept": 4, "rejected": 2}
    assert sum(manifest["splits"].values()) == manifest["shards"]["clips"] == 4
    assert manifest["config"]["select"]["policy"]["duration_s"] == {"min": 3.0, "max": None}


def test_another_policy_needs_no_decode_and_is_recorded_in_the_manifest(dataset, tmp_path, cluster):
    out = shutil.copytree(dataset.out, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (out / "ledger/videos").iterdir()}
    darker = settings(f"output={out}", "select.policy.height={min: 720}")
    select.run(darker, Folder(str(out)))
    assert {p: p.stat().st_mtime_ns for p in (out / "ledger/videos").iterdir()} == before
    export.run(settings(f"output={out}"), Folder(str(out)), cluster)  # the policy is not repeated
    clips = pq.read_table(out / "clips.parquet")
    assert pc.sum(pc.equal(clips["status"], "kept")).as_py() == 1
    assert len(pc.unique(pq.read_table(out / "shards.parquet")["shard"])) == 1
    assert len(list((out / "shards").iterdir())) == 1  # the others were of the old selection
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["select"]["policy"]["height"]["min"] == 720
    assert "outdated_shards" not in manifest


def test_selection_that_differs_from_the_shards_is_stated_with_the_command(
    dataset, tmp_path, capsys, unused_cluster
):
    out = shutil.copytree(dataset.out, tmp_path / "out")

    def reselect(*rules: str) -> tuple[str, dict]:
        select.select_and_publish(
            settings(f"output={out}", *rules), Folder(str(out)), unused_cluster
        )
        return capsys.readouterr().out, json.loads((out / "manifest.json").read_text())

    def stated(text: str, manifest: dict, what: str, fix: str) -> None:
        assert f"shards and manifest are of an earlier selection: {what}\n  fix: {fix}\n" in text
        assert manifest["outdated_shards"]["fix"] == fix
        assert what in manifest["outdated_shards"]["what"]
        page = (out / "report.html").read_text()
        assert what in page
        assert all(html.escape(command) in page for command in fix.split(" && "))

    before = (out / "manifest.json").read_bytes()
    export_again = f"longtake export CONFIG output={out}"
    text, manifest = reselect("select.policy.height={min: 720}")
    # the one clip that stays kept may move to another split, by its id
    moved = manifest["outdated_shards"]["other_split"]
    others = f", {moved} are in shards of the other split" if moved else ""
    stated(text, manifest, f"3 clips in shards are not kept{others}", export_again)
    text, _ = reselect()
    assert "earlier selection" not in text + (out / "report.html").read_text()
    assert (out / "manifest.json").read_bytes() == before  # nothing differs any more
    text, manifest = reselect("select.validation_share=0")
    moved = manifest["outdated_shards"]["other_split"]
    stated(text, manifest, f"{moved} are in shards of the other split", export_again)
    shards = pq.read_table(out / "shards.parquet")
    pq.write_table(shards.slice(1), out / "shards.parquet")
    text, manifest = reselect()
    stated(text, manifest, "1 kept clips are in no shard", export_again)
    shutil.rmtree(out / "ledger/captions")
    captioned_first = f"longtake caption CONFIG output={out} && {export_again}"
    text, manifest = reselect()
    stated(text, manifest, "1 kept clips are in no shard", captioned_first)


def test_export_of_kept_clips_without_captions_is_refused(dataset, tmp_path, unused_cluster):
    out = shutil.copytree(dataset.out, tmp_path / "out")
    shutil.rmtree(out / "ledger/captions")
    with pytest.raises(PlanError, match=r"4 kept clips have no captions in .*/ledger/captions/me"):
        export.run(settings(), Folder(str(out)), unused_cluster)


def test_settings_that_differ_from_the_ledgers_are_refused_by_name(dataset, tmp_path, capsys):
    out = shutil.copytree(dataset.out, tmp_path / "out")
    args = (f"input={dataset.source}", f"output={out}", *SETTINGS)
    code, text = run_and_capture(capsys, "curate", *args, "score.decode.segments=4")
    assert code == 1
    assert "decode.segments: 5 -> 4" in text
    assert "use these settings, or another output" in text


def test_policy_looser_than_the_prefilter_is_refused(dataset, tmp_path, capsys):
    out = shutil.copytree(dataset.out, tmp_path / "out")
    code, text = run_and_capture(
        *(capsys, "select", f"output={out}", *SETTINGS),
        "select.policy.duration_s={min: 1}",
    )
    assert code == 1
    assert "looser than the prefilter" in text


def test_prefilter_on_a_score_computed_after_it_is_refused(dataset, tmp_path, capsys):
    args = (f"input={dataset.source}", f"output={tmp_path}", *SETTINGS)
    code, text = run_and_capture(
        capsys, "score", *args, "score.decode.prefilter.overlay_share={max: 0.05}"
    )
    assert code == 1
    assert "score.decode.prefilter has rules for overlay_share, which are computed only" in text


@pytest.mark.parametrize("name", ["longtake_hd_pretrain", "longtake_hd_finetune", "cluster"])
def test_configuration_with_missing_weights_is_refused_with_the_commands_that_get_them(
    capsys, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)  # weights/ is looked for here
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    video_files.draw(tmp_path / "a.mp4", frames=3)
    path = str(REPOSITORY / "configs" / f"{name}.yaml")
    code, text = run_and_capture(capsys, "curate", path, "input=a.mp4", f"output={tmp_path}/out")
    assert code == 1
    assert "score.models.clip.weights: open_clip_model.safetensors of timm/vit_large" in text
    assert "hf download timm/vit_large_patch14_clip_224.openai open_clip_model.safet" in text
    off = "score.models.clip.weights=null"
    code, text = run_and_capture(
        capsys, "curate", path, "input=a.mp4", f"output={tmp_path}/out", off
    )
    assert "aesthetic_laion_l14" in text
    assert "score.models.clip.aesthetics" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["inptu=a"], "inptu is not a setting; did you mean input?"),
        (["score.decode.clip=3"], "did you mean score.decode.clip_s?"),
        (["select.policy.brightnes={min: 3}"], "did you mean brightness?"),
        (["select.policy.brightnes=null"], "did you mean brightness?"),
        (["select.policy.width={min:", "3}"], "no closing brace; in a shell, quote a value"),
        (["cluster.workers=0"], "cluster.workers is 0"),
        (
            ["score.decode.detector=shots"],
            "score.decode.detector is 'shots': expected one of learned, transnet, content, "
            "adaptive, hash, histogram",
        ),
        (
            ["caption.captioner=vlm"],
            "caption.captioner is 'vlm': expected one of measured, openai, vllm, transformers",
        ),
        (["nothere.yaml"], "nothere.yaml: no such file"),
        (["-x"], "-x is not an option; settings are given as key=value"),
        ([], "no input; give input="),
        (["input=/nowhere/at/all"], "/nowhere/at/all: no such file or folder"),
        (["input=/nowhere/*.mp4"], "no file matches this pattern"),
    ],
)
def test_mistake_in_the_arguments_is_one_message_without_traceback(capsys, tmp_path, args, message):
    code, text = run_and_capture(capsys, "curate", *args, f"output={tmp_path}/out")
    assert code == 1
    assert message in text
    assert "Traceback" not in text


def test_folder_without_videos_is_refused(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("x")
    code, text = run_and_capture(capsys, "curate", f"input={tmp_path}/in", f"output={tmp_path}/out")
    assert code == 1
    assert "no video in it; files of other kinds: .txt 1\n  fix: give a folder with" in text
    assert all(f" {suffix}" in text for suffix in VIDEO_SUFFIXES)


def test_list_without_a_name_is_refused(capsys, tmp_path):
    (tmp_path / "list.txt").write_text("# nothing yet\n")
    given = (f"input={tmp_path}/list.txt", f"output={tmp_path}/out")
    code, text = run_and_capture(capsys, "curate", *given)
    assert code == 1
    assert "no video in it\n  fix: write the path or URL of a video on each line" in text


def test_output_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    code, text = run_and_capture(capsys, "curate", f"input={tmp_path}/in", f"output={tmp_path}/out")
    assert code == 1
    assert re.match(f"OutputError: can't list {tmp_path}/out: .*Not a directory", text)


def test_second_run_on_the_same_output_is_refused(capsys, tmp_path):
    with Folder(str(tmp_path / "out")).locked():
        code, text = run_and_capture(
            capsys, "curate", f"input={tmp_path}/in", f"output={tmp_path}/out"
        )
    assert code == 1
    assert "another run is writing to" in text


@pytest.mark.parametrize("name", ["caption", "export", "select"])
def test_phase_without_its_predecessor_names_the_phase_to_run(capsys, tmp_path, name):
    code, text = run_and_capture(capsys, name, f"output={tmp_path}/out")
    assert code == 1
    assert re.search(r"run longtake (score|select) first", text)


@pytest.mark.parametrize("name", sorted(ALL))
def test_help_describes_the_command_and_lists_every_setting(capsys, name):
    main(ALL[name].__doc__, ALL[name].run, ["--help"])
    text = capsys.readouterr().out
    assert f"python -m pipelines.{name} [CONFIG]" in text
    assert "  max_failed_share=0.2 " in text
    assert "  select.policy.brightness={min: 20, max: 235}" in text
    for place in ("output=", "cluster.address=", "score.decode.clip_s="):
        assert re.search(rf"  {re.escape(place)}\S+ +# \w", text), place


def test_each_bad_file_is_a_row_with_its_error_and_a_good_one_is_scored(tmp_path, cluster):
    folder = tmp_path / "in"
    good = write_video(folder / "good.mp4", scene(1))
    long = video_files.draw(tmp_path / "long.mp4", frames=100)
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:4,\ngood.mp4\n")
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    video_files.truncated(folder / "no moov.mp4", long, 0.5)
    video_files.with_unknown_codec(folder / "codec.mp4", long)
    video_files.audio_only(folder / "audio.mp4")
    video_files.audio_with_cover(folder / "cover.mp4")
    png = video_files.draw(tmp_path / "png.mov", codec="png", pix_fmt="rgb24")
    video_files.decompression_bomb(folder / "16k.mov", png, 16384)
    odd = folder / os.fsdecode(b"bytes \xff\xfe.mp4")
    shutil.copy(long, odd)
    run = settings(f"input={folder}", f"output={tmp_path}/out", "max_failed_share=1")
    score.run(run, Folder(run.output), cluster)
    rows = pq.read_table(tmp_path / "out/ledger/videos").to_pylist()
    errors = {os.path.basename(row["video"]): row["error"] for row in rows}
    assert len(rows) == len(errors) == 12  # a folder is no video
    assert errors.pop("good.mp4") is None
    assert errors.pop("bytes%20%FF%FE.mp4") is None
    assert errors["pipe.mp4"] == "not a file"
    assert errors["dangling.mp4"] == "no such file"
    assert "folder.mp4" not in errors
    for name, error in errors.items():
        assert error, name
        assert re.match(r"[^\n]{3,200}$", error), error
        assert "Error" not in error, error
    [row] = [row for row in rows if row["video"] == str(good)]
    assert len(row["clips"]) == 1


def test_ctrl_c_prints_that_the_same_command_resumes(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "waits\n"
    process.terminate()
    assert process.communicate()[1] == "stopped; the same command resumes from here\n"
    assert process.returncode == 130


WAITS = """
import sys, time
from pipelines.settings import main
def run(settings, out, cluster):
    print("waits", file=sys.stderr, flush=True)
    time.sleep(60)
main("", run, ["output=" + sys.argv[1]])
"""


def test_largest_files_are_scored_first_and_missing_ones_last():
    columns = {"video": list("abcd"), "bytes": [5, -1, 70, 5], "version": [""] * 4}
    rows = list(score.new_rows(pa.table(columns)))
    assert [row["video"] for row in rows] == ["c", "a", "d", "b"]
    assert rows[-1]["error"] == "no such file"
