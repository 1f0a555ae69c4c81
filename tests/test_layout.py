"""Imports between folders are those of the picture in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from curation.records import CAPTION_SCORES, SCORE_NAMES, SCORES
from pipelines.settings import ScoreSettings
from stages.meters.key_frame_scores import KEY_FRAME_SCORES
from stages.scorers.ocr import OcrStage
from tests.support.paths import REPOSITORY

FOLDERS = ("curation", "stages", "pipelines", "training")
OURS = {*FOLDERS, "benchmarks", "tests"}
# the trainer and the pipelines share data on disk, and what reads it
TRAINING_MAY_IMPORT = {
    *(
        "curation.atomic",
        "curation.checksums",
        "curation.cli",
        "curation.config",
        "curation.errors",
    ),
    *("curation.json_text", "curation.measures", "curation.objects", "curation.orientation"),
    *("curation.progress", "curation.records", "curation.storage", "curation.storage_errors"),
    *("curation.texts", "curation.torchvision_fix", "curation.urls"),
    "training",
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


def folder_of(path: Path) -> str:
    return str((path if path.is_dir() else path.parent).relative_to(REPOSITORY))


def imports_between_folders() -> dict[tuple[str, str], str]:
    """(importing folder, imported folder) -> one of the files that do so."""
    found = {}
    for path in (path for folder in FOLDERS for path in sources(folder)):
        for name in imported(path):
            if name.split(".")[0] in OURS:
                pair = folder_of(path), folder_of(REPOSITORY / name.replace(".", "/"))
                found[pair] = f"{path.relative_to(REPOSITORY)} imports {name}"
    return {pair: text for pair, text in found.items() if pair[0] != pair[1]}


def drawn_arrows() -> list[set[tuple[str, str]]]:
    """Per arrow of the picture in docs/architecture.md, the pairs of folders that it allows."""
    page = (REPOSITORY / "docs/architecture.md").read_text()
    picture = page.split("```mermaid")[1].split("```")[0]
    boxes: dict[str, set[str]] = {}
    group = ""
    for line in picture.splitlines():
        if box := re.match(r'\s*(subgraph )?(\w+)\["([\w/.]+)', line):
            name, path = box[2], REPOSITORY / group / box[3]
            boxes[name] = set() if box[1] else {folder_of(path)}
            if group:
                boxes[group] |= boxes[name]
            group = name if box[1] else group
        elif line.strip() == "end":
            group = ""
    arrows = re.findall(r"(\w+) --> (\w+)", picture)
    return [{(a, b) for a in boxes[start] for b in boxes[end]} for start, end in arrows]


def test_picture_shows_all_imports_between_folders():
    allowed = set().union(*drawn_arrows())
    for pair, text in imports_between_folders().items():
        assert pair in allowed, (
            f"{text}: docs/architecture.md has no arrow from {pair[0]} to {pair[1]}"
        )


def test_every_arrow_of_the_picture_is_an_import():
    pairs = imports_between_folders()
    for arrow in drawn_arrows():
        assert arrow & pairs.keys(), f"no import: {sorted(arrow)[0]}"


def test_training_imports_only_what_reads_the_dataset():
    for path in sources("training"):
        for name in imported(path):
            if name.split(".")[0] in OURS:
                allowed = any(name == ok or name.startswith(f"{ok}.") for ok in TRAINING_MAY_IMPORT)
                assert allowed, f"{path.relative_to(REPOSITORY)} imports {name}"


def test_only_the_runner_folder_imports_ray():
    for folder in FOLDERS:
        for path in sources(folder):
            if path.parent.name != "runner":
                assert "ray" not in {name.split(".")[0] for name in imported(path)}, path


def test_pipelines_start_without_optional_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [line for name in ("models", "train", "captions", "browse") for line in extras[name]]
    names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in wanted}
    hidden = f"import sys; sys.modules.update(dict.fromkeys({sorted(names)!r}))"
    started = "pipelines.curate, pipelines.samples, pipelines.browse.audit"
    command = [sys.executable, "-c", f"{hidden}; import {started}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_score_is_written_once_or_needs_a_model():
    meters = ScoreSettings().decode.meters
    assert len(meters) >= 4
    written = [name for meter in meters for name in meter.writes if name in SCORE_NAMES]
    written += ScoreSettings().decode.learned.writes
    written += [name for name in OcrStage.writes if name in SCORE_NAMES]
    by_model = {column.name for column in SCORES if column.model}
    written += [
        "damaged_share",
        *KEY_FRAME_SCORES,
        *(name for name in CAPTION_SCORES if name not in by_model),
    ]
    assert set(written) <= set(SCORE_NAMES)
    assert len(written) == len(set(written))
    from pipelines.select import SCORES_WITHOUT_MODEL

    assert set(written) == set(SCORES_WITHOUT_MODEL)
