"""Hostile messages from site to site: asks, calls, tickets and tokens in URLs, and the URLs and cookies around them.

Two sites of one farm hand sessions over in this process, on a clock of the run's own. What they have issued is written
down from their redirects, with its page, its binder and its time; by that list alone, and not by what the code under
test finds, it is judged whether a request may get a session, a ticket or a call.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from coatcheck.events import EventKind
from coatcheck.hand_off.messages import HandOffCodec, HandOffTicket
from coatcheck.stores.take_once.memory import MemoryItemsForThreads
from coatcheck.tokens.keyring import KeyRing
from hand_off.two_sites import RING, SHOP, TICKETS, Browser, Farm
from security.hostile_input import ALPHABET, Report, damaged, run_with, scrambled

ASK, CALL, TICKET, URL_TOKEN = (f"coatcheck-{what}" for what in ("ask", "call", "ticket", "token"))
LIVES_MS = {ASK: 30_000, CALL: 30_000, TICKET: 10_000, URL_TOKEN: 30_000}
EARLY_MS = 5_000
"""So long after its end a second use of a ticket still takes away what the first one got (protocol section 12)."""
ANSWER_KEPT_MS = 5_000
"""So long the same browser may use the same ticket again; later that is a second use."""
PAGES = ("/tickets/42?seat=3", "/tickets", "/tickets/a%2Fb?x=1&y=%00", "/tickets/7")
CALLED = "/.coatcheck/hand-off"
BINDER, LOGIN = "__Host-coatcheck-binder", "__Host-coatcheck-login"
STATUSES = (200, 303, 307, 400, 409, 414, 421)
METHODS = ("GET",) * 8 + ("HEAD", "POST", "PUT", "OPTIONS")
UNHEARD_OF = bytes([*range(0x21), 0x7F])
"""Bytes that no HTTP server passes on in an address."""
MAX_WAIT_S = 60.0
BATCH = 400
"""Inputs until other messages are issued."""
BATCHES_OF_A_FARM = 20
STEP_MS = 3
JUMPS_MS = (0, 0, 0, 4_000, 9_000, 11_000, 16_000, 31_000)
STRANGERS = [
    HandOffCodec(KeyRing([bytes(range(1, 33))]), "farm", SHOP, random.Random(1).randbytes),
    HandOffCodec(RING, "another", SHOP, random.Random(2).randbytes),
    HandOffCodec(RING, "farm", TICKETS, random.Random(3).randbytes),
]
"""Of other keys, of another farm with our keys, and of a farm with another home."""
ODD: dict[str, tuple[Any, ...]] = {
    "source": ("https://evil.example", "", SHOP + "/", "https://shop.example.evil.example"),
    "page": (b"", bytes(16), bytes(17)),
    "session": (b"", bytes(16), bytes(15)),
    "store": ("", "session-9", "\x00", "a" * 4000),
    "item": (b"", bytes(32), bytes(31), bytes(4000)),
    "binder": (b"", bytes(32), bytes(31)),
    "made_at": (0, -1, 1 << 62, -(1 << 62)),
    "promised": (b"", bytes(17)),
    "list_number": (64, -1, 1 << 40),
}
"""What a ticket that was sealed by another release, or by a site with other settings, could say; each opens nothing."""


class Shown(NamedTuple):
    """One request. ``farm``: 0 hands over by tickets, 1 by tokens in URLs; ``origin``: the site that is asked."""

    farm: int
    origin: str
    method: str
    target: bytes
    cookie: bytes
    cross_site: bool


class Issued:
    """A message as a redirect brought it to a browser."""

    def __init__(self, farm: int, name: str, location: str, cookie: bytes, made_at: int) -> None:
        self.farm = farm
        self.name = name
        self.cookie = cookie
        self.made_at = made_at
        parts = urlsplit(location)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.target = location.removeprefix(self.origin).encode()
        self.before, _, self.text = self.target.rpartition(f"{name}=".encode())
        self.used = self.revoked = False
        self.taken_at: int | None = None
        """When its item may have been taken first."""

    def is_shown_by(self, shown: Shown) -> bool:
        """Whether these very bytes are shown, at the site and the page that they are for."""
        before = shown.target.removesuffix(f"{self.name}=".encode() + self.text)
        # An empty query in front of the message is no other page.
        same = before in (self.before, self.before + b"&" if self.before.endswith(b"?") else self.before)
        return same and (shown.farm, shown.origin) == (self.farm, self.origin) and before != shown.target

    def note_taken(self, now: int) -> None:
        if self.taken_at is None:
            self.taken_at = now

    def is_fresh(self, now: int, more_ms: int = 0) -> bool:
        return now - self.made_at <= LIVES_MS[self.name] + more_ms


class Sites:
    """Two farms of two sites each: one hands over by tickets, the other one by tokens in URLs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dice: random.Random) -> None:
        self.loop = loop
        self.dice = dice
        self.now = 1_700_000_000_000
        self.farms: list[Farm] = []
        self.browsers: list[Browser] = []
        self.issued: dict[bytes, Issued] = {}
        self.recent: deque[Issued] = deque(maxlen=24)
        self.odd: dict[bytes, Issued] = {}
        """Texts that the farm was made to seal, and that open nothing, by what they were made of."""
        self.batches = 0
        self.tokens: set[bytes] = set()
        """Of the session at its own site."""
        self.stolen = False
        """Whether an old token of it was shown, so that it was ended."""

    # -- what is shown -------------------------------------------------------------------------------

    def requests(self, count: int) -> Iterator[Shown]:
        for number in range(count):
            if number % BATCH == 0:
                self.loop.run_until_complete(self._issue())
            self.now += STEP_MS
            yield self._request()

    async def _issue(self) -> None:
        """Other messages for pages of the other site, at a later time."""
        self.now += self.dice.choice(JUMPS_MS)
        self.odd.clear()
        if self.batches % BATCHES_OF_A_FARM == 0 or self.stolen:
            await self._begin()
        self.batches += 1
        for page in self.dice.sample(PAGES, 3):
            await self._issue_for(0, page, (ASK, CALL, TICKET))
        await self._issue_for(1, self.dice.choice(PAGES), (URL_TOKEN,))
        self.issued = {one.text: one for one in self.recent}

    async def _begin(self) -> None:
        """Other farms, which remember nothing, and somebody who logs in."""
        await self.close()
        ring = KeyRing(list(RING._secrets.values()))  # one that outlived them would know all their tokens
        self.farms = [Farm(ring=ring), Farm(mode="token-in-url", ring=ring)]
        for farm in self.farms:
            farm.items = [MemoryItemsForThreads(store.name, lambda: self.now / 1000) for store in farm.stores]
            for middleware in farm.sites.values():
                middleware.sessions.copies.world.now_ms = lambda: self.now  # type: ignore[method-assign]
        self.browsers = [Browser(farm) for farm in self.farms]
        for browser in self.browsers:
            await browser.visit(f"{SHOP}/login-ada")
        self.recent.clear()
        self.tokens.clear()
        self.stolen = False

    async def close(self) -> None:
        for farm in self.farms:
            await farm.close()

    async def _issue_for(self, farm: int, page: str, names: tuple[str, ...]) -> None:
        browser = self.browsers[farm].copy()
        browser.jar.pop("tickets.example", None)
        url = SHOP + page
        for name in names:
            url = await browser.until(url, name)
            host = urlsplit(url).netloc
            self.tokens.add(browser.jar["shop.example"][LOGIN].encode())
            self.recent.append(Issued(farm, name, url, browser.cookie_header(host).encode(), self.now))
        self.browsers[farm].jar["shop.example"] = browser.jar["shop.example"]

    def _request(self) -> Shown:
        dice = self.dice
        one, other = dice.choice(self.recent), dice.choice(self.recent)
        target, cookie, act = one.target, one.cookie, dice.random()
        if act < 0.35:
            target = damaged(target, dice)
        elif act < 0.5:
            target = one.before + f"{one.name}=".encode() + damaged(one.text, dice)
        elif act < 0.6:
            target = other.before + f"{dice.choice((one, other)).name}=".encode() + one.text
        elif act < 0.65:
            target = dice.choice(PAGES).encode() + b"?&"[dice.random() < 0.5 :] + f"{one.name}=".encode() + one.text
        elif act < 0.72 and one.name == TICKET:
            target = one.before + f"{TICKET}=".encode() + self._forged(one)
        elif act < 0.78:
            target = b"/" + scrambled(dice)
        elif act < 0.82:
            target = target + b"&" + other.target.partition(b"?")[2]
        if dice.random() < 0.4:
            cookie = dice.choice((b"", other.cookie, damaged(cookie, dice), self._binder()))
        plain = target.translate(None, UNHEARD_OF)
        origin = one.origin if dice.random() < 0.95 else dice.choice((SHOP, TICKETS))
        return Shown(one.farm, origin, dice.choice(METHODS), b"/" + plain.lstrip(b"/"), cookie, dice.random() < 0.1)

    def _binder(self) -> bytes:
        return BINDER.encode() + b"=" + bytes(self.dice.choices(ALPHABET, k=43))

    def _forged(self, one: Issued) -> bytes:
        """The same ticket sealed by a stranger, or for another reader; or by the farm, and saying something odd."""
        dice, codec = self.dice, self._codec()
        ticket = codec.open(HandOffTicket, one.text.decode(), TICKETS)
        act = dice.random()
        if act < 0.4:
            return dice.choice(STRANGERS).seal(ticket, TICKETS).encode()
        if act < 0.5:
            return codec.seal(ticket, SHOP).encode()
        member = dice.choice(list(ODD))
        odd = codec.seal(msgspec.structs.replace(ticket, **{member: dice.choice(ODD[member])}), TICKETS).encode()
        self.odd[odd] = one
        return odd

    def _codec(self) -> HandOffCodec:
        hand_offs = self.farms[0].sessions(TICKETS).hand_offs
        assert hand_offs is not None
        return hand_offs._codec

    # -- what may come of it -------------------------------------------------------------------------

    def answer(self, shown: Shown) -> bool:
        """One request, judged; whether it got what it asked for."""
        farm = self.farms[shown.farm]
        farm.events.clear()
        status, headers, body = self.loop.run_until_complete(self._send(shown))
        assert status in STATUSES, status
        location = next((value for name, value in headers if name == b"location"), b"")
        assert (status in (303, 307)) == (location != b"")
        assert location == b"" or location.startswith((b"https://shop.example/", b"https://tickets.example/"))
        assert location == location.translate(None, UNHEARD_OF)
        assert shown.origin == SHOP or b'"user": null' in body or status != 200, "a session was opened by its binder"
        text = shown.target.rpartition(b"=")[2]
        one, is_odd = self.issued.get(text), text in self.odd
        shows = one if one is not None and one.is_shown_by(shown) else None
        self.stolen = self.stolen or any(event.kind is EventKind.SESSION_THEFT for event in farm.events)
        replays = sum(event.kind is EventKind.HAND_OFF_REPLAYED for event in farm.events)
        if shown.origin == SHOP:
            return self._judge_call(shown, shows, location)
        redeemed = any(_is_token(value) for name, value in headers if name == b"set-cookie")
        if is_odd:
            assert not redeemed, "redeemed, though it says something odd"
            self.odd[text].note_taken(self.now)  # of a session that there is not, perhaps
        else:
            self._judge_redeeming(shown, shows, redeemed, replays)
        if replays:
            # Every ticket that was redeemed at that site is revoked with it.
            for each in self.issued.values():
                each.revoked = each.revoked or (each.name == TICKET and each.used)
        if location.startswith(f"{SHOP}{CALLED}?{CALL}=".encode()):
            assert shows is not None or is_odd, "a session was called for that nobody asked about"
        return redeemed

    def _judge_call(self, shown: Shown, shows: Issued | None, location: bytes) -> bool:
        gets_ticket = b"coatcheck-ticket=" in location and b"coatcheck-ticket=" not in shown.target
        right = shows is not None and shows.name == CALL and shows.is_fresh(self.now) and shows.cookie == shown.cookie
        if gets_ticket:
            assert shows is not None and shows.name == CALL, "a ticket was made without a call"
            assert shows.is_fresh(self.now), "a ticket was made for a call that is over"
            assert any(token in shown.cookie for token in self.tokens), "a ticket was made for who has no session"
        assert gets_ticket or not right or self.stolen, "the session was not handed over"
        return gets_ticket

    def _judge_redeeming(self, shown: Shown, shows: Issued | None, redeemed: bool, replays: int) -> None:
        if shows is None or shows.name not in (TICKET, URL_TOKEN):
            assert not redeemed, "redeemed without a ticket for this page"
            assert not replays, "somebody without a ticket has revoked what one had issued"
            return
        fresh = shows.is_fresh(self.now)
        binder = shows.cookie.partition(BINDER.encode() + b"=")[2].partition(b";")[0]
        bound = binder in shown.cookie and binder != b""
        if shows.name == TICKET:
            assert not redeemed or bound, "redeemed in another browser"
            assert not redeemed or not shows.revoked, "redeemed after it was revoked"
            again = shows.taken_at is not None and self.now - shows.taken_at >= ANSWER_KEPT_MS
            right = fresh and shown.cookie == shows.cookie and not (again or shows.revoked) and self._may_go_on(shown)
            assert redeemed or not right or self.stolen, "a genuine ticket was refused"
            assert not replays or shows.used, "what was not used cannot be used twice"
            if not redeemed and shows.used and not bound and shows.is_fresh(self.now, EARLY_MS):
                assert replays == 1 or shows.revoked, "a second use has revoked nothing"
            if redeemed:
                shows.used = True
                shows.note_taken(self.now)
        assert not redeemed or fresh, "redeemed when it was over"

    def _may_go_on(self, shown: Shown) -> bool:
        return shown.method in ("GET", "HEAD") or not shown.cross_site

    async def _send(self, shown: Shown) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        path, _, query = shown.target.partition(b"?")
        headers = [(b"host", shown.origin[8:].encode()), (b"cookie", shown.cookie)]
        if shown.cross_site:
            headers.append((b"sec-fetch-site", b"cross-site"))
        scope = {
            "type": "http", "method": shown.method, "path": unquote(path.decode("latin-1")), "raw_path": path,
            "query_string": query, "headers": headers, "client": ("192.0.2.1", 1), "scheme": "https",
        }  # fmt: skip
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async with asyncio.timeout(MAX_WAIT_S):
            await self.farms[shown.farm].sites[shown.origin](scope, _receive, send)
        return sent[0]["status"], sent[0]["headers"], sent[1]["body"]


def _is_token(line: bytes) -> bool:
    return line.startswith((b"__Host-coatcheck-login=", b"__Host-coatcheck=")) and b"Max-Age=0" not in line


async def _receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


def ticket(count: int, seed: int) -> Report:
    """Messages from site to site, through the middleware of both."""
    with asyncio.Runner() as runner:
        sites = Sites(runner.get_loop(), random.Random(f"ticket {seed}"))
        try:
            return run_with("ticket", sites.requests(count), sites.answer, count, seed)
        finally:
            runner.run(sites.close())
