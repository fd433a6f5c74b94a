"""The oldest version of each framework that the docs name is the one that its extra allows, and `make oldest` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from oldest.versions import EXTRAS, TESTED, bound

ROOT = Path(__file__).parents[2]
PAGES = {"django": "django.md", "flask": "flask.md", "quart": "flask.md"}


@pytest.mark.parametrize("name", EXTRAS)
def test_the_page_names_it(name: str) -> None:
    page = (ROOT / "docs" / PAGES.get(name, "frameworks.md")).read_text()
    title = name if name == "aiohttp" else name.title()
    assert f"{title} {bound(name)}" in page
    paths = [path for path in TESTED[name] if path.startswith("tests/")]
    assert paths
    assert all((ROOT / path).exists() for path in paths)
