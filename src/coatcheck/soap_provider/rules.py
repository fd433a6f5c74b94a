"""Which session answers a request, and what becomes of it afterwards (mission D8). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.soap_provider.session_types import SessionType
from coatcheck.soap_provider.token import SessionToken


@dataclass(frozen=True, slots=True)
class Presented:
    """What the request's headers say, the token opened."""

    session_type: SessionType = SessionType.NONE
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: SessionToken | None = None


@dataclass(frozen=True, slots=True)
class ProviderSessionState:
    """What this server knows of the token's session. ``newest``: the serial of the newest token."""

    busy: bool
    newest: int


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Which tokens still count: ``timeout_s`` after they were issued, and none from before ``not_before``.

    ``not_before``: Unix ms; older tokens of the user were expired by the operator. ``single_use``: only the
    newest token of a session is accepted.
    """

    timeout_s: float
    not_before: int = 0
    single_use: bool = False


class WayIn(Enum):
    """How a request gets its session."""

    ANONYMOUS = "anonymous"
    LOG_IN = "log_in"
    RESUME = "resume"
    LOG_IN_AGAIN = "log_in_again"
    """Automatic re-login, with the credentials from the token."""


def enter(
    presented: Presented, session: ProviderSessionState | None, server: str, limits: TokenLimits, now: int
) -> WayIn:
    """How the request gets its session; ``session``: the token's session if it is open on this ``server``.

    ``now``: Unix ms.

    Raises:
        SoapFault: it gets none, and the reason.
    """
    token = presented.token
    if token is None:
        return _enter_without_token(presented)
    if presented.username is not None and presented.username != token.username:
        raise SoapFault(FaultReason.BAD_HEADER, "UsernameToken and SessionToken name different users")
    if now - token.issued_at >= limits.timeout_s * 1000 or token.issued_at < limits.not_before:
        raise SoapFault(FaultReason.TOKEN_EXPIRED, "the session token has expired; log in")
    if session is not None:
        return _resume(token, session, limits)
    if SessionType.STATEFUL in (token.session_type, presented.session_type):
        if token.server != server:
            raise SoapFault(FaultReason.WRONG_SERVER, "this stateful session lives on another server; log in here")
        raise SoapFault(FaultReason.SESSION_EXPIRED, "the stateful session was closed; log in")
    return WayIn.LOG_IN_AGAIN


def _enter_without_token(presented: Presented) -> WayIn:
    if presented.username is not None:
        return WayIn.LOG_IN
    if presented.password is not None:
        raise SoapFault(FaultReason.BAD_HEADER, "PasswordText without UsernameToken")
    if presented.session_type is SessionType.NONE:
        return WayIn.ANONYMOUS
    raise SoapFault(
        FaultReason.LOGIN_REQUIRED,
        f"a {presented.session_type.value} session needs UsernameToken and PasswordText, or a SessionToken",
    )


def _resume(token: SessionToken, session: ProviderSessionState, limits: TokenLimits) -> WayIn:
    if session.busy:
        raise SoapFault(FaultReason.SESSION_BUSY, "the session is in use by another request")
    if limits.single_use and token.serial != session.newest:
        raise SoapFault(FaultReason.TOKEN_EXPIRED, "the session token was replaced by a newer one; log in")
    return WayIn.RESUME


def leave(asked: SessionType, holds_changes: bool) -> SessionType:
    """What the session is after the response: ``NONE`` closes it, everything else comes with a fresh token."""
    if asked is SessionType.SERVER_DETERMINE:
        return SessionType.STATEFUL if holds_changes else SessionType.STATELESS
    return asked
