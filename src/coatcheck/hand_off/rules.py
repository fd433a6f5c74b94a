"""What each site answers to a request that goes from site to site (protocol section 12)."""

from __future__ import annotations

from typing import Final

import msgspec

from coatcheck.errors import SessionClosed, SessionUnavailable, TokenRejected, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.hand_off.messages import (
    ITEM,
    ITEM_KEY_BYTES,
    LEEWAY_MS,
    MESSAGE_LIFE_MS,
    TICKET_LIFE_MS,
    HandOffAsk,
    HandOffCall,
    HandOffCodec,
    HandOffTicket,
    Message,
    UrlToken,
    binder_hash,
    is_binder,
    is_bound_to,
    is_in_time,
    new_binder,
    page_hash,
    taker,
)
from coatcheck.hand_off.sites import HAND_OFF_PATH, MAX_PAGE, Site, Sites
from coatcheck.replication.effects import Flow, PutItem, TakeItem, Unreachable
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.handing import Arrival
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.tokens.sealed import SealedToken

ASK: Final = "coatcheck-ask"
CALL: Final = "coatcheck-call"
TICKET: Final = "coatcheck-ticket"
URL_TOKEN: Final = "coatcheck-token"
MESSAGES: Final = (ASK, TICKET, URL_TOKEN)
"""Parameters that a page's URL may end with."""

MAX_ATTEMPTS: Final = 2
"""Tickets that are made for one visit; after the last one the browser goes on without a session."""
STORES_TRIED: Final = 3
"""Session servers that are asked to hold a ticket's item, one after the other."""
KEPT_MS: Final = TICKET_LIFE_MS + 2 * LEEWAY_MS
"""How long a record remembers a ticket: as long as anybody could take it for valid."""
SAFE_METHODS: Final = ("GET", "HEAD")


class SiteVisit(msgspec.Struct, frozen=True, kw_only=True):
    """A request, as far as hand-offs look at it. ``path`` and ``query`` as they were sent; ``session``: the token of
    the session that it shows and that lives; ``binder``: its cookie, if any; ``cross_site``: whether the browser says
    that another site has caused it."""

    method: str
    path: str
    query: str = ""
    session: SealedToken | None = None
    login: bool = False
    binder: bytes | None = None
    cross_site: bool = False

    @property
    def is_safe(self) -> bool:
        return self.method in SAFE_METHODS


class Pass(msgspec.Struct, frozen=True):
    """The app answers; ``query`` is what it is to see."""

    query: str


class Go(msgspec.Struct, frozen=True):
    """Redirect. ``binder``: the cookie to set; ``issue``: the token of this site to set."""

    status: int
    location: str
    binder: bytes | None = None
    issue: Issue | None = None


class Refuse(msgspec.Struct, frozen=True):
    """Neither the app nor another site answers."""

    status: int
    why: str


Answer = Pass | Go | Refuse


