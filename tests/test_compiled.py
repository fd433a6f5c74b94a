"""The compiled build is the same coatcheck: it is built here as its users build it, and tested."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HATCH = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
COMPILED: list[str] = HATCH["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
TIMEOUT_S = 1800.0

SLICE = ["tests/replication", "tests/tokens", "tests/sessions"]
NEEDS_PYTHON = ["tests/sessions/test_shared_data.py::test_what_is_shared_is_bounded_and_ends_with_its_session"]
"""A compiled constant cannot be replaced by a smaller one for a test."""

IMPORT_ALL = """
import importlib, pkgutil, sys, coatcheck
for found in pkgutil.walk_packages(coatcheck.__path__, "coatcheck."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in sys.argv[1:]:
    assert sys.modules[name].__file__.endswith(".so"), sys.modules[name].__file__
"""


def run(folder: Path, *arguments: str) -> str:
    """What Python prints with these arguments, and with what is in ``folder`` before what is installed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


def built(folder: Path) -> Path:
    """The wheel of this tree."""
    run(folder, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("coatcheck-*.whl")
    return wheel


def test_no_compiled_class_has_keywords() -> None:
    """mypyc would drop them without a word: frozen classes could be changed, lean ones would be visited."""
    for module in COMPILED:
        tree = ast.parse((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                assert not node.keywords, f"{module}.{node.name}: let it have a base of coatcheck.value"


def test_who_says_nothing_gets_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COATCHECK_COMPILE", raising=False)
    assert built(tmp_path).name.endswith("-py3-none-any.whl")
    assert "(pure Python)" in run(ROOT / "src", "-m", "coatcheck.cli", "--version")


def test_an_unclear_wish_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATCHECK_COMPILE", "yes")
    with pytest.raises(AssertionError, match="COATCHECK_COMPILE: 1 compiles, 0 does not; not 'yes'"):
        built(tmp_path)


@pytest.mark.slow
def test_the_compiled_build_keeps_what_the_rules_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATCHECK_COMPILE", "1")
    monkeypatch.setenv("MYPYC_OPT_LEVEL", "0")  # what is promised does not depend on it, and the C compiler takes half
    wheel, site = built(tmp_path), tmp_path / "site"
    assert not wheel.name.endswith("-any.whl"), "it fits one Python and one kind of machine"
    assert not list((ROOT / "src").rglob("*.so")), "nothing is left beside the sources"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    run(site, "-c", IMPORT_ALL, *COMPILED)
    assert "(compiled)" in run(site, "-m", "coatcheck.cli", "--version")
    run(site, "-m", "coatcheck.cli", "simulate", "--seeds", "20")
    without = [f"--deselect={name}" for name in NEEDS_PYTHON]
    run(site, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *without, *SLICE)
