"""The audit log of a real farm (ASVS 16.2): what happened to a session, when, whose it was, and from where."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from coatcheck.audit import AuditLog
from coatcheck.events import Event, EventKind

from .farm_process import Farm, eventually

APP = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def visit(request):
    session = request.session
    match request.path_params["what"]:
        case "put": session["n"] = session.get("n", 0) + 1
        case "in": session.regenerate(request.query_params["user"])
        case "rotate": session.rotate()
        case "out": session.close()
    return JSONResponse({"data": dict(session), "lost": session.lost})

app = Starlette(routes=[Route("/{what}", visit)])
"""


def records(running: Farm) -> list[dict[str, Any]]:
    found = []
    for path in sorted(Path(running.directory, ".coatcheck", "audit").glob("*.jsonl")):
        assert path.stat().st_mode & 0o077 == 0
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda record: str(record["time"]))


@pytest.fixture
def audited(farm: Callable[..., Farm], tmp_path: Path) -> Farm:
    (tmp_path / "audited.py").write_text(APP)
    return farm("--web", "2", "--idle-timeout", "2", app="audited:app")


def test_each_event_of_a_session_is_one_line_with_time_user_address_and_an_id_to_look_it_up(audited: Farm) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    hostile = "ada\n\x1b[2J\x9b" + "x" * 500
    with httpx.Client(base_url=audited.base) as browser:
        browser.get("/put")
        browser.get("/in", params={"user": hostile})
        browser.get("/rotate")
        shown = json.loads(audited.run("sessions", "show", records(audited)[-1]["session"]).stdout)
        assert shown["user"] == hostile
        assert shown["data"] == {"n": 1}
        browser.get("/in", params={"user": hostile})
        browser.get("/out")
        browser.get("/put", headers={"cookie": "coatcheck=forged"})
    with httpx.Client(base_url=audited.base) as other:
        other.get("/put")
        other.get("/in", params={"user": "bob"})
        newest = records(audited)[-1]["session"]
        assert audited.run("sessions", "close", newest).stdout.startswith("closed")
        assert other.get("/read").json()["data"] == {}
    found = records(audited)
    by_event = {record["event"]: record for record in found}
    expected = ["created", "login", "rotated", "regenerated", "closed", "created", "created", "login", "closed"]
    kinds = [record["event"].removeprefix("session.") for record in found if record["event"].startswith("session.")]
    assert kinds == expected
    assert by_event["token.rejected"]["detail"] == "malformed"
    for record in found:
        at = datetime.fromisoformat(record["time"])
        assert record["time"].endswith("Z")
        assert began < at < datetime.now(UTC) + timedelta(seconds=1)
        assert record["server"] in ("web-1", "web-2")
        assert len(record.get("session", "0" * 12)) == 12
        by_operator = "by an operator" in record["detail"]
        assert record.get("address", "") == ("" if by_operator else "127.0.0.1")
    assert by_event["session.regenerated"]["user"] == hostile[:256]
    assert found[-1]["user"] == "bob", "whose session the operator closed"
    text = "".join(path.read_text() for path in Path(audited.directory, ".coatcheck", "audit").iterdir())
    assert text.isascii()
    assert "\x1b" not in text
    keys = [record["key"] for record in json.loads(audited.run("sessions", "ls", "--json").stdout)]
    assert keys
    assert not any(key in text for key in keys), "an ID of the audit log opens nothing"


def test_a_timed_out_session_is_audited_with_its_user(audited: Farm) -> None:
    with httpx.Client(base_url=audited.base) as browser:
        browser.get("/in", params={"user": "ada"})

        def expired() -> list[dict[str, Any]]:
            return [record for record in records(audited) if record["event"] == "session.expired"]

        idle_s = 2 + 2 / 8 + 5
        began = datetime.now(UTC)
        eventually(lambda: datetime.now(UTC) - began > timedelta(seconds=idle_s + 0.5), "the idle timeout")
        browser.get("/read")
        assert eventually(expired, "the audit record")[0]["user"] == "ada"


def test_the_audit_log_is_bounded(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "audited.py").write_text(APP)
    running = farm("--web", "1", "--audit-max-bytes", "8000", app="audited:app")
    with httpx.Client(base_url=running.base) as browser:
        browser.get("/put")
        for _ in range(150):
            browser.get("/rotate")
    files = list(Path(tmp_path, ".coatcheck", "audit").iterdir())
    assert len(files) == 4
    assert sum(path.stat().st_size for path in files) <= 8000


def test_no_audit_log_if_the_operator_wants_none(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "audited.py").write_text(APP)
    running = farm("--web", "1", "--audit-max-bytes", "0", app="audited:app")
    with httpx.Client(base_url=running.base) as browser:
        browser.get("/put")
    assert not Path(tmp_path, ".coatcheck", "audit").exists()


def test_the_app_learns_once_that_its_visitor_has_lost_a_session(farm: Callable[..., Farm], tmp_path: Path) -> None:
    """All session servers and web servers forget: the session is lost, and the app can say so."""
    (tmp_path / "audited.py").write_text(APP)
    running = farm("--web", "1", "--session-servers", "2", app="audited:app")
    with httpx.Client(base_url=running.base) as browser:
        browser.get("/put")
        assert browser.get("/read").json() == {"data": {"n": 1}, "lost": None}
        pids = {name: running.pid(name) for name in ("web-1", "session-1", "session-2")}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        for name, pid in pids.items():
            running.wait_replaced(name, pid)
        running.healthy_status()
        seen = browser.get("/read").json()
        assert seen["data"] == {}
        assert seen["lost"] in ("session.not_found", "session.rolled_back")
    assert seen["lost"] in [record["event"] for record in records(running)]


def test_the_time_is_utc_wherever_the_machine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # fourteen hours ahead
    time.tzset()
    try:
        log = AuditLog(tmp_path / "web-1.jsonl", 4096, "web-1")
        log.observe(Event(EventKind.SESSION_CREATED, "5f1c0e9a77d2"))
        log.close()
    finally:
        monkeypatch.undo()
        time.tzset()
    record = json.loads((tmp_path / "web-1.jsonl").read_text())
    assert abs(datetime.fromisoformat(record["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
