"""A flood of one kind of line fills no log and hides no other kind."""

from __future__ import annotations

from typing import Any

from coatcheck.seldom import BURST, MAX_KINDS, PERIOD_S, Seldom


class Lines:
    def __init__(self) -> None:
        self.written: list[str] = []

    def log(self, level: int, message: str, *arguments: Any) -> None:
        self.written.append(message % arguments)


def test_a_flood_leaves_a_few_lines_and_their_number() -> None:
    lines, now = Lines(), 0.0
    seldom = Seldom(lines, lambda: now)
    for at in range(10_000):
        seldom.warning("user %d was refused", at)
    assert lines.written == [f"user {at} was refused" for at in range(BURST)]
    seldom.warning("something else")
    assert lines.written[BURST:] == ["something else"]
    now = PERIOD_S
    seldom.warning("user %d was refused", 7)
    seldom.warning("user %d was refused", 8)
    assert lines.written[BURST + 1 :] == [f"user 7 was refused (and {10_000 - BURST} more like it)"]
    now = PERIOD_S * (BURST + 5)
    for _ in range(BURST + 3):
        seldom.warning("user %d was refused", 9)
    assert lines.written[BURST + 2] == "user 9 was refused (and 1 more like it)"
    assert len(lines.written) == 2 * BURST + 2


def test_kinds_are_bounded() -> None:
    lines = Lines()
    seldom = Seldom(lines, lambda: 0.0)
    for at in range(10 * MAX_KINDS):
        seldom.warning("refused", kind=str(at))
    assert len(lines.written) == MAX_KINDS + BURST
    assert len(seldom._kinds) == MAX_KINDS + 1
