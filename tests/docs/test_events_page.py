"""docs/events.md has every event of the source with its level, and no other; each says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from coatcheck.event_log import Loggable
from coatcheck.events import Event, EventKind
from coatcheck.pool.events import PoolEvent, PoolEventKind
from coatcheck.stores.events import StoreEvent, StoreEventKind

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([a-z_]+\.[a-z_]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.M)
LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error"}


def documented() -> dict[str, tuple[str, str, str]]:
    rows = ROW.findall((ROOT / "docs/events.md").read_text())
    assert len(rows) == len({row[0] for row in rows}), "an event stands twice"
    return {name: rest for name, *rest in rows}  # type: ignore[misc]


def in_source() -> dict[str, Loggable]:
    events: list[Loggable] = [Event(kind) for kind in EventKind]
    events += [StoreEvent("session-1", kind) for kind in StoreEventKind]
    events += [PoolEvent(kind, "ada") for kind in PoolEventKind]
    assert len(events) == len({event.event for event in events})
    return {event.event: event for event in events}


def test_the_page_and_the_source_have_the_same_events_at_the_same_levels() -> None:
    levels = {name: LEVELS[event.level] for name, event in in_source().items()}
    assert {name: level for name, (level, *_) in documented().items()} == levels


def test_each_says_what_it_is_and_what_to_do() -> None:
    for name, (_, what, todo) in documented().items():
        assert what.strip().endswith(".") and todo.strip().endswith("."), name


def test_every_kind_of_event_is_reported_somewhere() -> None:
    """A kind that nothing reports would be documented in vain."""
    root = ROOT / "src/coatcheck"
    named_only = {root / "audit.py", *root.rglob("events.py")}
    paths = [path for path in root.rglob("*.py") if path not in named_only]
    source = "\n".join(path.read_text() for path in paths)
    for enum in (EventKind, StoreEventKind, PoolEventKind):
        for kind in enum:
            assert re.search(rf"{enum.__name__}\.{kind.name}\b", source), f"nothing reports {kind}"


def test_there_are_no_other_kinds_of_events() -> None:
    """Whoever adds a class of events adds it here, and to the page."""
    events = re.compile(r"^class (\w+)\(msgspec\.Struct[^\n]*\n(?:(?!class ).*\n)*?    def event\(self\)", re.M)
    source = [path.read_text() for path in (ROOT / "src/coatcheck").rglob("*.py")]
    assert {name for text in source for name in events.findall(text)} == {"Event", "StoreEvent", "PoolEvent"}
