"""The clients in front of services that answer oddly: they believe nothing, tell nobody else, and come to an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from coatcheck.service.client import AsyncSessionClient, ServiceProblem, SessionClient

from .odd_service import GIVEN, answers, odd_service, redirects, sends_without_end
from .pages import node, php

CREDENTIAL = "shop.1.SECRETSECRETSECRETSECRETSECRETSECRETSECRETS"
TOKEN = "__Host-coatcheck-login=TOKENTOKENTOKEN"
Example = Callable[..., AbstractContextManager[str]]

EXAMPLES = [
    pytest.param(node, "client.mjs", id="client.mjs"),
    pytest.param(node, "site.mjs", id="site.mjs"),
    pytest.param(php, "client.php", id="client.php"),
]


def visit(page: str, path: str = "/", **headers: str) -> httpx.Response:
    shown = {"Cookie": TOKEN, **headers}
    found = httpx.get(page + path, headers=shown, timeout=90, trust_env=False)
    assert "SECRET" not in found.text
    assert "TOKEN" not in found.text
    return found


def problem_of_both(url: str) -> list[ServiceProblem]:
    """What the blocking client says about this service, and the one for event loops."""
    with SessionClient(url, CREDENTIAL) as client, pytest.raises(ServiceProblem) as blocking:
        client.renew(TOKEN)

    async def story() -> None:
        async with AsyncSessionClient(url, CREDENTIAL) as client:
            await client.renew(TOKEN)

    with pytest.raises(ServiceProblem) as waiting:
        asyncio.run(story())
    return [blocking.value, waiting.value]


@pytest.mark.parametrize(("run", "script"), EXAMPLES)
def test_a_redirect_is_not_followed(run: Example, script: str, tmp_path: Path) -> None:
    with odd_service(answers(200, GIVEN)) as (elsewhere, seen):
        for status in (302, 307):
            with (
                odd_service(redirects(status, elsewhere)) as (url, asked),
                run(script, tmp_path, SERVICE=url, CREDENTIAL=CREDENTIAL) as page,
            ):
                assert visit(page).status_code == 503
                assert asked, "it asked the service"
        assert seen == [], "another origin is not told the credential or the cookie"


@pytest.mark.parametrize(("run", "script"), [(node, "page.mjs"), (php, "page.php")])
def test_keys_are_of_no_other_origin(run: Example, script: str, tmp_path: Path) -> None:
    # The head of a signed header: {"alg":"EdDSA","typ":"coatcheck-session+jwt","kid":"a"}
    head = "eyJhbGciOiJFZERTQSIsInR5cCI6ImNvYXRjaGVjay1zZXNzaW9uK2p3dCIsImtpZCI6ImEifQ"
    with (
        odd_service(answers(200, GIVEN)) as (elsewhere, seen),
        odd_service(redirects(302, elsewhere)) as (url, asked),
        run(script, tmp_path, JWKS=f"{url}/v1/jwks", AUDIENCE="a", ISSUER="b") as page,
    ):
        assert visit(page, **{"X-Session-Assertion": f"{head}.e30.AA"}).status_code == 503
        assert asked, "it asked the service"
        assert seen == []


def test_pythons_clients_follow_no_redirect() -> None:
    with odd_service(answers(200, GIVEN)) as (elsewhere, seen), odd_service(redirects(307, elsewhere)) as (url, _):
        assert [problem.name for problem in problem_of_both(url)] == ["no-service"] * 2
        assert seen == []


NO_SESSION = b'{"type":"urn:coatcheck:problem:no-session","title":"","status":404,"detail":""}'
NO_ANSWERS = [
    b"null",
    b"[]",
    b"{}",
    b"",
    b"1",
    b'"x"',
    b'{"session":null}',
    b'{"type":5}',
    b"<html>Bad gateway",
    b"\xff",
]


@pytest.mark.parametrize(("run", "script"), EXAMPLES)
def test_what_is_no_answer_of_the_service_logs_nobody_out(run: Example, script: str, tmp_path: Path) -> None:
    told: list[tuple[int, bytes]] = []
    with (
        odd_service(lambda handler: handler.answer(*told[-1])) as (url, _),
        run(script, tmp_path, SERVICE=url, CREDENTIAL=CREDENTIAL) as page,
    ):
        for status in (200, 404, 500):
            for body in NO_ANSWERS:
                told.append((status, body))
                assert visit(page).status_code == 503, told[-1]
        told.append((404, NO_SESSION))
        if script != "site.mjs":
            assert visit(page).status_code == 401, "this one is an answer"
    for log in tmp_path.glob("*.log"):
        assert "SECRET" not in log.read_text()
        assert "TOKEN" not in log.read_text()


def test_pythons_clients_take_nothing_else_for_an_answer() -> None:
    told: list[tuple[int, bytes]] = []
    with odd_service(lambda handler: handler.answer(*told[-1])) as (url, _):
        for status in (200, 404, 500):
            for body in NO_ANSWERS:
                told.append((status, body))
                assert [(each.status, each.name) for each in problem_of_both(url)] == [(status, "no-service")] * 2


MIB = 1 << 20
DRIPPING = sends_without_end(b" ", 0.1, 10_000)
"""For a quarter of an hour: no read waits long."""
HUGE = sends_without_end(b" " * MIB, 0, 400)


def test_pythons_clients_wait_no_longer_for_an_answer_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coatcheck.service.client.TIMEOUT_S", 0.5)
    with odd_service(DRIPPING) as (url, _):
        began = time.monotonic()
        assert [(each.status, each.name) for each in problem_of_both(url)] == [(0, "no-answer")] * 2
        assert time.monotonic() - began < 60


def test_pythons_clients_read_no_answer_without_end() -> None:
    with odd_service(HUGE) as (url, seen):
        for each in problem_of_both(url):
            assert (each.status, each.name) == (200, "no-service")
            assert "larger than" in str(each)
        assert seen.count("piece") < 2 * 40, "and what the kernel holds"


def test_pythons_clients_are_told_of_what_is_no_gzip_and_what_is_no_json() -> None:
    with odd_service(answers(200, b"notgzip", Content_Encoding="gzip")) as (url, seen):
        assert [each.name for each in problem_of_both(url)] == ["no-service"] * 2
        asked = len(seen)
        data: list[object] = [float("nan"), b"bytes", "\ud800"]
        with SessionClient(url, CREDENTIAL) as client:
            for value in data:
                with pytest.raises(ServiceProblem) as refused:
                    client.create("ada", {"x": value}, cookie=TOKEN)
                assert (refused.value.status, refused.value.name) == (400, "bad-request")
                assert "TOKEN" not in repr(refused.value.__context__)
            with pytest.raises(ServiceProblem, match="bad-request"):
                client.verify(f"old=\udcff; {TOKEN}")
        assert len(seen) == asked, "nobody is asked what cannot be said"


@pytest.mark.parametrize(("run", "script"), EXAMPLES)
def test_an_example_waits_for_its_answer_no_longer_and_reads_no_more(run: Example, script: str, tmp_path: Path) -> None:
    for odd in (DRIPPING, HUGE):
        with (
            odd_service(odd) as (url, seen),
            run(script, tmp_path, SERVICE=url, CREDENTIAL=CREDENTIAL) as page,
        ):
            began = time.monotonic()
            assert visit(page).status_code == 503
            assert time.monotonic() - began < 60
            assert seen.count("piece") < 300, "a second has ten, or each is a MiB"
