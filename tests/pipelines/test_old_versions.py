"""Outputs, configurations and names of version 0.1.0: a message has the version and new names."""

import shutil
from pathlib import Path

import pytest

from curation import config
from curation.config import ConfigError
from curation.renames import COLUMNS, SCORES, new_setting
from curation.renames import SETTINGS as RENAMED_SETTINGS
from pipelines import calibrate, caption, curate, export, plan, score, select
from pipelines.settings import DEFAULT_CONFIG, Settings, main
from tests.pipelines.test_settings import setting_names
from tests.support.paths import REPOSITORY
from tests.support.small_input import SETTINGS
from tests.support.version_1 import SETTINGS as OLD_SETTINGS
from tests.support.version_1 import make_old

COMMANDS = {
    "curate": curate.run,
    "score": score.run,
    "select": select.select_and_publish,
    "caption": caption.run,
    "export": export.run,
    "plan": plan.run,
}


def error_of(function, *args) -> str:
    with pytest.raises(SystemExit) as end:
        function(*args)
    return str(end.value.code)


@pytest.fixture
def old_output(dataset, tmp_path) -> Path:
    out = Path(shutil.copytree(dataset.out, tmp_path / "out"))
    make_old(out)
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_output_of_the_old_version_is_refused_with_its_version(dataset, old_output, name):
    given = [*SETTINGS, f"input={dataset.source}", f"output={old_output}"]
    message = error_of(main, "", COMMANDS[name], given)
    assert message.startswith("PlanError: ")
    assert message.endswith(
        f"{old_output}/ledger/videos was made by version 0.1.0 (schema version 1); "
        "version 0.2.0 reads schema version 2\n"
        "  fix: score into another output, or continue with version 0.1.0; CHANGELOG.md has the "
        "new names of settings and columns"
    )


def test_calibration_refuses_an_output_of_the_old_version(old_output):
    assert "was made by version 0.1.0" in error_of(
        calibrate.main, [str(old_output), "semantic_similarity"]
    )


def test_configuration_of_the_old_version_is_refused_with_the_new_names(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "score: {watch: {clip_s: 10, gate: {width: {min: 1280}}}}\n"
        "select: {policy: {still_share: {max: 0.9}}}\n"
    )
    with pytest.raises(ConfigError) as error:
        config.load(Settings, path)
    assert str(error.value) == (
        f"{path}: written for version 0.1.0; in this one score.watch is score.decode, "
        "score.watch.gate is score.decode.prefilter, "
        "select.policy.still_share is select.policy.static_share"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("score.watch.gate.width", "score.decode.prefilter.width"),
        ("score.watch.clip_s", "score.decode.clip_s"),
        ("score.text.frames", "score.ocr.frames"),
        ("select.policy.fake_motion", "select.policy.ken_burns_share"),
    ],
)
def test_old_setting_on_the_command_line_is_refused_with_its_new_name(old, new):
    message = f"command line: {old} was a setting of version 0.1.0; in this one it is {new}"
    assert error_of(main, "", score.run, [f"{old}=null"]) == f"ConfigError: {message}"


@pytest.mark.parametrize("name", SCORES)
def test_old_score_in_a_policy_is_refused_with_its_new_name(name):
    with pytest.raises(ConfigError, match=f"in this one it is {SCORES[name]}$"):
        config.load(Settings, DEFAULT_CONFIG, [f"score.decode.prefilter={{{name}: {{min: 1}}}}"])


def test_every_setting_of_the_old_version_exists_or_has_a_new_name():
    known = set(setting_names(Settings))
    assert len(OLD_SETTINGS) > 100
    assert [name for name in OLD_SETTINGS if new_setting(name) not in known] == []


def test_changelog_lists_every_renamed_setting_and_column():
    page = (REPOSITORY / "CHANGELOG.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    listed = {(old.split("`")[1], new.split("`")[1]) for _, old, new, _ in rows}
    assert {*RENAMED_SETTINGS.items(), *COLUMNS.items()} <= listed
