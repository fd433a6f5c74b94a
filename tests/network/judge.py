"""What a browser may be told, whatever the network did. Pure: answers go in, broken promises come out.

The promises: no write that was acknowledged is lost; nobody is logged out; no logout is undone. What may happen while
a machine is cut off from most of the session servers is a refusal (503), and, while the browser's own link is cut, no
answer at all.
"""

from __future__ import annotations

from collections import Counter

import msgspec

SETTLE_S = 4.0
"""After a heal: how long a machine may refuse still. It connects again after at most a second, and a time-out and a
lease pass, of a second each."""

CUT_OFF = 2
"""A machine with so many of its three links to session servers disturbed may refuse; with one, it serves everybody."""


class Disturbances:
    """When which link was disturbed, in seconds of the test's clock."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = {}
        self._begun: dict[str, float] = {}

    def during(self, link: str, began: float, ended: float) -> None:
        """It was disturbed from then to then."""
        self._spans.setdefault(link, []).append((began, ended))

    def begin(self, link: str, now: float) -> None:
        self._begun.setdefault(link, now)

    def end(self, link: str, now: float) -> None:
        self._spans.setdefault(link, []).append((self._begun.pop(link, now), now))

    def count(self, prefix: str, since: float, until: float) -> int:
        """How many links whose name begins so were disturbed then, or so shortly before that it still shows."""
        early = since - SETTLE_S
        found = {name for name, at in self._begun.items() if at <= until}
        found |= {name for name, spans in self._spans.items() if any(at <= until and end >= early for at, end in spans)}
        return sum(name.startswith(prefix) for name in found)


class Answer(msgspec.Struct, frozen=True):
    """One request and what came of it. ``status`` 0: no answer. Times are seconds of the test's clock."""

    machine: str
    what: str
    began: float
    ended: float
    status: int
    user: str | None = None
    written: frozenset[int] = frozenset()
    words: str = ""


class Judge:
    """Collects broken promises; :attr:`counts` says how often which answer came.

    Whether a refusal is excused is judged when :attr:`broken` is asked for: that links stood still is heard later.
    """

    def __init__(self, disturbances: Disturbances) -> None:
        self.certain: list[str] = []
        self.counts: Counter[str] = Counter()
        self._refused: list[tuple[str, Answer]] = []
        self._disturbances = disturbances

    @property
    def broken(self) -> list[str]:
        found = [
            _words(promise, who, answer, answer.words) for who, answer in self._refused for promise in self._why(answer)
        ]
        return [*self.certain, *found]

    def fail(self, promise: str, who: str, answer: Answer, detail: str) -> None:
        self.certain.append(_words(promise, who, answer, detail))

    def answered(self, who: str, answer: Answer) -> bool:
        """Whether it is an answer; if not, whether that is excused."""
        self.counts[f"{answer.what.split()[0]} {answer.status or 'no answer'}"] += 1
        if answer.status == 200:
            return True
        if answer.status in (0, 503):
            self._refused.append((who, answer))
        else:
            self.fail("an answer that it should not get", who, answer, f"{answer.status} {answer.words}")
        return False

    def _why(self, answer: Answer) -> list[str]:
        """The promise that a refusal breaks, if it breaks one."""
        door = self._disturbances.count(f"door-{answer.machine}", answer.began, answer.ended)
        cut = self._disturbances.count(answer.machine, answer.began, answer.ended)
        if answer.status == 0 and not door:
            return ["no answer though its link was whole"]
        if answer.status == 503 and cut < CUT_OFF:
            return [f"refused with {cut} of its links disturbed"]
        return []


def _words(promise: str, who: str, answer: Answer, detail: str) -> str:
    return f"{answer.ended:.2f} s: {promise}: {who}, {answer.what} at machine {answer.machine}: {detail}"


class Account:
    """What one browser knows of its own session, and so may rely on."""

    def __init__(self, user: str, judge: Judge) -> None:
        self.user = user
        self._judge = judge
        self.logged_in = False
        self.leaving = False
        """Whether a logout was tried whose outcome is unknown."""
        self.acknowledged: set[int] = set()
        self.tried: set[int] = set()
        """Writes whose outcome is unknown: they may be there, or come."""

    def login(self, answer: Answer) -> None:
        if self._judge.answered(self.user, answer):
            self.logged_in, self.leaving = True, False
            self.acknowledged, self.tried = set(), set()
            if answer.user != self.user or answer.written:
                self._judge.fail(
                    "another session after the login", self.user, answer, f"{answer.user}, {answer.written}"
                )

    def read(self, answer: Answer) -> None:
        if self._judge.answered(self.user, answer):
            self._saw(answer)

    def write(self, answer: Answer, number: int) -> None:
        self.tried.add(number)
        if not self._judge.answered(self.user, answer):
            return
        self._saw(answer)
        if self.logged_in and number not in answer.written:
            self._judge.fail("an acknowledged write is not in its own answer", self.user, answer, str(number))
        elif self.logged_in:
            self.acknowledged.add(number)

    def logout(self, answer: Answer) -> bool:
        """Whether it was acknowledged."""
        if not self._judge.answered(self.user, answer):
            self.leaving = True
            return False
        self.logged_in = self.leaving = False
        return True

    def buried(self, answer: Answer) -> None:
        """The token of a session whose logout was acknowledged was shown again."""
        if self._judge.answered(self.user, answer) and answer.user is not None:
            self._judge.fail("a logout was undone", self.user, answer, f"{answer.user}, {sorted(answer.written)}")

    def _saw(self, answer: Answer) -> None:
        if not self.logged_in:
            return
        if answer.user is None and self.leaving:
            self.logged_in = self.leaving = False  # the logout had come through
        elif answer.user != self.user:
            self._judge.fail("logged out", self.user, answer, f"the session is {answer.user}'s")
            self.logged_in = False
        else:
            lost = self.acknowledged - answer.written
            strange = answer.written - self.acknowledged - self.tried
            if lost or strange:
                self._judge.fail(
                    "acknowledged writes lost", self.user, answer, f"{sorted(lost)}, strange {sorted(strange)}"
                )
            # What an answer showed once was promised by it, as an acknowledgement would have.
            self.acknowledged = set(answer.written)
            self.tried -= answer.written
