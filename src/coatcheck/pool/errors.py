"""What can go wrong with a pool of outbound tokens. No message ever holds a token or a password."""

from __future__ import annotations

from coatcheck.errors import CoatcheckError


class PoolError(CoatcheckError):
    """The root of the pool's errors."""


class LeaseLost(PoolError):
    """The lease is over: its deadline passed, it was given back before, or an operator removed it.

    The token is no longer the caller's; it was dropped, not handed to anybody else.
    """

    def __init__(self, user: str, fencing: int) -> None:
        super().__init__(f"lease {fencing} of {user!r} is over: deadline passed, given back before, or removed")
        self.user = user
        self.fencing = fencing


class PoolTimeout(PoolError):
    """No token came free in time. ``waited_s``: how long the caller was ready to wait."""

    def __init__(self, user: str, waited_s: float) -> None:
        super().__init__(f"no token of {user!r} came free within {waited_s:g} s")
        self.user = user
        self.waited_s = waited_s


class PoolFull(PoolError):
    """A limit is reached: of waiting callers, of tokens for one user, or of users."""


class PoolClosed(PoolError):
    """The pool was closed."""


class LoginFailed(PoolError):
    """The ``login`` callback failed, or was slower than ``login_timeout``; its own error is ``__cause__``.

    ``tokens``: of the same credentials there are so many, in others' hands.
    """

    def __init__(self, user: str, why: str) -> None:
        super().__init__(f"login of {user!r} failed: {why}")
        self.user = user
        self.tokens = 0


class LoginRefused(LoginFailed):
    """The upstream refused these credentials for good, so that trying them again is of no use (or locks the user).

    ``login`` raises it, as ``LoginRefused(user)``. From then on callers with the same credentials get it at once,
    without a login, for an hour, or until the user is reset.
    """

    def __init__(self, user: str = "", why: str = "refused for good") -> None:
        super().__init__(user, why)


class LoginRateLimited(PoolError):
    """No login now: earlier ones failed, or ``login_rate`` is used up. ``retry_after_s``: when to come back."""

    def __init__(self, user: str, retry_after_s: float) -> None:
        super().__init__(f"no login of {user!r} for another {retry_after_s:.3g} s")
        self.user = user
        self.retry_after_s = retry_after_s


class StoreUnavailable(PoolError):
    """The token store did not answer, or answered what we did not write; whether the change happened is unknown.

    A lease that was granted unknown to us is recovered at its deadline.
    """
