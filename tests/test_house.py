"""The walls of the house: no circle of imports, no name that means two things, and rules that stay pure."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
SERIAL = re.compile(r"mark\.serial\b")
SOURCE = ROOT / "src"
HOUSE = SOURCE / "coatcheck"
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PURE = next(each for each in LINTER["contracts"] if each["name"].startswith("Rules are pure"))

TWINS = {
    ("coatcheck.pool.adapters.httpx", "coatcheck.pool.adapters.httpx2"),
    ("coatcheck.web.asgi", "coatcheck.web.django.middleware", "coatcheck.web.wsgi"),
    ("coatcheck.web.flask", "coatcheck.web.quart"),
}
"""Modules whose classes have the same names because they are the same thing, for two libraries or two kinds of app."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_of(path): (path, ast.parse(path.read_text())) for path in HOUSE.rglob("*.py")}


def imports_of(module: str) -> Iterator[str]:
    """Every module of the house that this one imports, anywhere in the file: also where only types are checked."""
    for node in ast.walk(TREES[module][1]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in TREES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write the whole name of what is imported"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = inner if inner in TREES else node.module
                if found in TREES and found != module:
                    yield str(found)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What is left when modules that import nothing that is left are taken away, again and again."""
    left = dict(graph)
    while leaves := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in leaves:
            del left[name]
    # What stands above a circle is taken away from the other end.
    while roots := left.keys() - {name for imported in left.values() for name in imported}:
        for name in roots:
            del left[name]
    return [sorted(left)] if left else []


def test_no_module_is_imported_by_what_it_imports() -> None:
    graph = {name: set(imports_of(name)) - {"coatcheck"} for name in TREES}
    assert sum(len(imported) for imported in graph.values()) > 1000
    assert circles(graph) == []


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, (_, tree) in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    twice = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert {name: modules for name, modules in twice.items() if tuple(modules) not in TWINS} == {}


def pure_modules() -> Iterator[str]:
    for module in TREES:
        if any(module == room or module.startswith(f"{room}.") for room in PURE["source_modules"]):
            yield module


def test_pure_modules_reach_the_world_by_no_side_door() -> None:
    """The import walls see imports only; a clock, a file or an import can also be had by a call."""
    doors = {"now", "utcnow", "today", "open", "__import__", "import_module", "eval", "exec"}
    found = []
    for module in pure_modules():
        for node in ast.walk(TREES[module][1]):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                of_a_date = isinstance(called, ast.Attribute) and ast.unparse(called.value) in ("datetime", "date")
                if name in doors and (isinstance(called, ast.Name) or of_a_date):
                    found.append(f"{module}:{node.lineno} {name}()")
    assert len(list(pure_modules())) > 60
    assert found == []


PLANTED = {
    "director/rules/request_head.py": ("import time", "coatcheck.director.rules.request_head -> time"),
    "director/rules/forwarding.py": ("import socket", "coatcheck.director.rules.forwarding -> socket"),
    "replication/put_rule.py": ("import random", "coatcheck.replication.put_rule -> random"),
    "session_server/table.py": ("import threading", "coatcheck.session_server.table -> threading"),
    "tokens/chain.py": ("def _late() -> None:\n    import secrets", "coatcheck.tokens.chain -> secrets"),
    "sessions/record.py": ("if bool():\n    import asyncio", "coatcheck.sessions.record -> asyncio"),
    "replication/entry.py": (
        "from coatcheck.host_clock import wall_ms",
        "coatcheck.replication.entry -> coatcheck.host_clock",
    ),
}


def test_the_walls_stop_a_clock_a_socket_a_thread_and_randomness(tmp_path: Path) -> None:
    """The import walls are run on a copy of the house with an import planted in each of these rooms."""
    shutil.copytree(HOUSE, tmp_path / "coatcheck", ignore=shutil.ignore_patterns("__pycache__"))
    for place, (line, _) in PLANTED.items():
        with (tmp_path / "coatcheck" / place).open("a") as file:
            file.write(f"\n{line}\n")
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    broken = done.stdout.partition("Broken contracts")[2].partition("Rules are pure")[2]
    assert [told for _, told in PLANTED.values() if told not in broken] == []


@pytest.mark.parametrize("room", PURE["source_modules"])
def test_every_room_that_is_held_pure_exists(room: str) -> None:
    assert room in TREES


def test_what_needs_the_machine_for_itself_is_where_make_looks_for_it() -> None:
    needing = {path.parent for path in TESTS.rglob("test_*.py") if SERIAL.search(path.read_text())}
    assert needing == {TESTS / "farm"}
