"""``--open`` asks the browser of whoever starts a farm for its page, once it serves; without it nobody is asked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from coatcheck.cli.commands import coatcheck

from .farm_process import Command, Farm, eventually

BROWSER = """#!{python}
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    found = f"{{answer.status}} {{sys.argv[1]}}"
with open("{seen}", "a") as file:
    file.write(found + "\\n")
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a browser was asked for; it is there once the page has answered."""
    program, seen = tmp_path / "browser", tmp_path / "seen"
    program.write_text(BROWSER.format(python=sys.executable, seen=seen))
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    return seen


def test_serve_opens_its_page_once_it_serves(farm: Callable[..., Farm], seen: Path) -> None:
    running = farm("--open")
    eventually(seen.exists, "the browser")
    eventually(lambda: seen.read_text() == f"200 {running.base}\n", "what it saw")


@pytest.mark.parametrize(
    ("words", "asked"), [(["serve", "counter:app"], []), (["serve", "counter:app", "--open"], ["it"])]
)
def test_nobody_is_asked_without_it(words: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a browser would be asked later cannot be waited for: so what the farm is told to do is looked at."""
    told: list[str] = []

    def run_farm(*_: Any, when_ready: Any = None, **__: Any) -> int:
        if when_ready is not None:
            when_ready("http://127.0.0.1:1", print)
        return 0

    monkeypatch.setattr("coatcheck.farm.serve.run_farm", run_farm)
    monkeypatch.setattr("coatcheck.cli.serve_commands.open_in_browser", lambda *_: told.append("it"))
    for name in [name for name in os.environ if name.startswith("COATCHECK_")]:
        monkeypatch.delenv(name)
    assert CliRunner().invoke(coatcheck, words).exit_code == 0
    assert told == asked


def test_a_browser_that_cannot_be_opened_is_a_line_in_the_log(
    farm: Callable[..., Farm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER", "/no/such/browser %s")
    monkeypatch.setenv("PATH", "/nowhere")  # the system's own ones
    monkeypatch.delenv("DISPLAY", raising=False)
    running = farm("--open")
    eventually(lambda: f"open {running.base} yourself" in running.log, "the line")


def test_the_demo_opens_and_its_tour_is_had_as_json(command: Command, seen: Path) -> None:
    done = command.run("demo", "--tour", "--shoppers", "2", "--port", "0", "--open", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["shoppers"], found["well"]) == (2, True)
    assert [step["intact"] for step in found["steps"]] == [2, 2, 2, 2]
    assert seen.read_text().startswith("200 http://127.0.0.1:")


def test_json_without_the_tour_is_refused(command: Command) -> None:
    done = command.run("demo", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--tour" in done.stderr
