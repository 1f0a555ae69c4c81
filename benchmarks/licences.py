"""Writes docs/licences.md: every package of constraints.txt with its version, licence and user.

    python -m benchmarks.licences

Licences are those that the installed packages state; a package that is not installed here keeps the
line that it has.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import tomllib
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import REPOSITORY

PAGE = REPOSITORY / "docs/licences.md"
# Of packages whose metadata state no licence, or the whole text of one.
BY_HAND = {
    "cycler": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "PSF-2.0 style (matplotlib)",
}
# Short names of trove classifiers.
SHORT = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
HEAD = """# Licences of the dependencies

Written by `python -m benchmarks.licences` from the metadata of the installed packages. *Needed by*:
`base` is what every installation has, the other names are extras. None is under the AGPL or limited
to non-commercial use; a test checks that.

The licence of a package does not cover the libraries in its wheel. The FFmpeg in PyAV's wheel
states the LGPL version 3, and its configuration names x264 and x265, which are under the GPL:
check this before you distribute a container image. Wheels of PyTorch for CUDA hold NVIDIA's
libraries under NVIDIA's own terms. Weights of models are not part of the package:
[models.md](models.md).

| package | version | licence | needed by |
|---|---|---|---|
"""


def read_constraints() -> dict[str, str]:
    """Package -> version."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)


def licence_of(package: str) -> str | None:
    """None where the package is not installed."""
    try:
        about = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    if package in BY_HAND:
        return BY_HAND[package]
    if stated := about.get("License-Expression"):
        return stated
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if "Lic" in c]
    known = [SHORT.get(name, name) for name in classifiers if name != "OSI Approved"]
    if known:
        return " or ".join(known)
    return (about.get("License") or "not stated").strip().splitlines()[0]


def users() -> dict[str, set[str]]:
    """Package -> `base` and the extras that need it, directly or through others."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    roots = {"base": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, set[str]] = {}
    for part, lines in roots.items():
        for name in set(_reachable(lines)):
            found.setdefault(name, set()).add(part)
    return found


def _reachable(lines: list[str]) -> Iterator[str]:
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(line) for line in lines]
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name == "longtake":
            continue
        seen.add((name, extras))
        yield name
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in needs:
            need = Requirement(text)
            for extra in extras or {""}:
                if need.marker is None or need.marker.evaluate({"extra": extra}):
                    todo.append(need)


def rows_of_page() -> dict[str, list[str]]:
    """Package -> the cells of its line in the page."""
    if not PAGE.exists():
        return {}
    lines = re.findall(r"^\| (.*) \|$", PAGE.read_text(), re.M)
    rows = [line.split(" | ") for line in lines[1:]]
    return {cells[0]: cells for cells in rows if len(cells) == 4}


def make_page() -> str:
    earlier, needed = rows_of_page(), users()
    lines = []
    for package, version in sorted(read_constraints().items(), key=lambda item: item[0].lower()):
        licence = licence_of(package)
        if licence is None:
            licence = earlier[package][2] if package in earlier else "not installed here"
        parts = needed.get(canonicalize_name(package), set())
        by = "base" if "base" in parts else ", ".join(sorted(parts - {"dev"})) or "dev"
        lines.append(f"| {package} | {version} | {licence} | {by} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(make_page())
    print(f"{PAGE}: {len(rows_of_page())} packages")
