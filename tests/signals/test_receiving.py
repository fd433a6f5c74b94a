"""What a token comes to where session servers fail in the middle: in one process, with stores in memory."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from coatcheck import connect
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind
from coatcheck.replication.entry import KEY_BYTES
from coatcheck.service.signals.event_tokens import EventTokenRefused
from coatcheck.service.signals.receiving import SignalReceiver
from coatcheck.service.signals.settings import IdentityProvider as Settings
from coatcheck.sessions.provider import ProviderName
from coatcheck.sessions.users import UserClosed

from .identity_provider import AUDIENCE, IdentityProvider

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
Story = Callable[[Sessions, SignalReceiver, list[Event]], Coroutine[Any, Any, None]]


def run(idp: IdentityProvider, tmp_path: Path, story: Story) -> None:
    async def whole() -> None:
        (tmp_path / "keys.json").write_text(json.dumps({"keys": idp.published}))
        events: list[Event] = []
        sessions = connect("memory://", key=KEY, observer=events.append)
        await sessions.start()
        settings = Settings(issuer=idp.issuer, audience=AUDIENCE, keys="keys.json")
        receiver = SignalReceiver("idp", settings, tmp_path / "signals.toml", sessions)
        await story(sessions, receiver, events)
        await sessions.aclose()

    asyncio.run(whole())


async def log_in(sessions: Sessions, id_token: dict[str, Any]) -> bytes:
    opened = await sessions.open(b"")
    opened.session.regenerate("ada", id_token=id_token)
    answer = await sessions.finish(opened, 200)
    assert not answer.refused
    return b"; ".join(value.partition(b";")[0] for _, value in answer.cookies)


async def is_open(sessions: Sessions, cookie: bytes) -> bool:
    return not (await sessions.open(cookie)).session.is_new


def test_a_close_that_is_not_effective_is_no_success(
    idp: IdentityProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(sessions: Sessions, receiver: SignalReceiver, events: list[Event]) -> None:
        token, ways = idp.logout_token(sid="s", sub="u"), [UserClosed(1), UserClosed(1, closing=1)]

        async def closed(*_: Any) -> UserClosed:
            return ways.pop()

        monkeypatch.setattr(sessions, "close_by_provider", closed)
        with pytest.raises(SessionUnavailable):
            await receiver.take(token, "logout-token")
        assert not [event for event in events if event.kind is EventKind.SIGNAL_TAKEN]
        monkeypatch.undo()
        await receiver.take(token, "logout-token")
        assert [event.detail for event in events if event.kind is EventKind.SIGNAL_TAKEN] == [
            "idp: logout-token: 0 closed"
        ]

    run(idp, tmp_path, story)


def test_what_was_answered_503_is_welcome_again(
    idp: IdentityProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(sessions: Sessions, receiver: SignalReceiver, events: list[Event]) -> None:
        cookie, token = await log_in(sessions, idp.id_token("s", "u")), idp.logout_token(sid="s", sub="u")
        good, calls = sessions.close_by_provider, 0

        async def half_done(*arguments: Any) -> UserClosed:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
            return await good(*arguments)

        monkeypatch.setattr(sessions, "close_by_provider", half_done)
        with pytest.raises(SessionUnavailable):
            await receiver.take(token, "logout-token")
        assert not await is_open(sessions, cookie), "half of it was done"
        await receiver.take(token, "logout-token")
        with pytest.raises(EventTokenRefused, match="used before"):
            await receiver.take(token, "logout-token")
        kinds = [event.kind for event in events]
        assert (kinds.count(EventKind.SIGNAL_TAKEN), kinds.count(EventKind.SIGNAL_REFUSED)) == (1, 1)

    run(idp, tmp_path, story)


def test_the_key_of_a_name_needs_the_key_ring(idp: IdentityProvider, tmp_path: Path) -> None:
    async def story(sessions: Sessions, receiver: SignalReceiver, events: list[Event]) -> None:
        await log_in(sessions, idp.id_token("s", "u"))
        name = ProviderName(idp.issuer, "sid", "s")
        [key] = sessions._provider_keys(name.clear())
        view = await sessions.driver.run(sessions.copies.viewer.look(key))
        assert view.newest is not None
        assert key != blake2b(name.clear(), digest_size=KEY_BYTES).digest()
        other = connect("memory://", key=secrets.token_urlsafe(32), farm="farm")
        assert other._provider_keys(name.clear()) != [key]
        assert [info.user for info in await sessions.list_sessions()] == ["ada"], "an index is no session"

    run(idp, tmp_path, story)
