"""What a response must be because of its session: its cookies, its status if it is refused, what caches are told.

One decision for every framework and for the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from coatcheck.errors import ConflictError, SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.sessions.caching import guard, may_read_later
from coatcheck.sessions.cookies import ANONYMOUS_MARK, LOGIN_MARK, MAX_AGE_S, CookieJar, CookiePolicy, MarkedJar
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.request_state import RequestState
from coatcheck.sessions.routes import Header, Sticky, may_carry_route, with_route
from coatcheck.sessions.saving import NOTHING, Saved
from coatcheck.value import Value

RETRY_AFTER_S: Final = 1
SWITCHING_PROTOCOLS: Final = 101
CLEAR_SITE_DATA: Final[Header] = (b"clear-site-data", b'"cookies"')
"""Of a logout, where the operator wants it (W3C Clear Site Data, section 3.1)."""
NO_HEADERS: Final[tuple[Header, ...]] = ()
NO_COOKIES: Final[list[Header]] = []

Refusal = SessionUnavailable | SessionClosed | ConflictError
"""Why a session could be neither served nor saved: nothing was acknowledged."""


class Answer(Value):
    """What to send: ``status`` and ``headers``, which hold the app's own where it was not refused.

    ``cookies``: those of the headers that coatcheck has added for the browser to keep or to forget. ``refused``: why
    the app's response may not leave, in words that say nothing secret; empty if it may. Names and values are bytes.
    """

    status: int
    headers: Iterable[Header]
    cookies: list[Header] = NO_COOKIES
    refused: str = ""
    token: bytes | None = None
    """Of :class:`OneCookie`: what the value of the framework's cookie becomes. Empty: the browser is to forget it;
    ``None``: it stays as it is."""

    @classmethod
    def refusal(cls, error: Refusal) -> Answer:
        """503 while the session cannot be had, 429 for too many new ones, 409 for a change that came too late; never
        stored by caches, with Retry-After (RFC 9110, 10.2.3) where trying again may help."""
        headers: list[Header] = [(b"cache-control", b"no-store")]
        if not isinstance(error, SessionUnavailable):
            return cls(409, headers, refused=str(error))
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        too_many = error.reason is UnavailableReason.TOO_MANY_NEW
        return cls(429 if too_many else 503, headers, refused=error.reason.value)


class CookieChanges(Value):
    """What the two session cookies of a browser become; ``issue`` says which of them is set, and to what."""

    issue: Issue | None = None
    clear_login: bool = False
    clear_anonymous: bool = False


def cookie_changes(
    request: RequestState, saved: Saved, shows_login: Callable[[], bool], shows_anonymous: Callable[[], bool]
) -> CookieChanges:
    """``shows_*``: whether the request carried that cookie; asked only where it matters."""
    if saved.clear:
        # Of what was unheard, only the cookie that was shown: a login that was faster than this answer stays.
        clear_login = request.login or (bool(request.unheard) and shows_login())
        return CookieChanges(None, clear_login, not request.login or bool(request.unheard))
    if saved.issue is None:
        return CookieChanges()
    return CookieChanges(saved.issue, False, saved.issue.login and shows_anonymous())


class CookieTransport:
    """How sessions travel between browsers and a web server: which tokens a request shows, and what its answer carries.

    ``absolute_timeout_s``: how long a remembered login's cookie is kept. ``route_tag`` names this web server to the
    director; ``sticky``: whether every browser is told it, or only those with a session.

    Raises :class:`ConfigError` for a cookie that would outlive its session.
    """

    def __init__(
        self,
        policy: CookiePolicy,
        absolute_timeout_s: float,
        route_tag: str | None = None,
        sticky: Sticky = "browser",
    ) -> None:
        policy.check_lifetime(absolute_timeout_s)
        self.anonymous = CookieJar(policy)
        self.login = CookieJar(policy, "-login", absolute_timeout_s)
        self.login_name = self.login.name
        self.read_anonymous = self.anonymous.read
        self._route = CookieJar(policy.for_whole_host(), "-route")
        self._read_route = self._route.read
        self._route_tag = route_tag.encode() if route_tag is not None else None
        self._route_shown = b"; %b=%b" % (self._route.name, self._route_tag or b"")
        """How the header ends if the browser has our route cookie: it was given last. A look instead of a search."""
        self._route_cookie = self._route.set_cookie(self._route_tag or b"")
        self._routes_all = sticky == "browser"
        self._clears_site_data = policy.clear_site_data
        self.device_path: str | None = None
        """Where browsers register and refresh bound sessions, said by a front that answers there."""

    def answer(
        self,
        session: Session,
        shown: bytes,
        saved: Saved,
        seal: Callable[[Issue], bytes],
        status: int,
        headers: Iterable[Header],
    ) -> Answer:
        """``shown``: the request's Cookie header; ``headers``: the app's own, which it gets back as they are where
        nothing is to be said about its session."""
        request = session._request
        cookies = NO_COOKIES if saved is NOTHING else self._cookies(session, shown, saved, seal)
        hosted = request.copy_held is not None
        lacks_route = self._route_tag is not None and not shown.endswith(self._route_shown) and self._lacks_route(shown)
        if lacks_route and hosted:
            cookies = [*cookies, self._route_cookie]
        may_route = lacks_route and not hosted and self._routes_all
        if saved is not NOTHING and saved.clear and self._clears_site_data:
            headers = _with_site_data_cleared(headers)
        if status == SWITCHING_PROTOCOLS:  # no cache stores it
            if may_route:
                cookies = [*cookies, self._route_cookie]
            return Answer(status, [*headers, *cookies] if cookies else headers, cookies)
        if request.accessed or cookies or may_read_later(status, headers):
            guarded = guard(headers, cookies)
            if may_route and may_carry_route(status, guarded):
                guarded.append(self._route_cookie)
            return Answer(status, guarded, cookies)
        if may_route and may_carry_route(status, headers):
            return Answer(status, with_route(headers, self._route_cookie), cookies)
        return Answer(status, headers, cookies)

    def _cookies(self, session: Session, shown: bytes, saved: Saved, seal: Callable[[Issue], bytes]) -> list[Header]:
        changes = cookie_changes(
            session._request, saved, lambda: bool(self.login.read(shown)), lambda: bool(self.anonymous.read(shown))
        )
        cookies: list[Header] = []
        if changes.issue is not None:
            jar = self.login if changes.issue.login else self.anonymous
            life_s, value = changes.issue.life_s, seal(changes.issue)
            cookies.append(
                jar.set_cookie(value, session.remember) if life_s is None else jar.set_short_cookie(value, life_s)
            )
        if changes.clear_login:
            cookies.append(self.login.delete_cookie())
        if changes.clear_anonymous:
            cookies.append(self.anonymous.delete_cookie())
        return cookies

    def arrival(
        self, issue: Issue, remember: bool | None, shown: bytes, seal: Callable[[Issue], bytes]
    ) -> list[Header]:
        """The cookies of a session that arrives from another site; ``shown``: the request's Cookie header."""
        jar = self.login if issue.login else self.anonymous
        cookies = [jar.set_cookie(seal(issue), remember)]
        if issue.login and self.anonymous.read(shown):
            cookies.append(self.anonymous.delete_cookie())
        return cookies

    def _lacks_route(self, shown: bytes) -> bool:
        return self._read_route(shown) != self._route_tag


