"""Operations checks, by their numbers in OWASP ASVS 5.0 (14.2, 16.2, 16.5)."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

import in_hand
from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind, public_id
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.session_server.table import SLOT_MS
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import SWEEP_PERIOD_S

from .two_servers import COOKIE, LEASE_S, Browser, shopper, two_servers


def test_16_5_no_session_server_answers_fail_closed() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            for store in servers.stores:
                await store.aclose()
            await asyncio.sleep(2 * LEASE_S)
            for server in (1, 2):
                for method, path in (("GET", "/"), ("POST", "/put?key=n"), ("POST", "/login"), ("POST", "/logout")):
                    answer = await browser.send(server, method, path)
                    assert answer.status == 503
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.headers["cache-control"] == "no-store"
                    assert not answer.cookies, "nobody is logged in, nobody is logged out"
                    assert "session" in answer.text
            for store in servers.stores:
                await store.open()
            assert (await browser.get(1)).body["data"] == {"n": 1}

    asyncio.run(story())


def test_16_5_a_new_session_is_not_promised_where_it_cannot_be_stored() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            for store in servers.stores:
                await store.aclose()
            stranger = Browser(servers)
            assert (await stranger.get(1)).status == 200, "who needs no session is served"
            answer = await stranger.put(1)
            assert answer.status == 503
            assert not stranger.jar

    asyncio.run(story())


def test_16_5_below_target_can_be_refused() -> None:
    async def story() -> None:
        replication = ReplicationPolicy(lease_s=LEASE_S, below_target="refuse")
        async with two_servers(replication=replication) as servers:
            browser = await shopper(servers)
            await servers.stores[0].aclose()
            assert (await browser.put(1)).status == 503
            await servers.stores[0].open()
            assert (await browser.get(1)).body["data"]["n"] in (1, 2), "refused says not acknowledged"

    asyncio.run(story())


def test_16_5_too_few_of_three_session_servers_fail_closed() -> None:
    async def story() -> None:
        async with two_servers(session_servers=3) as servers:
            browser = await shopper(servers)
            for store in servers.stores[:2]:
                await store.aclose()
            with pytest.raises(SessionUnavailable) as unavailable:
                await in_hand.opened(servers.sessions[1], browser.token())
            assert unavailable.value.reason is UnavailableReason.TOO_FEW_SERVERS

    asyncio.run(story())


def test_16_2_theft_close_and_expiry_leave_a_record_that_names_the_session() -> None:
    async def story() -> None:
        async with two_servers(SessionPolicy(idle_timeout_ms=120_000)) as servers:
            first, second = await shopper(servers), await shopper(servers)
            out, thief = first.token().key, second.copy()
            await first.post(1, "/logout")
            for _ in range(15):
                servers.later(20)
                await second.get(1)
            stolen = second.token().key
            await thief.get(2)
            third = await shopper(servers)
            expired = third.token().key
            servers.later(200)
            await third.get(2)
            records = {(event.kind, event.session) for event in servers.events}
            assert {
                (EventKind.SESSION_CLOSED, public_id(out)),
                (EventKind.SESSION_THEFT, public_id(stolen)),
                (EventKind.SESSION_EXPIRED, public_id(expired)),
            } <= records
            counted = servers.sessions[0].status()["events"]
            assert counted["session.closed"] == 1

    asyncio.run(story())


def test_14_2_7_expired_data_goes_away_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for it again; the session servers' own clocks and sweepers do it."""
    monkeypatch.setattr(SessionPolicy, "linger_ms", 0)

    async def story() -> None:
        policy = SessionPolicy(idle_timeout_ms=200, absolute_timeout_ms=200, leeway_ms=0)
        async with two_servers(policy) as servers:
            await shopper(servers)
            assert all(store.table.entries == 1 for store in servers.stores)
            deadline = time.monotonic() + 20 * (SLOT_MS / 1000 + SWEEP_PERIOD_S)
            while any(store.table.entries for store in servers.stores):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    asyncio.run(story())


def test_a_session_server_sees_no_data_no_user_and_no_token() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            await browser.put(1, "visible-name")
            await browser.post(1, "/login?user=visible-name")
            held = b"".join(raw for store in servers.stores for _, _, raw in store.table.hand_over(0))
            assert len(held) > 200
            assert b"visible-name" not in held
            assert browser.token("__Host-coatcheck-login").session_id not in held

    asyncio.run(story())


@pytest.mark.parametrize("change", ["payload", "history", "version", "last version", "swapped", "tombstone"])
@pytest.mark.parametrize("server", [1, 2])
def test_what_a_session_server_forges_is_never_served(change: str, server: int) -> None:
    """Web server 1 has a cached copy to compare with, web server 2 has none."""

    async def story() -> None:
        async with two_servers() as servers:
            browser, other = await shopper(servers), await shopper(servers)
            rows = servers.stores[0].table._shard(browser.token().key)
            raw = bytearray(rows[browser.token().key].raw)
            if change == "payload":
                raw[-1] ^= 1
            elif change == "history":
                raw[22] ^= 1
            elif change == "version":
                raw[2:6] = b"\x00\x00\xff\xff"
            elif change == "last version":
                raw[2:6] = b"\xff\xff\xff\xff"  # no epoch is left for a claim
            elif change == "tombstone":
                raw[1] = 1
            else:
                stranger = other.token().key
                raw = bytearray(servers.stores[0].table._shard(stranger)[stranger].raw)
            rows[browser.token().key].raw = bytes(raw)
            await asyncio.sleep(2 * LEASE_S)
            answer = await browser.get(server)
            assert answer.body["data"] == {"n": 1}, "the other session server has the true copy"
            assert (await browser.put(server)).body == 2
            assert EventKind.CORRUPT_ENTRY in servers.kinds() or "version" not in change, "newest, but forged"

    asyncio.run(story())


def test_an_entry_of_another_farm_key_is_no_session() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            key = browser.token().key
            for store in servers.stores:
                row = store.table._shard(key)[key]
                row.raw = row.raw[:-40] + os.urandom(40)
            answer = await Browser(servers, {COOKIE: browser.jar[COOKIE]}).send(2, "GET", "/")
            assert answer.status in (200, 503)
            assert answer.status == 503 or answer.body["data"] == {}

    asyncio.run(story())
