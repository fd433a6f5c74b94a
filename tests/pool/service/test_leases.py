"""Leases over HTTP, as a program in another language has them."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import StartService
from .service_process import BEARER, ServiceProcess


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return request.node.name


def test_the_caller_logs_in_and_the_next_one_need_not(service: ServiceProcess, user: str) -> None:
    login = service.checkout(user)
    assert login.status_code == 201
    assert login.json()["login"] is True and 0 < login.json()["deadline_in_s"] <= 30
    first = service.end_lease(login.json()["lease"], "complete", token="T1")
    assert first.status_code == 200
    assert (first.json()["token"], first.json()["uses"], first.json()["user"]) == ("T1", 1, user)
    assert service.end_lease(first.json()["lease"], token="T2").status_code == 204
    second = service.checkout(user)
    assert second.status_code == 200
    assert (second.json()["token"], second.json()["uses"]) == ("T2", 2)
    assert second.json()["fencing"] > first.json()["fencing"]
    assert service.end_lease(second.json()["lease"]).status_code == 204


def test_a_token_is_lent_only_with_the_password_that_opened_it(service: ServiceProcess, user: str) -> None:
    login = service.checkout(user, password="right").json()
    lent = service.end_lease(login["lease"], "complete", token="T1").json()
    assert service.end_lease(lent["lease"]).status_code == 204
    for wrong in ({"password": "WRONG"}, {"password": ""}, {}):
        due = service.checkout(user, **wrong)
        assert due.status_code == 201, "a place to log in, and no token"
        assert service.end_lease(due.json()["lease"], "fail").status_code == 204
    again = service.checkout(user, password="right")
    assert (again.status_code, again.json()["token"]) == (200, "T1")
    assert service.end_lease(again.json()["lease"]).status_code == 204


def test_refused_credentials_are_told_at_once(service: ServiceProcess, user: str) -> None:
    due = service.checkout(user, password="WRONG").json()
    assert service.end_lease(due["lease"], "fail", refused=True).status_code == 204
    refused = service.checkout(user, password="WRONG", wait_s=60)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:coatcheck:problem:login-refused")
    assert "WRONG" not in refused.text
    due = service.checkout(user, password="right")
    assert due.status_code == 201
    service.end_lease(due.json()["lease"], "fail")


def test_a_repeated_check_in_is_the_same_and_another_is_refused(service: ServiceProcess, user: str) -> None:
    lease = service.signed_in(user=user)["lease"]
    assert [service.end_lease(lease, token="T2").status_code for _ in range(3)] == [204] * 3
    other = service.end_lease(lease, token="T3")
    assert (other.status_code, other.json()["type"]) == (409, "urn:coatcheck:problem:lease-lost")
    assert service.end_lease(lease, "drop").status_code == 409
    again = service.checkout(user).json()
    assert (again["token"], service.stats(user)["leased"]) == ("T2", 1)
    # A replay of the first check-in does not end the second lease.
    assert service.end_lease(lease, token="T2").status_code == 204
    assert service.stats(user)["leased"] == 1
    service.end_lease(again["lease"])


def test_a_refused_token_is_dropped_unless_it_is_fresh_from_a_login(service: ServiceProcess, user: str) -> None:
    fresh = service.signed_in(user=user)
    answers = [service.end_lease(fresh["lease"], "refuse") for _ in range(3)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"again": False})] * 3
    old = service.checkout(user).json()
    assert (old["token"], old["uses"]) == (fresh["token"], 2)
    answer = service.end_lease(old["lease"], "refuse").json()
    assert service.stats(user)["free"] == (0 if answer["again"] else 1), "it was fresh a moment ago"
    assert service.end_lease(old["lease"], "drop").status_code == 409


def test_a_repeated_complete_is_the_same_lease(service: ServiceProcess, user: str) -> None:
    login = service.checkout(user).json()["lease"]
    answers = [service.end_lease(login, "complete", token="T1") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.json()["lease"] for answer in answers}) == 1
    assert service.end_lease(login, "complete", token="T2").status_code == 409
    assert (service.stats(user)["leased"], service.stats(user)["logins_total"]) == (1, 1)
    service.end_lease(answers[0].json()["lease"])


def test_what_belongs_to_a_token_stays_until_it_is_replaced(service: ServiceProcess, user: str) -> None:
    def next_lease(**said: Any) -> tuple[str, str, Any]:
        assert service.end_lease(lent[0], **said).status_code == 204
        again = service.checkout(user).json()
        return again["lease"], again["token"], again["payload"]

    login = service.checkout(user).json()["lease"]
    first = service.end_lease(login, "complete", token="T1", payload={"route": "w1"}).json()
    assert first["payload"] == {"route": "w1"}
    lent = first["lease"], first["token"], first["payload"]
    lent = next_lease()
    assert lent[1:] == ("T1", {"route": "w1"})
    lent = next_lease(token="T2")
    assert lent[1:] == ("T2", {"route": "w1"})
    lent = next_lease(payload={"route": "w2"})
    assert lent[1:] == ("T2", {"route": "w2"})
    lent = next_lease(token="T3", payload={"route": "w3"})
    assert lent[1:] == ("T3", {"route": "w3"})
    lent = next_lease(payload={})
    assert lent[1:] == ("T3", {})
    refused = service.end_lease(lent[0], payload={"much": "x" * 20_000})
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:coatcheck:problem:bad-request")
    assert service.end_lease(lent[0]).status_code == 204, "the lease went on"


def test_twenty_check_ins_at_once_are_one(service: ServiceProcess, user: str) -> None:
    lease = service.signed_in(user=user)["lease"]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(service.end_lease(lease, token="T2").status_code))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [204] * 20
    assert service.stats(user)["free"] == 1


@pytest.mark.parametrize(
    "lease", ["x", "0.QQ", "1", "1.", "9999999999999999999999.QQ", "1.QQ==", "01.QQ", "1.%00", "٣.QQ"]
)
def test_what_is_no_lease_is_404(service: ServiceProcess, lease: str) -> None:
    for how in ("checkin", "drop", "renew", "fail"):
        answer = service.end_lease(lease, how)
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:coatcheck:problem:no-such-lease")


def test_a_lease_that_never_was_is_409(service: ServiceProcess, user: str) -> None:
    lease = service.signed_in(user=user)
    fencing, _, encoded = lease["lease"].partition(".")
    for number in (int(fencing) + 1, int(fencing) - 1, 1):
        for how in ("checkin", "drop", "renew", "fail"):
            assert service.end_lease(f"{number}.{encoded}", how).status_code == 409
        assert service.end_lease(f"{number}.{encoded}", "complete", token="T").status_code == 409
    assert service.end_lease(lease["lease"], "renew").status_code == 200
    # A lease is not a login: it cannot be completed or failed.
    assert service.end_lease(lease["lease"], "complete", token="T").status_code == 409
    assert service.end_lease(lease["lease"], "fail").status_code == 409
    assert service.stats(user)["login_failures_total"] == 0
    service.end_lease(lease["lease"])


def test_a_dropped_token_never_comes_back(service: ServiceProcess, user: str) -> None:
    lease = service.signed_in(user=user)["lease"]
    assert [service.end_lease(lease, "drop").status_code for _ in range(2)] == [204, 204]
    login = service.checkout(user)
    assert login.status_code == 201
    assert service.end_lease(login.json()["lease"], "fail").status_code == 204
    limited = service.checkout(user, wait_s=0)
    assert (limited.status_code, limited.json()["type"]) == (429, "urn:coatcheck:problem:login-rate-limited")
    assert int(limited.headers["retry-after"]) >= 1


def test_a_failed_call_drops_the_token(service: ServiceProcess, user: str) -> None:
    lease = service.signed_in(user=user)["lease"]
    assert service.end_lease(lease, failed=True).status_code == 204
    assert (service.stats(user)["free"], service.stats(user)["drops_total"]) == (0, 1)


def test_waiting_is_fair_and_bounded(service: ServiceProcess, user: str) -> None:
    leases = [service.signed_in(f"T{n}", user)["lease"] for n in range(2)]
    full = service.checkout(user, wait_s=0.2)
    assert (full.status_code, full.json()["type"]) == (503, "urn:coatcheck:problem:timeout")
    got: list[httpx.Response] = []
    waiter = threading.Thread(target=lambda: got.append(service.checkout(user, wait_s=60)))
    waiter.start()
    deadline = time.monotonic() + 60
    while service.stats(user)["waiting"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    service.end_lease(leases[0])
    waiter.join()
    assert got[0].json()["token"] == "T0"
    for lease in (leases[1], got[0].json()["lease"]):
        service.end_lease(lease)


def test_a_caller_that_goes_away_while_it_waits_leaves_nothing(service: ServiceProcess, user: str) -> None:
    leases = [service.signed_in(f"T{n}", user)["lease"] for n in range(2)]
    for _ in range(5):
        with pytest.raises(httpx.ReadTimeout):
            service.http.post(f"/v1/users/{user}/checkout", json={"wait_s": 60}, timeout=0.2)
    deadline = time.monotonic() + 60
    while service.stats(user)["waiting"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for lease in leases:
        service.end_lease(lease)
    assert (service.stats(user)["free"], service.stats(user)["leased"]) == (2, 0)


def test_a_lease_past_its_deadline_is_lost_and_a_renewed_one_is_not(start: StartService) -> None:
    short = start("--lease", "2s", "--login-timeout", "1s")
    kept, lost = short.signed_in("kept"), short.signed_in("lost")
    late = short.checkout().json()["lease"]
    both_over = time.monotonic() + 2.2
    while time.monotonic() < both_over:
        renewed = short.end_lease(kept["lease"], "renew")
        assert renewed.status_code == 200 and renewed.json()["deadline_in_s"] <= 2
        time.sleep(0.1)
    assert short.end_lease(lost["lease"], token="x").status_code == 409
    assert short.end_lease(kept["lease"], token="kept2").status_code == 204
    assert short.end_lease(late, "complete", token="late").status_code == 409
    assert short.checkout().json()["token"] == "kept2"
    assert short.stats()["lost_total"] == 2


def test_two_instances_share_a_store_and_survive_each_other(start: StartService, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    shared = ("--store", f"sqlite:///{tmp_path / 'tokens.db'}", "--key-file", str(key), "--per-user", "2")
    one, two = start(*shared), start(*shared)
    lease = one.signed_in("secret-token-1")["lease"]
    assert two.end_lease(lease, token="secret-token-2").status_code == 204
    held = two.checkout().json()
    assert held["token"] == "secret-token-2"
    two.process.kill()
    two.process.wait(60)
    assert one.end_lease(held["lease"], token="secret-token-3").status_code == 204
    assert one.checkout().json()["token"] == "secret-token-3"
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("tokens.db*"))
    assert b"secret-token" not in stored
    assert sqlite3.connect(tmp_path / "tokens.db").execute("pragma integrity_check").fetchone() == ("ok",)
    # A lease that is out belongs to its caller: the service stops at once all the same.
    before = time.monotonic()
    assert one.end() == 0
    assert time.monotonic() - before < 20


def test_users_may_be_called_anything(service: ServiceProcess) -> None:
    for name in ("a/b", "a%2Fb", "../x", "ä ö", "x" * 1024, "checkout", "?q=1"):
        lease = service.signed_in(user=name)
        assert lease["user"] == name
        assert service.end_lease(lease["lease"]).status_code == 204
        assert service.http.get("/v1/stats").json()["users"][name]["free"] == 1


def test_operators_see_masked_tokens_and_remove_them(service: ServiceProcess, user: str) -> None:
    leases = [service.signed_in(f"very-secret-{n}", user) for n in range(2)]
    service.end_lease(leases[0]["lease"])
    answer = service.http.get(f"/v1/users/{user}")
    assert "very-secret" not in answer.text + service.http.get("/v1/users").text
    rows = answer.json()["tokens"]
    assert sorted(row["state"] for row in rows) == ["free", "leased"]
    token_id = next(row["token_id"] for row in rows if row["state"] == "leased")
    assert service.http.delete(f"/v1/users/{user}/tokens/{token_id}").json() == {"removed": 1}
    assert service.http.delete(f"/v1/users/{user}/tokens/{token_id}").json() == {"removed": 0}
    assert service.end_lease(leases[1]["lease"]).status_code == 409
    assert service.http.delete(f"/v1/users/{user}").json() == {"removed": 1}
    assert service.http.post("/v1/clean-up").json() == {"removed": 0}


def test_the_bearer_token_is_asked_for(service: ServiceProcess) -> None:
    for shown in (
        None,
        "",
        "Bearer",
        "Bearer x",
        f"Basic {BEARER}",
        BEARER,
        f"Bearer {BEARER}x",
        f"Bearer {BEARER[:-1]}",
    ):
        headers = {} if shown is None else {"Authorization": shown}
        for method, path in (("POST", "/v1/users/ANN/checkout"), ("GET", "/v1/users"), ("GET", "/metrics")):
            answer = httpx.request(method, service.url + path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    second = {"Authorization": "bearer another-bearer-token-that-is-accepted"}
    assert httpx.get(f"{service.url}/v1/stats", headers=second).status_code == 200
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"[]", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"wait_s": -1}', "application/json", 400),
        (b'{"wait_s": 1e9}', "application/json", 400),
        (b'{"wait_s": "1"}', "application/json", 400),
        (b'{"wait_s": NaN}', "application/json", 400),
        (b'{"unknown": 1}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b'{"password": "' + b"x" * 600_000 + b'"}', "application/json", 413),
    ],
)
def test_bad_bodies_are_problems(service: ServiceProcess, body: bytes, content_type: str, status: int) -> None:
    headers = {"Content-Type": content_type}
    answer = service.http.post("/v1/users/ANN/checkout", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status and answer.json()["detail"]


def test_bad_addresses_are_problems(service: ServiceProcess) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v1/users/ANN/checkout", 405),
        ("POST", "/v1/users//checkout", 404),
        ("POST", "/v1/users/%0A/checkout", 400),
        ("POST", "/v1/users/%FF/checkout", 400),
        ("POST", f"/v1/users/{'x' * 1025}/checkout", 400),
        ("DELETE", "/v1/users/ANN/tokens/x", 400),
        ("DELETE", "/v1/users/ANN/tokens/0", 400),
        ("DELETE", "/v1/users/ANN?soft=yes", 400),
        ("DELETE", "/v1/users/ANN?soft=true&soft=false", 400),
        ("PUT", "/v1/stats", 405),
    ):
        answer = service.http.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status), path


def test_tokens_that_are_none_are_refused_and_the_lease_goes_on(service: ServiceProcess, user: str) -> None:
    lease = service.signed_in(user=user)["lease"]
    for body in (b'{"token": ""}', b'{"token": 1}', b'{"token": "x", "expires_in_s": -1}', b'{"token": "\\ud800"}'):
        answer = service.http.post(
            f"/v1/leases/{lease}/checkin", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400, body
    assert service.end_lease(lease, token="fine").status_code == 204
    assert service.checkout(user).json()["token"] == "fine"
