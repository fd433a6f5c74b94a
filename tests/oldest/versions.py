"""Which versions those are: the lower bounds in ``pyproject.toml``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"
EXTRAS: Final = {
    "django": "django",
    "flask": "flask",
    "quart": "quart",
    "litestar": "litestar",
    "aiohttp": "aiohttp-web",
}
"""By framework."""
TESTED: Final = {
    # The others there are written with what Django 5 has brought: alogin, and sessions with methods to await.
    "django": [
        *(f"tests/web/django/test_{name}.py" for name in ("session_store", "values", "processes", "promise_table")),
        "-k",
        "not awaited and not event_loop and not Flask and not Quart and not FastAPI and not Litestar and not aiohttp",
    ],
    "flask": ["tests/web/flask"],
    "quart": ["tests/web/flask/test_quart.py"],
    "litestar": ["tests/web/test_litestar.py"],
    "aiohttp": ["tests/web/test_aiohttp.py"],
}


def bound(name: str) -> str:
    """Such as ``4.2``."""
    extra = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][EXTRAS[name]]
    found = [match[1] for line in extra if (match := re.fullmatch(rf"{name}>=([0-9.]+)", line))]
    assert len(found) == 1, extra
    return str(found[0])


def oldest(name: str) -> str:
    """What pip takes for it: the last one that was mended."""
    return f"{bound(name)}.*"
