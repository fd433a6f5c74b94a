"""What the log of the sessions warns of: a fault, and not that somebody came, logged in and left (ASVS 16.2.3)."""

import logging

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from coatcheck import SessionMiddleware, connect
from coatcheck.event_log import log_event
from coatcheck.events import LOSSES, Event, EventKind

KEY = "for-tests-only-for-tests-only-for-tests-001"


async def add(request: Request) -> PlainTextResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return PlainTextResponse("added")


async def login(request: Request) -> PlainTextResponse:
    request.session.regenerate("ada")
    return PlainTextResponse("welcome")


async def again(request: Request) -> PlainTextResponse:
    request.session.regenerate()
    request.session.rotate()
    return PlainTextResponse("still here")


async def logout(request: Request) -> PlainTextResponse:
    request.session.close()
    return PlainTextResponse("good bye")


ROUTES = [Route("/add", add), Route("/login", login), Route("/again", again), Route("/logout", logout)]


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def test_the_life_of_a_session_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    sessions = connect("memory://", key=KEY, rotate_after_s=0, grace_s=0, theft="refuse", observer=seen.append)
    with (
        caplog.at_level(logging.DEBUG, "coatcheck"),
        TestClient(SessionMiddleware(Starlette(routes=ROUTES), sessions)) as browser,
    ):
        for path in ("/add", "/add", "/login", "/again", "/logout"):
            assert browser.get(path).status_code == 200
    assert {event.kind.value for event in seen} >= {
        "session.created",
        "session.login",
        "session.regenerated",
        "session.rotated",
        "session.closed",
    }
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("kind", sorted(LOSSES, key=lambda kind: kind.value))
def test_a_loss_is_a_warning(kind: EventKind, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "coatcheck"):
        log_event(Event(kind, "5f1c0e9a77d2"))
    assert len(warnings_of(caplog)) == 1
