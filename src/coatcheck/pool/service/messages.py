"""What the service is asked and what it answers: the JSON bodies, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from coatcheck.pool.inspection import TokenRow, UserStats
from coatcheck.pool.masking import MAX_PASSWORD_CHARS, MAX_STATE_CHARS, MAX_TOKEN_CHARS
from coatcheck.service_kit.messages import Body

MAX_WAIT_S = 300.0

TokenText = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]
Seconds = Annotated[float, Meta(gt=0)]
Payload = dict[str, Any]


class CheckOut(Body):
    """``wait_s``: how long to wait for a token; the pool's own time without it. ``password``: for the login; it
    also says whose token it may be."""

    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] | None = None
    password: Annotated[str, Meta(max_length=MAX_PASSWORD_CHARS)] | None = None

    def __repr__(self) -> str:
        return f"<CheckOut, {self.wait_s} s>"


class CheckIn(Body):
    """``token``: the refreshed one, if the upstream sent one. ``payload``: what belongs to it now; without it, what did
    before. ``failed``: the token's state is unknown now."""

    token: TokenText | None = None
    payload: Payload | None = None
    expires_in_s: Seconds | None = None
    failed: bool = False

    def __repr__(self) -> str:
        return "<CheckIn>"


class Drop(Body):
    """``sign_out``: the session may still be alive at the upstream, so log it out."""

    sign_out: bool = False


class Complete(Body):
    """The token that a login by the caller brought. ``payload``: a small object that belongs to it (further cookies, an
    address). ``expires_in_s``: when the upstream ends it in any case. ``upstream_state``: by what the upstream finds
    its own state of this user again; the next login with the same ``password``, that of the check-out, is given it.
    ``""``: there is none any more."""

    token: TokenText
    payload: Payload | None = None
    expires_in_s: Seconds | None = None
    upstream_state: Annotated[str, Meta(max_length=MAX_STATE_CHARS)] | None = None
    password: Annotated[str, Meta(max_length=MAX_PASSWORD_CHARS)] | None = None

    def __repr__(self) -> str:
        return "<Complete>"


class Fail(Body):
    """``refused``: the upstream refused the credentials for good; who gives the same ones is told so at once."""

    refused: bool = False


class RefuseShared(Body):
    """``token``: the one that the upstream refused. ``password``: that of the request which got it."""

    token: TokenText
    password: Annotated[str, Meta(max_length=MAX_PASSWORD_CHARS)] | None = None

    def __repr__(self) -> str:
        return "<RefuseShared>"


class Nothing(Body):
    """No fields."""


class LentToken(msgspec.Struct, frozen=True):
    """A token in the caller's hands, for ``deadline_in_s`` seconds. ``uses``: its leases so far, this one included.

    ``payload``: what the login brought beside it."""

    lease: str
    user: str
    token: str
    payload: Payload | None
    uses: int
    deadline_in_s: float
    fencing: int

    def __repr__(self) -> str:
        return f"<LentToken {self.fencing} of {self.user!r}>"


class SharedGiven(msgspec.Struct, frozen=True):
    """A token that is used by many at once; ask again before each call. ``expires_in_s``: until its end, if known."""

    user: str
    token: str
    payload: Payload | None
    expires_in_s: float | None

    def __repr__(self) -> str:
        return f"<SharedGiven of {self.user!r}>"


class LoginLease(msgspec.Struct, frozen=True):
    """There is no token, but a place for one: log in within ``deadline_in_s`` seconds, then complete the lease.

    ``upstream_state``: what the last login with this password told, if it told anything."""

    lease: str
    user: str
    login: bool
    deadline_in_s: float
    fencing: int
    upstream_state: str | None

    def __repr__(self) -> str:
        return f"<LoginLease {self.fencing} of {self.user!r}>"


class Renewed(msgspec.Struct, frozen=True):
    """The lease's new deadline, seconds from now."""

    deadline_in_s: float


class TokenRefused(msgspec.Struct, frozen=True):
    """``again``: the token was dropped, and another one may do; else it is fresh from a login, and was kept."""

    again: bool


class Stats(msgspec.Struct, frozen=True):
    """Numbers per user."""

    pool: str
    users: dict[str, UserStats]


class Users(msgspec.Struct, frozen=True):
    """Every slot, tokens masked."""

    tokens: list[TokenRow]


class Removed(msgspec.Struct, frozen=True):
    """How many tokens were dropped."""

    removed: int


class ServiceHealth(msgspec.Struct, frozen=True):
    """``ok``: the service answers and its store does."""

    status: str
