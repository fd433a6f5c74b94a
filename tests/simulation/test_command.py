"""``coatcheck simulate``: what it prints, and its exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from coatcheck.simulation import main

from .mutations import MUTATIONS


def test_some_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "12"]) == 0
    out = capsys.readouterr().out
    assert "12 histories" in out
    assert "excused, by promise:" in out
    assert "no invariant broken" in out


def test_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "60", "--jobs", "2"]) == 0
    assert "60 histories" in capsys.readouterr().out


def test_a_failure_prints_the_command_that_replays_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS["a put is accepted whatever its writer saw"](monkeypatch)
    assert main(["--seeds", "50"]) == 1
    out = capsys.readouterr().out
    command = next(line for line in out.splitlines() if "replay: coatcheck simulate --seed" in line)
    arguments = command.split("simulate ")[1].split()
    assert "--trace" in arguments
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "VIOLATION" in out
    assert "store-1 stores" in out


def test_one_seed_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--trace"]) == 0
    first = capsys.readouterr().out
    assert main(["--seed", "5", "--trace"]) == 0
    assert capsys.readouterr().out == first
    assert "trace " in first


def test_exhaustive(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--exhaustive", "--script", "write-read", "--faults", "0", "--disorder", "0", "--steps", "3000"]
    assert main(arguments) == 0
    assert "exhausted, no invariant broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--seeds", "0"], ["--seeds", "many"], ["--profile", "nice"], ["--what"], ["--exhaustive", "--script", "no"]],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "coatcheck simulate" in captured.err + captured.out


def test_the_command_line_knows_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "coatcheck.cli", "simulate", "--seeds", "3"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 histories" in done.stdout
