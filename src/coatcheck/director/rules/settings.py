"""Every setting of the directors: how long they wait, how much they hold, and when they send a request again."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from coatcheck.duration import format_duration
from coatcheck.errors import ConfigError
from coatcheck.options import LONGEST_S, Option, judge

PATIENCE_S: Final = 20.0
"""With a busy web server: far beyond what a healthy app needs, and beyond ``unresponsive_after``."""


class DirectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set of a director's bounds; durations in seconds. Judged where it is built."""

    first_byte_timeout_s: Annotated[
        float,
        Option(
            "How long a web server may take to begin its answer; then the browser gets 504. Must "
            "be above `resend_after`.",
            duration=True,
            minimum=0.1,
            maximum=86400,
        ),
    ] = 30.0
    body_timeout_s: Annotated[
        float,
        Option(
            "How long a body may pause, either way; a stream of events must send something more often.",
            duration=True,
            minimum=0.1,
            maximum=86400,
        ),
    ] = 60.0
    keep_alive_timeout_s: Annotated[
        float,
        Option(
            "How long a browser's connection may be idle between two requests.",
            duration=True,
            minimum=0.1,
            maximum=3600,
        ),
    ] = 60.0
    websocket_timeout_s: Annotated[
        float,
        Option(
            "How long a WebSocket may be silent in both directions.",
            duration=True,
            minimum=1,
            maximum=604800,
        ),
    ] = 3600.0
    websocket_move_s: Annotated[
        float,
        Option(
            "How long a durable WebSocket is held while no web server goes on with it; then its browser gets 1012.",
            duration=True,
            minimum=0.5,
            maximum=3600,
        ),
    ] = 10.0
    max_websocket_message_bytes: Annotated[
        int,
        Option(
            "Of one message of a durable WebSocket, in either direction; a longer one ends it with 1009.",
            minimum=1024,
            maximum=1 << 26,
        ),
    ] = 1 << 20
    kept_websocket_bytes: Annotated[
        int,
        Option(
            "Of the messages of a durable WebSocket that its app has not finished with, kept for the next web server; "
            "with more the browser is not read.",
            minimum=1024,
            maximum=1 << 26,
        ),
    ] = 262144
    kept_websocket_messages: Annotated[
        int,
        Option("How many of them are kept at most.", minimum=1, maximum=100_000),
    ] = 256
    connect_timeout_s: Annotated[
        float,
        Option(
            "A web server that accepts no connection for so long counts as busy; the request was not sent.",
            duration=True,
            minimum=0.05,
            maximum=60,
        ),
    ] = 1.0
    check_interval_s: Annotated[
        float,
        Option("How often each web server's health is checked.", duration=True, minimum=0.05, maximum=60),
    ] = 0.25
    check_timeout_s: Annotated[
        float,
        Option("A health check that takes longer is a silent one.", duration=True, minimum=0.05, maximum=60),
    ] = 0.25
    checks_to_fail: Annotated[
        int,
        Option(
            "Health checks that must fail in a row: silent ones make a web server busy, refused ones gone.",
            minimum=1,
            maximum=100,
        ),
    ] = 2
    checks_to_admit: Annotated[
        int,
        Option(
            "Health checks that a web server which was gone must pass in a row before it gets requests.",
            minimum=1,
            maximum=100,
        ),
    ] = 1
    max_sends: Annotated[
        int,
        Option(
            "How often an idempotent request (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) is sent in all, if the web "
            "server that has it dies: 1 or 2. Others are sent once.",
            minimum=1,
            maximum=2,
        ),
    ] = 2
    resend_after_s: Annotated[
        float,
        Option(
            "Patience with a busy web server: after so long what may be sent once more, or was not sent yet, goes to "
            "another one. 0: never. Must be below `first_byte_timeout`.",
            duration=True,
            maximum=86400,
        ),
    ] = PATIENCE_S
    no_server_wait_s: Annotated[
        float,
        Option(
            "How long a request waits while no web server takes requests; then the browser gets 503.",
            duration=True,
            minimum=0.1,
            maximum=3600,
        ),
    ] = 2.0
    max_waiting: Annotated[
        int,
        Option(
            "Requests that wait in each director for a web server to come back or to be busy no more; one more gets "
            "503.",
            minimum=1,
            maximum=1_000_000,
        ),
    ] = 4096
    kept_body_bytes: Annotated[
        int,
        Option(
            "Of a request's body, kept so that it can be sent once more; a request with a longer one cannot.",
            minimum=1024,
            maximum=1 << 24,
        ),
    ] = 65536
    held_response_bytes: Annotated[
        int,
        Option(
            "A response of known length up to this leaves in one piece, so that it can be had elsewhere if its web "
            "server dies half-way.",
            minimum=1,
            maximum=1 << 24,
        ),
    ] = 65536
    hold_response_s: Annotated[
        float,
        Option("How long such a response is held at most.", duration=True, minimum=0.01, maximum=60),
    ] = 0.2
    upstream_idle_s: Annotated[
        float,
        Option(
            "How long an unused connection to a web server is kept; less than the web server keeps it.",
            duration=True,
            minimum=0.1,
            maximum=60,
        ),
    ] = 4.0
    max_connections: Annotated[
        int,
        Option(
            "Connections of browsers to each director, counted from their accept, WebSockets included; for one more an "
            "idle one is closed. The system's limit of open files (`ulimit -n`) may allow fewer.",
            minimum=1,
            maximum=1_000_000,
        ),
    ] = 4096
    max_connections_per_address: Annotated[
        int,
        Option(
            "Of those, of one IPv4 address or IPv6 network of 64 bits; behind a trusted proxy: requests and WebSockets "
            "of one. One more gets 429, or with TLS its end.",
            minimum=1,
            maximum=1_000_000,
        ),
    ] = 1024
    max_websockets: Annotated[
        int,
        Option(
            "Of those, WebSockets, so that they leave room for requests; one more gets 503.",
            minimum=1,
            maximum=1_000_000,
        ),
    ] = 2048
    max_handshakes: Annotated[
        int,
        Option("TLS handshakes under way; for one more the oldest ends.", minimum=1, maximum=1_000_000),
    ] = 512
    tls_handshake_timeout_s: Annotated[
        float,
        Option("How long a TLS handshake may take.", duration=True, minimum=0.1, maximum=3600),
    ] = 10.0
    header_timeout_s: Annotated[
        float,
        Option(
            "How long a request's line and headers may take, from their first byte; then the browser gets 408.",
            duration=True,
            minimum=0.1,
            maximum=3600,
        ),
    ] = 10.0
    min_body_rate: Annotated[
        int,
        Option(
            "Bytes a second of a request's body that a browser must send, on the mean of `rate_window`; else it gets "
            "408. 0: any.",
            minimum=0,
            maximum=1 << 30,
        ),
    ] = 240
    min_read_rate: Annotated[
        int,
        Option(
            "Bytes a second that a browser must take of a response that waits for it; else its connection ends. "
            "0: any.",
            minimum=0,
            maximum=1 << 30,
        ),
    ] = 240
    rate_window_s: Annotated[
        float,
        Option(
            "Over which the two least rates are measured: a browser may pause for about so long.",
            duration=True,
            minimum=1,
            maximum=3600,
        ),
    ] = 30.0
    reserved_descriptors: Annotated[
        int,
        Option(
            "Open files kept back for health checks, the control channel and the log. Of the others, half are for "
            "connections to web servers.",
            minimum=32,
            maximum=65536,
        ),
    ] = 128
    max_head_bytes: Annotated[
        int,
        Option(
            "Of a request's line and headers, cookies included; more is refused with 431.",
            minimum=1024,
            maximum=1 << 20,
        ),
    ] = 32768
    hsts_s: Annotated[
        float,
        Option(
            "With TLS: tell browsers for so long to come to this host name by HTTPS only (`365d`, say), on every "
            "port; 0 tells them nothing.",
            duration=True,
            maximum=LONGEST_S,
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        judge(self)
        self.check_patience()

    def check_patience(self) -> None:
        """Raises ConfigError where a request would be given up before it could be sent again."""
        if self.first_byte_timeout_s <= self.resend_after_s:
            raise ConfigError(
                f"resend_after: {format_duration(self.resend_after_s)} is not below first_byte_timeout "
                f"({format_duration(self.first_byte_timeout_s)}), so it would never come to it; shorten it, or say 0"
            )
