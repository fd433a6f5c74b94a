"""What the session service is asked and what it answers: the JSON bodies, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from coatcheck.service_kit.messages import Body
from coatcheck.sessions.description import LiveSession
from coatcheck.sessions.mapping import MAX_USER_BYTES

MAX_COOKIE_CHARS: Final = 16_384
"""Of a Cookie header; browsers and proxies send no more."""
MAX_URL_CHARS: Final = 16_384
"""Of a path with its query; what is longer than a hand-off may be is answered with 414."""
MAX_METHOD_CHARS: Final = 32
MAX_KEYS: Final = 1_000
MAX_DEVICE_CHARS: Final = 1_024
"""Of a User-Agent; of a longer one send the beginning."""

Cookie = Annotated[str, Meta(max_length=MAX_COOKIE_CHARS, description="The browser's whole Cookie header.")]
Client = Annotated[
    str,
    Meta(max_length=45, pattern=r"^[0-9A-Fa-f:.]+(?!\n)$", description="The browser's IP address, as you know it."),
]
Data = Annotated[dict[str, Any], Meta(max_length=MAX_KEYS)]


class ShownCookie(Body):
    """What a browser has shown."""

    cookie: Cookie
    client: Client | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Verify(ShownCookie):
    """Whose session is it?"""


class Renew(ShownCookie):
    """``now``: give the browser a new token in any case; else when it is due."""

    now: bool = False


class Update(ShownCookie):
    """``version``: what the change was made for; 409 if the data is another by now. Without it, changes of different
    keys are merged, and of the same key the last one counts."""

    set: Data = msgspec.field(default_factory=dict)
    delete: Annotated[list[str], Meta(max_length=MAX_KEYS)] = msgspec.field(default_factory=list)
    version: Annotated[str, Meta(max_length=64)] | None = None


class CloseSession(ShownCookie):
    """Log out."""


User = Annotated[str, Meta(min_length=1, max_length=MAX_USER_BYTES)]


class OfUser(Body):
    """Whose sessions?"""

    user: User


class CloseUser(Body):
    """Log a user out everywhere; ``cookie``: but here, the Cookie header of a browser of that user."""

    user: User
    cookie: Cookie = ""
    client: Client | None = None

    def __repr__(self) -> str:
        return "<CloseUser>"


class HandOff(ShownCookie, kw_only=True):
    """Where does a request belong? ``url``: its path and query, as the browser sent them. ``cross_site``: whether its
    ``Sec-Fetch-Site`` header says ``cross-site``."""

    url: Annotated[str, Meta(min_length=1, max_length=MAX_URL_CHARS, pattern=r"^/[\x21-\x22\x24-\x7e]*(?!\n)$")]
    method: Annotated[str, Meta(min_length=1, max_length=MAX_METHOD_CHARS, pattern=r"^[A-Z]+(?!\n)$")] = "GET"
    cross_site: bool = False


class Create(Body):
    """``user``: log in as this user; the session that ``cookie`` shows ends, and its data goes on in the new one,
    unless it was another user's. ``device``: the browser's User-Agent, for the list of a user's sessions.
    ``remember``: whether the browser keeps the cookie when it ends. ``id_token``: the claims of the ID token that you
    have verified, whose ``iss``, ``sid`` and ``sub`` let the identity provider end the session."""

    cookie: Cookie = ""
    client: Client | None = None
    device: Annotated[str, Meta(max_length=MAX_DEVICE_CHARS)] = ""
    user: User | None = None
    data: Data = msgspec.field(default_factory=dict)
    remember: bool | None = None
    id_token: Annotated[dict[str, Any], Meta(max_length=MAX_KEYS)] | None = None

    def __repr__(self) -> str:
        return "<Create>"


class Verified(msgspec.Struct, frozen=True):
    """A live session."""

    session: LiveSession


class Given(msgspec.Struct, frozen=True):
    """A live session, and what its browser is to be given.

    ``set_cookie``: the values of the Set-Cookie headers that your response must carry, each of its own; there may be
    none. ``cookie``: ``name=value`` as the browser will show it from then on; ``null`` if that stays as it was.
    """

    session: LiveSession
    set_cookie: list[str]
    cookie: str | None


class ClosedSession(msgspec.Struct, frozen=True):
    """``closed``: whether there was a session to close. ``set_cookie``: what makes the browser forget its cookies."""

    closed: bool
    set_cookie: list[str]


class SessionOfUser(msgspec.Struct, frozen=True):
    """One session of a user. ``id``: as everywhere; ``device``: the User-Agent at the login, shortened, and
    ``address``: whence it came, both as far as they were known then. Times are Unix ms."""

    id: str
    device: str
    address: str
    logged_in_at: int
    last_seen_at: int


class SessionsOfUser(msgspec.Struct, frozen=True):
    """The oldest first."""

    sessions: list[SessionOfUser]


class ClosedUser(msgspec.Struct, frozen=True):
    """``closed``: how many sessions were ended."""

    closed: int


class HandedOff(msgspec.Struct, frozen=True):
    """What is to become of a request.

    ``todo``: ``serve`` the page as for this ``url``, which is without our messages; ``redirect`` with this ``status``
    to this ``url``; or ``refuse`` with this ``status`` and these ``words``. ``set_cookie``: the values of the
    Set-Cookie headers that your response must carry; ``headers``: its other ones.
    """

    todo: Literal["serve", "redirect", "refuse"]
    status: int
    url: str
    words: str
    set_cookie: list[str]
    headers: dict[str, str]


class SessionServiceHealth(msgspec.Struct, frozen=True):
    """``session_servers``: whether each answers."""

    status: str
    session_servers: dict[str, bool]


class Jwks(msgspec.Struct, frozen=True):
    """The public keys that signed session headers are verified with (RFC 7517)."""

    keys: list[dict[str, str]]
