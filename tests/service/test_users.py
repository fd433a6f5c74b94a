"""The sessions of a user, over HTTP: listed, and closed all at once (ASVS 7.4.2, 7.4.3, 7.5.2)."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from coatcheck.service.client import AsyncSessionClient, SessionClient

from .conftest import StartService
from .service_process import ServiceProcess, credential_of


def of_user(service: ServiceProcess, what: str, **body: Any) -> httpx.Response:
    return service.http.post(f"/v1/users/{what}", json=body, headers=service.of("shop"))


def listed(service: ServiceProcess, user: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = of_user(service, "sessions", user=user).json()["sessions"]
    return found


def test_a_users_sessions_are_listed_with_device_and_address(service: ServiceProcess) -> None:
    assert listed(service, "grace") == []
    made = service.ask("", user="grace", client="192.0.2.9", device="Lynx/2.9").json()
    second = service.ask("", user="grace").json()
    first, other = listed(service, "grace")
    assert (first["id"], first["device"], first["address"]) == (made["session"]["id"], "Lynx/2.9", "192.0.2.9")
    assert first["logged_in_at"] == made["session"]["created_at"]
    assert (other["id"], other["device"]) == (second["session"]["id"], "")
    assert set(first) == {"id", "device", "address", "logged_in_at", "last_seen_at"}, "no key"


def test_a_user_is_logged_out_everywhere_but_here(service: ServiceProcess) -> None:
    here, there, third = (service.login("hopper") for _ in range(3))
    assert of_user(service, "close", user="hopper", cookie=here).json() == {"closed": 2}
    assert [service.ask("/verify", cookie=one).status_code for one in (here, there, third)] == [200, 404, 404]
    assert of_user(service, "close", user="hopper").json() == {"closed": 1}
    assert service.ask("/verify", cookie=here).status_code == 404
    assert of_user(service, "close", user="hopper").json() == {"closed": 0}, "may be repeated"
    assert listed(service, "hopper") == []


def test_anothers_cookie_keeps_nothing_and_closes_nothing(service: ServiceProcess) -> None:
    of_mary, of_jean = service.login("mary"), service.login("jean")
    for cookie in (of_jean, "x=y"):
        refused = of_user(service, "close", user="mary", cookie=cookie)
        assert (refused.status_code, refused.json()["type"]) == (404, "urn:coatcheck:problem:no-session")
    assert [service.ask("/verify", cookie=one).status_code for one in (of_mary, of_jean)] == [200, 200]


def test_each_needs_its_scope(start: StartService) -> None:
    service = start(callers='[shop]\nscopes = ["close"]\n[lists]\nscopes = ["list-user"]\n')
    for what, caller, status in (("sessions", "lists", 200), ("close", "lists", 403), ("sessions", "shop", 403)):
        answer = service.http.post(f"/v1/users/{what}", json={"user": "ada"}, headers=service.of(caller))
        assert answer.status_code == status, (what, caller)


def test_the_clients_list_and_close(service: ServiceProcess) -> None:
    with SessionClient(service.url, credential_of("shop")) as client:
        here = client.create("noether", device="Lynx")
        client.create("noether")
        assert [one.device for one in client.sessions_of("noether")] == ["Lynx", ""]
        assert here.cookie is not None
        assert client.close_user("noether", here.cookie) == 1

    async def story() -> None:
        async with AsyncSessionClient(service.url, credential_of("shop")) as client:
            assert [one.id for one in await client.sessions_of("noether")] == [here.session.id]
            assert await client.close_user("noether") == 1
            assert await client.sessions_of("noether") == []

    asyncio.run(story())
