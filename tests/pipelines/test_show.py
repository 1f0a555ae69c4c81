"""What `longtake show` prints of the output of a whole run."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import stat
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import show
from tests.support.paths import REPOSITORY


@pytest.fixture
def run(dataset, capsys):
    def run(*args: str, out=None) -> str:
        show.main([str(out or dataset.out), *args])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refuse(dataset):
    def refuse(*args: str, out=None) -> str:
        with pytest.raises(SystemExit) as error:
            show.main([str(out or dataset.out), *args])
        return str(error.value.code)

    return refuse


@pytest.fixture
def clips(dataset):
    return pq.read_table(dataset.out / "clips.parquet").to_pylist()


def test_output_is_shown_with_funnel_percentiles_and_hardest_rules(run):
    lines = run().splitlines()
    cells = [line.split() for line in lines]
    assert ["clips", "6"] in [line[:2] for line in cells]
    assert any(line.strip().startswith("duration_s < 3") for line in lines)
    [motion] = [line for line in cells if line[:1] == ["motion_dis"]]
    assert motion[1] == "5"  # the header of the short one rules it out
    assert any("static_share (max: 0.9) alone loses 1 of 5 scored clips" in line for line in lines)
    assert any("2 videos, 0.0011 h, gave no clip" in line for line in lines)


def test_output_as_json_and_csv_has_the_same_numbers(run):
    found = json.loads(run("--format", "json"))
    assert found["funnel"] == list(csv_rows(run("--format=csv"), found["funnel"]))
    rules = {rule["rule"]: rule for rule in found["rules"]}
    assert rules["static_share"]["alone"] == 1
    scores = {(row["score"], row["status"]) for row in found["percentiles"]}
    assert {("motion_dis", "all"), ("motion_dis", "kept")} <= scores


def csv_rows(text, like):
    """The rows of a CSV text with the types of `like`."""
    for row, typed in zip(csv.DictReader(io.StringIO(text)), like, strict=True):
        yield {k: None if v == "" else type(typed[k])(v) for k, v in row.items()}


def test_clip_is_found_by_the_beginning_of_its_id(run, clips):
    clip = next(clip for clip in clips if clip["status"] == "kept")
    text = run(clip["clip_id"][:8])
    assert clip["clip_id"] in text
    assert f"kept, {clip['split']}, {clip['shard']}" in text
    assert all(part["text"] in text for part in clip["sub_captions"])
    assert clip["segments"][0]["key_frame"] in text
    assert "null: no scorer configured" in text
    assert json.loads(run(clip["clip_id"], "--format", "json"))["caption"] == clip["caption"]
    rejected = next(clip for clip in clips if clip["rule"] == "static_share")
    assert f"rejected: {rejected['reason']}" in run(rejected["clip_id"])


def test_id_of_no_clip_and_of_several_is_refused(refuse):
    assert refuse("zzz").startswith("PlanError: zzz: no clip of this id in ")
    assert refuse("").startswith("PlanError: : 6 clips begin with it: ")


def test_clips_are_found_by_a_condition(run, clips):
    rows = json.loads(run("--where", "rule = 'static_share'", "--format", "json"))
    assert [row["clip_id"] for row in rows] == [
        clip["clip_id"] for clip in clips if clip["rule"] == "static_share"
    ]
    listed = run("--where", "frozen_share < 2 AND status = 'kept'").splitlines()
    assert listed[0].split() == [
        *("clip_id", "status", "rule", "duration_s", "frozen_share", "video", "start_s", "caption")
    ]
    assert len(listed) == 1 + 4
    assert "two\\ntakes" in "\n".join(listed)  # a name with a line break stays on its line
    assert run("--where", "motion_dis < 0") == "no clip matches\n"
    wide = csv.DictReader(io.StringIO(run("--where", "sub_captions IS NULL", "--format", "csv")))
    assert [row["sub_captions"] for row in wide] == ["", ""]


def test_sample_is_drawn_by_its_seed(run, clips):
    def drawn(*args: str) -> list[str]:
        rows = json.loads(run("--sample", "3", *args, "--format", "json"))
        return [row["clip_id"] for row in rows]

    assert len(drawn()) == 3
    assert drawn() == drawn("--seed", "0")
    assert any(drawn("--seed", str(seed)) != drawn() for seed in range(1, 6))
    kept = {clip["clip_id"] for clip in clips if clip["status"] == "kept"}
    assert set(drawn("--where", "status = 'kept'")) < kept


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--where", "motion_diss > 1"], 'SqlError: --where: Binder Error: Referenced column "mo'),
        (["--where", "motion_dis > 1; DROP TABLE clips"], "SqlError: --where: "),
        (["--where"], "UsageError: --where has no value; expected --where SQL"),
        (["--sample", "x"], "UsageError: --sample is 'x': expected a whole number"),
        (["--sample", "9" * 5000], "UsageError: --sample is '99999999999999"),
        (["--format", "xml"], "UsageError: --format is 'xml': expected one of table, csv, json"),
        (["--open"], "UsageError: --open needs a clip"),
        (["--where", "true", "--open"], "UsageError: --open needs one clip, found 6"),
        (["abc", "--where", "true"], "UsageError: expected a clip or --where"),
        (["\udcff"], r"PlanError: \udcff: no clip of this id in"),
        (["--wher", "true"], "UsageError: --wher is not an option; expected --where SQL"),
    ],
)
def test_mistake_is_refused_in_one_line(refuse, args, message):
    text = refuse(*args)
    assert text.startswith(message)
    assert "\n" not in text


def test_folder_that_is_no_output_is_refused(refuse, tmp_path):
    assert f"PlanError: {tmp_path} has no clips.parquet" in refuse(out=tmp_path)


def test_output_of_an_older_version_is_refused_with_the_fix(refuse, dataset, tmp_path):
    table = pq.read_table(dataset.out / "clips.parquet").drop_columns(["rule", "rules"])
    pq.write_table(table, tmp_path / "clips.parquet")
    assert f"fix: longtake select CONFIG output={tmp_path}" in refuse(out=tmp_path)


def test_tables_without_their_ledger_are_shown(run, dataset, tmp_path, clips):
    for name in ("clips", "funnel", "stats"):
        shutil.copy(dataset.out / f"{name}.parquet", tmp_path)
    shutil.copy(dataset.out / "manifest.json", tmp_path)
    assert run(out=tmp_path) == run()
    assert "static_share" in run(clips[0]["clip_id"], out=tmp_path)


@pytest.mark.parametrize("is_kept", [True, False])
def test_clip_is_opened_in_a_player(dataset, clips, tmp_path, monkeypatch, capfd, is_kept):
    player = tmp_path / "ffplay"
    player.write_text(f'#!/bin/sh\necho "$@"; {shutil.which("ls")} -l "${10}" "$4"\n')
    player.chmod(player.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    clip = next(clip for clip in clips if (clip["status"] == "kept") == is_kept)
    show.main([str(dataset.out), clip["clip_id"], "--open"])
    lines = capfd.readouterr().out.splitlines()
    [arguments] = [line for line in lines if line.startswith("-autoexit")]
    start_s, length_s = arguments.split()[2], arguments.split()[4]
    assert float(length_s) == pytest.approx(clip["duration_s"], abs=1e-3)
    opened = arguments.partition(" -i ")[2]
    if not is_kept:
        assert opened == clip["video"]
        assert float(start_s) == pytest.approx(clip["start_s"], abs=1e-3)
        return
    assert opened.endswith(f"{clip['clip_id']}.mp4")
    [row] = [
        row
        for row in pq.read_table(dataset.out / "shards.parquet").to_pylist()
        if row["clip_id"] == clip["clip_id"]
    ]
    with open(opened, "rb") as file:
        assert len(file.read()) == row["bytes"]
    os.remove(opened)


def test_hostile_names_in_the_tables_control_no_terminal_and_name_no_file(
    run, dataset, clips, tmp_path, monkeypatch
):
    out, hostile = tmp_path / "out", "hostile/../../../mine"
    shutil.copytree(dataset.out, out)
    clip = next(clip for clip in clips if clip["shard"])
    for table in ("clips.parquet", "shards.parquet"):
        rows = pq.read_table(out / table)
        ids = [hostile if i == clip["clip_id"] else i for i in rows["clip_id"].to_pylist()]
        pq.write_table(rows.set_column(0, rows.field(0), [ids]), out / table)
    found = pq.read_table(out / "clips.parquet")
    rules = [[f"{rule}\x1b" for rule in of or []] for of in found["rules"].to_pylist()]
    segments = found["segments"].to_pylist()
    for segment in (segment for of in segments for segment in of or []):
        segment["key_frame"] = "\x1b]0;a\x07"
    splits = ["train\x1b" for _ in segments]
    for name, values in (("rules", rules), ("segments", segments), ("split", splits)):
        place, field = found.column_names.index(name), found.field(name)
        found = found.set_column(place, field, pa.array(values, field.type))
    pq.write_table(found, out / "clips.parquet")
    assert "\x1b" not in run(out=out) + run("hostile", out=out)
    monkeypatch.setattr(show, "_play", lambda path, *_: print(path))
    assert "/longtake-" in run("hostile", "--open", out=out).rpartition("/mine.mp4")[0]


def test_clip_of_a_shard_that_is_not_in_the_table_of_shards_is_refused_with_the_fix(
    refuse, dataset, clips, tmp_path
):
    shutil.copy(dataset.out / "clips.parquet", tmp_path)
    shards = pq.read_table(dataset.out / "shards.parquet")
    pq.write_table(shards.slice(0, 0), tmp_path / "shards.parquet")
    clip = next(clip for clip in clips if clip["shard"])
    clip_id = clip["clip_id"]
    text = refuse(clip_id, "--open", out=tmp_path)
    where = (
        f"{clip_id} is not in {tmp_path}/shards.parquet, but in {clip['shard']} by clips.parquet"
    )
    assert text == f"PlanError: {where}: run longtake export CONFIG output={tmp_path}"


def test_missing_player_is_stated_with_the_file(refuse, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    rejected = next(clip for clip in clips if clip["status"] == "rejected")
    text = refuse(rejected["clip_id"], "--open")
    assert "no player found; install mpv, or play" in text
    assert "from 0.00 s" in text


def test_key_frames_are_drawn_in_a_terminal_with_colours_and_nowhere_else(dataset, clips):
    clip = next(clip for clip in clips if clip["status"] == "kept")

    def on_terminal(colours: str) -> str:
        ours, theirs = pty.openpty()
        env = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLORTERM": colours, "COLUMNS": "100"}
        command = [sys.executable, "-m", "pipelines.show", str(dataset.out), clip["clip_id"]]
        with subprocess.Popen(command, stdout=theirs, cwd=REPOSITORY, env=env) as process:
            os.close(theirs)
            text = b""
            try:
                while chunk := os.read(ours, 65536):
                    text += chunk
            except OSError:  # Linux's end of a terminal
                pass
        os.close(ours)
        assert process.returncode == 0
        return text.decode()

    drawn = on_terminal("truecolor")
    rows = [line for line in drawn.splitlines() if "▀" in line]
    assert {line.count("▀") for line in rows} == {5 * 19}
    assert len(rows) == 5  # 16:9 at 19 characters of two pixels
    assert "▀" not in on_terminal("")
