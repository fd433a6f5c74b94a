"""Checks of sessions that an identity provider has begun, by their numbers in OWASP ASVS 5.0 (7.6, 10.5).

What is refused of tokens in detail: tests/signals/test_forgeries.py.
"""

from __future__ import annotations

from signals.conftest import StartService, idp, start
from signals.identity_provider import LOGOUT, IdentityProvider

__all__ = ["idp", "start"]


def test_7_6_1_a_session_ends_with_the_one_at_its_identity_provider(start: StartService, idp: IdentityProvider) -> None:
    service = start(idp.settings())
    cookies = [service.log_in("ada", idp.id_token(sid, "sub-ada")) for sid in ("one", "two", "three")]
    assert service.logout(idp.logout_token(sid="one", sub="sub-ada")).status_code == 200
    assert [service.is_open(each) for each in cookies] == [False, True, True]
    assert service.event(idp.event_token({"format": "opaque", "id": "two"})).status_code == 202
    assert [service.is_open(each) for each in cookies] == [False, False, True]
    assert service.logout(idp.logout_token(sub="sub-ada")).status_code == 200
    assert [service.is_open(each) for each in cookies] == [False, False, False]


def test_10_5_5_no_other_token_of_the_provider_forces_a_logout(start: StartService, idp: IdentityProvider) -> None:
    service = start(idp.settings())
    cookie = service.log_in("ada", idp.id_token("one", "sub-ada"))
    good = idp.logout_claims(sid="one")
    confused = {
        "an ID token": idp.sign(idp.id_token("one", "sub-ada") | {"nonce": "n", "jti": "j"}, "JWT"),
        "an access token": idp.sign(idp.id_token("one", "sub-ada") | {"jti": "j", "scope": "openid"}, "at+jwt"),
        "not typed": idp.sign(good, None),
        "typed as any": idp.sign(good, "JWT"),
        "a nonce": idp.sign(good | {"nonce": "n"}),
        "no event": idp.sign(good | {"events": {}}),
        "another member": idp.sign(good | {"events": {LOGOUT + "-request": {}}}),
        "for another client": idp.sign(good | {"aud": "billing"}),
        "expired": idp.sign(good | {"iat": good["iat"] - 300, "exp": good["iat"] - 120}),
    }
    for name, token in confused.items():
        assert service.logout(token).status_code == 400, name
        assert service.is_open(cookie), name
    assert service.logout(idp.sign(good)).status_code == 200
    assert not service.is_open(cookie)
    assert service.logout(idp.sign(good)).status_code == 400, "a token is used once"
