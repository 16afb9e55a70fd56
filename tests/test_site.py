"""The site's reference names every public object, and its navigation every page."""

from pathlib import Path

import pytest

import maskft
import maskft.annotate
import maskft.strategy
import maskkernels

ROOT = Path(__file__).parent.parent
PAGES = {
    maskft: "maskft.md", maskft.strategy: "strategy.md", maskft.annotate: "strategy.md",
    maskkernels: "maskkernels.md",
}  # fmt: skip


@pytest.mark.parametrize("package", PAGES, ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    page = "".join(path.read_text() for path in (ROOT / "docs/api").iterdir())
    for name in package.__all__:
        made = getattr(package, name)
        if callable(made):
            assert f"::: {made.__module__}.{made.__qualname__}\n" in page, name


def test_the_navigation_has_every_page():
    settings = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert f": {path.relative_to(ROOT / 'docs')}\n" in settings, path
