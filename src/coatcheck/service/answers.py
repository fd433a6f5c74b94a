"""From the answer of :meth:`Sessions.finish` to what the service tells its caller."""

from __future__ import annotations

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import CoatcheckError
from coatcheck.service.messages import Given
from coatcheck.sessions.answer import Answer
from coatcheck.sessions.description import describe
from coatcheck.sessions.opened import Opened


class AnswerRefused(CoatcheckError):
    """What was asked could not be stored; nothing of it was acknowledged. ``answer.status``: 503, 429 or 409."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.refused)
        self.answer = answer


def demand_accepted(answer: Answer) -> Answer:
    """The same answer. Raises :class:`AnswerRefused`."""
    if answer.refused:
        raise AnswerRefused(answer)
    return answer


def given(sessions: Sessions, opened: Opened, answer: Answer) -> Given:
    """The session as it is acknowledged now, and what its browser is to be given."""
    state = describe(opened.session, sessions.lifecycle.policy)
    if state is None:
        raise CoatcheckError("a session that was stored is described by its copy")
    kept = [line for line in cookie_lines(answer) if line not in _deletions(sessions)]
    return Given(state, cookie_lines(answer), kept[0].partition(";")[0] if kept else None)


def cookie_lines(answer: Answer) -> list[str]:
    """The values of its Set-Cookie headers."""
    return [value.decode("latin-1") for _, value in answer.cookies]


def _deletions(sessions: Sessions) -> set[str]:
    transport = sessions.transport
    return {jar.deletion.decode("latin-1") for jar in (transport.login, transport.anonymous)}
