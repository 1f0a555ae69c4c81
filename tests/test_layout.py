"""The map of the repository holds: imports point one way, and what is written down is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from curation.records import CAPTION_SCORES, SCORE_NAMES, SCORES
from pipelines.settings import ScoreSettings
from stages.meters.key_frame_scores import KEY_FRAME_SCORES
from stages.scorers.ocr import OcrStage
from tests.support.paths import REPOSITORY

MAY_IMPORT = {
    "curation": {"curation"},
    "stages": {"curation", "stages"},
    "pipelines": {"curation", "stages", "pipelines"},
    "training": {
        *("curation.atomic", "curation.cli", "curation.config", "curation.errors"),
        *("curation.measures", "curation.records", "curation.torchvision_fix", "training"),
    },
}


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            # `from curation import records` imports curation.records
            is_package = (REPOSITORY / (node.module or "").replace(".", "/")).is_dir()
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(names) if is_package else {node.module or ""}
    return found


def sources(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder):
    assert sources(folder)
    for path in sources(folder):
        for name in imported(path):
            if name.split(".")[0] not in MAY_IMPORT and name.split(".")[0] != "tests":
                continue
            allowed = any(name == ok or name.startswith(f"{ok}.") for ok in MAY_IMPORT[folder])
            assert allowed, f"{path.relative_to(REPOSITORY)} imports {name}"


def test_only_the_runner_folder_imports_ray():
    for folder in MAY_IMPORT:
        for path in sources(folder):
            if path.parent.name != "runner":
                assert "ray" not in {name.split(".")[0] for name in imported(path)}, path


def test_curation_starts_without_any_of_the_extras():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [line for name in ("models", "train", "captions") for line in extras[name]]
    names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in wanted}
    hidden = f"import sys; sys.modules.update(dict.fromkeys({sorted(names)!r}))"
    command = [sys.executable, "-c", f"{hidden}; import pipelines.curate, pipelines.samples"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_score_is_written_by_exactly_one_part_or_needs_a_model():
    meters = ScoreSettings().decode.meters
    assert len(meters) >= 4
    written = [name for meter in meters for name in meter.writes if name in SCORE_NAMES]
    written += [name for name in OcrStage.writes if name in SCORE_NAMES]
    by_model = {column.name for column in SCORES if column.model}
    written += [*KEY_FRAME_SCORES, *(name for name in CAPTION_SCORES if name not in by_model)]
    assert set(written) <= set(SCORE_NAMES)
    assert len(written) == len(set(written))
    from pipelines.select import MEASURED

    assert set(written) == set(MEASURED)


def test_the_commands_that_the_readme_names_are_in_the_makefile():
    targets = set(re.findall(r"^([a-z][a-z -]*):", (REPOSITORY / "Makefile").read_text(), re.M))
    targets = {name for line in targets for name in line.split()}
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    for page in pages:
        for name in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.M):
            assert name in targets, f"{page.name}: make {name}"


def test_the_modules_that_pages_name_are_there():
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for name in re.findall(r"python -m ([a-z_.]+[a-z_])", page.read_text()):
            path = REPOSITORY / name.replace(".", "/")
            files = path.with_suffix(".py"), path / "__main__.py"
            assert any(file.exists() for file in files), f"{page.name}: {name}"
