"""The farm's log: times in UTC, levels, JSON on request; and what an app prints passes for nothing else."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from coatcheck.event_log import log_event
from coatcheck.events import Event, EventKind
from coatcheck.farm.control.log_lines import MAX_LINE_BYTES, LogRecord, MarkedFormatter, read_line, utc
from coatcheck.farm.supervision.console import Console

from .farm_process import Farm, eventually

MARK = "5c1e"


def written(level: int, message: str, *arguments: object, logger: str = "coatcheck.stores", **more: Any) -> str:
    """One line of a process's log in JSON."""
    record = logging.LogRecord(logger, level, "file", 1, message, arguments, more.pop("exc_info", None))
    record.created = 1.5
    for name, value in more.items():
        setattr(record, name, value)
    return MarkedFormatter(MARK).format(record)


def read(line: str) -> LogRecord:
    printed, found = read_line(line, MARK)
    assert found is not None and not printed, line
    return found


def test_a_record_arrives_as_it_was_made() -> None:
    line = written(logging.WARNING, "%s is %s\n\x1b[2J", "session-1", "full", event="store.full")
    assert "\n" not in line
    assert read(line) == LogRecord(
        time="1970-01-01T00:00:01.500Z",
        level="warning",
        process="",
        message="session-1 is full\n\x1b[2J",
        logger="coatcheck.stores",
        event="store.full",
    )
    try:
        raise ValueError("half a \ud800 pair")
    except ValueError:
        line = written(logging.ERROR, "it failed", exc_info=sys.exc_info())
    assert read(line).exception.endswith("ValueError: half a ? pair")


def test_a_record_that_is_too_long_is_cut_and_still_one() -> None:
    for text in ("x" * 100_000, "\x00" * 100_000, "\U0001f36a" * 100_000):
        line = written(logging.INFO, "%s", text)
        assert len(line.encode()) <= MAX_LINE_BYTES
        assert read(line).message == text[:1500]


def test_what_is_printed_is_no_record_without_the_mark() -> None:
    record = written(logging.CRITICAL, "sessions were stolen")
    assert read_line(record, "another mark") == (record, None)
    made_up = record.removeprefix(MARK)
    assert read_line(made_up, MARK) == (made_up, None)
    assert read_line(made_up, "") == (made_up, None)
    assert read_line(MARK + "{}", MARK) == ("{}", None), "the mark is not shown"


def test_a_record_behind_what_was_printed_without_an_end_is_one() -> None:
    printed, record = read_line("50 % done" + written(logging.INFO, "logged"), MARK)
    assert record is not None
    assert (printed, record.message) == ("50 % done", "logged")


def test_json_has_a_line_for_each_record() -> None:
    out = io.StringIO()
    console = Console(out, colour=True, log_format="json", now=lambda: 0.0)
    console.line("web-1", 'printed "\x1b[2J"')
    console.record("web-2", read(written(logging.INFO, "logged")))
    console.say("said")
    console.warn("warned")
    console.close()
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(row["process"], row["level"], row["message"]) for row in rows] == [
        ("web-1", "info", 'printed "\x1b[2J"'),
        ("web-2", "info", "logged"),
        ("coatcheck", "info", "said"),
        ("coatcheck", "warning", "warned"),
    ]
    assert "\x1b" not in out.getvalue()
    assert rows[0]["time"] == "1970-01-01T00:00:00.000Z"


def test_an_event_has_its_name_in_the_record() -> None:
    seen: list[logging.LogRecord] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    logger, handler = logging.getLogger("coatcheck.sessions"), Seen()
    logger.addHandler(handler)
    try:
        log_event(Event(EventKind.SESSION_HIDDEN, detail="by another middleware"))
    finally:
        logger.removeHandler(handler)
    assert [getattr(record, "event", None) for record in seen] == ["session.hidden"]


APP = """
import json, logging, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

forged = {"time": "2000-01-01T00:00:00.000Z", "level": "critical", "process": "web-2", "message": "forged"}

async def page(request):
    print(json.dumps(forged), flush=True)
    logging.getLogger("coatcheck.app").error("an error of \\n two lines")
    logging.getLogger("coatcheck.app").debug("a detail")
    return PlainTextResponse("ok")

async def broken(request):
    raise RuntimeError("the app is broken")

app = Starlette(routes=[Route("/", page), Route("/broken", broken)])
"""


def test_a_farm_writes_json_and_nothing_else(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(APP)
    began = datetime.now(UTC)
    running = farm("--log-format", "json", "--log-level", "debug", "--web", "1", app="talks:app")
    assert httpx.get(running.base, timeout=60).text == "ok"
    assert httpx.get(running.base + "/broken", timeout=60).status_code == 500

    def rows() -> list[dict[str, str]]:
        whole = running.log.rpartition("\n")[0]  # the last line may be half written yet
        return [json.loads(line) for line in whole.splitlines()]

    eventually(lambda: any("is broken" in row.get("exception", "") for row in rows()), "the traceback")
    found = rows()
    for row in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["time"])
        assert row["time"] >= utc(began.timestamp())
        assert row["level"] in ("debug", "info", "warning", "error")
        assert row["process"] in ("web-1", "director-1", "session-1", "session-2", "coatcheck")
    (forged,) = [row for row in found if "forged" in row["message"]]
    assert (forged["process"], forged["level"], "logger" in forged) == ("web-1", "info", False)
    (error,) = [row for row in found if "two lines" in row["message"]]
    assert (error["level"], error["logger"]) == ("error", "coatcheck.app")
    assert [row["level"] for row in found if row["message"] == "a detail"] == ["debug"]
    reached = [row for row in found if row.get("event") == "store.reachable" and "session-1" in row["message"]]
    assert {(row["process"], row["logger"]) for row in reached} == {("web-1", "coatcheck.stores")}
