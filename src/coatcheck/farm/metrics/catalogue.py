"""Every metric of a farm: its name, its sentence, and where in the farm's status its values are.

A name is for ever: dashboards and alerts of others use it. Units are base units (seconds, bytes), a counter ends in
``_total``. Labels are names of processes and words of ours, never what a stranger may choose: the number of series is
bounded by the number of processes. A value that could not be had is left out: it is not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from coatcheck.events import EventKind

Row = Mapping[str, Any]
"""One process in the status."""
Value = tuple[tuple[str, ...], Any]
"""The values of a metric's own labels, and the number; ``None``: it is not known."""

ROLES: Final = {
    "director": "director",
    "web_servers": "web_server",
    "session_servers": "session_server",
    "session_services": "session_service",
    "tls_sessions": "tls_sessions",
    "metrics": "metrics",
}
"""The lists of processes in a status, and the label ``role`` of each."""

_ALL: Final = tuple(ROLES)
_DIRECTORS: Final = ("director",)
_HOSTS: Final = ("web_servers", "session_services")
_STORES: Final = ("session_servers",)
_ITEMS: Final = ("session_servers", "tls_sessions")
_TLS_ENDS: Final = ("director", "web_servers")


class Metric(msgspec.Struct, frozen=True):
    """``groups``: the lists of processes that have it; ``labels``: besides ``process``.

    A histogram's values are counts for each of the director's bounds, the rest, and the sum: ``(counts, sum)``.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    words: str
    groups: tuple[str, ...]
    values: Callable[[Row], Iterable[Value]]
    labels: tuple[str, ...] = ()


def _at(*path: str) -> Callable[[Row], Iterable[Value]]:
    """The one number at this path."""

    def values(row: Row) -> Iterable[Value]:
        yield (), _number(_found(row, path))

    return values


def _event(kind: EventKind) -> Callable[[Row], Iterable[Value]]:
    """How often this has happened: 0 if it never did, so that the first time is seen as an increase."""

    def values(row: Row) -> Iterable[Value]:
        events = row.get("events")
        yield (), None if events is None else events.get(kind.value, 0)

    return values


def _each(*path: str) -> Callable[[Row], Iterable[Value]]:
    """A number for each word of the mapping at this path."""

    def values(row: Row) -> Iterable[Value]:
        for word, number in (_found(row, path) or {}).items():
            yield (word,), _number(number)

    return values


def _events(row: Row) -> Iterable[Value]:
    counted = row.get("events")
    if counted is not None:
        for kind in EventKind:
            yield (kind.value,), counted.get(kind.value, 0)


def _of_servers(field: str) -> Callable[[Row], Iterable[Value]]:
    """What a director knows of each web server."""

    def values(row: Row) -> Iterable[Value]:
        for server in _found(row, ("details", "servers")) or ():
            yield (server["name"],), _number(server[field])

    return values


def _thousandth(*path: str) -> Callable[[Row], Iterable[Value]]:
    """Milliseconds, as seconds."""

    def values(row: Row) -> Iterable[Value]:
        found = _number(_found(row, path))
        yield (), None if found is None else found / 1000

    return values


def _durations(row: Row) -> Iterable[Value]:
    """Of a director; or of a web server that ends TLS itself, and so has one inside."""
    by_class = _found(row, ("details", "durations")) or _found(row, ("tls", "entrance", "durations")) or {}
    for status_class, found in by_class.items():
        yield (status_class,), (found["counts"], found["sum_s"])


def _deviating(row: Row) -> Iterable[Value]:
    found = _found(row, ("clock", "deviating"))
    yield (), None if found is None else len(found)


def _shares_tls(row: Row) -> Iterable[Value]:
    tls = _tls_of(row)
    if tls is not None and "why_off" in tls:
        yield (), float(bool(tls.get("active")) and not tls["why_off"])


def _of_tls(field: str) -> Callable[[Row], Iterable[Value]]:
    def values(row: Row) -> Iterable[Value]:
        yield (), _number((_tls_of(row) or {}).get(field))

    return values


def _tls_of(row: Row) -> Row | None:
    found: Row | None = row.get("tls") or _found(row, ("details", "tls"))
    return found


def _found(row: Row, path: Iterable[str]) -> Any:
    found: Any = row
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _number(found: Any) -> float | None:
    return float(found) if isinstance(found, int | float) else None


def _counter(name: str, words: str, groups: tuple[str, ...], values: Any, *labels: str) -> Metric:
    return Metric(f"coatcheck_{name}_total", "counter", words, groups, values, labels)


def _gauge(name: str, words: str, groups: tuple[str, ...], values: Any, *labels: str) -> Metric:
    return Metric(f"coatcheck_{name}", "gauge", words, groups, values, labels)


METRICS: Final = (
    _gauge("process_up", "1: it works, and has answered in time; 0: neither is known.", _ALL, _at("healthy"), "role"),
    _gauge("process_uptime_seconds", "How long it has run since its last start.", _ALL, _at("uptime_s"), "role"),
    _counter("process_restarts", "How often it was started again after a death.", _ALL, _at("restarts"), "role"),
    _counter("director_requests", "Requests that came in.", _DIRECTORS, _at("requests")),
    _gauge("director_requests_active", "Requests under way or waiting.", _DIRECTORS, _at("details", "in_flight")),
    _gauge("director_requests_waiting", "Requests without a web server yet.", _DIRECTORS, _at("details", "waiting")),
    Metric(
        "http_server_request_duration_seconds",
        "histogram",
        "From a request's whole head to the end of its answer.",
        _TLS_ENDS,
        _durations,
        ("http_response_status_class",),
    ),
    _counter("director_retries", "Requests that were sent once more.", _DIRECTORS, _at("details", "retries")),
    _counter("director_errors", "Requests not served, by reason.", _DIRECTORS, _each("details", "errors"), "reason"),
    _gauge("director_connections", "Clients' connections.", _DIRECTORS, _at("details", "connections")),
    _counter("director_evicted", "Idle connections closed for room.", _DIRECTORS, _at("details", "evicted")),
    _gauge("director_handshakes_active", "TLS handshakes under way.", _DIRECTORS, _at("details", "handshakes")),
    _gauge("director_websockets_active", "Open WebSockets.", _DIRECTORS, _at("details", "websockets")),
    _counter(
        "director_websockets_resumed",
        "Durable WebSockets that went on at another web server.",
        _DIRECTORS,
        _at("details", "resumed_websockets"),
    ),
    _gauge("director_server_up", "1: it sends this one requests.", _DIRECTORS, _of_servers("healthy"), "server"),
    _gauge("director_server_draining", "1: it gets no new ones.", _DIRECTORS, _of_servers("draining"), "server"),
    _gauge("director_server_requests_active", "Under way there.", _DIRECTORS, _of_servers("in_flight"), "server"),
    _counter("director_server_requests", "Requests sent there.", _DIRECTORS, _of_servers("requests"), "server"),
    _counter("director_server_failures", "Of them failed there.", _DIRECTORS, _of_servers("failures"), "server"),
    _counter("tls_handshakes", "TLS handshakes that were completed.", _TLS_ENDS, _of_tls("handshakes")),
    _counter("tls_resumptions", "Of them resumed a session.", _TLS_ENDS, _of_tls("resumed")),
    _gauge("tls_sharing", "1: its TLS sessions are resumed by the others, too.", _TLS_ENDS, _shares_tls),
    _counter("web_requests", "Requests that reached the app, or the service.", _HOSTS, _at("requests")),
    _gauge("web_requests_active", "Requests open in the app.", ("web_servers",), _at("in_flight")),
    _gauge("web_threads", "Threads for a WSGI app.", ("web_servers",), _at("threads", "most")),
    _gauge("web_threads_busy", "Of them at work.", ("web_servers",), _at("threads", "busy")),
    _gauge("web_threads_requests_waiting", "Requests that wait for one.", ("web_servers",), _at("threads", "waiting")),
    _counter("web_stalls", "How often its event loop stood still for a quarter of a second.", _HOSTS, _at("stalls")),
    _gauge("sessions_active", "Sessions that it hosts.", _HOSTS, _at("sessions")),
    _gauge("sessions_max", "How many it hosts at most.", _HOSTS, _at("max_sessions")),
    _counter("sessions_created", "Sessions that began.", _HOSTS, _event(EventKind.SESSION_CREATED)),
    _counter("sessions_expired", "Sessions found timed out.", _HOSTS, _event(EventKind.SESSION_EXPIRED)),
    _counter(
        "sessions_rejected", "New sessions refused, by their address's pace.", _HOSTS, _at("refused_new_sessions")
    ),
    _counter("events", "What is reported to operators, by kind.", _HOSTS, _events, "event"),
    _gauge("sessions_under_replicated", "Sessions with too few copies.", _HOSTS, _at("under_replicated")),
    _gauge("recopy_sessions", "Sessions that the current round looks at.", _HOSTS, _at("recopy", "total")),
    _gauge("recopy_sessions_done", "Of them done.", _HOSTS, _at("recopy", "done")),
    _counter("recopy", "Sessions that a round has looked at.", _HOSTS, _each("recopy", "outcomes"), "outcome"),
    _gauge(
        "clock_correction_seconds",
        "By how much the clock of its host is corrected.",
        _HOSTS,
        _thousandth("clock", "correction_ms"),
    ),
    _gauge("clock_deviating", "Clocks off the farm's time by more than two seconds.", _HOSTS, _deviating),
    _counter("signals_sent", "Logout signals that others were told.", _HOSTS, _at("signals", "told")),
    _counter("signals_lost", "Logout signals that were given up.", _HOSTS, _at("signals", "lost")),
    _gauge("signals_waiting", "Logout signals not told yet.", _HOSTS, _at("signals", "waiting")),
    _gauge("session_server_entries", "Copies it has, of closed sessions too.", _STORES, _at("entries")),
    _gauge("session_server_entries_max", "How many it may have.", _STORES, _at("max_entries")),
    _gauge("session_server_tombstones", "Of them of closed sessions.", _STORES, _at("tombstones")),
    _gauge("session_server_bytes", "What they take.", _STORES, _at("bytes")),
    _gauge("session_server_bytes_max", "What they may take.", _STORES, _at("max_bytes")),
    _gauge("session_server_full", "1: it refuses new sessions now.", _STORES, _at("full")),
    _gauge("session_server_connections", "Web servers' connections.", _STORES, _at("connections")),
    _counter("session_server_puts", "Writes that it took.", _STORES, _at("puts")),
    _counter("session_server_gets", "Reads that it was asked for.", _STORES, _at("gets")),
    _counter("session_server_rejected", "Writes without room.", _ITEMS, _at("refused_full")),
    _gauge("session_server_taken_over", "Sessions taken over from the last stop.", _STORES, _at("taken_over")),
    _gauge("tls_items", "TLS sessions that it keeps.", _ITEMS, _at("items")),
    _gauge("tls_items_bytes", "What they take.", _ITEMS, _at("item_bytes")),
)
"""In the order in which they are shown."""
