"""The console command, in the checkout and installed from a wheel."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.longtake import COMMANDS
from tests.pipelines.test_samples import EXPECTED
from tests.support.paths import REPOSITORY

PACKAGES = ("configs", "curation", "pipelines", "stages", "training")


def longtake(*args: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = "from pipelines.longtake import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def test_help_lists_every_command():
    done = longtake("--help")
    assert (done.returncode, longtake().stdout) == (0, done.stdout)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


def test_help_for_a_reader_that_ended_prints_no_traceback():
    code = "import time; time.sleep(0.5); from pipelines.longtake import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_every_module_with_a_command_line_is_a_command():
    files = [*REPOSITORY.glob("pipelines/*.py"), *REPOSITORY.glob("training/*.py")]
    modules = {f"{f.parent.name}.{f.stem}" for f in files if "__main__" in f.read_text()}
    assert {module for module, _ in COMMANDS.values()} == {
        *(modules - {"pipelines.longtake"}),
        *("training.segmentation", "pipelines.browse", "pipelines.browse.audit"),
    }


@pytest.mark.parametrize("name", ["select", "calibrate", "train"])
def test_help_of_a_command_is_that_of_its_module(name):
    done = longtake(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m {COMMANDS[name][0]}" in done.stdout


def test_mistyped_command_is_refused_with_the_nearest_name():
    done = longtake("currate")
    assert done.returncode == 1
    assert done.stderr == "UsageError: 'currate' is not a command; did you mean curate?\n"


def test_mistyped_setting_of_a_command_is_refused():
    done = longtake("select", "outptu=x")
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: ")
    assert "did you mean output?" in done.stderr


def test_list_of_commands_imports_no_package_but_the_standard_library():
    code = "import sys, pipelines.longtake as c; sys.argv = ['x']; c.main(); print(*sys.modules)"
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    imported = {name.split(".")[0] for name in text.splitlines()[-1].split()}
    assert not imported & {"torch", "ray", "numpy", "pyarrow", "av", "curation", "stages"}


def test_installed_configurations_are_found_from_any_folder(tmp_path):
    done = longtake("train", "configs/train/smoke.yaml", "stepss=1", cwd=tmp_path)
    assert "did you mean steps?" in done.stderr
    done = longtake("train", "configs/train/none.yaml", cwd=tmp_path)
    assert "configs/train/none.yaml: no such file" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheel_has_every_file_and_curates_the_samples_in_an_empty_environment(tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv/bin"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(bin_folder / command[0]), *command[1:]],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source))
    [wheel] = tmp_path.glob("*.whl")
    expected = {n for n in listed.stdout.splitlines() if n.split("/")[0] in PACKAGES}
    assert expected - set(zipfile.ZipFile(wheel).namelist()) == set()
    run("pip", "install", "-q", "-c", str(REPOSITORY / "constraints.txt"), str(wheel))
    run("longtake", "draw-samples", "samples")
    assert "kept" in run("longtake", "curate", "input=samples", "output=out")
    clips = pq.read_table(empty / "out/clips.parquet", columns=["status"])["status"].to_pylist()
    assert clips.count("kept") == sum(fates.count("kept") for fates in EXPECTED.values())
    assert (empty / "out/report.html").exists()


def test_console_command_is_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"longtake": "pipelines.longtake:main"}
