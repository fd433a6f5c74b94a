"""Plants each fault in a copy of the source, runs its killer there, and says who noticed what."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from . import verdict
from .mutant import PACKAGE, ROOT, SIMULATE, TESTS, Mutant, Stale

LIMIT_S = 150.0
"""How long a killer may take, on a busy machine; one that takes longer says nothing."""

TEARDOWN_S = 30.0
"""How long it may take to end what it started when it is interrupted."""

ASSERTIONS = {"AssertionError", "Failed"}
"""What a test that checks something fails with; ``Failed`` is pytest's own (``pytest.fail``, ``pytest.raises``)."""


class Finding(msgspec.Struct, frozen=True):
    """What became of a fault, or of a killer without it."""

    name: str
    good: bool
    word: str
    detail: str
    seconds: float

    def line(self) -> str:
        return f"{self.word:13s} {self.seconds:6.1f} s  {self.name}" + (f": {self.detail}" if self.detail else "")


class Ran(msgspec.Struct, frozen=True):
    """What a killer did. ``failures``: of tests; ``ended``: within its time."""

    ended: bool
    code: int
    output: str
    reports: list[dict[str, Any]]


@contextlib.contextmanager
def copy_of_source(changed: dict[str, str]) -> Iterator[Path]:
    """A copy of ``src`` with other texts in some files, for as long as the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="cc-m-"))
    try:
        shutil.copytree(PACKAGE, folder / "src" / "coatcheck")
        for file, text in changed.items():
            (folder / "src" / "coatcheck" / file).write_text(text)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command(killers: Sequence[str]) -> list[str]:
    """The killers' command: one simulation, or tests that share a process."""
    if killers[0].startswith(SIMULATE):
        (only,) = killers
        return [sys.executable, "-m", "coatcheck.cli", *only.split()]
    options = ["-q", "-p", verdict.__name__, "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    return [sys.executable, "-m", "pytest", *options, *killers]


def run(killers: Sequence[str], folder: Path, limit_s: float, stop_at_first: bool) -> Ran:
    """Run killers on the copy of the source in ``folder``."""
    report = folder / "verdict.json"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join([str(folder / "src"), str(TESTS)])
    env = {**os.environ, "PYTHONPATH": paths, verdict.OUT: str(report), verdict.SOURCE: str(folder / "src")}
    words = command(killers)
    if not killers[0].startswith(SIMULATE):
        words += ["--basetemp", str(folder / "t"), *(["-x"] if stop_at_first else [])]
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        ended = _wait(process, limit_s)
        output.seek(0)
        text = output.read()
    reports = json.loads(report.read_text()) if report.exists() else []
    return Ran(ended, process.returncode, text, reports)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    try:
        process.wait(limit_s)
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # its fixtures end what they started
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TEARDOWN_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def judge(mutant: Mutant, ran: Ran) -> tuple[bool, str, str]:
    """Whether the killer noticed, in a word, and why that is so."""
    if not ran.ended:
        return False, "NO VERDICT", f"{mutant.killer} did not end"
    if mutant.killer.startswith(SIMULATE):
        broken = [line for line in ran.output.splitlines() if line.startswith("VIOLATION")]
        if ran.code == 1 and broken:
            return True, "killed", broken[0]
        if ran.code == 0:
            return False, "SURVIVED", mutant.killer
        return False, "WRONG REASON", _last_line(ran.output)
    failures = [report for report in ran.reports if report["outcome"] == "failed"]
    if ran.code == 0 and ran.reports:
        return False, "SURVIVED", mutant.killer
    if not failures:
        return False, "NO VERDICT", _last_line(ran.output)
    for parameter in mutant.each:
        if not any(re.search(rf"[\[-]{re.escape(parameter)}[\]-]", report["test"]) for report in failures):
            return False, "SURVIVED", f"{mutant.killer} with {parameter}"
    first = failures[0]
    wanted = ASSERTIONS | set(mutant.raises)
    if first["when"] == "call" and wanted & set(first["kinds"]):
        return True, "killed", ""
    words = f"{first['kinds'][0]}: {' '.join(first['words'])}"
    return False, "WRONG REASON", f"{first['test']} failed in {first['when']} with {words}"


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def plant(mutant: Mutant, limit_s: float = LIMIT_S) -> Finding:
    """Plant one fault and run its killer."""
    began = time.monotonic()
    try:
        changed = mutant.changed_files()
        mutant.check_killer()
    except Stale as stale:
        return Finding(mutant.name, False, "STALE", str(stale), 0.0)
    with copy_of_source(changed) as folder:
        good, word, detail = judge(mutant, run([mutant.killer], folder, limit_s, not mutant.each))
    return Finding(mutant.name, good, word, detail, time.monotonic() - began)


def without_fault(killers: Sequence[str], limit_s: float = LIMIT_S) -> Finding:
    """The same killers must pass on the source as it is."""
    began = time.monotonic()
    name = killers[0].partition("::")[0]
    with copy_of_source({}) as folder:
        ran = run(killers, folder, limit_s * len(killers), stop_at_first=False)
    seconds = time.monotonic() - began
    if ran.ended and ran.code == 0:
        return Finding(name, True, "passes", f"{len(killers)} without a fault", seconds)
    failed = [report["test"] for report in ran.reports if report["outcome"] == "failed"]
    return Finding(name, False, "FAILS", f"without a fault: {', '.join(failed) or _last_line(ran.output)}", seconds)


def by_file(killers: Sequence[str]) -> list[list[str]]:
    """Killers that can share a process: those of one file. Each once."""
    groups: dict[str, list[str]] = {}
    for killer in dict.fromkeys(killers):
        groups.setdefault(killer.partition("::")[0], []).append(killer)
    return list(groups.values())


def run_all(mutants: Sequence[Mutant], jobs: int, say: Any) -> int:
    """Plant all; returns how many findings are bad."""
    began = time.monotonic()
    groups = by_file([mutant.killer for mutant in mutants])
    with ThreadPoolExecutor(jobs) as threads:
        planted = [threads.submit(plant, mutant) for mutant in mutants]
        passing = [threads.submit(without_fault, group) for group in groups]
        findings = []
        for future in [*planted, *passing]:
            findings.append(future.result())
            say(findings[-1].line())
    killed = sum(finding.good for finding in findings[: len(planted)])
    healthy = sum(finding.good for finding in findings[len(planted) :])
    say(
        f"{len(mutants)} planted faults, {killed} killed; killers of {len(groups)} files or seeds, {healthy} pass "
        f"without a fault; {time.monotonic() - began:.0f} s"
    )
    bad = [finding for finding in findings if not finding.good]
    for finding in bad:
        say(finding.line())
    return len(bad)
