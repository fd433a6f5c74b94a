"""The stream of session events: what this process did, and what a listener has missed."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from coatcheck.events import Event, EventKind
from coatcheck.service import event_stream
from coatcheck.service.event_stream import MAX_STREAMS, MAX_STREAMS_OF_A_CALLER, EventStream

from .conftest import StartService
from .service_process import ServiceProcess, credential_of


class Listener:
    """One stream, event by event."""

    def __init__(self, service: ServiceProcess, last: str = "") -> None:
        headers = {**service.of("shop"), **({"Last-Event-ID": last} if last else {})}
        self._http = httpx.Client(trust_env=False)
        self._stream = self._http.stream("GET", f"{service.url}/v1/events", headers=headers, timeout=60)
        self.response = self._stream.__enter__()
        self._lines = self.response.iter_lines()
        if self.response.is_success:
            assert next(self._lines) == ": session events"

    def __iter__(self) -> Iterator[tuple[str, str, Any]]:
        found: dict[str, str] = {}
        for line in self._lines:
            if not line and found:
                yield found["id"], found["event"], json.loads(found["data"])
                found = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                found[name] = value

    def end(self) -> None:
        self._stream.__exit__(None, None, None)
        self._http.close()


def test_a_listener_is_told_what_happens_and_what_it_missed_meanwhile(start: StartService) -> None:
    service = start()
    listener = Listener(service)
    events = iter(listener)
    cookie = service.login("ada", secret="for nobody")
    first = next(events)
    assert first[1] == "session.login"
    assert first[2]["user"] == "ada"
    listener.end()
    service.ask("/close", cookie=cookie)
    again = Listener(service, last=first[0])
    assert next(iter(again))[1] == "session.closed", "what it has missed, from where it was"
    again.end()
    elsewhere = Listener(service, last="0123456789ab.7")
    service.login("bob")
    assert next(iter(elsewhere))[1:] == ("missed", {"events": None}), "of another process: nobody knows"
    elsewhere.end()
    assert "for nobody" not in json.dumps(first)
    assert cookie.partition("=")[2] not in json.dumps(first)
    assert credential_of("shop") not in json.dumps(first)


def test_streams_end_when_the_service_stops_and_are_bounded(start: StartService) -> None:
    service = start()
    listeners = [Listener(service) for _ in range(MAX_STREAMS_OF_A_CALLER)]
    assert {each.response.status_code for each in listeners} == {200}
    refused = Listener(service)
    assert refused.response.status_code == 503
    refused.end()
    assert service.end() == 0
    for each in listeners:
        assert list(each) == []
        each.end()


def test_a_listener_who_is_revoked_is_told_no_more(start: StartService) -> None:
    service = start()
    listener = Listener(service)
    callers = service.folder / "callers.toml"
    callers.write_text(callers.read_text().replace("[shop]\n", "[shop]\ngeneration = 2\n"))
    while service.ask("/verify", cookie="").status_code != 401:
        time.sleep(0.05)
    made = service.http.post("/v1/sessions", json={"user": "ada"}, headers=service.of("shop", 2))
    assert made.status_code == 201
    assert list(listener) == []
    listener.end()


def test_streams_count_from_the_moment_that_they_are_granted() -> None:
    asyncio.run(_ask_all_at_once())


async def _ask_all_at_once() -> None:
    """Each finds room before the first line of any is read."""
    stream = EventStream("run")
    granted = [
        stream.follow(None, caller=f"caller {number % 2}") for number in range(MAX_STREAMS) if stream.has_room("x")
    ]
    assert (len(granted), stream.streams) == (MAX_STREAMS, MAX_STREAMS)
    assert not stream.has_room("another")
    assert await anext(granted[0]) == b": session events\n\n"
    await granted[0].aclose()  # type: ignore[attr-defined]
    assert stream.streams == MAX_STREAMS - 1
    assert stream.has_room("another") and not stream.has_room("caller 1"), "one caller has not all of them"
    del granted[:]
    gc.collect()
    assert stream.streams == 0, "who was gone before the first line counts no more"


def test_who_is_too_slow_is_told_how_much_it_missed() -> None:
    asyncio.run(_listen_too_slowly())


async def _listen_too_slowly() -> None:
    stream = EventStream("run")
    told = stream.follow(None)
    assert await anext(told) == b": session events\n\n"
    for n in range(event_stream.MAX_REMEMBERED + 5):
        stream.observe(Event(EventKind.SESSION_LOGIN, f"{n:012x}", "", "ada\n\ndata: forged"))
    assert await anext(told) == b'id: run.5\nevent: missed\ndata: {"events":5}\n\n'
    line = await anext(told)
    assert line.startswith(b"id: run.6\nevent: session.login\n")
    assert line.count(b"\n") == 4, "a hostile name adds no line"
    await told.aclose()
    assert stream.streams == 0