class HandOffs:
    """The rules of one web server; ``cookies``: those of all sites."""

    def __init__(self, sites: Sites, codec: HandOffCodec, lifecycle: Lifecycle, cookies: CookiePolicy) -> None:
        self.sites = sites
        self._codec = codec
        self._lifecycle = lifecycle
        self._copies = lifecycle.copies
        self._world = lifecycle.copies.world
        self._own = sites.own
        self._by_token = sites.hand_off == "token-in-url"
        self._scopes = {site.name: sites.scope(site, cookies) for site in sites.table}
        self._carries_bodies_everywhere = cookies.same_site == "none"

    def concerns(self, path: str, query: str) -> bool:
        """Whether a request is any of ours; most are not, and their session need not be looked at."""
        return (
            path == HAND_OFF_PATH
            or ("coatcheck-" in query and _split(query)[1] != "")
            or self.sites.of_page(path) not in (self._own, None)
        )

    def answer(self, visit: SiteVisit) -> Flow[Answer]:
        """What to do with a request that :meth:`concerns` hand-offs.

        Raises :class:`SessionUnavailable`: nothing is handed over while the session servers cannot be reached.
        """
        if visit.path == HAND_OFF_PATH:
            return (yield from self._called(visit))
        query, what, text = _split(visit.query)
        page = visit.path + (f"?{query}" if query else "")
        site = self.sites.of_page(visit.path)
        if site is not None and site is not self._own:
            if what:
                self._report("a page that does not live here: two sites have different tables of sites")
                return Refuse(421, "this page does not live here")
            return self._leave(visit, page, site)
        if what == ASK:
            return self._asked(visit, page, text, query)
        if what == TICKET:
            return (yield from self._presented(visit, page, text, query))
        if what == URL_TOKEN:
            return (yield from self._shown(visit, page, text, query))
        return Pass(visit.query)

    # -- at the source -----------------------------------------------------------------------------

    def _leave(self, visit: SiteVisit, page: str, site: Site) -> Answer:
        """A page that lives at another site."""
        if len(page) > MAX_PAGE:
            return Refuse(414, f"a page at another site has at most {MAX_PAGE} characters")
        if self._scopes[site.name] == self._scopes[self._own.name]:
            return Go(_status(visit), site.origin + page)
        now, session = self._world.now_ms(), visit.session
        if self._by_token and session is not None:
            token = UrlToken(
                source=self._own.origin, chain=self._lifecycle.site, page=page_hash(page), session=session.key,
                session_id=session.session_id, timestamp=session.timestamp, promised=bytes(session.version),
                list_number=session.list_number, login=visit.login, made_at=now,
            )  # fmt: skip
            return Go(_status(visit), self._url(site.origin, page, URL_TOKEN, self._codec.seal(token, site.origin)))
        mark = self._codec.mark(session.key) if session is not None else b""
        ask = HandOffAsk(source=self._own.origin, page=page_hash(page), mark=mark, login=visit.login, made_at=now)
        return Go(_status(visit), self._url(site.origin, page, ASK, self._codec.seal(ask, site.origin)))

    def _called(self, visit: SiteVisit) -> Flow[Answer]:
        """The target calls for the session, in the browser that it asked about."""
        name, _, text = visit.query.partition("=")
        try:
            call = self._codec.open(HandOffCall, text if name == CALL else "", self._own.origin)
        except TokenRejected as rejection:
            self._report(f"call {rejection.reason.value}")
            return Refuse(400, "this is no call for a session")
        target = self.sites.of_origin(call.target)
        if target is None or not call.page.startswith("/"):
            self._report("a call for a site that is not in the table")
            return Refuse(421, "this page does not live at a site of ours")
        session = visit.session
        in_time = is_in_time(call.made_at, self._world.now_ms(), MESSAGE_LIFE_MS)
        if session is None or not in_time or not self._codec.is_marked(session.key, call.mark):
            return Go(_status(visit), target.origin + call.page)
        store, key = yield from self._put_item()
        ticket = HandOffTicket(
            source=self._own.origin, page=page_hash(call.page), session=session.key, promised=bytes(session.version),
            list_number=session.list_number, login=visit.login, store=store, item=key, binder=call.binder,
            attempt=call.attempt, made_at=self._world.now_ms(),
        )  # fmt: skip
        text = self._codec.seal(ticket, target.origin)
        return Go(_status(visit), self._url(target.origin, call.page, TICKET, text))

    def _put_item(self) -> Flow[tuple[str, bytes]]:
        """Where a ticket's item is: at the first session server that acknowledges it, each under a key of its own.

        Raises :class:`SessionUnavailable` if none does.
        """
        servers = self._copies.placement.servers
        ready = [name for name in servers if self._world.reachable(name)] or list(servers)
        at = int(self._world.jitter() * len(ready)) % len(ready)
        for store in (ready[at:] + ready[:at])[:STORES_TRIED]:
            key = self._world.random_bytes(ITEM_KEY_BYTES)
            stored: bool | Unreachable = yield PutItem(store, key, ITEM, TICKET_LIFE_MS)
            if stored is True:
                return store, key
        raise SessionUnavailable(UnavailableReason.NO_SERVER)

    # -- at the target -----------------------------------------------------------------------------

    def _asked(self, visit: SiteVisit, page: str, text: str, query: str) -> Answer:
        ask = self._open(HandOffAsk, text, MESSAGE_LIFE_MS)
        if ask is None or ask.page != page_hash(page) or not ask.mark or self.sites.of_origin(ask.source) is None:
            return self._land(visit, page, query)
        session = visit.session
        if session is not None and (self._codec.is_marked(session.key, ask.mark) or not ask.login):
            return self._land(visit, page, query)
        return self._call(visit, page, ask.source, ask.mark, attempt=1)

    def _call(self, visit: SiteVisit, page: str, source: str, mark: bytes, attempt: int) -> Answer:
        if not visit.is_safe and visit.cross_site and not self._carries_bodies_everywhere:
            self._report("a body from another site, whose browser sends no cookies along")
            return Refuse(409, "a form cannot be sent here from another site before a page here was opened")
        binder = visit.binder if is_binder(visit.binder) else None
        new = new_binder(self._world.random_bytes) if binder is None else None
        call = HandOffCall(
            target=self._own.origin, page=page, mark=mark, binder=binder_hash(binder or new or b""), attempt=attempt,
            made_at=self._world.now_ms(),
        )  # fmt: skip
        location = f"{source}{HAND_OFF_PATH}?{CALL}={self._codec.seal(call, source)}"
        return Go(_status(visit), location, binder=new)

    def _presented(self, visit: SiteVisit, page: str, text: str, query: str) -> Flow[Answer]:
        try:
            ticket = self._codec.open(HandOffTicket, text, self._own.origin)
        except TokenRejected as rejection:
            self._report(f"ticket {rejection.reason.value}")
            return self._land(visit, page, query)
        if ticket.page != page_hash(page) or self.sites.of_origin(ticket.source) is None:
            self._report("a ticket for another page", ticket.session)
            return self._land(visit, page, query)
        if visit.session is not None and visit.session.key == ticket.session:
            return self._land(visit, page, query)
        issue = yield from self._redeem(visit, ticket)
        if issue is not None:
            return Go(_status(visit), self._own.origin + page, issue=issue)
        if ticket.attempt >= MAX_ATTEMPTS:
            return self._land(visit, page, query)
        # Whoever has the source's session gets another ticket there; nobody else does.
        return self._call(visit, page, ticket.source, self._codec.mark(ticket.session), ticket.attempt + 1)

    def _redeem(self, visit: SiteVisit, ticket: HandOffTicket) -> Flow[Issue | None]:
        now = self._world.now_ms()
        arrival = Arrival(ticket.session, ticket.promised, ticket.list_number, ticket.login, ticket.id)
        if not is_bound_to(ticket, visit.binder):
            self._report("a ticket of another browser", ticket.session)
            yield from self._revoke(arrival, ticket, now)
            return None
        if not is_in_time(ticket.made_at, now, TICKET_LIFE_MS):
            self._report("a ticket that is over", ticket.session)
            return None
        assert visit.binder is not None
        if not (yield from self._take(ticket, taker(ticket, visit.binder))):
            yield from self._revoke(arrival, ticket, now)
            return None
        try:
            return (yield from self._lifecycle.arrive(arrival, KEPT_MS))
        except SessionClosed as closed:
            self._report(f"a ticket for a session that is over: {closed}", ticket.session)
            return None

    def _take(self, ticket: HandOffTicket, nonce: bytes) -> Flow[bool]:
        """Whether this browser's take has won. A lost answer is asked for once more, which is the same take."""
        for _ in range(2):
            taken: bytes | Unreachable | None = yield TakeItem(ticket.store, ticket.item, nonce)
            if not isinstance(taken, Unreachable):
                return taken == ITEM
        return False

    def _revoke(self, arrival: Arrival, ticket: HandOffTicket, now: int) -> Flow[None]:
        """A second use: what the first one issued goes, as long as the ticket could have been taken for valid."""
        if is_in_time(ticket.made_at, now, TICKET_LIFE_MS + LEEWAY_MS):
            yield from self._lifecycle.revoke(arrival)

    def _shown(self, visit: SiteVisit, page: str, text: str, query: str) -> Flow[Answer]:
        """The token itself came in the URL (mission A1, A6, A9, to the letter)."""
        if not self._by_token:
            self._report("a token in a URL, which this site does not take")
            return self._land(visit, page, query)
        token = self._open(UrlToken, text, MESSAGE_LIFE_MS)
        if token is None or token.page != page_hash(page):
            return self._land(visit, page, query)
        arrival = Arrival(token.session, token.promised, token.list_number, token.login, b"")
        if visit.session is not None and visit.session.key == token.session:
            return self._land(visit, page, query)
        try:
            issue = yield from self._lifecycle.arrive_by_token(arrival, token.chain, token.session_id, token.timestamp)
        except SessionClosed as closed:
            self._report(f"a token in a URL: {closed}", token.session)
            return self._land(visit, page, query)
        return Go(_status(visit), self._own.origin + page, issue=issue)

    def _land(self, visit: SiteVisit, page: str, query: str) -> Answer:
        """The page itself, without a message in its URL."""
        return Go(303, self._own.origin + page) if visit.is_safe else Pass(query)

    # -- both --------------------------------------------------------------------------------------

    def _open(self, kind: type[Message], text: str, life_ms: int) -> Message | None:
        """A message that may still be used, or ``None``, which is reported."""
        try:
            message = self._codec.open(kind, text, self._own.origin)
        except TokenRejected as rejection:
            self._report(f"{kind.__name__.lower()} {rejection.reason.value}")
            return None
        if not is_in_time(message.made_at, self._world.now_ms(), life_ms):
            self._report(f"{kind.__name__.lower()} that is over")
            return None
        return message

    def _url(self, origin: str, page: str, name: str, text: str) -> str:
        return f"{origin}{page}{'&' if '?' in page else '?'}{name}={text}"

    def _report(self, detail: str, session: bytes = b"") -> None:
        self._world.report(Event(EventKind.HAND_OFF_REFUSED, public_id(session) if session else "", detail))


def _status(visit: SiteVisit) -> int:
    """A body goes along (RFC 9110 section 15.4.8); else the next request is a GET (15.4.4)."""
    return 303 if visit.is_safe else 307


def _split(query: str) -> tuple[str, str, str]:
    """A query without our message, and the message's name and text, if there is one. We write it last; where others
    have put parameters behind it, the page is another than the message was made for."""
    parts = query.split("&")
    for at in reversed(range(len(parts))):
        name, found, text = parts[at].partition("=")
        if found and name in MESSAGES:
            return "&".join(parts[:at] + parts[at + 1 :]), name, text
    return query, "", ""
