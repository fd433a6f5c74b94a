"""A2: "Server 2 creates a new session token, encrypts it and sends it to the browser with the response." """

from __future__ import annotations

import base64
import os

import pytest

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TokenCodec

from .conftest import StartFarm
from .mission_farm import FARM_NAME, Browser, MissionFarm, new_cookie, show
from .strict_mode import STRICT


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2", *STRICT)


def test_server_2_creates_a_token_and_sends_it_with_the_response(farm: MissionFarm) -> None:
    with Browser(farm, "web-1") as browser:
        browser.put("cart", "tea")
        old, old_cookie = browser.token, browser.cookie
    response = show(farm, old_cookie, "web-2")
    assert response.json() == {"data": {"cart": "tea"}, "server": "web-2"}
    cookie = new_cookie(response)
    assert cookie is not None
    assert cookie != old_cookie
    new = farm.codec.open(cookie.encode())
    assert new.key == old.key, "the token opens the same session"
    assert new.session_id != old.session_id, "server 2 created it: server 1 never had this ID"
    # What server 2 sent is good everywhere, also where it was not made.
    assert show(farm, cookie, "web-1").json() == {"data": {"cart": "tea"}, "server": "web-1"}


def test_the_token_is_encrypted(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("secret", "a word that must stay in the farm")
        cookie, token = browser.cookie, browser.token
    raw = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
    for part in (token.key, token.session_id, token.timestamp.to_bytes(6, "big"), b"a word"):
        assert part not in raw
    strange = TokenCodec(KeyRing([os.urandom(32)]), "anonymous", FARM_NAME, os.urandom)
    with pytest.raises(TokenRejected) as refusal:
        strange.open(cookie.encode())
    assert refusal.value.reason is TokenReason.UNKNOWN_KEY


def test_no_bit_of_it_can_be_changed(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        cookie = browser.cookie
        for at in range(0, len(cookie), 7):
            forged = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
            response = show(farm, forged)
            assert response.status_code == 200, "a forged token is answered as none is"
            assert response.json()["data"] == {}, "and it opens nothing"
        assert browser.read()["data"] == {"cart": "tea"}
