"""Each test that docs/security.md and docs/operations.md name exists."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import REPOSITORY


@pytest.mark.parametrize("page", ["security", "operations"])
def test_tests_that_a_page_names_exist(page):
    text = (REPOSITORY / f"docs/{page}.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 15
    for file, name in named:
        assert re.search(rf"^def {name}\(", (REPOSITORY / file).read_text(), re.M), f"{file} {name}"
