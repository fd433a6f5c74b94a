"""Tokens, keys, session keys, session IDs and session data are in no ``repr``, log line, event or error."""

from __future__ import annotations

import asyncio
import logging
import os
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Any

import pytest

import in_hand
from coatcheck.access import SessionAccess
from coatcheck.connecting import connect
from coatcheck.errors import CoatcheckError, CorruptEntry, SessionDataError, TokenRejected
from coatcheck.event_log import log_event
from coatcheck.events import EventKind, public_id
from coatcheck.farm.files.keys import FarmKeys
from coatcheck.farm.plan.roles import Address, SessionServerRole
from coatcheck.replication.effects import Acknowledge, Detach, Exclusive, Get, Put, Tell
from coatcheck.replication.notice import ClaimAnswer, Notice
from coatcheck.replication.version import Version
from coatcheck.replication.view import View
from coatcheck.sessions.delta import diff
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.record import decode_record, encode_data
from coatcheck.sessions.saving import Saved
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import TokenCodec

from .two_servers import COOKIE, LOGIN, Browser, Servers, shopper, two_servers

SECRET = bytes(range(65, 97))
CARD = "4929-1234-5678-9012"


def forms(secret: bytes) -> set[str]:
    """How a secret looks in text."""
    escaped = repr(secret)[2:-1]
    return {escaped, repr(secret), secret.hex(), b64encode(secret).decode(), urlsafe_b64encode(secret).decode()}


class Secrets:
    """All that must not be seen of a browser's session."""

    def __init__(self, browser: Browser, name: str = COOKIE) -> None:
        token = browser.token(name)
        self.texts = {browser.jar[name], CARD}
        for secret in (token.key, token.session_id, SECRET):
            self.texts |= forms(secret)

    def found_in(self, shown: Iterable[object]) -> list[str]:
        return [text for one in shown for text in [str(one)] if any(secret in text for secret in self.texts)]


async def with_card(servers: Servers) -> Browser:
    browser = await shopper(servers)
    sessions = servers.sessions[0]
    session = sessions.lifecycle.open_cached(browser.token(), False)
    assert session is not None
    session["card"] = CARD
    issue = (await in_hand.saved(sessions, session)).issue
    assert issue is not None
    browser.jar[COOKIE] = sessions.seal(issue).decode()
    return browser


async def objects(servers: Servers, browser: Browser) -> list[Any]:
    """One of each that holds a secret or something that does."""
    sessions, token = servers.sessions[0], browser.token()
    session = sessions.lifecycle.open_cached(token, False)
    assert session is not None
    copy = session._request.copy_held
    assert copy is not None
    record = decode_record(copy.body)
    entry = copy.as_entry()
    version = Version(1, b"o" * 8, 1)
    view = await sessions.driver.run(sessions.copies.viewer.look(token.key))
    flow = sessions.lifecycle.open(token, False)
    delta = diff({"card": ""}, {"card": CARD})
    effects = [
        Get(token.key, ("a",)),
        Put(token.key, entry, {"a": version}),
        Exclusive(token.key, flow),
        Detach(flow),
        Acknowledge(Saved(Issue(token, False))),
        Tell(b"abc", Notice(token.key, version, False).encode()),
    ]
    codec = TokenCodec(servers.ring, "anonymous", "farm", os.urandom)
    codec.open(browser.jar[COOKIE].encode())
    return [
        token, codec, copy, delta, record, record.chain, record.chain.current, entry, view, View(token.key, 0.0),
        *effects, Notice(token.key, version, False), ClaimAnswer(token.key, version, 0), Issue(token, False),
        Saved(Issue(token, False)), servers.ring, servers.ring.box("token", "farm", os.urandom),
        PayloadSealer(servers.ring, "farm", os.urandom), sessions, sessions.copies, sessions.copies.cache,
        sessions.lifecycle, sessions.driver, servers.middlewares[0], *servers.stores, sessions.status(), flow,
    ]  # fmt: skip


def test_no_secret_is_in_any_repr() -> None:
    async def story() -> None:
        async with two_servers(ring=KeyRing([SECRET])) as servers:
            browser = await with_card(servers)
            secrets = Secrets(browser)
            shown = await objects(servers, browser)
            assert secrets.found_in([browser.jar[COOKIE]]), "the search finds what is there"
            assert secrets.found_in([browser.token().key]), "in any of its forms"
            for one in shown:
                assert not secrets.found_in([repr(one), str(one), f"{one}", [one]]), type(one).__name__

    asyncio.run(story())


def test_operators_see_data_only_where_they_asked_for_it() -> None:
    async def story() -> None:
        async with two_servers(ring=KeyRing([SECRET])) as servers:
            browser = await with_card(servers)
            secrets = Secrets(browser)
            sessions = servers.sessions[0]
            listed = await sessions.list_sessions()
            assert len(listed) == 1
            assert CARD not in repr(listed)
            info = await sessions.show(browser.token().key)
            assert info is not None
            assert info.data == {"n": 1, "card": CARD}
            secrets.texts -= {CARD} | forms(browser.token().key)  # both are what `sessions show KEY` is for
            assert not secrets.found_in([info])

    asyncio.run(story())


