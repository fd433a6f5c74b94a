"""Create, verify, renew, update and close over HTTP, on a real process."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.tokens.sealed import SealedToken, TokenCodec

from .conftest import StartService
from .service_process import FARM, RING, ServiceProcess, credential_of

LOGIN_NAME = CookiePolicy().full_name("-login").decode()
CODEC = TokenCodec(RING, "login", FARM, os.urandom)


def token_of(cookie: str) -> SealedToken:
    name, _, text = cookie.partition("=")
    assert name == LOGIN_NAME
    return CODEC.open(text.encode())


def type_of(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    found: str = answer.json()["type"]
    return found.removeprefix("urn:coatcheck:problem:")


def test_a_session_lives_through_all_its_calls(service: ServiceProcess) -> None:
    made = service.ask("", user="ada", data={"cart": ["tea"]}, client="192.0.2.1").json()
    assert made["session"]["user"] == "ada"
    (line,) = made["set_cookie"]
    assert line.startswith(made["cookie"] + "; ")
    assert "; HttpOnly; Secure; SameSite=Lax" in line
    cookie = f"theme=dark; {made['cookie']}"
    seen = service.ask("/verify", cookie=cookie)
    assert seen.status_code == 200
    assert seen.json()["session"]["data"] == {"cart": ["tea"]}
    assert seen.headers["cache-control"] == "no-store"
    renewed = service.ask("/renew", cookie=cookie).json()
    assert renewed["cookie"] is None and renewed["set_cookie"] == [], "it is not due"
    changed = service.ask("/update", cookie=cookie, set={"seen": 1}, delete=["cart"]).json()
    assert changed["session"]["data"] == {"seen": 1}
    closed = service.ask("/close", cookie=cookie).json()
    assert closed["closed"]
    assert "Max-Age=0" in closed["set_cookie"][0]
    for path in ("/verify", "/renew", "/update"):
        assert type_of(service.ask(path, cookie=cookie)) == "no-session"
    assert service.ask("/close", cookie=cookie).json() == {"closed": False, "set_cookie": []}


def test_verifying_changes_nothing(service: ServiceProcess) -> None:
    made = service.ask("", user="ada").json()
    time.sleep(0.01)
    for _ in range(2):
        assert service.ask("/verify", cookie=made["cookie"]).json()["session"] == made["session"]
    assert service.ask("/renew", cookie=made["cookie"]).json()["cookie"] is None, "no next token waits for its browser"


def test_an_anonymous_session_begins_with_data_and_goes_on_in_a_login(service: ServiceProcess) -> None:
    made = service.ask("", data={"cart": 2}).json()
    assert made["session"]["user"] is None
    login = service.ask("", cookie=made["cookie"], user="eve").json()
    assert login["session"]["data"] == {"cart": 2}
    assert login["cookie"].startswith(LOGIN_NAME + "=")
    assert len(login["set_cookie"]) == 2, "the login's cookie, and the end of the other one"
    assert type_of(service.ask("/verify", cookie=made["cookie"])) == "no-session", "the old token is dead (7.2.4)"
    assert service.ask("/verify", cookie=login["cookie"]).json()["session"]["user"] == "eve"


def test_a_lost_answer_and_a_retry_give_the_same_token_and_are_no_theft(service: ServiceProcess) -> None:
    cookie = service.login()
    answers = [service.ask("/renew", cookie=cookie, now=True) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    given = [answer.json()["cookie"] for answer in answers]
    links = {(token_of(one).session_id, token_of(one).timestamp) for one in given}
    assert len(links) == 1, "one link of the chain, sealed anew"
    assert token_of(given[0]).session_id != token_of(cookie).session_id
    # The last of them arrived; then an old request is repeated once more.
    assert service.ask("/renew", cookie=given[3]).status_code == 200
    assert service.ask("/renew", cookie=cookie).status_code == 200
    assert service.ask("/verify", cookie=given[0]).json()["session"]["user"] == "ada"


def test_changes_of_different_keys_merge_and_a_version_is_demanded(service: ServiceProcess) -> None:
    cookie = service.login(a=1, b=1)
    version = service.ask("/verify", cookie=cookie).json()["session"]["version"]
    service.ask("/renew", cookie=cookie, now=True)
    assert service.ask("/verify", cookie=cookie).json()["session"]["version"] == version, "a new token is no change"
    first = service.ask("/update", cookie=cookie, set={"a": 2}, version=version)
    assert first.status_code == 200
    late = service.ask("/update", cookie=cookie, set={"b": 2}, version=version)
    assert (late.status_code, type_of(late)) == (409, "conflict")
    merged = service.ask("/update", cookie=cookie, set={"b": 3}, version=first.json()["session"]["version"])
    assert merged.json()["session"]["data"] == {"a": 2, "b": 3}


def test_of_many_at_once_with_one_version_one_is_stored(service: ServiceProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    cookie = service.login(n=0)
    version = service.ask("/verify", cookie=cookie).json()["session"]["version"]
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(service.ask, "/update", cookie=cookie, set={f"k{n}": n}, version=version) for n in range(24)
        ]
        statuses = [one.result().status_code for one in asked]
    assert sorted(set(statuses)) == [200, 409]
    data = service.ask("/verify", cookie=cookie).json()["session"]["data"]
    assert (statuses.count(200), len(data)) == (1, 2)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {}, 400),
        ("", {"user": ""}, 400),
        ("", {"user": "ü" * 1000}, 400),
        ("", {"user": 7}, 400),
        ("", {"data": {"x": 2**70}}, 400),
        ("", {"user": "x", "data": {f"k{n}": n for n in range(1001)}}, 400),
        ("", {"user": "ada", "more": 1}, 400),
        ("/verify", {}, 400),
        ("/verify", {"cookie": "x\u20ac"}, 400),
        ("/verify", {"cookie": "x", "client": "somewhere\nelse"}, 400),
        ("/verify", {"cookie": "x" * 20_000}, 400),
        ("/verify", {"cookie": f"{LOGIN_NAME}={'A' * 116}"}, 404),
        ("/renew", {"cookie": ""}, 404),
        ("/update", {"cookie": "", "set": {"x": 1}}, 404),
        ("/update", {"cookie": "", "set": []}, 400),
    ],
)
def test_what_is_wrong_is_told_as_a_problem(
    service: ServiceProcess, path: str, body: dict[str, Any], status: int
) -> None:
    answer = service.ask(path, **body)
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert type_of(answer) in ("bad-request", "no-session")


def test_no_body_of_any_kind_is_a_fault_of_ours(service: ServiceProcess) -> None:
    deep = b'{"cookie":"","set":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    for body in (
        b"",
        b"{",
        b"null",
        b"[]",
        b'"\xff"',
        b'{"cookie":"\\ud800"}',
        deep,
        b"x" * 600_000,
        b'{"cookie":"","set":{"a":1e999}}',
    ):
        answer = service.http.post("/v1/sessions/update", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413), (body[:40], answer.text)
    assert (
        service.http.post("/v1/sessions/verify", content=b"{}", headers={"Content-Type": "text/plain"}).status_code
        == 415
    )
    cookie = service.login()
    nested = service.ask("/update", cookie=cookie, set={"deep": _nested(200)})
    assert nested.status_code == 400


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_who_asks_is_known_and_may_do_no_more_than_its_scopes(service: ServiceProcess) -> None:
    cookie = service.login()
    for header in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {credential_of('nobody')}"},
        {"Authorization": f"Bearer {credential_of('shop', 2)}"},
        {"Authorization": f"Bearer {credential_of('moved', 1)}"},
        {"Authorization": f"Bearer {credential_of('shop')[:-1]}A"},
        {"Authorization": f"Basic {credential_of('shop')}"},
        {"Authorization": f"Bearer {credential_of('shop').replace('shop', 'proxy')}"},
        {"Authorization": "Bearer \xff.1.\xff".encode("latin-1")},
    ):
        answer = service.http.post(
            "/v1/sessions/verify", json={"cookie": cookie}, headers={"Authorization": "", **header}
        )
        assert (answer.status_code, type_of(answer)) == (401, "unauthorized"), header
    assert service.http.post(
        "/v1/sessions/verify", json={"cookie": cookie}, headers=service.of("moved", 2)
    ).is_success, "the generation that its caller has now"
    assert service.ask("/verify", "reader", cookie=cookie).status_code == 200
    for path, body in (("", {"user": "x"}), ("/renew", {}), ("/update", {}), ("/close", {})):
        answer = service.ask(path, "reader", cookie=cookie, **body)
        assert (answer.status_code, type_of(answer)) == (403, "not-allowed"), path
    assert service.auth(cookie, "reader").status_code == 403
    assert service.ask("/verify", "proxy", cookie=cookie).status_code == 403
    assert service.ask("/verify", cookie=cookie).status_code == 200, "nothing of it was done"


def test_a_caller_that_asks_too_often_waits_and_others_do_not(service: ServiceProcess) -> None:
    answers = [service.ask("/verify", "hasty", cookie="") for _ in range(6)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:2] == [404, 404]
    assert 429 in statuses
    refused = answers[statuses.index(429)]
    assert type_of(refused) == "too-many-requests"
    assert int(refused.headers["retry-after"]) == 1
    assert service.ask("/verify", "reader", cookie="").status_code == 404


def test_closing_ends_it_for_good_and_secrets_are_in_no_log(service: ServiceProcess) -> None:
    cookie = service.login("grace", secret="a word for nobody")
    service.ask("/close", cookie=cookie)
    log = service.log.read_text()
    for secret in (cookie.partition("=")[2], "a word for nobody", credential_of("shop"), "m3XqjvY0"):
        assert secret not in log


def test_session_servers_that_do_not_answer_are_503_and_never_a_lie(start: StartService, redis_url: str) -> None:
    gone = start(store="redis://127.0.0.1:1")
    answer = gone.ask("", user="ada")
    assert (answer.status_code, type_of(answer)) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    here = start(store=redis_url)
    cookie = here.login()
    answers = [gone.ask(path, cookie=cookie) for path in ("/verify", "/renew", "/update", "/close")]
    answers.append(gone.auth(cookie))
    assert [answer.status_code for answer in answers] == [503] * 5
    assert gone.http.get("/healthz").status_code == 503
    assert here.http.get("/healthz").json()["status"] == "ok"
    assert here.ask("/verify", cookie=cookie).status_code == 200


def test_two_processes_are_one_service(start: StartService) -> None:
    one, other = start(), start()
    cookie = one.login(n=1)
    assert other.ask("/verify", cookie=cookie).json()["session"]["data"] == {"n": 1}
    given = other.ask("/renew", cookie=cookie, now=True).json()["cookie"]
    again = one.ask("/renew", cookie=cookie, now=True).json()["cookie"]
    assert token_of(given).session_id == token_of(again).session_id, "a retry at the other process"
    one.ask("/update", cookie=given, set={"n": 2})
    assert other.ask("/verify", cookie=given).json()["session"]["data"] == {"n": 2}
    assert one.http.get("/v1/jwks").json() == other.http.get("/v1/jwks").json()
    other.ask("/close", cookie=given)
    assert one.ask("/verify", cookie=given).status_code == 404
