"""When the pool believes that a refused token is dead: one rule, for leases and for shared tokens.

A refusal has two reasons that look alike: the token is dead, or the page is forbidden whatever the token. Another token
helps with the first alone. So a token that is fresh from a login is not taken out of use: another login would bring no
better one.
"""

from __future__ import annotations

from typing import Final

PROTECTED_S: Final = 1.0
PROTECTED_MAX_S: Final = 60.0
"""After a refusal, each token that comes from a login is believed to be good for so long, whatever is said of it. Twice
as long each time, if tokens are refused again soon after that."""

MAX_REFUSALS: Final = 32
"""As far as they are counted."""


def protected_s(refusals: int) -> float:
    """How long after its login a token is not taken out of use. ``refusals``: so many tokens were, one after another,
    each soon after its login."""
    return min(PROTECTED_S * 2.0 ** (refusals - 1), PROTECTED_MAX_S) if refusals else 0.0


def is_believed(refusals: int, age_s: float) -> bool:
    """Whether a token that is refused ``age_s`` after its login is dead."""
    return age_s >= protected_s(refusals)


def counted(refusals: int, age_s: float) -> int:
    """``refusals`` with that of a token that was taken out of use ``age_s`` after its login."""
    return min(refusals + 1, MAX_REFUSALS) if age_s < 2 * protected_s(refusals) else 1
