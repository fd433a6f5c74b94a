"""``--open`` asks the browser of whoever starts a farm for its page, once it serves; without it nobody is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_nobody_is_asked_without_it(farm: Callable[..., Farm], seen: Path) -> None:
    running = farm()
    assert running.status()["state"] == "running"
    assert running.stop() == 0
    assert not seen.exists()


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
