"""The stream of session events: what this process did, and what a listener has missed."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coatcheck.events import Event, EventKind
from coatcheck.farm.files.keys import FarmKeys, save
from coatcheck.service import event_stream
from coatcheck.service.callers_file import LOOK_PERIOD_S
from coatcheck.service.event_stream import MAX_STREAMS, MAX_STREAMS_OF_A_CALLER, EventStream
from coatcheck.tls.authority import Authority
from coatcheck.tokens.secret import parse_key

from .conftest import StartService
from .service_process import FARM, KEY, ServiceProcess, credential_of

MOST_SILENT = 2
"""Comments in a row, each after :data:`event_stream.KEEP_ALIVE_S`, until a test gives up what it waits for."""
ENDED = ("", "ended", {"reason": "revoked"})
"""It has no number: who may come back goes on behind what it was told."""


class Listener:
    """One stream, event by event."""

    def __init__(
        self, service: ServiceProcess, last: str = "", caller: str = "shop", verify: ssl.SSLContext | bool = True
    ) -> None:
        headers = {**service.of(caller), **({"Last-Event-ID": last} if last else {})}
        self._http = httpx.Client(trust_env=False, verify=verify)
        self._stream = self._http.stream("GET", f"{service.url}/v1/events", headers=headers, timeout=60)
        self.response = self._stream.__enter__()
        self._lines = self.response.iter_lines()
        if self.response.is_success:
            assert next(self._lines) == ": session events"

    def __iter__(self) -> Iterator[tuple[str, str, Any]]:
        found: dict[str, str] = {}
        silent = 0
        for line in self._lines:
            silent = silent + 1 if line.startswith(":") else 0 if line else silent
            assert silent < MOST_SILENT, "nothing was told, and the stream goes on"
            if not line and found:
                yield found.get("id", ""), found["event"], json.loads(found["data"])
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
    assert list(listener) == [ENDED]
    listener.end()


CALLERS = """
[shop]
scopes = ["create"]
[watcher]
scopes = ["events"]
"""


@pytest.mark.parametrize(
    "revoked",
    [
        CALLERS.replace("[watcher]", "[watcher]\ngeneration = 2"),
        CALLERS.replace("events", "verify"),
        CALLERS.partition("[watcher]")[0],
    ],
    ids=["another generation", "without the scope", "not in the file"],
)
def test_a_stream_ends_though_nobody_asks_and_nothing_is_told(start: StartService, revoked: str) -> None:
    service = start(callers=CALLERS)
    listener = Listener(service, caller="watcher")
    events = iter(listener)
    # What is changed for a caller who may still listen ends nothing.
    callers = service.folder / "callers.toml"
    callers.write_text(CALLERS.replace("[watcher]", "[watcher]\nrequests_per_minute = 1"))
    asked_at = time.monotonic()
    while time.monotonic() < asked_at + 2 * LOOK_PERIOD_S:
        service.login("ada")
        assert next(events)[1] == "session.login"
    callers.write_text(revoked)
    assert list(events) == [ENDED]
    listener.end()


def test_a_stream_ends_with_the_certificate_of_its_listener(start: StartService, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    authority = Authority.make(folder, FARM)
    server, known = authority.issue("service", ["127.0.0.1"]), authority.issue("watcher")
    files = ["--tls-certificate", str(server), "--tls-key", str(server)]
    files += ["--tls-authority", str(folder / "authority.pem"), "--tls-revoked", str(folder / "revoked.pem")]
    service = start(*files, callers=CALLERS.replace("[watcher]", '[watcher]\ncertificate = "watcher"'))
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    context.load_cert_chain(known)
    listener = Listener(service, caller="watcher", verify=context)
    assert listener.response.status_code == 200
    authority.revoke("watcher")
    assert list(listener) == [ENDED]
    listener.end()


def test_a_stream_ends_with_the_key_of_its_credential(start: StartService, tmp_path: Path) -> None:
    """The service looks at its key file by itself; a key that is new ends nothing."""
    path, keys = tmp_path / "keys.json", FarmKeys((parse_key(KEY, "test"),), 0, "password")
    save(path, keys)
    service = start("--keys-file", str(path), COATCHECK_KEYS="")
    listener = Listener(service)
    events = iter(listener)
    save(path, keys := keys.with_new().sealing_with_newest())
    service.login("ada")
    assert next(events)[1] == "session.login"
    save(path, keys.without(0))
    assert list(events) == [ENDED]
    listener.end()


async def _revoke_while_nothing_happens() -> None:
    stream, may_listen = EventStream("run"), [True]
    told = stream.follow(None, lambda: may_listen[0])
    assert await anext(told) == b": session events\n\n"
    waiting = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    assert not waiting.done()
    may_listen[0] = False
    stream.look_again()
    for _ in range(5):  # turns of the event loop, and no time
        await asyncio.sleep(0)
    assert waiting.done() and waiting.result() == b'event: ended\ndata: {"reason":"revoked"}\n\n'
    with pytest.raises(StopAsyncIteration):
        await anext(told)
    assert stream.streams == 0


def test_a_change_of_the_keys_ends_a_stream_at_once() -> None:
    asyncio.run(_revoke_while_nothing_happens())


async def _revoke_a_slow_reader(monkeypatch: pytest.MonkeyPatch, wake: bool) -> None:
    stream, may_listen = EventStream("run"), [True]
    told = stream.follow(None, lambda: may_listen[0])
    assert await anext(told) == b": session events\n\n"
    for n in range(9):
        stream.observe(Event(EventKind.SESSION_LOGIN, f"{n:012x}", "", "ada"))
    assert (await anext(told)).startswith(b"id: run.1\n")
    may_listen[0] = False
    if wake:
        stream.look_again()
    else:
        monkeypatch.setattr(event_stream, "LOOK_EVERY_S", 0.0)  # it has passed
    assert (await anext(told)).startswith(b"event: ended\n"), "nothing of what it has not read yet is told"


@pytest.mark.parametrize("wake", [True, False], ids=["the keys have changed", "it is time to look"])
def test_who_reads_slowly_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch, wake: bool) -> None:
    asyncio.run(_revoke_a_slow_reader(monkeypatch, wake))


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
    for n in range(event_stream.MAX_REMEMBERED):
        stream.observe(Event(EventKind.SESSION_LOGIN, "", "", str(n)))
    while not (line := await anext(told)).startswith(b"id: run.10005\nevent: missed\n"):
        assert b"event: session.login" in line
    stream.observe(Event(EventKind.SESSION_LOGIN, "", "", "forgets the oldest"))
    assert await anext(told) == b'id: run.10006\nevent: missed\ndata: {"events":1}\n\n'
    line = await anext(told)
    assert line.startswith(b"id: run.10007\n") and b'"user":"1"' in line, "each event under its own number"
    await told.aclose()
    assert stream.streams == 0
