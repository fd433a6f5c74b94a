"""Farms for tests: each in a directory of its own, with a small app in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from .farm_process import COUNTER_APP, Command, Farm

LOG_TAIL = 6_000
"""Characters of a log that are shown."""


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the farms of a test that failed have said stands under its failure."""
    report = yield
    directory = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and isinstance(directory, Path):
        for log in sorted(directory.rglob("*.log")):
            report.sections.append((str(log.relative_to(directory)), log.read_text(errors="replace")[-LOG_TAIL:]))
    return report
