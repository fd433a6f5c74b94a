"""The keys of a provider: fetched seldom, bounded in size and time, and asked for anew when it signs with another."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coatcheck.service.signals.event_tokens import EventTokenRefused, KeysUnavailable
from coatcheck.service.signals.provider_keys import ProviderKeys

from .conftest import StartService
from .identity_provider import IdentityProvider, Key

MakeIdp = Callable[..., IdentityProvider]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_each_kind_of_key_verifies_and_is_fetched_once(start: StartService, new_idp: MakeIdp, algorithm: str) -> None:
    idp = new_idp(algorithm)
    service = start(idp.settings())
    for n in range(3):
        assert service.logout(idp.logout_token(sid=f"s{n}")).status_code == 200
    assert idp.fetches == 1


def test_a_key_that_was_rotated_in_is_fetched_and_one_rotated_out_is_refused(
    start: StartService, new_idp: MakeIdp
) -> None:
    idp = new_idp()
    service = start(idp.settings())
    old = idp.key
    assert service.logout(idp.logout_token(sid="a")).status_code == 200
    idp.rotate("second")
    # The first fetch was a moment ago; no made-up key ID brings another one sooner.
    answers = [service.logout(idp.logout_token(sid="c")).status_code]
    while answers[-1] != 200:
        assert len(answers) < 600
        time.sleep(0.1)
        answers.append(service.logout(idp.logout_token(sid="c")).status_code)
    assert set(answers[:-1]) == {400}
    assert idp.fetches == 2
    idp.key = old
    assert service.logout(idp.logout_token(sid="d")).status_code == 400


def test_a_flood_of_made_up_key_ids_costs_one_fetch_in_ten_seconds(idp: IdentityProvider) -> None:
    async def story() -> None:
        clock = Clock()
        before = idp.fetches
        keys = ProviderKeys(idp.keys_url, ["RS256"], clock)
        for second in range(12):
            clock.now = 1000.0 + second
            for _ in range(5):
                with pytest.raises(EventTokenRefused):
                    await keys.key(os.urandom(4).hex())
        assert idp.fetches - before == 2
        assert (await keys.key("first")).key_type == "RSA"

    asyncio.run(story())


def test_many_that_come_at_once_wait_for_one_fetch(new_idp: MakeIdp) -> None:
    async def story() -> None:
        idp = new_idp()
        idp.delay_s = 0.3
        keys = ProviderKeys(idp.keys_url, ["RS256"])
        found = await asyncio.gather(*(keys.key("first") for _ in range(50)))
        assert len({each.key_id for each in found}) == 1
        assert idp.fetches == 1

    asyncio.run(story())


def test_keys_are_believed_for_an_hour_and_a_day_while_the_provider_is_silent(new_idp: MakeIdp) -> None:
    async def story() -> None:
        idp, clock = new_idp(), Clock()
        keys = ProviderKeys(idp.keys_url, ["RS256"], clock)
        await keys.key("first")
        idp.rotate("second")
        clock.now += ProviderKeys.KEEP_S - 1
        await keys.key("first")
        clock.now += 2
        with pytest.raises(EventTokenRefused):
            await keys.key("first")
        idp.status = 503
        clock.now += ProviderKeys.STALE_S - 1
        await keys.key("second")
        clock.now += ProviderKeys.PAUSE_S + 2
        with pytest.raises(KeysUnavailable):
            await keys.key("second")
        idp.status = 200
        clock.now += ProviderKeys.PAUSE_S
        await keys.key("second")

    asyncio.run(story())


@pytest.mark.parametrize(
    "how", ["status", "redirect", "slow", "huge", "no json", "no keys", "a private secret", "short"]
)
def test_what_is_no_key_set_leaves_a_provider_without_keys(new_idp: MakeIdp, how: str) -> None:
    class Hasty(ProviderKeys):
        FETCH_TIMEOUT_S = 0.5

    async def story() -> None:
        idp = new_idp()
        if how == "status":
            idp.status = 500
        elif how == "redirect":
            idp.status = 302
        elif how == "slow":
            idp.delay_s = 2
        else:
            idp.raw = {
                "huge": b" " * (ProviderKeys.MAX_SET_BYTES + 1) + json.dumps({"keys": idp.published}).encode(),
                "no json": b"<html>",
                "no keys": json.dumps({"keys": [{"kty": "RSA"}, 7, None]}).encode(),
                "a private secret": json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]}).encode(),
                "short": json.dumps(
                    {"keys": [{"kty": "RSA", "kid": "first", "n": "u" * 170 + "w", "e": "AQAB"}]}
                ).encode(),
            }[how]
        with pytest.raises(KeysUnavailable):
            await Hasty(idp.keys_url, ["RS256"]).key("first")

    asyncio.run(story())


def test_a_key_set_that_is_away_is_no_verdict(start: StartService, new_idp: MakeIdp) -> None:
    idp = new_idp()
    idp.status = 500
    service = start(idp.settings())
    answer = service.logout(idp.logout_token(sid="a"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10"), "it is to be sent again"


def test_keys_in_a_file_follow_it(tmp_path: Path) -> None:
    async def story() -> None:
        clock, file = Clock(), tmp_path / "keys.json"
        one, two = Key("ES256", "one"), Key("ES256", "two")
        file.write_text(json.dumps({"keys": [one.jwk]}))
        keys = ProviderKeys(file, ["ES256"], clock)
        assert await keys.key("one") is await keys.key(None), "where there is one key, nobody need name it"
        file.write_text(json.dumps({"keys": [two.jwk, one.jwk]}))
        clock.now += ProviderKeys.PAUSE_S
        await keys.key("two")
        with pytest.raises(EventTokenRefused):
            await keys.key(None)

    asyncio.run(story())
