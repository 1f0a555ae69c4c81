"""The commands and snippets of the pages on datasets run as they are written."""

from __future__ import annotations

import re
import shlex
import shutil

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curation.cli import run_command
from curation.runner.cluster import Cluster
from curation.runner.settings import ClusterSettings
from curation.storage import Folder
from pipelines import curate, diff, headers, plan, show, status
from tests.pipelines.test_subset import settings
from tests.support.paths import REPOSITORY

PAGES = ("questions", "dataset", "report")


def print_status(args: list[str]) -> None:
    run_command(status.__doc__, status.run, args, arguments="OUT")


COMMANDS = {"show": show.main, "diff": diff.main, "status": print_status}  # that start no run


def blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / f"docs/{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


QUESTIONS = [line for block in blocks("questions", "bash") for line in block.splitlines()]
SNIPPETS = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.fixture
def kept_clip(dataset) -> str:
    shards = pq.read_table(dataset.out / "shards.parquet")
    return shards["clip_id"][0].as_py()


@pytest.mark.parametrize("line", [q for q in QUESTIONS if q.split()[1] in COMMANDS])
def test_question_is_answered_by_its_command(
    line, dataset, kept_clip, tmp_path, capsys, monkeypatch
):
    player = tmp_path / "mpv"
    player.write_text("#!/bin/sh\n")
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    names = {"OUT": str(dataset.out), "OUT_B": str(dataset.out), "CLIP": kept_clip}
    program, command, *args = shlex.split(line)
    assert program == "longtake"
    COMMANDS[command]([names.get(arg, arg) for arg in args])
    assert capsys.readouterr().out


def test_every_question_has_a_test():
    assert {line.split()[1] for line in QUESTIONS} == {*COMMANDS, "curate", "plan"}


def test_cost_of_a_run_is_estimated_by_the_command_of_the_page(dataset, tmp_path, capsys):
    [line] = [q for q in QUESTIONS if q.split()[1] == "plan"]
    names = {"input=VIDEOS": f"input={dataset.source}", "output=NEW": f"output={tmp_path}/new"}
    given = [names.get(arg, arg) for arg in shlex.split(line)[2:]]
    chosen = settings(*given)
    plan.run(
        chosen, Folder(chosen.output), Cluster(ClusterSettings(address="nowhere"), "/dev/null")
    )
    assert "CPU hours to score" in capsys.readouterr().out
    assert headers.MAX_HEADERS == 200  # as on the page


def test_part_of_the_clips_is_exported_without_the_input(dataset, tmp_path, cluster):
    [line] = [q for q in QUESTIONS if q.split()[1] == "curate"]
    out = shutil.copytree(dataset.out, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (out / "ledger/videos").iterdir()}
    config, *args = shlex.split(line)[2:]
    assert config == "CONFIG"  # `settings` below are those of the run
    given = [f"output={out}" if a == "output=OUT" else a for a in args]
    curate.run(settings(*given, "select.where=height >= 720"), Folder(str(out)), cluster)
    assert {p: p.stat().st_mtime_ns for p in (out / "ledger/videos").iterdir()} == before
    shards = pq.read_table(out / "shards.parquet")
    assert shards.num_rows == 1
    clips = pq.read_table(out / "clips.parquet")
    assert pc.sum(pc.equal(clips["rule"], "where")).as_py() == 3
    assert (out / "README.md").read_text().count("height \\>= 720") == 1


@pytest.mark.parametrize(
    ("page", "code"), SNIPPETS, ids=[f"{p}{i}" for i, (p, _) in enumerate(SNIPPETS)]
)
def test_snippet_of_a_page_runs(page, code, dataset, kept_clip, tmp_path, monkeypatch):
    for name in re.findall(r"^(?:import|from) (\w+)", code, re.M):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for name in ("OUT", "out"):  # as the pages name an output
        (tmp_path / name).symlink_to(dataset.out)
    code = code.replace("9f2c5e0b7a3d4c1e8b6f0a12", kept_clip)
    names = {"__name__": "snippet"}
    exec(compile(code, f"docs/{page}.md", "exec"), names)
    assert names.keys() > {"__name__", "__builtins__"}  # it imported or defined something
