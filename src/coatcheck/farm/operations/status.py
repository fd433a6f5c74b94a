"""What ``coatcheck status`` shows: the farm and each of its processes. docs/operations.md has the fields."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.supervision.keeper import Keeper
from coatcheck.farm.supervision.supervisor import Supervisor
from coatcheck.stores.session_server_url import shown_url

STATUS_TIMEOUT_S: Final = 1.0
OUTSIDE_TIMEOUT_S: Final = 0.5

WEB_FIELDS: Final = (
    "sessions",
    "max_sessions",
    "requests",
    "in_flight",
    "threads",
    "under_replicated",
    "recopy",
    "stalls",
    "clock",
    "events",
    "refused_new_sessions",
    "tls",
    "signals",
)
SESSION_SERVER_FIELDS: Final = (
    "entries",
    "taken_over",
    "tombstones",
    "bytes",
    "max_entries",
    "max_bytes",
    "full",
    "refused_full",
    "items",
    "item_bytes",
    "connections",
    "puts",
    "gets",
)


GROUPS: Final = ("director", "web_servers", "session_servers", "session_services", "tls_sessions", "metrics")
TLS_SESSIONS_FIELDS: Final = ("items", "item_bytes", "refused_full")


def _base(keeper: Keeper, address: object) -> dict[str, Any]:
    return {
        "name": keeper.name,
        "pid": keeper.pid,
        "address": str(address),
        "healthy": keeper.state in ("ready", "draining"),
        "state": keeper.state,
        "restarts": keeper.restarts,
        "uptime_s": round(keeper.uptime_s, 1),
        "last_end": keeper.last_end,
        "next_try_s": round(keeper.next_try_s, 1) if keeper.next_try_s is not None else None,
    }


async def farm_status(farm: Supervisor, timeout_s: float = STATUS_TIMEOUT_S) -> dict[str, Any]:
    """Ask every process at once; one that does not answer in time is not healthy, and its counts are ``null``."""
    addressed = farm.roster()
    answers = await asyncio.gather(*(_ask(keeper, timeout_s) for _, keeper, _ in addressed))
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for (group, keeper, address), answer in zip(addressed, answers, strict=True):
        row = _base(keeper, address)
        row["healthy"] = row["healthy"] and answer is not None
        groups[group].append(row | _counts(group, answer))
    seen = [
        answer["session_servers"]
        for (group, *_), answer in zip(addressed, answers, strict=True)
        if group == "web_servers" and answer is not None
    ]
    for row in groups["session_servers"]:
        row["healthy"] = row["healthy"] and all(each.get(row["name"], True) for each in seen)
    groups["session_servers"] += await asyncio.gather(
        *(_outside(server.name, server.url, [each[server.name] for each in seen]) for server in farm.plan.outside)
    )
    return {
        "name": farm.settings.name,
        "state": farm.state,
        "pid": os.getpid(),
        "address": farm.url,
        "run_dir": str(farm.run_directory.path),
        "uptime_s": round(farm.uptime_s, 1),
        "restarts": sum(keeper.restarts for keeper in farm.keepers),
        **groups,
    }


async def _ask(keeper: Keeper, timeout_s: float) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = (await keeper.call("status", timeout_s))["status"]
    except ControlError:
        return None
    return answer


def _counts(group: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    known = answer or {}
    if group in ("web_servers", "session_services"):
        return {name: known.get(name) for name in WEB_FIELDS}
    if group == "tls_sessions":
        return {name: known.get(name) for name in TLS_SESSIONS_FIELDS}
    if group == "session_servers":
        return {name: known.get(name) for name in SESSION_SERVER_FIELDS}
    if group == "metrics":
        return {}
    return {"requests": known.get("requests"), "details": answer}


async def _outside(name: str, url: str, seen: Sequence[bool]) -> dict[str, Any]:
    """A session server that is not ours to start, as the web servers see it: they have the password and the file.

    While none of them answers (``seen`` is empty), an open port must do.
    """
    row: dict[str, Any] = {"name": name, "pid": None, "address": shown_url(url), "healthy": True}
    row |= {"state": "outside", "restarts": 0, "uptime_s": None, "last_end": None, "next_try_s": None}
    row |= dict.fromkeys(SESSION_SERVER_FIELDS)
    row["healthy"] = all(seen) if seen else await _port_is_open(url)
    return row


async def _port_is_open(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return True
    try:
        async with asyncio.timeout(OUTSIDE_TIMEOUT_S):
            if parts.scheme == "unix":
                _, writer = await asyncio.open_unix_connection(unquote(parts.path))
            else:
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or 6379)
        writer.close()
    except (OSError, TimeoutError):
        return False
    return True
