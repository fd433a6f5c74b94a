"""When sessions end here, others are told: signed, tried again, within bounds, and whoever was not told is named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatcheck import connect
from coatcheck.events import Event, EventKind
from coatcheck.service.signals.settings import read_signals
from coatcheck.service.signals.transmitting import SignalSender
from coatcheck.service.signals.wiring import Signals
from coatcheck.tokens.keyring import KeyRing
from ports import free_port

from .conftest import SignalService, StartService
from .identity_provider import LOGOUT, REVOKED
from .receiver import Receiver

ISSUER = "https://shop.example"
CLOSED = Event(EventKind.SESSION_CLOSED, "0123456789ab", "by the app, 2 of 2", "ada")


@pytest.mark.parametrize("form", ["security-event", "logout-token"])
@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_logout_is_told_with_a_signature_that_anybody_can_check(
    start: StartService, receiver: Receiver, form: str, algorithm: str, tmp_path: Path
) -> None:
    (tmp_path / "service-0").mkdir()
    bearer = tmp_path / "bearer"
    bearer.touch(0o600)
    bearer.write_text("# what the receiver wants\nsesame\n")
    text = receiver.settings(ISSUER, form, bearer_file=str(bearer))
    (tmp_path / "service-0").rmdir()
    service = start(text.replace("[receivers", f'algorithm = "{algorithm}"\n[receivers'))
    described = service.http.get("/.well-known/ssf-configuration", headers={"Authorization": ""}).json()
    assert described["issuer"] == ISSUER
    assert described["jwks_uri"] == f"{ISSUER}/v1/signals/jwks"
    assert described["delivery_methods_supported"] == ["urn:ietf:rfc:8935"]
    jwks = service.http.get("/v1/signals/jwks").json()
    made = service.ask("", user="ada").json()
    assert service.ask("/close", cookie=made["cookie"]).json()["closed"]
    [told] = receiver.wait(1)
    claims = told.verified(jwks)
    assert abs(claims["iat"] - time.time()) < 60
    assert (claims["iss"], claims["aud"], told.authorization) == (ISSUER, "receiver", "Bearer sesame")
    if form == "logout-token":
        assert (told.kind, told.header["typ"]) == ("application/x-www-form-urlencoded", "logout+jwt")
        assert (claims["sub"], claims["sid"], claims["events"]) == ("ada", made["session"]["id"], {LOGOUT: {}})
        assert claims["exp"] - claims["iat"] == 120
        assert "nonce" not in claims
    else:
        assert (told.kind, told.header["typ"]) == ("application/secevent+jwt", "secevent+jwt")
        assert claims["sub_id"] == {
            "format": "complex",
            "session": {"format": "opaque", "id": made["session"]["id"]},
            "user": {"format": "iss_sub", "iss": ISSUER, "sub": "ada"},
        }
        assert set(claims["events"]) == {REVOKED}
        assert not {"sub", "exp"} & set(claims)


def test_all_of_a_user_are_told_and_strangers_are_nobodys_business(start: StartService, receiver: Receiver) -> None:
    service = start(receiver.settings(ISSUER, "security-event"))
    anonymous = service.ask("", data={"cart": 1}).json()["cookie"]
    assert service.ask("/close", cookie=anonymous).json()["closed"]
    for _ in range(2):
        service.login("ada")
    assert service.http.post("/v1/users/close", json={"user": "ada"}).json() == {"closed": 2}
    subjects = [got.claims["sub_id"]["format"] for got in receiver.wait(3)]
    assert sorted(subjects) == ["complex", "complex", "iss_sub"]
    assert len({got.claims["jti"] for got in receiver.got}) == 3


def test_one_farm_ends_sessions_of_another_over_the_wire(start: StartService) -> None:
    here, there = free_port(), free_port()
    origin = f"http://127.0.0.1:{here}"
    url = f"http://127.0.0.1:{there}/v1/signals/first/events"
    first = f'[transmitter]\nissuer = "{origin}"\n[receivers.second]\nurl = "{url}"\naudience = "second"\n'
    second = (
        f'[providers.first]\nissuer = "{origin}"\naudience = "second"\nkeys = "{origin}/v1/signals/jwks"\n'
        'algorithms = ["ES256"]\nuser = "sub"\n'
    )
    one = start(first, "--listen", f"127.0.0.1:{here}")
    two = start(second, "--listen", f"127.0.0.1:{there}")
    made = one.ask("", user="ada").json()
    linked = two.log_in("ada", {"iss": origin, "sid": made["session"]["id"]})
    by_name, bob = two.log_in("bob"), one.login("bob")
    one.ask("/close", cookie=made["cookie"])
    one.http.post("/v1/users/close", json={"user": "bob"})
    deadline = time.monotonic() + 60
    while two.is_open(linked) or two.is_open(by_name):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not one.is_open(bob)


# -- receivers that misbehave, in this process -------------------------------------------------------


class Hasty(SignalSender):
    TIMEOUT_S = 0.5
    FIRST_PAUSE_S = 0.01
    MAX_TRIES = 4
    MAX_WAITING = 5
    STOP_GRACE_S = 0.5


class Lost:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        assert event.kind is EventKind.SIGNAL_LOST
        self.events.append(event)


def sender(receiver: Receiver, tmp_path: Path, form: str = "security-event") -> tuple[Hasty, Lost]:
    (tmp_path / "signals.toml").write_text(receiver.settings(ISSUER, form))
    lost = Lost()
    file = tmp_path / "signals.toml"
    return Hasty(read_signals(file), file, KeyRing([b"k" * 32]), "farm", lost, time.time), lost


def run(tell: Hasty, story: Callable[[], Any], closes: bool = True) -> None:
    async def whole() -> None:
        tell.start()
        story()
        deadline = time.monotonic() + 60
        while tell.waiting and closes:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await tell.aclose()

    asyncio.run(whole())


def test_what_is_told_has_the_time_of_the_farm(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "signals.toml"
    file.write_text(receiver.settings(ISSUER, "security-event"))
    an_hour_ago = int(time.time()) - 3600

    async def tell() -> None:
        signals = Signals(file, KeyRing([b"k" * 32]), "farm")
        sessions = connect("memory://", key=b"0123456789abcdef0123456789abcdef")
        monkeypatch.setattr(sessions, "now_s", lambda: an_hour_ago + 0.9)
        signals.start(sessions)
        signals.observe(CLOSED)
        await signals.aclose()

    asyncio.run(tell())
    [told] = receiver.wait(1)
    assert told.claims["iat"] == an_hour_ago
    assert [event["event_timestamp"] for event in told.claims["events"].values()] == [an_hour_ago]


def test_a_receiver_that_fails_is_told_again_with_the_same_token(receiver: Receiver, tmp_path: Path) -> None:
    tell, lost = sender(receiver, tmp_path)
    receiver.statuses = [500, 503, 429]
    run(tell, lambda: tell.observe(CLOSED))
    assert len(receiver.wait(4)) == 4
    assert len({got.claims["jti"] for got in receiver.got}) == 1
    assert (tell.told, tell.lost, lost.events) == (1, 0, [])


@pytest.mark.parametrize("how", ["500", "slow", "away"])
def test_a_receiver_that_goes_on_failing_is_given_up_and_named(receiver: Receiver, tmp_path: Path, how: str) -> None:
    tell, lost = sender(receiver, tmp_path)
    if how == "500":
        receiver.status = 500
    elif how == "slow":
        receiver.delay_s = 2.0
    else:
        receiver.close()
    run(tell, lambda: tell.observe(CLOSED))
    assert len(lost.events) == 1
    [event] = lost.events
    assert (event.session, event.user) == (CLOSED.session, "ada")
    assert event.detail.startswith("other was not told: ")
    assert len(receiver.got) == (0 if how == "away" else Hasty.MAX_TRIES)


@pytest.mark.parametrize("status", [400, 401, 404, 302, 307])
def test_a_receiver_that_refuses_is_not_asked_again(receiver: Receiver, tmp_path: Path, status: int) -> None:
    tell, lost = sender(receiver, tmp_path)
    receiver.status = status
    run(tell, lambda: tell.observe(CLOSED))
    assert len(receiver.got) == 1, "and a redirect is not followed"
    assert [event.detail for event in lost.events] == [f"other was not told: status {status}"]


def test_of_too_many_the_oldest_are_lost_and_named(receiver: Receiver, tmp_path: Path) -> None:
    tell, lost = sender(receiver, tmp_path)
    receiver.delay_s = 0.2
    events = [Event(EventKind.SESSION_CLOSED, f"{n:012x}", "by the app", "ada") for n in range(40)]
    run(tell, lambda: [tell.observe(event) for event in events])
    assert tell.told + tell.lost == 40
    assert [event.session for event in lost.events] == [event.session for event in events[:35]]
    assert "5 are waiting" in lost.events[0].detail


def test_a_stop_waits_a_moment_and_names_what_is_left(receiver: Receiver, tmp_path: Path) -> None:
    tell, lost = sender(receiver, tmp_path)
    receiver.delay_s = 20.0
    began = time.monotonic()
    run(tell, lambda: [tell.observe(CLOSED) for _ in range(5)], closes=False)
    assert time.monotonic() - began < 15
    assert [event.detail for event in lost.events] == ["other was not told: the process stops"] * 5


def test_an_answer_without_end_is_not_read(receiver: Receiver, tmp_path: Path) -> None:
    tell, lost = sender(receiver, tmp_path)
    receiver.filler = b"x" * (8 << 20)
    run(tell, lambda: tell.observe(CLOSED))
    assert (tell.told, lost.events) == (1, [])


def test_what_a_form_cannot_say_is_named(receiver: Receiver, tmp_path: Path) -> None:
    tell, lost = sender(receiver, tmp_path, "logout-token")
    run(tell, lambda: tell.observe(Event(EventKind.ALL_CLOSED, detail="by an operator")))
    assert receiver.got == []
    assert "cannot say" in lost.events[0].detail
    tell, lost = sender(receiver, tmp_path)
    run(tell, lambda: tell.observe(Event(EventKind.ALL_CLOSED, detail="by an operator")))
    assert receiver.wait(1)[0].claims["sub_id"]["tenant"] == {"format": "opaque", "id": ISSUER}
    assert lost.events == []


def test_a_theft_that_closes_is_told_as_one(receiver: Receiver, tmp_path: Path) -> None:
    tell, _ = sender(receiver, tmp_path)
    theft = Event(EventKind.SESSION_THEFT, "0123456789ab", "close: a dead token, 7 s old", "ada")
    reported = Event(EventKind.SESSION_THEFT, "0123456789ab", "report: a dead token, 7 s old", "ada")
    run(tell, lambda: [tell.observe(one) for one in (theft, reported)])
    [event] = receiver.wait(1)[0].claims["events"].values()
    assert event["initiating_entity"] == "policy"


def test_a_service_that_is_alone_says_so_in_its_log(start: StartService, receiver: Receiver) -> None:
    service: SignalService = start(receiver.settings(ISSUER, "security-event"))
    receiver.status = 400
    service.ask("/close", cookie=service.login("ada"))
    deadline = time.monotonic() + 60
    while "other was not told: status 400" not in service.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
