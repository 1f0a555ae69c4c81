"""The command line of every command, in its own process where that is what a user meets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from curation.cli import NoSettings, UsageError, field_comments, help_lines, parse, run_command
from curation.errors import UserError
from tests.support.paths import REPOSITORY


@dataclass
class Sun:
    height: float = 1.0  # above the horizon, degrees


@dataclass
class Moon:
    phase: float  # 0 new, 1 full


@dataclass
class Night:
    seed: int = 0
    # above: of several lines,
    # joined into one
    name: str | None = None
    light: Sun | Moon = field(default_factory=Sun)


def test_settings_are_distinguished_from_values_in_any_order():
    given = parse(["seed=3", "in.mp4", "a sign that reads x=1", "name=b"], Night, "IN TEXT...")
    assert given.values == ["in.mp4", "a sign that reads x=1"]
    assert (given.settings.seed, given.settings.name) == (3, "b")
    assert parse(["a=b"], NoSettings, "OUT").values == ["a=b"]


def test_mistyped_setting_is_never_taken_for_a_value():
    for wrong in ("sed=3", "light.heigth=1", "size.frames=8"):
        with pytest.raises(UserError, match="is not a setting"):
            parse(["out.mp4", "a cat", wrong], Night, "OUT CAPTION...")


def test_configuration_file_is_one_of_the_arguments(tmp_path):
    path, default = tmp_path / "c.yaml", tmp_path / "default.yaml"
    path.write_text("seed: 1")
    default.write_text("seed: 2")
    for argv, seed in (([str(path)], 1), ([], 2), (["seed=5"], 5), ([str(path), "seed=5"], 5)):
        assert parse(argv, Night, "[CONFIG]", (), str(default)).settings.seed == seed
    with pytest.raises(UsageError, match=r"expected CONFIG, found none; --help explains"):
        parse([], Night, "CONFIG")


def test_unknown_option_is_refused():
    assert parse(["--dry-run"], Night, "", ["--dry-run"]).options == {"--dry-run"}
    assert parse([], Night, "", ["--dry-run"]).options == frozenset()
    with pytest.raises(UsageError, match=r"--dryrun is not an option; expected --dry-run; set"):
        parse(["--dryrun"], Night, "", ["--dry-run"])
    for wrong in ("--sampel=20", "--open=1"):
        with pytest.raises(UsageError, match=f"{wrong} is not an option; expected --sample N; "):
            parse([wrong], NoSettings, "OUT [CLIP]...", ["--sample N", "--open"])


def test_help_lists_every_setting_with_its_default_and_meaning():
    lines = help_lines("Draws.", Night)
    assert lines[0] == "Draws."
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "seed=0",
        "name=null # above: of several lines, joined into one",
        "light.height=1.0 # above the horizon, degrees",
        "or, in place of these settings of light:",
        "light.phase=(required) # 0 new, 1 full",
    ]


def test_comments_of_inherited_settings_are_found():
    @dataclass
    class Dusk(Sun):
        colour: str = "red"  # of the sky

        def lower(self) -> None:
            height: float = self.height - 1
            self.height = height

    assert field_comments(Dusk) == {
        "height": "above the horizon, degrees",
        "colour": "of the sky",
    }


def test_user_error_is_a_message_and_any_other_error_a_traceback():
    class Mine(UserError):
        pass

    def fail(error):
        raise error

    with pytest.raises(SystemExit) as end:
        run_command("", lambda _: fail(Mine("no\x1b[2J way\n  fix: go")), [], prefix="rank 1: ")
    assert end.value.code == "rank 1: Mine: no\\x1b[2J way\n  fix: go"
    with pytest.raises(SystemExit) as end:
        run_command("", lambda _: fail(OSError("full")), [], user_errors=(OSError,))
    assert end.value.code == "OSError: full"
    with pytest.raises(OSError, match="full"):
        run_command("", lambda _: fail(OSError("full")), [])


def test_exit_code_is_what_the_work_returns():
    run_command("", lambda _: None, [])
    with pytest.raises(SystemExit) as end:
        run_command("", lambda _: 3, [])
    assert end.value.code == 3


def command(body: str, **how: object) -> subprocess.Popen[str]:
    code = f"import sys\nfrom curation.cli import run_command\n{body}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        **how,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_termination_end_in_one_line(number):
    process = command(
        "import time\n"
        "def work(_): print('waits', flush=True); time.sleep(60)\n"
        "run_command('', work, [], stopped='run it again')"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    assert process.communicate()[1] == "stopped; run it again\n"
    assert process.returncode == 130


@pytest.mark.parametrize("lines", [1, 100_000])
def test_closed_pipe_ends_the_command_without_a_message(lines):
    process = command(
        f"run_command('', lambda _: print('x\\n' * {lines}), [], user_errors=(OSError,))"
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 141


REFUSED = """
import resource, runpy, sys
sys.argv[1:] = {argv!r}
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code)
print([name for name in ("ray", "torch") if name in sys.modules])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""
COMMANDS = {
    **{f"pipelines.{name}": [] for name in ("curate", "score", "select", "caption", "export")},
    "pipelines.plan": [],
    "pipelines.split": ["a.json", "a prompt"],
    "training.train": ["configs/train/smoke.yaml"],
    "training.precompute": ["configs/train/smoke.yaml"],
    "training.sample": ["checkpoint", "out.mp4", "a caption"],
    "training.evaluate": ["videos", "out"],
    "training.segmentation": ["configs/train/segmentation_small.yaml", "out"],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_mistyped_setting_is_refused_before_ray_or_torch_is_imported(module):
    wrong = "score.decode.clip" if module.startswith("pipelines") else "size.frame"
    code = REFUSED.format(argv=[*COMMANDS[module], f"{wrong}=3"], module=module)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    message, imported, cpu_s = done.stdout.splitlines()
    assert message.startswith(f"ConfigError: command line: {wrong.split('.')[0]}")
    assert "is not a setting; " in message
    assert imported == "[]"
    assert float(cpu_s) < 4.0  # 1 s on an idle core, 2 s on one that is shared
