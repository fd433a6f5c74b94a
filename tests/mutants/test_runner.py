"""The runner tells a fault that was noticed from one that was not, and from a killer that broke for another reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from . import runner
from .mutant import ROOT, Change, Mutant, Stale, load

KILLER = "tests/sessions/test_delta.py"
FAULT = Change("sessions/policy.py", "return self.idle_timeout_ms // 8", "return self.idle_timeout_ms // 8 + 1")
MUTANT = Mutant("a touch is one millisecond late", ["A7"], "", [FAULT], name="late-touch")


@pytest.fixture
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A test of the policy, in a file that only this test has."""
    folder = tmp_path_factory.mktemp("killers")
    file = folder / "test_touch.py"
    file.write_text(
        "import pytest\n"
        "from coatcheck.sessions.policy import SessionPolicy\n"
        "LATE = SessionPolicy(idle_timeout_ms=8).touch_ms != 1\n"
        "def test_notices(): assert not LATE\n"
        "def test_does_not(): assert True\n"
        "def test_breaks():\n    if LATE: raise KeyError('a name that is gone')\n"
        "@pytest.fixture\ndef broken():\n    assert not LATE\n"
        "def test_in_setup(broken): assert True\n"
        "def test_hangs():\n    while LATE: pass\n"
        "def test_always_fails(): assert False\n"
    )
    yield file


def planted(file: Path, test: str, limit_s: float = 60.0, **more: object) -> runner.Finding:
    mutant = msgspec.structs.replace(MUTANT, killer=f"{file}::{test}", **more)
    return runner.plant(mutant, limit_s)


def test_noticed_or_not(killer: Path) -> None:
    assert planted(killer, "test_notices").word == "killed"
    assert planted(killer, "test_does_not").word == "SURVIVED"


def test_only_an_assertion_of_the_test_itself_counts(killer: Path) -> None:
    found = planted(killer, "test_breaks")
    assert (found.word, found.good) == ("WRONG REASON", False)
    assert "KeyError" in found.detail
    assert planted(killer, "test_breaks", raises=["KeyError"]).word == "killed"
    assert planted(killer, "test_in_setup").word == "WRONG REASON"
    assert planted(killer, "test_hangs", limit_s=5.0).word == "NO VERDICT"


def test_a_killer_that_fails_anyway_proves_nothing(killer: Path) -> None:
    assert runner.without_fault([f"{killer}::test_notices", f"{killer}::test_breaks"]).good
    found = runner.without_fault([f"{killer}::test_notices", f"{killer}::test_always_fails"])
    assert not found.good
    assert "test_always_fails" in found.detail


def test_a_simulation_can_be_the_killer() -> None:
    simulate = "simulate --seeds 40"
    unseen = Change("replication/put_rule.py", "stored[2:_VERSION_END] == seen:\n", "stored[2:_VERSION_END] != seen:\n")
    found = runner.plant(Mutant("the put rule upside down", ["B6"], simulate, [unseen], name="put-rule"))
    assert found.word == "killed", found.detail
    assert "VIOLATION" in found.detail
    harmless = msgspec.structs.replace(MUTANT, killer="simulate --seeds 2 --profile calm")
    assert runner.plant(harmless).word == "SURVIVED"
    assert runner.without_fault([simulate]).good


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change("sessions/policy.py", "no such text", "x"), "stands 0 times in sessions/policy.py"),
        (Change("sessions/policy.py", "return", "x"), "times in sessions/policy.py, not once"),
        (Change("sessions/none.py", "a", "b"), "there is no file sessions/none.py"),
        (Change("sessions/policy.py", "MINUTE_MS = 60_000", "MINUTE_MS = ("), "is no Python"),
        (Change("sessions/policy.py", "MINUTE_MS = 60_000", "MINUTE_MS = 60_000"), "is the old one"),
    ],
)
def test_a_fault_that_no_longer_fits_is_named(change: Change, words: str) -> None:
    with pytest.raises(Stale, match=words):
        msgspec.structs.replace(MUTANT, change=[change]).changed_files()
    found = runner.plant(msgspec.structs.replace(MUTANT, change=[change], killer=KILLER))
    assert (found.word, found.name) == ("STALE", "late-touch")


@pytest.mark.parametrize("killer", [f"{KILLER}::test_of_nothing", "tests/none.py::test_x"])
def test_a_killer_that_is_gone_is_named(killer: str) -> None:
    with pytest.raises(Stale, match="its killer"):
        msgspec.structs.replace(MUTANT, killer=killer).check_killer()


@pytest.mark.parametrize("text", ["title = 3", "title = 'x'\nbreaks = []\nkiller = 'x'\nchange = []", "= ="])
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(Stale, match=r"bad\.toml"):
        load(tmp_path / "bad.toml")


def test_killers_of_one_file_share_a_process() -> None:
    assert runner.by_file(["a::x", "b::y", "a::z", "a::x", "simulate --seed 1"]) == [
        ["a::x", "a::z"],
        ["b::y"],
        ["simulate --seed 1"],
    ]
    assert (ROOT / KILLER).is_file()
