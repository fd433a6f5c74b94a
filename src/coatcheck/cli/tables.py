"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STATUS_COLUMNS = (
    "name",
    "role",
    "pid",
    "address",
    "health",
    "sessions",
    "copies",
    "requests",
    "restarts",
    "uptime",
)

ROLES = {
    "director": "director",
    "web_servers": "web server",
    "session_servers": "session server",
    "session_services": "session service",
    "tls_sessions": "TLS sessions",
    "metrics": "metrics",
}
"""The lists of processes in a farm's status, and what each does there."""

REFUSALS = (
    "too_many_connections",
    "too_many_from_address",
    "too_many_websockets",
    "too_many_handshakes",
    "client_too_slow",
    "client_timeout",
)
"""The bounds of a director, as it counts whom it kept to one."""

MAX_SHOWN = 40
"""Characters of a user's name in a table."""


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    widths = [max(len(line[at]) for line in [list(header), *cells]) for at in range(len(header))]
    numeric = [
        bool(cells) and all(row[at].replace(".", "").isdecimal() for row in cells if row[at])
        for at in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(header)), *(line(row) for row in cells)])


def shown(text: str) -> str:
    """What a stranger wrote, on one short line: a terminal must neither obey it nor lose the table over it."""
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return printable if len(printable) <= MAX_SHOWN else printable[: MAX_SHOWN - 3] + "..."


def status_table(status: Mapping[str, Any]) -> str:
    """The whole farm, a line for each process."""
    rows: list[list[object]] = []
    for group, role in ROLES.items():
        rows += [_status_row(role, row) for row in status[group]]
    summary = f"farm {status['name']} is {status['state']} on {status['address']}, up {_duration(status['uptime_s'])}"
    down = [_why_down(row) for group in ROLES for row in status[group]]
    refused = [_refused(row) for row in status["director"]]
    unshared = [_unshared(row) for row in status["director"]]
    lines = [line for line in (*down, *refused, *unshared) if line]
    return "\n".join([summary, "", text_table(STATUS_COLUMNS, rows), *lines])


def _refused(row: Mapping[str, Any]) -> str:
    """A line for a director that kept somebody to a bound; empty for the others."""
    errors = (row.get("details") or {}).get("errors", {})
    counts = [f"{errors[name]} {name.replace('_', ' ')}" for name in REFUSALS if errors.get(name)]
    return f"{row['name']} refused: {', '.join(counts)}" if counts else ""


def _unshared(row: Mapping[str, Any]) -> str:
    """A line for a director whose TLS sessions others cannot resume, though they should; empty for the others."""
    tls = (row.get("details") or {}).get("tls") or {}
    why = tls.get("why_off") or ("" if tls.get("has_the_key", True) else "it does not know the ticket key of now")
    return f"{row['name']} shares no TLS sessions: {why}" if why else ""


def _why_down(row: Mapping[str, Any]) -> str:
    """A line for a process that ended and is not back; empty for the others."""
    if row["state"] not in ("restarting", "starting", "dead") or not row["last_end"]:
        return ""
    again = f"; next try in {row['next_try_s']:.1f} s" if row["next_try_s"] is not None else ""
    return f"{row['name']}: {row['last_end']}{again}"


def _status_row(role: str, row: Mapping[str, Any]) -> list[object]:
    health = "ok" if row["healthy"] and row["state"] in ("ready", "outside") else row["state"]
    if not row["healthy"] and health in ("ready", "outside"):
        health = "no answer"
    elif row.get("full"):
        health = "full"
    return [
        row["name"],
        role,
        row["pid"] or "-",
        row["address"],
        health,
        row.get("sessions"),
        row.get("entries"),
        row.get("requests"),
        row["restarts"],
        _duration(row["uptime_s"]),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def sessions_table(rows: Sequence[Mapping[str, Any]], now: float) -> str:
    """A line for each session; empty if there are none. ``now``: Unix seconds."""
    if not rows:
        return ""
    cells = [
        [
            row["id"],
            row["key"],
            row["state"],
            shown(row["user"] or ""),
            _duration(now - row["created_at"] / 1000) if row["created_at"] else "",
            _duration(now - row["last_seen_at"] / 1000) if row["last_seen_at"] else "",
            " ".join(row["copies"]),
            row["bytes"],
        ]
        for row in rows
    ]
    return text_table(("id", "key", "state", "user", "age", "idle", "copies", "bytes"), cells)


def user_sessions_table(rows: Sequence[Mapping[str, Any]], now: float) -> str:
    """A line for each session of one user; empty if there are none. ``now``: Unix seconds."""
    if not rows:
        return ""
    cells = [
        [
            row["id"],
            row["key"],
            _duration(now - row["logged_in_at"] / 1000),
            _duration(now - row["last_seen_at"] / 1000),
            shown(row["address"]),
            shown(row["device"]),
        ]
        for row in rows
    ]
    return text_table(("id", "key", "age", "idle", "address", "device"), cells)
