"""Hostile heads of requests to the session service: credentials, methods, addresses and headers.

Who may ask for what is judged by the list of the credentials that were given out.
"""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from security.hostile_input import ALPHABET, NASTY, Report, damaged, scrambled
from security.hostile_service import FORWARD_AUTH, LOGIN_URL, Asked, Service, Told, run_of

SCOPES = {
    "/v1/sessions": {"shop"}, "/v1/sessions/verify": {"shop", "reader"}, "/v1/sessions/renew": {"shop"},
    "/v1/sessions/update": {"shop"}, "/v1/sessions/close": {"shop"}, "/v1/hand-off": {"shop"},
    "/v1/users/sessions": {"shop"}, "/v1/users/close": {"shop"}, "/v1/events": {"shop"}, FORWARD_AUTH: {"proxy"},
}  # fmt: skip
"""Who may ask for what."""
OPEN = ("/v1/jwks", "/healthz", "/openapi.json")
GETS = (*OPEN, "/v1/events")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "get")
NAMES = (
    "cookie", "x-original-uri", "x-forwarded-uri", "x-forwarded-for", "x-forwarded-host", "accept", "content-type",
    "content-encoding", "content-length", "last-event-id", "if-match", "idempotency-key", "host", "expect", "range",
    "x-session-user", "x-session-assertion", "proxy-authorization", "upgrade", "x-http-method-override",
)  # fmt: skip


class Heads(Service):
    """Requests whose credential, address, method or headers are not what they should be."""

    def make(self) -> Asked:
        """A request whose credential, address, method or headers are not what they should be."""
        dice = self.dice
        path = dice.choice((*SCOPES, *OPEN, FORWARD_AUTH, FORWARD_AUTH + "/a?x=1"))
        caller = "proxy" if path.startswith(FORWARD_AUTH) else dice.choice(("shop", "shop", "reader"))
        members = self.bodies().get(path, {})
        method = dice.choice(METHODS) if dice.random() < 0.15 else "POST" if members else "GET"
        headers = self._credentials(caller)
        fields = [self.shown(), (b"x-original-uri", b"/shelf?x=1"), (b"x-forwarded-for", b"10.0.0.1, 192.0.2.7"),
                  (b"accept", b"text/html"), (b"content-type", b"application/json; charset=utf-8")]  # fmt: skip
        for name, value in fields:
            act = dice.random()
            if act < 0.75:
                headers.append((name, damaged(value, dice) if act < 0.2 else value))
        for _ in range(dice.choice((0, 0, 1, 3))):
            value = dice.choice((dice.choice(NASTY), scrambled(dice), self.cookie.encode(), b"/" + dice.choice(NASTY)))
            headers.append((dice.choice(NAMES).encode(), value))
        if dice.random() < 0.25:
            path = "/" + damaged(path.encode(), dice).decode("latin-1").lstrip("/")
        # What no HTTP server passes on: controls in headers, and in an address all but printable ASCII.
        headers = [(name, re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value).strip(b" \t")) for name, value in headers]
        return Asked(method, re.sub(r"[^\x21-\x7e]|#", "", path), headers, [json.dumps(members).encode()])

    def _credentials(self, caller: str) -> list[tuple[bytes, bytes]]:
        dice, right = self.dice, self.of[caller]
        act, wrong = dice.random(), damaged(right, dice)
        if act < 0.35:
            return [(b"authorization", b"Bearer " + right)]
        if act < 0.45:
            return []
        if act < 0.65:
            return [(b"authorization", b"Bearer " + wrong)]
        if act < 0.7:
            mark = bytearray(right)
            mark[-1] = dice.choice(ALPHABET)
            return [(b"authorization", b"bearer " + bytes(mark))]
        if act < 0.8:
            return [(b"authorization", b"Bearer " + dice.choice(self.strange).encode())]
        if act < 0.85:
            return [(b"authorization", damaged(b"Bearer " + right, dice))]
        if act < 0.9:
            return [(b"authorization", dice.choice((b"Basic ", b"Bearer", b"", b"Token ")) + right)]
        if act < 0.95:
            return [(b"authorization", b"Bearer " + wrong), (b"authorization", b"Bearer " + right)]
        return [(dice.choice((b"proxy-authorization", b"x-authorization", b"cookie")), b"Bearer " + right)]

    def judge(self, asked: Asked) -> bool:
        told = self.tell(asked)
        path = asked.target.partition("?")[0]
        shown = next((value.decode("latin-1") for name, value in asked.headers if name == b"authorization"), "")
        caller = self.credentials.get(shown[7:].strip()) if shown[:7].lower() == "bearer " else None
        may = SCOPES.get(FORWARD_AUTH if path.startswith(FORWARD_AUTH + "/") else path, set())
        accepted = told.status < 400 or told.status not in (401, 403, 404, 405)
        if told.status == 401 and "x-session-login" in told.headers:
            accepted = True  # the proxy was told that its browser needs a login
        if path in OPEN:
            assert told.status in (200, 405), told
            return told.status == 200
        assert not accepted or caller in may, f"{caller} was let in: {told}"
        if may and caller is None:
            assert told.status in (401, 405), told
        elif may and caller not in may:
            assert told.status in (403, 405), told
        elif may and told.status in (401, 403):
            assert "x-session-login" in told.headers, f"{caller} was not let in: {told}"
        if accepted and caller == "proxy":
            self._judge_proxied(asked, told)
        return accepted and caller is not None

    def _judge_proxied(self, asked: Asked, told: Told) -> None:
        assert told.status in (200, 302, 401), told
        cookies = b"; ".join(value for name, value in asked.headers if name == b"cookie")
        if told.status == 200:
            assert any(each.partition("=")[2].encode() in cookies for each in self.cookies), "anybody is ada"
            assert told.headers["x-session-user"] == "ada"
            return
        login = told.headers["location" if told.status == 302 else "x-session-login"]
        assert login.startswith(LOGIN_URL + "&next=%2F"), login
        assert re.fullmatch(
            r"/([\x21-\x2e\x30-\x5b\x5d-\x7e][\x21-\x5b\x5d-\x7e]*)?", unquote(login[len(LOGIN_URL) + 6 :])
        )


def service_header(count: int, seed: int) -> Report:
    """Credentials, methods, addresses and headers."""
    return run_of("service-header", Heads, count, seed)