class OneCookie(CookieTransport):
    """For frameworks that name and write the session's cookie themselves (:attr:`Answer.token`): there is one, before
    a login and after it, and a mark at the beginning of its value says which.

    What a request shows (``cookie_header``) is the value of that cookie alone. With two cookies a late answer of
    an anonymous request cannot undo a login; with one it can, as with the framework's own sessions.
    """

    def __init__(self, clear_site_data: bool = False) -> None:
        """``clear_site_data``: as :attr:`CookiePolicy.clear_site_data`."""
        super().__init__(CookiePolicy(clear_site_data=clear_site_data), MAX_AGE_S)
        self.anonymous = MarkedJar(ANONYMOUS_MARK)
        self.login = MarkedJar(LOGIN_MARK)
        self.login_name = self.login.name
        self.read_anonymous = self.anonymous.read

    def find(self, values: Iterable[bytes]) -> bytes:
        """Of the values of all cookies of that name, in the order of the request, the first one that has a mark; empty
        if none has. The others are somebody else's, such as the framework's own sessions of the day before."""
        for value in values:
            if value.startswith((self.anonymous.name, self.login.name)):
                return value
        return b""

    def answer(
        self,
        session: Session,
        shown: bytes,
        saved: Saved,
        seal: Callable[[Issue], bytes],
        status: int,
        headers: Iterable[Header],
    ) -> Answer:
        """The same, with :attr:`Answer.token` in the place of cookies."""
        answer = super().answer(session, shown, saved, seal, status, headers)
        if not answer.cookies:
            return answer
        # A login that replaces an anonymous session has two: what is set counts, and what is deleted is the same one.
        token = max(value for _, value in answer.cookies)
        return Answer(answer.status, [one for one in answer.headers if one not in answer.cookies], token=token)


def _with_site_data_cleared(headers: Iterable[Header]) -> Iterable[Header]:
    """An app that says itself what is to be cleared knows more than we do."""
    whole = list(headers)
    said = any(name.lower() == CLEAR_SITE_DATA[0] for name, _ in whole)
    return whole if said else [*whole, CLEAR_SITE_DATA]
