"""Sessions by their tokens, without cookies and requests around them."""

from __future__ import annotations

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import TokenRejected
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.saving import Saved
from coatcheck.tokens.sealed import SealedToken


async def opened(sessions: Sessions, token: SealedToken, login: bool = False) -> Session | None:
    """The session of a token: at once if it is hosted here, else with the session servers."""
    lifecycle = sessions.lifecycle
    return lifecycle.open_cached(token, login) or await sessions.driver.run(lifecycle.open(token, login))


async def saved(sessions: Sessions, session: Session) -> Saved:
    """What its response would tell."""
    outcome = sessions.lifecycle.finish(session)
    return outcome if isinstance(outcome, Saved) else await sessions.driver.run(outcome)


def must_save(lifecycle: Lifecycle, session: Session) -> bool:
    """Whether its response would wait until something is stored."""
    return not isinstance(lifecycle.finish(session), Saved)


def unsealed(sessions: Sessions, text: bytes, login: bool = False) -> SealedToken | None:
    """The token's content; ``None`` for what this farm did not seal."""
    try:
        return sessions._codecs[login].open(text)
    except TokenRejected:
        return None
