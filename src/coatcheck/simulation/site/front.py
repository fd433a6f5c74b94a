"""Before the web servers: browsers' hosts, the shipped director, and what docs/director.md promises of it, judged.

* No request is carried out twice but as the table of failures allows: none but ``GET`` (here), twice at most.
* An answer is the one of the request that was asked on its connection, whole, and by who carried that out.
* The director answers 503 only to what was not carried out, unless the web server that had it has died.
* Where nothing goes wrong, the director makes no answer of its own, and a browser stays with its web server.
* While the web server of a route is away, all requests with the same cookies go to one other.
* Where nothing goes wrong but that web servers die, only what died with one comes to nothing; of ``GET``, what died
  with two.
* In the end nothing is left in it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from coatcheck.simulation.application import Attempt, Response
from coatcheck.simulation.browser import Browser
from coatcheck.simulation.site.browser_host import BrowserHost, BrowserRequest, WholeAnswer
from coatcheck.simulation.site.director_host import PORT, DirectorHost

NUMBER: Final = b"x-request"
ANSWER: Final = b"x-answer"
QUIET_S: Final = 3.0
"""So long after a fault the director has found out that it is over."""
DYING_S: Final = 0.5
"""So long before, a web server may have died to which a request was sent."""
SIZES: Final = (0, 10, 10, 10, 3_000, 120_000)
"""Bytes of the answers; the last is more than a director holds back."""
OWN_STATUS: Final = (408, 502, 503, 504)


class Errand:
    """One request of a browser, and each time that a web server began to carry it out."""

    def __init__(self, attempt: Attempt, method: bytes, body: bytes, route: bytes | None) -> None:
        self.attempt = attempt
        self.method = method
        self.body = body
        self.route = route
        self.cookies = b""
        """The value of its Cookie header."""
        self.answer_bytes = 0
        self.answer_pause_s = 0.0
        self.think_s = 0.0
        self.runs: list[tuple[Attempt, Any]] = []
        self.is_over = False
        self.is_left = False
        """Whether its browser has hung up."""
        self.hang_up: Callable[[], None] = lambda: None

    @property
    def most(self) -> int:
        return 2 if self.method == b"GET" else 1


class Front:
    """Brings the browsers' requests to the director, and judges what becomes of them."""

    def __init__(self, site: Any, webs: list[str]) -> None:
        self._site = site
        self._ledger = site.ledger
        self._dice = Random(f"front {site.scenario.seed}")
        self.director = DirectorHost(site.world, webs, self._dice)
        self._hosts: dict[str, BrowserHost] = {}
        self._routes: dict[Browser, bytes] = {}
        self._errands: dict[int, Errand] = {}
        self._deaths: list[float] = []
        self._stand_ins: dict[tuple[bytes, tuple[str, ...]], Any] = {}

    # -- what goes wrong ---------------------------------------------------------------------------

    def web_died(self, web: Any, told: bool) -> None:
        """``told``: by the supervisor, at once; else the director finds out."""
        self._deaths.append(self._now)
        if told:
            self.director.web_died(web.name)

    @property
    def _now(self) -> float:
        now: float = self._site.schedule.now
        return now

    def _is_disturbed(self, since: float) -> bool:
        """Whether something else than the death of a web server may be to blame for what happened since."""
        scenario = self._site.scenario
        chances = scenario.loss or scenario.lateness or scenario.damage == "door"
        return bool(chances) and not self._site.calm_since < since - QUIET_S

    def _died_since(self, moment: float) -> int:
        return sum(at > moment for at in self._deaths)

    # -- requests ----------------------------------------------------------------------------------

    def send(self, attempt: Attempt) -> None:
        """What a browser sends."""
        browser: Any = attempt.browser
        dice, number = self._dice, attempt.number
        method = b"GET" if attempt.kind == "read" else b"POST"
        body = b"" if method == b"GET" else b"%d." % number * dice.choice((1, 1, 1, 300, 3_000))
        errand = Errand(attempt, method, body, self._routes.get(browser))
        errand.answer_bytes = dice.choice(SIZES)
        errand.answer_pause_s = dice.choice((0.0, 0.0, 0.0, 0.05, 0.5))
        errand.think_s = 0.0 if dice.random() < 0.8 else dice.random() * 0.5
        self._errands[number] = errand
        if self._site.trace.on:
            self._ledger.say(f"#{number} {attempt.kind}: {browser.name} to the director")
        pieces = self._pieces(body)
        asked = BrowserRequest(method, self._headers(errand), pieces, lambda told, why: self._ended(errand, told, why))
        errand.hang_up = self._host(browser.name).ask(asked)
        if self._site.cancelled and dice.random() < self._site.cancelled:
            self._site.schedule.after(dice.random() * 0.1, self._leave, errand)
        self._site.schedule.after(browser.PATIENCE_S, self._lose_patience, errand)

    def _pieces(self, body: bytes) -> list[tuple[bytes, float]]:
        """A body comes at once, or in pieces with pauses."""
        if len(body) < 500 or self._dice.random() < 0.5:
            return [(body, 0.0)] if body else []
        pause_s = self._dice.choice((0.0, 0.02, 0.4))
        first = [(body[at : at + 2_000], pause_s) for at in range(0, min(len(body), 12_000), 2_000)]
        return [*first, (body[12_000:], 0.0)]

    def _headers(self, errand: Errand) -> list[tuple[bytes, bytes]]:
        cookies, names = errand.attempt.cookies, self._site.webs[0].cookie_names
        shown = [*zip(names, (cookies.anonymous, cookies.login), strict=True), (self._route_name, errand.route)]
        pairs = [name + b"=" + value for name, value in shown if value is not None]
        headers = [(b"host", b"shop.test"), (NUMBER, b"%d" % errand.attempt.number)]
        if pairs:
            errand.cookies = b"; ".join(pairs)
            headers.append((b"cookie", errand.cookies))
        if errand.method == b"POST":
            chunked = self._dice.random() < 0.3
            length = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % len(errand.body))
            headers.append(length)
        return headers

    @property
    def _route_name(self) -> bytes:
        name: bytes = self._site.webs[0].sessions.cookies.for_whole_host().full_name("-route")
        return name

    def _host(self, name: str) -> BrowserHost:
        host = self._hosts.get(name)
        if host is None:
            address = self._site.world.hosts.address_of(self.director.name)
            host = self._hosts[name] = BrowserHost(self._site.world.machine(name), address, PORT)
        return host

    def _lose_patience(self, errand: Errand) -> None:
        if not errand.is_over and not self._is_disturbed(errand.attempt.sent_at):
            self._fail(f"#{errand.attempt.number} has no answer after {errand.attempt.browser.PATIENCE_S:g} s")
        self._leave(errand)

    def _leave(self, errand: Errand) -> None:
        """The browser waits no longer."""
        if not errand.is_over:
            errand.is_over = errand.is_left = True
            errand.hang_up()
            browser: Any = errand.attempt.browser
            for attempt in [errand.attempt, *(attempt for attempt, _ in errand.runs)]:
                browser._give_up(attempt)

    # -- at the web servers ------------------------------------------------------------------------

    def begins(self, web: Any, number: int) -> tuple[Attempt, Errand]:
        """A web server begins to carry out a request."""
        errand = self._errands[number]
        attempt = errand.attempt
        if errand.runs:
            attempt = Attempt(self._site.next_number(), attempt.kind, attempt.browser, attempt.cookies, attempt.sent_at)
        attempt.web = web
        attempt.began_at = self._now
        self._judge_run(errand, web)
        errand.runs.append((attempt, web))
        if self._site.trace.on:
            self._ledger.say(f"#{number} is carried out by {web.name} as #{attempt.number}")
        return attempt, errand

    def _judge_run(self, errand: Errand, web: Any) -> None:
        number, runs = errand.attempt.number, errand.runs
        if len(runs) >= errand.most:
            self._fail(f"#{number} ({errand.method.decode()}) is carried out {len(runs) + 1} times")
        # Without losses on the wire no connection to a web server that lives ever ends.
        lives = bool(runs) and runs[-1][1].alive and not self._site.scenario.loss
        if lives and self._now - errand.attempt.sent_at < self.director.options.resend_after_s:
            self._fail(f"#{number} is carried out again though {runs[-1][1].name}, which has it, lives")
        disturbed = self._is_disturbed(errand.attempt.sent_at)
        if errand.route is not None and not runs and not disturbed:
            home = next((one for one in self._site.webs if one.route_tag.encode() == errand.route), None)
            well = home is not None and home.ready and home.ready_at < errand.attempt.sent_at - QUIET_S
            if home is not None and well and home is not web:
                self._fail(f"#{number} comes to {web.name}, though {home.name}, which its route names, is well")
            if home is not None and not home.ready:
                self._judge_stand_in(errand, web)

    def _judge_stand_in(self, errand: Errand, web: Any) -> None:
        """The web server of its route is away: what comes with the same cookies goes to the same other one."""
        ready = [one for one in self._site.webs if one.ready]
        settled = all(one.ready_at < errand.attempt.sent_at - QUIET_S for one in ready)
        if not settled or web not in ready:
            return
        first = self._stand_ins.setdefault((errand.cookies, tuple(one.name for one in ready)), web)
        self._ledger.counts["director: stand-in"] += 1
        if first is not web:
            self._fail(f"#{errand.attempt.number} comes to {web.name}, others with the same cookies to {first.name}")

    # -- what browsers are told --------------------------------------------------------------------

    def _ended(self, errand: Errand, told: WholeAnswer | None, why: str) -> None:
        attempt, errand.is_over = errand.attempt, True
        if told is None:
            self._judge_broken(errand, why)
            self._answer(attempt, Response(502))
            return
        answers = told.values(ANSWER)
        if not answers:
            self._judge_own(errand, told.status)
            self._answer(attempt, Response(told.status))
            return
        answered = self._judge_answer(errand, told, answers[0])
        if answered is not None:
            self._answer_of(attempt, answered, told)

    def _judge_answer(self, errand: Errand, told: WholeAnswer, answer: bytes) -> Attempt | None:
        number = errand.attempt.number
        answered = next((run for run, _ in errand.runs if b"%d" % run.number == answer), None)
        if answered is None:
            self._fail(f"#{number} gets the answer {answer.decode()}, which is not its own")
        elif told.status == 200 and not _is_body(told, answer_body(answered.number, errand.answer_bytes)):
            self._fail(f"#{number} gets {len(told.body)} bytes that are not those of its answer")
        return answered

    def _answer_of(self, attempt: Attempt, answered: Attempt, told: WholeAnswer) -> None:
        """Of what was carried out twice, the browser has the answer of one."""
        browser: Any = attempt.browser
        if answered is not attempt and attempt in browser.outstanding:
            del browser.outstanding[attempt]
            browser.outstanding[answered] = None
        response, web = Response(told.status), answered.web
        for value in told.values(b"set-cookie"):
            web.note_cookie(value, response)
            name, _, rest = value.partition(b"=")
            if name == self._route_name:
                self._routes[browser] = rest.partition(b";")[0]
        self._answer(answered, response)

    def _answer(self, attempt: Attempt, response: Response) -> None:
        attempt.answered = True
        attempt.browser.receive(attempt, response)

    def _judge_own(self, errand: Errand, status: int) -> None:
        """An answer that the director makes itself."""
        number, runs, since = errand.attempt.number, len(errand.runs), errand.attempt.sent_at
        self._ledger.counts[f"director: {status}"] += 1
        if self._site.trace.on:
            self._ledger.say(f"#{number} is answered by the director: {status}")
        if status not in OWN_STATUS:
            self._fail(f"#{number} is answered with {status} by the director")
        elif status == 503 and runs and (errand.method != b"GET" or runs > 1):
            self._fail(f"#{number} is answered with 503, and was carried out")
        self._judge_loss(errand, f"is answered with {status}", since)

    def _judge_broken(self, errand: Errand, why: str) -> None:
        if self._site.trace.on:
            self._ledger.say(f"#{errand.attempt.number} has no answer: {why}")
        self._ledger.counts["director: no answer"] += 1
        self._judge_loss(errand, f"has no answer ({why})", errand.attempt.sent_at)

    def _judge_loss(self, errand: Errand, what: str, since: float) -> None:
        """A request comes to nothing only if the web servers that carried it out have died."""
        if self._is_disturbed(since):
            return
        number, needed = errand.attempt.number, errand.most
        if "no answer" in what and errand.runs:
            needed = 1  # a part of the answer had left
        died = self._died_since(since - DYING_S)
        nobody = not any(web.ready and web.ready_at < since for web in self._site.webs)
        if died < needed and not nobody:
            self._fail(f"#{number} {what}: {len(errand.runs)} web servers carried it out, and {died} died meanwhile")

    def judge_end(self) -> None:
        """When faults have stopped, and all requests have ended: nothing is left in the director."""
        if hanging := [number for number, errand in self._errands.items() if not errand.is_over]:
            self._fail(f"{hanging} have no answer")
        status = self.director.status()
        if status["in_flight"] > len(self._abandoned()):
            self._fail(f"in the end it has {status['in_flight']} requests in flight")
        if not all(server["healthy"] for server in status["servers"]):
            self._fail(f"in the end it thinks ill of web servers: {status['servers']}")

    def _abandoned(self) -> list[Errand]:
        """Whose browser has hung up: the director cannot tell it from one that has sent all, and waits for the answer,
        or for its next bytes, as long as ever, if their host lost its power or the way from there is slow."""
        options = self.director.options
        since = self._now - max(options.first_byte_timeout_s, options.body_timeout_s) - 1.0
        return [one for one in self._errands.values() if one.is_left and one.attempt.sent_at > since]

    def _fail(self, text: str) -> None:
        self._ledger.fail("director", text)


def _is_body(told: WholeAnswer, expected: bytes) -> bool:
    """An answer of unknown length ends early when its session does."""
    return told.body == expected or (not told.values(b"content-length") and expected.startswith(told.body))


def answer_body(number: int, size: int) -> bytes:
    """The body of a web server's answer: of no other answer's kind."""
    piece = b"%d," % number
    return (piece * (size // len(piece) + 1))[:size]