async def eventful(servers: Servers) -> tuple[Browser, list[Secrets]]:
    """Sessions that are created, rotated, stolen, logged in and out, rejected, lost and refused."""
    browser = await with_card(servers)
    seen = [Secrets(browser)]
    thief = browser.copy()
    for _ in range(20):
        servers.later(20)
        await browser.get(1)
        seen.append(Secrets(browser))
    await thief.get(2)
    other = await with_card(servers)
    seen.append(Secrets(other))
    await other.post(1, "/login")
    seen.append(Secrets(other, LOGIN))
    damaged = Browser(servers, {COOKIE: browser.jar.get(COOKIE, "A" * 116).swapcase()})
    await damaged.get(1)
    await servers.stores[0].aclose()
    await other.put(1)
    await other.post(2, "/logout")
    await servers.stores[1].aclose()
    await browser.get(1)
    return browser, seen


def test_no_secret_is_in_events_or_debug_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def story() -> None:
        async with two_servers(ring=KeyRing([SECRET])) as servers:
            _, seen = await eventful(servers)
            assert {EventKind.SESSION_THEFT, EventKind.SESSION_CLOSED, EventKind.TOKEN_REJECTED} <= set(servers.kinds())
            for event in servers.events:
                log_event(event)
            assert len(caplog.messages) >= len(servers.events)
            lines = [*caplog.messages, *servers.events, *(record.__dict__ for record in caplog.records)]
            for secrets in seen:
                assert not secrets.found_in(lines)
            assert not seen[0].found_in([sessions.status() for sessions in servers.sessions])

    asyncio.run(story())


def test_16_2_a_log_names_a_session_by_a_hash() -> None:
    key = os.urandom(16)
    assert public_id(key) == public_id(key) != public_id(os.urandom(16))
    assert len(public_id(key)) == 12
    assert public_id(key) not in key.hex()


def test_16_2_events_cannot_forge_log_lines() -> None:
    """Nothing that a browser sends gets into an event."""

    async def story() -> None:
        async with two_servers() as servers:
            injected = "x\nERROR forged line"
            for name in (COOKIE, LOGIN, "other"):
                await Browser(servers).send(1, "GET", "/", cookie=f"{name}=A{'A' * 115}; x={injected!r}")
                await Browser(servers).send(1, "GET", "/", cookie=f"{name}={'%0a' * 40}")
            browser = await shopper(servers)
            await browser.put(1, "a%0aERROR%20forged")
            for event in servers.events:
                text = f"{event.kind.value} {event.session} {event.detail}"
                assert "\n" not in text
                assert "forged" not in text
            assert servers.kinds().count(EventKind.TOKEN_REJECTED) == 4

    asyncio.run(story())


def test_errors_name_reasons_and_no_secrets() -> None:
    errors: list[CoatcheckError] = []

    def refused(call: Any, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(CoatcheckError) as raised:
            call(*args, **kwargs)
        errors.append(raised.value)

    ring = KeyRing([SECRET])
    codec = TokenCodec(ring, "anonymous", "farm", os.urandom)
    text = codec.seal(b"k" * 16, b"i" * 16, 1, bytes(16))
    refused(TokenCodec(ring, "login", "farm", os.urandom).open, text)
    refused(codec.open, text[:-1] + b"!")
    refused(KeyRing, [SECRET, SECRET])
    refused(KeyRing, [SECRET[:31]])
    refused(connect, "memory:", key=SECRET[:31])
    refused(connect, "memory:", key=SECRET.hex() + "!x", unknown=1)
    refused(connect, "nonsense://user:hunter2@localhost", key=SECRET)
    refused(encode_data, {"card": [CARD, object()]})
    refused(decode_record, b"\xc1" + CARD.encode())
    refused(PayloadSealer(ring, "farm", os.urandom).unseal, b"k" * 16, b"header", b"x" * 60)
    assert {TokenRejected, SessionDataError, CorruptEntry} <= {type(error) for error in errors}
    for error in errors:
        shown = f"{error} {error!r} {error.args}"
        for secret in forms(SECRET) | forms(SECRET[:31]) | {CARD, text.decode(), "hunter2", SECRET.hex()}:
            assert secret not in shown


def test_settings_and_roles_show_no_keys_and_no_passwords() -> None:
    server = SessionServerAddress("one", "redis://user:hunter2@localhost:6379")
    settings = SessionAccess(farm="farm", server="web-1", session_servers=(server,), keys=(SECRET,))
    role = SessionServerRole(name="one", address=Address("127.0.0.1", 1), password="hunter2")
    shown = [repr(one) for one in (settings, server, settings.session_servers, FarmKeys((SECRET,), 0, "hunter2"), role)]
    for text in shown:
        assert not any(secret in text for secret in forms(SECRET) | {"hunter2"})
