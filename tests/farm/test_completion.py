"""A shell that has read what ``coatcheck completion`` prints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import run_coatcheck

from .farm_process import Farm

BIN = Path(sys.executable).parent


def completed(*words: str, folder: Path) -> list[str]:
    """What bash offers for the last of ``words``."""
    script = """
source <(coatcheck completion bash)
complete -p coatcheck > /dev/null || exit 9
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_coatcheck_completion coatcheck
printf '%s\\n' "${COMPREPLY[@]}"
"""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    told = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, cwd=folder, env=environment, check=True
    )
    return told.stdout.split()


def test_bash_completes_commands_flags_and_values(tmp_path: Path) -> None:
    assert completed("coatcheck", "se", folder=tmp_path) == ["serve", "service", "sessions"]
    assert completed("coatcheck", "sessions", "ls", "--us", folder=tmp_path) == ["--user"]
    assert completed("coatcheck", "serve", "--theft", "re", folder=tmp_path) == ["refuse", "report"]
    assert completed("coatcheck", "drain", "w", folder=tmp_path) == [], "there is no farm"


def test_bash_completes_the_servers_of_a_farm(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    assert completed("coatcheck", "drain", "web", folder=running.directory) == ["web-1", "web-2"]


@pytest.mark.parametrize(("flag", "kind"), [("--config", "file"), ("--keys-file", "file"), ("--run-dir", "dir")])
def test_paths_are_left_to_the_shell(flag: str, kind: str) -> None:
    asked = {"_COATCHECK_COMPLETE": "bash_complete", "COMP_WORDS": f"coatcheck serve {flag} fa", "COMP_CWORD": "3"}
    assert run_coatcheck(env={**os.environ, **asked}).stdout == f"{kind},fa\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_words(shell: str) -> None:
    told = run_coatcheck("completion", shell)
    assert told.returncode == 0
    assert f"_COATCHECK_COMPLETE={shell}_complete" in told.stdout
