"""docs/licences.md is of the present constraints, and names no licence that forbids the use."""

from __future__ import annotations

import re

from benchmarks.licences import licence_of, read_constraints, rows_of_page

REFUSED = re.compile(r"affero|agpl|non-?commercial|CC-BY-NC|proprietary|SSPL|BUSL", re.I)


def test_page_of_licences_has_every_package_of_the_constraints():
    rows = {name: version for name, version, *_ in rows_of_page().values()}
    assert rows == read_constraints()
    for name, _, licence, _ in rows_of_page().values():
        assert licence not in ("", "not stated", "not installed here"), name
        assert licence_of(name) in (None, licence), "python -m benchmarks.licences writes the page"


def test_no_dependency_has_a_licence_of_the_agpl_or_for_non_commercial_use_only():
    for name, _, licence, _ in rows_of_page().values():
        assert not REFUSED.search(licence), f"{name}: {licence}"
    assert REFUSED.search("GNU Affero General Public License v3")
