"""The parts of the service on sessions in memory, where what happens between two steps can be chosen."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from coatcheck import CookiePolicy, Sessions, connect
from coatcheck.service.messages import HandOff
from coatcheck.service.token_generator import TokenGenerator
from coatcheck.service.validation import SessionValidator
from coatcheck.sessions.description import demand_version, describe

from .service_process import FARM, KEY


def sessions() -> Sessions:
    return connect("memory://", key=KEY, farm=FARM, cookies=CookiePolicy())


def test_of_two_that_looked_at_the_same_data_the_second_is_refused() -> None:
    async def use() -> tuple[int, int, dict[str, Any]]:
        home = sessions()
        cookie = ((await TokenGenerator(home).create("ada", {"n": 0})).cookie or "").encode()
        one, other = await home.open(cookie), await home.open(cookie)
        state = describe(one.session, home.lifecycle.policy)
        assert state is not None
        assert all(demand_version(each.session, home.lifecycle.policy, state.version) for each in (one, other))
        one.session["a"] = 1
        other.session["b"] = 1
        statuses = (await home.finish(one)).status, (await home.finish(other)).status
        seen = await SessionValidator(home).verify(cookie)
        assert seen is not None
        await home.aclose()
        return *statuses, seen.data

    assert asyncio.run(use()) == (200, 409, {"n": 0, "a": 1})


def test_a_new_token_between_the_two_is_no_change_of_the_data() -> None:
    async def use() -> int:
        home = sessions()
        tokens = TokenGenerator(home)
        cookie = ((await tokens.create("ada", {"n": 0})).cookie or "").encode()
        opened = await home.open(cookie)
        state = describe(opened.session, home.lifecycle.policy)
        assert state is not None and demand_version(opened.session, home.lifecycle.policy, state.version)
        assert await tokens.renew(cookie, now=True) is not None
        opened.session["n"] = 1
        status = (await home.finish(opened)).status
        await home.aclose()
        return status

    assert asyncio.run(use()) == 200


def test_of_two_logins_at_once_from_one_anonymous_session_one_has_its_data() -> None:
    """In one process; two may each go on from it before it is closed for both (docs/service.md)."""

    async def use() -> tuple[list[int], list[int]]:
        home = sessions()
        anonymous = ((await TokenGenerator(home).create(data={"cart": 1})).cookie or "").encode()
        one, other = await home.open(anonymous), await home.open(anonymous)
        one.session.regenerate("ada")
        other.session.regenerate("bob")
        statuses = [(await home.finish(each, 201)).status for each in (one, other)]
        listed = [len(await home.sessions_of(user)) for user in ("ada", "bob")]
        await home.aclose()
        return statuses, listed

    assert asyncio.run(use()) == ([201, 409], [1, 0])


def test_what_json_has_not_is_shown_as_text() -> None:
    async def use() -> bytes:
        home = sessions()
        opened = await home.open()
        opened.session.update(
            {"raw": b"\xff", "at": datetime(2026, 1, 2, tzinfo=UTC), "odd": [{None: 1, True: 2, 3: {}}]}
        )
        answer = await home.finish(opened)
        shown = answer.cookies[0][1].partition(b";")[0]
        seen = await SessionValidator(home).verify(shown)
        await home.aclose()
        return msgspec.json.encode(seen.data if seen else None)

    expected = b'{"raw":"/w==","at":"2026-01-02T00:00:00Z","odd":[{"null":1,"true":2,"3":{}}]}'
    assert asyncio.run(use()) == expected


@pytest.mark.parametrize(
    "body",
    [b'{"cookie":"","url":"/a\\n"}', b'{"cookie":"","url":"/a","method":"GET\\n"}', b'{"cookie":"","url":"/a b"}'],
)
def test_an_address_has_no_line_break_also_at_its_end(body: bytes) -> None:
    msgspec.json.decode(b'{"cookie":"","url":"/a?b=%0A","method":"POST"}', type=HandOff)
    with pytest.raises(msgspec.ValidationError, match="matching regex"):
        msgspec.json.decode(body, type=HandOff)
