"""What an identity provider says ends sessions here: back-channel logout, and session-revoked events."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .conftest import SignalService, StartService
from .identity_provider import IdentityProvider


def test_a_logout_of_a_session_ends_that_one_and_a_late_login_of_it_is_refused(
    service: SignalService, idp: IdentityProvider
) -> None:
    laptop = service.log_in("ada", idp.id_token("sid-1", "sub-ada"))
    phone = service.log_in("ada", idp.id_token("sid-2", "sub-ada"))
    local, bob = service.log_in("ada"), service.log_in("bob", idp.id_token("sid-3", "sub-bob"))
    told = service.logout(idp.logout_token(sid="sid-1", sub="sub-ada"))
    assert (told.status_code, told.content, told.headers["cache-control"]) == (200, b"", "no-store")
    assert [service.is_open(one) for one in (laptop, phone, local, bob)] == [False, True, True, True]
    late = service.ask("", user="ada", id_token=idp.id_token("sid-1", "sub-ada"))
    assert late.status_code == 409, "its provider has ended it before the app was told that it began"
    assert service.log_in("ada", idp.id_token("sid-4", "sub-ada"))


def test_a_logout_of_a_user_ends_all_that_came_from_there(service: SignalService, idp: IdentityProvider) -> None:
    laptop = service.log_in("eve", idp.id_token("sid-5", "sub-eve"))
    phone = service.log_in("eve", idp.id_token(sub="sub-eve"))
    local = service.log_in("eve")
    assert service.logout(idp.logout_token(sub="sub-eve")).status_code == 200
    assert [service.is_open(one) for one in (laptop, phone, local)] == [False, False, True]


def test_a_session_without_a_name_of_its_own_ends_with_any_of_its_user(
    service: SignalService, idp: IdentityProvider
) -> None:
    named = service.log_in("kay", idp.id_token("sid-6", "sub-kay"))
    nameless = service.log_in("kay", idp.id_token(sub="sub-kay"))
    assert service.logout(idp.logout_token(sid="sid-7", sub="sub-kay")).status_code == 200
    assert [service.is_open(one) for one in (named, nameless)] == [True, False]


def test_what_replaces_a_session_can_be_ended_by_its_name(service: SignalService, idp: IdentityProvider) -> None:
    first = service.log_in("lin", idp.id_token("sid-8", "sub-lin"))
    second = service.log_in("lin", cookie=first)
    assert not service.is_open(first)
    assert service.logout(idp.logout_token(sid="sid-8")).status_code == 200
    assert not service.is_open(second), "regenerate keeps what the session came from"
    other = service.log_in("mia", idp.id_token("sid-9", "sub-mia"))
    somebody = service.log_in("nan", cookie=other)
    assert service.logout(idp.logout_token(sid="sid-9")).status_code == 200
    assert service.is_open(somebody), "of another user it keeps nothing"


SUBJECTS: dict[str, Callable[[IdentityProvider, str], Any]] = {
    "opaque": lambda idp, name: {"format": "opaque", "id": f"sid-{name}"},
    "iss_sub": lambda idp, name: {"format": "iss_sub", "iss": idp.issuer, "sub": f"sub-{name}"},
    "complex": lambda idp, name: {
        "format": "complex", "session": {"format": "opaque", "id": f"sid-{name}"},
        "user": {"format": "iss_sub", "iss": idp.issuer, "sub": f"sub-{name}"},
    },
    "complex of a user": lambda idp, name: {
        "user": {"format": "iss_sub", "iss": idp.issuer, "sub": f"sub-{name}"},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_revoked_session_ends_by_each_kind_of_subject(
    service: SignalService, idp: IdentityProvider, kind: str
) -> None:
    name = kind.replace(" ", "-")
    cookie = service.log_in(name, idp.id_token(f"sid-{name}", f"sub-{name}"))
    told = service.event(idp.event_token(SUBJECTS[kind](idp, name)))
    assert (told.status_code, told.content, told.headers["cache-control"]) == (202, b"", "no-store")
    assert not service.is_open(cookie)


def test_an_event_whose_subject_stands_in_it_as_before_caep_was_final(
    service: SignalService, idp: IdentityProvider
) -> None:
    cookie = service.log_in("old", idp.id_token("sid-old"))
    claims = idp.event_claims(None)
    for event in claims["events"].values():
        event["subject"] = {"format": "opaque", "id": "sid-old"}
    assert service.event(idp.sign(claims, "secevent+jwt")).status_code == 202
    assert not service.is_open(cookie)


def test_a_stream_that_is_verified_is_acknowledged_and_ends_nothing(
    service: SignalService, idp: IdentityProvider
) -> None:
    cookie = service.log_in("vic", idp.id_token("sid-vic"))
    events = {"https://schemas.openid.net/secevent/ssf/event-type/verification": {"state": "x"}}
    claims = idp.event_claims({"format": "opaque", "id": "sid-vic"}, events=events)
    assert service.event(idp.sign(claims, "secevent+jwt")).status_code == 202
    assert service.is_open(cookie)


def test_a_user_may_be_named_as_here(start: StartService, idp: IdentityProvider) -> None:
    service = start(idp.settings(user="sub") + idp.settings("mail", user="email", audience="mail-client"))
    here, there = service.log_in("ada@shop.example"), service.log_in("ada@shop.example")
    assert service.logout(idp.logout_token(sub="ada@shop.example", sid="x")).status_code == 200
    assert not service.is_open(here)
    assert not service.is_open(there)
    cookie = service.log_in("bob@shop.example")
    mail = {"format": "email", "email": "bob@shop.example"}
    assert service.event(idp.event_token(mail)).status_code == 400, "this provider's users are not named by address"
    assert service.is_open(cookie)
    assert service.event(idp.event_token(mail, aud="mail-client"), "mail").status_code == 202
    assert not service.is_open(cookie)


def test_a_token_is_used_once_at_all_processes(start: StartService, idp: IdentityProvider, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    one, two = start(idp.settings(), store=store), start(idp.settings(), store=store)
    token = idp.logout_token(sub="sub-zoe")
    event = idp.event_token({"format": "iss_sub", "iss": idp.issuer, "sub": "sub-zoe"})
    assert one.logout(token).status_code == 200
    assert one.event(event).status_code == 202
    time.sleep(1.1)  # a token's time has whole seconds
    cookie = one.log_in("zoe", idp.id_token(sub="sub-zoe"))
    for service in (two, one):
        again = service.logout(token)
        assert again.status_code == 400
        assert again.json()["error"] == "invalid_request"
        assert "used before" in again.json()["error_description"]
        assert service.event(event).status_code == 202, "answered as the first time, RFC 8935"
        assert service.is_open(cookie), "and does nothing"
    assert "used before" in two.log.read_text()


def test_of_many_that_bring_the_same_token_at_once_one_is_first(start: StartService, idp: IdentityProvider) -> None:
    service = start(idp.settings())
    token = idp.logout_token(sid="crowd")
    with ThreadPoolExecutor(8) as crowd:
        answers = sorted(crowd.map(lambda _: service.logout(token).status_code, range(8)))
    assert answers == [200] + [400] * 7
