"""The audit log for servers of your own, and as it is read: in order, over renamed files, without half a line."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from coatcheck import AuditLog, AuditRecord, ConfigError, Event, EventKind, audit_to, connect
from coatcheck.farm.files.audit_files import AuditFiles

HOSTILE = 'eve"}\n{"event": "session.login", "user": "root\x1b[2J\u202e'


def test_a_function_of_yours_is_given_each_record_with_who_and_whence() -> None:
    told: list[AuditRecord] = []

    async def story() -> None:
        sessions = connect("memory://", key=os.urandom(32), observer=audit_to(told.append, "web-7"))
        await sessions.start()
        opened = await sessions.open(b"", "192.0.2.7")
        opened.session.regenerate(HOSTILE)
        await sessions.finish(opened)
        await sessions.close_user(HOSTILE)
        await sessions.aclose()

    asyncio.run(story())
    assert [(one.event, one.server, one.user) for one in told] == [
        ("session.login", "web-7", HOSTILE),
        ("session.closed", "web-7", HOSTILE),
        ("user.closed", "web-7", HOSTILE),
    ]
    assert [one.address for one in told] == ["192.0.2.7", "", ""]
    assert all(one.time.endswith("Z") for one in told)


def test_no_name_forges_a_line_or_steers_a_terminal(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "web-1.jsonl", 1 << 20, "web-1")
    log.observe(Event(EventKind.SESSION_LOGIN, "5f1c0e9a77d2", "no session before", HOSTILE))
    log.close()
    [line] = (tmp_path / "web-1.jsonl").read_bytes().splitlines()
    assert line.isascii()
    assert b"\x1b" not in line
    assert json.loads(line)["user"] == HOSTILE
    [read] = AuditFiles(tmp_path).so_far()
    assert (read.record.user, read.text) == (HOSTILE, line.decode())


def test_what_is_read_is_in_the_order_of_time_and_once_though_files_are_renamed(tmp_path: Path) -> None:
    files, read = AuditFiles(tmp_path), list[str]()
    logs = [AuditLog(tmp_path / f"web-{n}.jsonl", 40_000, f"web-{n}") for n in (1, 2)]
    for number in range(300):
        logs[number % 2].observe(Event(EventKind.SESSION_LOGIN, "", f"{number}"))
        if number % 7 == 0:
            read += [line.record.detail for line in files.since()]
    read += [line.record.detail for line in files.since()]
    assert sorted(map(int, read)) == list(range(300))
    assert (tmp_path / "web-1.jsonl.1").exists(), "it was renamed meanwhile"
    assert [line.record.time for line in AuditFiles(tmp_path).so_far()] == sorted(
        line.record.time for line in AuditFiles(tmp_path).so_far()
    )


def test_half_a_line_is_read_when_it_is_whole_and_what_is_no_record_is_left_out(tmp_path: Path) -> None:
    path, files = tmp_path / "web-1.jsonl", AuditFiles(tmp_path)
    whole = b'{"time": "2026-11-22T10:00:00.000Z", "event": "session.login", "server": "web-1", "detail": "%d"}\n'
    path.write_bytes(whole % 1 + b"not JSON\n" + b'{"time": 7}\n' + (whole % 2)[:40])
    assert [line.record.detail for line in files.since()] == ["1"]
    assert files.since() == []
    path.write_bytes(whole % 1 + b"not JSON\n" + b'{"time": 7}\n' + whole % 2)
    assert [line.record.detail for line in files.since()] == ["2"]


def test_an_audit_log_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="audit_dir: "):
        AuditLog(tmp_path / "file" / "web-1.jsonl", 1 << 20, "web-1")
