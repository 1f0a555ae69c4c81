"""The pages name files, headings, commands and modules that exist; make refuses wrong names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

PAGES = [
    *(REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
MAX_LINE = 100  # characters, of lines that are not of a table and have no link
CODE = re.compile(r"^```.*?^```", re.M | re.S)
HOW_TO = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names what is gone
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", CODE.sub("", page.read_text()), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@by_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@by_page
def test_make_targets_exist(page):
    makefile = (REPOSITORY / "Makefile").read_text()
    lines = re.findall(r"^([a-z][a-z -]*):", makefile, re.M)
    targets = {name for line in lines for name in line.split()}
    for name in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.M):
        assert name in targets, name


@pytest.mark.parametrize("page", HOW_TO, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_python_modules_exist(page):
    for name in re.findall(r"python -m ([a-z_.]+[a-z_])", page.read_text()):
        path = REPOSITORY / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@pytest.mark.parametrize("page", HOW_TO, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_named_source_files_exist(page):
    folders = "curation|stages|pipelines|training|configs|tests|benchmarks|docs"
    for name in re.findall(rf"(?<!New file )`((?:{folders})/[\w./-]*\w\.\w+)`", page.read_text()):
        assert (REPOSITORY / name).exists(), name


@by_page
def test_lines_are_short(page):
    for line in page.read_text().splitlines():
        if not line.startswith("|") and "](" not in line:
            assert len(line) <= MAX_LINE, line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("input=videos", "names are in capitals"),
        ("INPUT=videos", "INPUT needs OUTPUT"),
    ],
)
def test_make_refuses_names_that_it_would_ignore(given, message):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    command = [make, "--dry-run", "curate", given]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode
    assert message in done.stderr
    accepted = [make, "--dry-run", "curate", "INPUT=videos", "OUTPUT=out/mine"]
    assert not subprocess.run(accepted, cwd=REPOSITORY, capture_output=True).returncode
