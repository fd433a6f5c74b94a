"""Farms for tests: each in a directory of its own, with a small app in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .farm_process import COUNTER_APP, Command, Farm


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "counter.py").write_text(COUNTER_APP)
    return Command(tmp_path)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Callable[..., Farm]]:
    """Starts farms of the counter app on a free port and waits until they serve."""
    (tmp_path / "counter.py").write_text(COUNTER_APP)
    farms: list[Farm] = []

    def start(*arguments: str, app: str = "counter:app", wait: bool = True, **env: str) -> Farm:
        standard = (app, "--port", "0", "--insecure-localhost", "--stop-grace", "5")
        started = Farm(tmp_path, (*standard, *arguments), env)
        farms.append(started)
        if wait:
            started.wait_running()
        return started

    yield start
    for each in farms:
        each.end()
