"""The map at the door: docs/architecture.md names every file, and no other."""

import re

import pytest

from tests.architecture import PAGE, ROOT, page

TEXT = PAGE.read_text("utf-8")


def test_the_tree_is_that_of_the_packages():
    assert page() == TEXT, "run python -m tests.architecture"


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:maskft|maskkernels|tests)/[^`]*)`", TEXT)))
)
def test_files_that_the_page_names_exist(name):
    assert (ROOT / name).exists()
