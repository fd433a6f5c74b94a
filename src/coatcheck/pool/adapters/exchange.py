"""What every adapter does with a lease around one call, whatever the client library (mission D1, D7)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from coatcheck.errors import ConfigError
from coatcheck.pool import LeaseLost, PoolError
from coatcheck.pool.adapters.placing import (
    Apply,
    Extract,
    IsExpired,
    bearer,
    is_unauthorized,
    nothing,
    takes_payload,
)

MAX_ATTEMPTS: Final = 33
"""Tokens that one call may find expired before it gives up; one that is fresh from a login ends it at once."""

log: Final = logging.getLogger("coatcheck.pool.adapters")

User = str | Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class UpstreamTokens:
    """How an upstream takes tokens and gives them back.

    ``user``: whose token, or a function of the request that says so. ``apply`` puts the token into the request (with a
    third parameter: what belongs to the token beside it, its payload, as a dict),
    ``extract`` finds the refreshed one in the response, ``is_expired`` tells a response that refused the token.
    ``read_body``: the two need the response's body, so it is read before they are asked. ``origin``: only requests
    to it (``https://api.example.com``) get a token; others pass as they are. ``shared``: calls share one token, and
    none waits for another; it is renewed by logins alone, and a refused one is tried again once.
    """

    user: User
    apply: Apply = bearer
    extract: Extract = nothing
    is_expired: IsExpired = is_unauthorized
    read_body: bool = False
    origin: str | None = None
    shared: bool = False
    _wants_payload: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_wants_payload", takes_payload(self.apply))
        if self.shared and self.extract is not nothing:
            raise ConfigError("extract: a shared token is renewed by logins alone")
        if self.origin is not None and not _names_an_origin(self.origin):
            raise ConfigError(
                f"origin: scheme and host are needed, such as https://api.example.com, not {self.origin!r}"
            )

    def with_origin(self, adapter: str) -> UpstreamTokens:
        """Itself. Raises :class:`ConfigError` without an origin, for adapters that redirects pass through."""
        if self.origin is None:
            raise ConfigError(f"origin: {adapter} needs it, or a redirect could take tokens to any host")
        return self

    def concerns(self, url: str) -> bool:
        """Whether a request to ``url`` gets a token."""
        return self.origin is None or origin_of(url) == origin_of(self.origin)

    def user_of(self, request: Any) -> str:
        """Whose token the request gets."""
        return self.user if isinstance(self.user, str) else self.user(request)

    def lend(self, pool: Any, user: str, attempt: int) -> Any:
        """What the call uses, still to be acquired."""
        return pool.lend(user, shared=self.shared, again=attempt > 1)

    def prepare(self, request: Any, held: Any) -> Any:
        """The request with the token."""
        apply: Callable[..., Any] = self.apply
        payload = (held.payload or {},) if self._wants_payload else ()
        replaced = apply(request, held.token, *payload)
        return request if replaced is None else replaced


def refuse(held: Any) -> bool:
    """The upstream refused the token. Whether it is out of use now, so that another try would have another one.

    When that is believed, the store says (:mod:`coatcheck.pool.refusals`).
    """
    try:
        believed: bool = held.refuse()
    except PoolError as error:
        report(held.user, error)
        return False
    return believed


async def refuse_async(held: Any) -> bool:
    """The same for asyncio."""
    try:
        believed: bool = await held.refuse()
    except PoolError as error:
        report(held.user, error)
        return False
    return believed


def refresh(held: Any, token: str | None) -> None:
    """Take over the refreshed token; a lease that is over by now is reported when it is given back."""
    if token is not None:
        with contextlib.suppress(LeaseLost):
            held.renew(token)


def report(user: str, error: PoolError) -> None:
    """Giving a lease back failed. The answer is there all the same, and the store recovers the slot: only log it."""
    if isinstance(error, LeaseLost):
        log.warning("the lease of a token of %r was over before its response ended; make `lease` longer", user)
    else:
        log.warning("a token of %r could not be given back: %s", user, error)


def origin_of(url: str) -> str:
    """``https://api.example.com:8443``, without the scheme's own port; empty for what is no address (RFC 6454)."""
    try:
        parts = urlsplit(url)
        port = parts.port
        # As clients send it: they encode names of other alphabets.
        host = (parts.hostname or "").encode("ascii" if (parts.hostname or "").isascii() else "idna").decode()
    except ValueError:
        return ""
    if not host:
        return ""
    own = {"http": 80, "https": 443}.get(parts.scheme)
    suffix = "" if port is None or port == own else f":{port}"
    return f"{parts.scheme}://[{host}]{suffix}" if ":" in host else f"{parts.scheme}://{host}{suffix}"


def _names_an_origin(text: str) -> bool:
    """Whether it has a scheme, a host, perhaps a port, and nothing else."""
    if not origin_of(text):
        return False
    parts = urlsplit(text)
    more = parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc
    return parts.scheme in ("http", "https") and not more and not any(each.isspace() for each in text)
