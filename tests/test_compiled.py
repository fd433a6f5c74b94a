"""The compiled build is the same coatcheck: it is built here as `COATCHECK_COMPILE=1 pip install .` does, and tested."""

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
COMPILED: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
    "wheel"
]["hooks"]["custom"]["modules"]
BUILD_TIMEOUT_S = 1800.0
TESTS_TIMEOUT_S = 1800.0

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


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "COATCHECK_COMPILE": "1"}


def run(folder: Path, *command: str, timeout_s: float = TESTS_TIMEOUT_S) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the compiled wheel holds."""
    folder = tmp_path_factory.mktemp("compiled")
    pip = ["-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    run(folder, *pip, timeout_s=BUILD_TIMEOUT_S)
    [wheel] = folder.glob("coatcheck-*.whl")
    assert "-none-any" not in wheel.name, "it is for one Python and one machine"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def test_no_compiled_class_has_keywords() -> None:
    """mypyc would drop them without a word: frozen classes could be changed, lean ones would be visited."""
    for module in COMPILED:
        tree = ast.parse((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                assert not node.keywords, f"{module}.{node.name}: let it have a base of coatcheck.value"


@pytest.mark.slow
def test_the_compiled_build_is_whole(compiled: Path) -> None:
    run(compiled, "-c", IMPORT_ALL, *COMPILED)
    assert "(compiled)" in run(compiled, "-m", "coatcheck.cli", "--version")
    assert not list((ROOT / "src").rglob("*.so")), "nothing is left beside the sources"
    run(compiled, "-m", "coatcheck.cli", "simulate", "--seeds", "20")


@pytest.mark.slow
def test_the_compiled_build_keeps_what_the_rules_promise(compiled: Path) -> None:
    without = [f"--deselect={name}" for name in NEEDS_PYTHON]
    run(compiled, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *without, *SLICE)


def test_who_says_nothing_gets_python(tmp_path: Path) -> None:
    [wheel_line] = [line for line in build_plainly(tmp_path) if line.startswith("coatcheck-")]
    assert wheel_line.endswith("-py3-none-any.whl")


def build_plainly(folder: Path) -> list[str]:
    pip = ["-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    environment = {name: value for name, value in os.environ.items() if name != "COATCHECK_COMPILE"}
    subprocess.run([sys.executable, *pip], env=environment, check=True, timeout=BUILD_TIMEOUT_S)
    return [path.name for path in folder.iterdir()]
