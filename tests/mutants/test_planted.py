"""Each planted fault still fits the code and names a killer that exists; no built row of the mission is without one."""

from __future__ import annotations

import pytest

from mission.test_every_row_has_a_test import DUE

from .mutant import PLANTED, load, load_all

AT_LEAST = 150
NAMES = sorted(path.stem for path in PLANTED.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_can_be_planted_and_its_killer_exists(name: str) -> None:
    mutant = load(PLANTED / f"{name}.toml")
    assert mutant.changed_files()
    mutant.check_killer()


def test_every_built_row_has_one() -> None:
    covered = set().union(*(mutant.rows() for mutant in load_all()))
    assert set(DUE) <= covered, f"no planted fault breaks {sorted(set(DUE) - covered)}"


def test_there_are_enough_and_no_two_are_the_same() -> None:
    mutants = load_all()
    assert len(mutants) >= AT_LEAST
    assert len({mutant.title for mutant in mutants}) == len(mutants)
    changes = [tuple((change.file, change.old, change.new) for change in mutant.change) for mutant in mutants]
    assert len(set(changes)) == len(mutants)
