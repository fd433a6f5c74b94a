"""Every setting of a farm, in one typed place.

:class:`FarmSettings` is what ``coatcheck serve`` was asked for: each field is one option with its default,
its bounds and the sentence that the documentation shows. :class:`SessionSettings` is what a web process
needs to open its sessions; the supervisor derives it. Where the values come from is in ``configuration.py``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

Copies = int | Literal["all"]
Durability = Literal["async", "one", "all"]
BelowTarget = Literal["degrade", "refuse"]
TooFewAnswers = Literal["refuse", "serve"]
RolledBack = Literal["close", "accept"]
Conflict = Literal["last_write", "reject"]
Theft = Literal["close", "refuse", "report"]
HttpServer = Literal["uvicorn", "granian"]

MAX_PROCESSES: Final = 64
"""The most web servers, session servers or director workers that one supervisor starts."""

LONGEST_S: Final = 3650 * 86400.0
"""Ten years: longer than any session, and far from what the stored format's times can hold."""


class Option(msgspec.Struct, frozen=True):
    """What the configuration needs to know about a field beside its type."""

    words: str
    """One sentence for ``--help`` and the reference table."""
    table: str = "farm"
    minimum: float | None = None
    maximum: float | None = None
    duration: bool = False
    """The value is a length of time; the option's name is the field's without ``_s``."""
    metavar: str = ""
    flag: str = ""
    """The flag, where it is not made from the name."""
    env: str = ""
    """The environment variable, where it is not made from the name."""


class FarmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``coatcheck serve`` can be told; see docs/operations.md for the table."""

    app: Annotated[str, Option("The ASGI app to serve, as `module:attribute`.", metavar="MODULE:ATTR")] = ""
    factory: Annotated[bool, Option("`app` names a function that makes the app.")] = False
    name: Annotated[str, Option("The farm's name; farms that share session servers need different ones.")] = "farm"
    run_dir: Annotated[
        str, Option("Where the farm keeps its control socket, its keys and `farm.json`.", metavar="DIR")
    ] = ".coatcheck"
    keys_file: Annotated[
        str, Option("The key ring file; by default `keys.json` in the run directory.", metavar="FILE")
    ] = ""

    host: Annotated[str, Option("The address that the director listens on.")] = "127.0.0.1"
    port: Annotated[int, Option("The director's port; 0 chooses a free one.", minimum=0, maximum=65535)] = 8000
    director_workers: Annotated[
        int, Option("Director processes that share the port.", minimum=1, maximum=MAX_PROCESSES)
    ] = 1

    tls_certificate: Annotated[
        str, Option("The director speaks HTTPS with this certificate chain (PEM).", metavar="FILE")
    ] = ""
    tls_key: Annotated[str, Option("The certificate's private key (PEM).", metavar="FILE")] = ""
    trusted_proxy: Annotated[
        tuple[str, ...],
        Option(
            "A network such as `10.0.0.0/8` whose `X-Forwarded-*` headers are believed; may be given several times.",
            metavar="NETWORK",
        ),
    ] = ()

    web: Annotated[int, Option("Web servers, each a process.", minimum=1, maximum=MAX_PROCESSES)] = 2
    server: Annotated[HttpServer, Option("What runs the app in each web server.", env="COATCHECK_HTTP_SERVER")] = (
        "uvicorn"
    )
    access_log: Annotated[bool, Option("Log a line for each request in the web servers.")] = False

    session_servers: Annotated[
        int,
        Option("Embedded session servers, each a process.", minimum=0, maximum=MAX_PROCESSES),
    ] = 2
    session_server: Annotated[
        tuple[str, ...],
        Option(
            "An outside session server instead of the embedded ones: "
            "`[NAME=]redis://[:PASSWORD@]HOST[:PORT]`, "
            "`valkey://`, `rediss://`, `valkeys://`, `unix:///SOCKET` or `sqlite:///FILE`; may be given several times.",
            metavar="URL",
        ),
    ] = ()

    restart: Annotated[bool, Option("Restart a process that died.")] = True
    unresponsive_after_s: Annotated[
        float,
        Option(
            "A process that answers no control ping for so long is killed and restarted.",
            duration=True,
            minimum=0.5,
            maximum=3600,
        ),
    ] = 5.0
    start_timeout_s: Annotated[
        float, Option("How long a process may take to start.", duration=True, minimum=1, maximum=3600)
    ] = 60.0
    drain_timeout_s: Annotated[
        float,
        Option("How long `coatcheck drain` waits for open requests.", duration=True, minimum=0, maximum=86400),
    ] = 60.0
    stop_grace_s: Annotated[
        float,
        Option(
            "How long each kind of process may take to finish its requests at a stop.",
            duration=True,
            minimum=0,
            maximum=3600,
        ),
    ] = 10.0

    first_byte_timeout_s: Annotated[
        float,
        Option(
            "How long a web server may take to begin its answer; then the browser gets 504.",
            "director",
            duration=True,
            minimum=0.1,
            maximum=86400,
        ),
    ] = 30.0
    body_timeout_s: Annotated[
        float,
        Option(
            "How long a body may pause, either way; a stream of events must send something more often.",
            "director",
            duration=True,
            minimum=0.1,
            maximum=86400,
        ),
    ] = 60.0
    keep_alive_timeout_s: Annotated[
        float,
        Option(
            "How long a browser's connection may be idle between two requests.",
            "director",
            duration=True,
            minimum=0.1,
            maximum=3600,
        ),
    ] = 60.0
    websocket_timeout_s: Annotated[
        float,
        Option(
            "How long a WebSocket may be silent in both directions.",
            "director",
            duration=True,
            minimum=1,
            maximum=604800,
        ),
    ] = 3600.0
    max_connections: Annotated[
        int,
        Option(
            "Connections of browsers to each director; for one more an idle one is closed. The system's limit of "
            "open files (`ulimit -n`) may allow fewer.",
            "director",
            minimum=1,
            maximum=1_000_000,
        ),
    ] = 4096
    max_head_bytes: Annotated[
        int,
        Option(
            "Of a request's line and headers, cookies included; more is refused with 431.",
            "director",
            minimum=1024,
            maximum=1 << 20,
        ),
    ] = 32768
    hsts_s: Annotated[
        float,
        Option(
            "With TLS: tell browsers for so long to come to this host name by HTTPS only (`365d`, say), on every "
            "port; 0 tells them nothing.",
            "director",
            duration=True,
            maximum=LONGEST_S,
        ),
    ] = 0.0

    copies: Annotated[
        Copies, Option("Session servers that hold each session: a number, or `all`.", "session", minimum=1)
    ] = 2
    durability: Annotated[
        Durability, Option("How many copies a write waits for before the response leaves.", "session")
    ] = "all"
    below_target: Annotated[
        BelowTarget, Option("What happens to writes when too few session servers answer.", "session")
    ] = "degrade"
    too_few_answers: Annotated[
        TooFewAnswers,
        Option(
            "With three or more session servers: what happens while fewer than servers - copies + 1 answer, so that "
            "the newest copy may not be among the answers. With one copy that is as soon as one server is away.",
            "session",
        ),
    ] = "refuse"
    rolled_back: Annotated[RolledBack, Option("What happens to a session whose newest data was lost.", "session")] = (
        "close"
    )
    conflict: Annotated[Conflict, Option("Two parallel writes of the same key: which one is kept.", "session")] = (
        "last_write"
    )
    theft: Annotated[Theft, Option("What a replayed old token does.", "session")] = "close"
    rotate_after_s: Annotated[
        float,
        Option(
            "A token older than this is replaced; 0 replaces it at every response.",
            "session",
            duration=True,
            maximum=LONGEST_S,
        ),
    ] = 60.0
    grace_s: Annotated[
        float,
        Option(
            "How long a replaced token is still accepted, for parallel requests.",
            "session",
            duration=True,
            maximum=LONGEST_S,
        ),
    ] = 60.0
    idle_timeout_s: Annotated[
        float, Option("A session unused for so long is closed.", "session", duration=True, minimum=1, maximum=LONGEST_S)
    ] = 1800.0
    absolute_timeout_s: Annotated[
        float,
        Option(
            "A session older than this is closed, used or not.",
            "session",
            duration=True,
            minimum=1,
            maximum=LONGEST_S,
        ),
    ] = 43200.0
    lease_s: Annotated[
        float,
        Option(
            "How long a web server serves a cached session without asking a session server.",
            "session",
            duration=True,
            maximum=3600,
        ),
    ] = 2.0
    store_timeout_s: Annotated[
        float,
        Option(
            "How long a session server may take to answer.",
            "session",
            duration=True,
            minimum=0.01,
            maximum=60,
        ),
    ] = 0.3

    cookie_name: Annotated[str, Option("The session cookie's name, without the `__Host-` prefix.", "session")] = (
        "coatcheck"
    )
    insecure_localhost: Annotated[
        bool,
        Option(
            "Development mode: cookies without `Secure`, for plain HTTP on this machine only. If not said, it is on "
            "for a loopback host without TLS and without a trusted proxy.",
            "session",
        ),
    ] = False

    def __repr__(self) -> str:
        # ``session_server`` may hold passwords.
        return f"FarmSettings(app={self.app!r}, name={self.name!r}, run_dir={self.run_dir!r})"


class SessionServerAddress(msgspec.Struct, frozen=True):
    """One session server: ``name`` decides the placement, ``url`` may hold a password and is never shown."""

    name: str
    url: str

    def __repr__(self) -> str:
        return f"SessionServerAddress(name={self.name!r})"


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one web process needs to open its sessions (durations in seconds)."""

    farm: str
    server: str
    """This web server's name, unique within the farm."""
    session_servers: tuple[SessionServerAddress, ...]
    """``coatcheck://:PASSWORD@HOST:PORT`` (embedded), ``redis://``, ``valkey://`` or ``sqlite:///FILE``."""
    keys: tuple[bytes, ...]
    """The key ring's secrets, 32 random bytes or more each. All are accepted."""
    primary_key: int = 0
    """The index of the key that seals."""
    copies: Copies = 2
    durability: Durability = "all"
    below_target: BelowTarget = "degrade"
    too_few_answers: TooFewAnswers = "refuse"
    rolled_back: RolledBack = "close"
    conflict: Conflict = "last_write"
    theft: Theft = "close"
    rotate_after_s: float = 60.0
    grace_s: float = 60.0
    idle_timeout_s: float = 1800.0
    absolute_timeout_s: float = 43200.0
    lease_s: float = 2.0
    store_timeout_s: float = 0.3
    cookie_name: str = "coatcheck"
    insecure_localhost: bool = False

    def __repr__(self) -> str:
        return f"SessionSettings(farm={self.farm!r}, server={self.server!r})"
