"""Every setting of a farm but those of sessions, cookies and directors, which are where their rules are.

Each field is one option with its default, its bounds and the sentence that the documentation shows. Where the
values come from is in ``configuration.py``.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal

import msgspec

from coatcheck.director.rules.settings import DirectorSettings
from coatcheck.errors import ConfigError
from coatcheck.farm.settings.moving_in import MovingInSettings
from coatcheck.hand_off.sites import HandOffMode, Site, Sites
from coatcheck.host_port import is_loopback, parse_host_port
from coatcheck.options import Option, check_plain_name, judge, settings_of, shown
from coatcheck.session_server.table import DEFAULT_MAX_BYTES, DEFAULT_MAX_ENTRIES
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.routes import Sticky
from coatcheck.sessions.settings import SessionSettings, check_copies
from coatcheck.stores.session_server_url import parse_session_servers

HttpServer = Literal["uvicorn", "granian"]
Interface = Literal["auto", "asgi", "wsgi"]
TlsEnd = Literal["director", "end-to-end"]
InternalLinks = Literal["unix", "tcp"]
TlsSharing = Literal["ticket-keys", "take-once", "off"]
KeyRingPlace = Literal["own", "shared"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MAX_PROCESSES: Final = 64
"""The most web servers, session servers or director workers that one supervisor starts."""
MAX_THREADS: Final = 1000
"""The most threads of a WSGI app in one web server; each takes some memory, and all share one interpreter."""
MAX_TICKET_PERIODS: Final = 200
"""So many ticket keys may open at once; each is agreed on, kept and told to every director."""


class FarmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``coatcheck serve`` can be told; docs/operations.md has the table. Judged where it is built.

    Raises:
        ConfigError: a value is wrong, or two contradict each other.
    """

    app: Annotated[
        str,
        Option(
            "The ASGI or WSGI app to serve, as `module:attribute`; without it, that of the Django project which "
            "`DJANGO_SETTINGS_MODULE` names.",
            metavar="MODULE:ATTR",
        ),
    ] = ""
    factory: Annotated[bool, Option("`app` names a function that makes the app.")] = False
    interface: Annotated[
        Interface, Option("How the app is called: `auto` finds it out by the arguments that it takes.")
    ] = "auto"
    name: Annotated[str, Option("The farm's name; farms that share session servers need different ones.")] = "farm"
    run_dir: Annotated[
        str, Option("Where the farm keeps its control socket, its keys and `farm.json`.", metavar="DIR")
    ] = ".coatcheck"
    audit_dir: Annotated[
        str,
        Option(
            "Where each web server keeps its audit log (`web-1.jsonl` ...); by default `audit` in the run directory.",
            metavar="DIR",
        ),
    ] = ""
    audit_max_bytes: Annotated[
        int,
        Option(
            "How much audit log each web server keeps, in four files, the oldest of which goes when they are full; "
            "0: none is written.",
            minimum=0,
            maximum=1 << 40,
        ),
    ] = 64 << 20
    keys_file: Annotated[
        str, Option("The key ring file; by default `keys.json` in the run directory.", metavar="FILE")
    ] = ""
    key_ring: Annotated[
        KeyRingPlace,
        Option(
            "Whose key ring it is: this machine's `own`, or one that is `shared`, sealed, on the outside session "
            "servers by all machines that have the same keys in `keys_file`."
        ),
    ] = "own"

    host: Annotated[str, Option("The address that the director listens on.")] = "127.0.0.1"
    port: Annotated[int, Option("The director's port; 0 chooses a free one.", minimum=0, maximum=65535)] = 8000
    director_workers: Annotated[
        int, Option("Director processes that share the port.", minimum=1, maximum=MAX_PROCESSES)
    ] = 1

    tls_certificate: Annotated[
        str, Option("The farm speaks HTTPS with this certificate chain (PEM).", metavar="FILE")
    ] = ""
    tls_key: Annotated[str, Option("The certificate's private key (PEM).", metavar="FILE")] = ""
    tls_sharing: Annotated[
        TlsSharing,
        Option(
            "How a browser resumes its TLS session at another director worker (with `tls = end-to-end`, at another web "
            "server), or after a restart of its own: by `ticket-keys` that all of them have; or `take-once`, each "
            "session kept by the farm and given out once. With `off` each process resumes only its own."
        ),
    ] = "ticket-keys"
    tls_session_lifetime_s: Annotated[
        float,
        Option(
            "How long a TLS session can be resumed; with ticket keys, after its key seals no more.",
            duration=True,
            minimum=1,
            maximum=6 * 86400,
        ),
    ] = 300.0
    tls_ticket_period_s: Annotated[
        float,
        Option(
            "How long a ticket key seals before the next one does, the same on all machines.",
            duration=True,
            minimum=1,
            maximum=86400,
        ),
    ] = 3600.0
    tls_fetch_timeout_s: Annotated[
        float,
        Option(
            "With `tls_sharing = take-once`: how long a handshake waits for the session that its client offers; then "
            "it is a full one.",
            duration=True,
            minimum=0.01,
            maximum=10,
        ),
    ] = 0.5
    tls: Annotated[
        TlsEnd,
        Option(
            "Who ends TLS: the `director`, which then routes each request; or each web server (`end-to-end`): the "
            "director passes whole connections on, and can read nothing of them."
        ),
    ] = "director"
    takeover: Annotated[
        bool,
        Option(
            "With `tls = end-to-end`: a connection outlives its web server. Another one goes on with it, and the "
            "browser notices nothing (TLS 1.3)."
        ),
    ] = False
    trusted_proxy: Annotated[
        tuple[str, ...],
        Option(
            "A network such as `10.0.0.0/8` whose `X-Forwarded-*` headers are believed; may be given several times.",
            metavar="NETWORK",
        ),
    ] = ()

    internal_links: Annotated[
        InternalLinks,
        Option(
            "How the farm's own processes reach each other: by Unix sockets that only its user can open, or by TCP on "
            "loopback, where both ends prove that they know the farm's credential."
        ),
    ] = "unix"

    error_pages: Annotated[
        str,
        Option(
            "A directory with pages for the answers that coatcheck gives itself: `503.html`, `5xx.html`, `404.json`, "
            "`400.txt` ...; by default they are short and plain.",
            metavar="DIR",
        ),
    ] = ""

    web: Annotated[int, Option("Web servers, each a process.", minimum=1, maximum=MAX_PROCESSES)] = 2
    server: Annotated[HttpServer, Option("What runs the app in each web server.", env="COATCHECK_HTTP_SERVER")] = (
        "uvicorn"
    )
    sticky: Annotated[
        Sticky,
        Option(
            "Who stays with one web server, by a cookie: every `browser`, as apps need that keep state in the process "
            "(NiceGUI, Gradio, Socket.IO), or those with a `session`. With one web server, no browser needs it."
        ),
    ] = "browser"
    threads: Annotated[
        int,
        Option("Threads of a WSGI app in each web server: so many requests at once.", minimum=1, maximum=MAX_THREADS),
    ] = 8
    access_log: Annotated[bool, Option("Log a line for each request in the web servers.")] = False
    log_format: Annotated[
        LogFormat, Option("How the farm writes its log: `text` for people, or a line of `json` for each record.")
    ] = "text"
    log_level: Annotated[
        LogLevel, Option("The least that coatcheck logs; what the app logs is the app's to choose.")
    ] = "info"

    session_servers: Annotated[
        int,
        Option("Embedded session servers, each a process.", minimum=0, maximum=MAX_PROCESSES),
    ] = 2
    session_server_max_bytes: Annotated[
        int,
        Option(
            "Memory for entries in each embedded session server, in bytes. New sessions may fill three quarters of it; "
            "the rest is for those that exist.",
            minimum=1 << 16,
            maximum=1 << 50,
        ),
    ] = DEFAULT_MAX_BYTES
    session_server_max_entries: Annotated[
        int,
        Option(
            "Entries in each embedded session server, closed sessions included; shared out in the same way.",
            minimum=16,
            maximum=1 << 32,
        ),
    ] = DEFAULT_MAX_ENTRIES
    session_server: Annotated[
        tuple[str, ...],
        Option(
            "An outside session server instead of the embedded ones: "
            "`[NAME=]redis://[:PASSWORD@]HOST[:PORT]`, "
            "`valkey://`, `rediss://`, `valkeys://`, `unix:///SOCKET` or `sqlite:///FILE`; may be given several times.",
            metavar="[NAME=]URL",
        ),
    ] = ()

    service: Annotated[
        str,
        Option(
            "Start a session service that listens there, on this machine, for servers in other languages and for "
            "proxies; needs `service_callers`.",
            metavar="HOST:PORT",
        ),
    ] = ""
    service_callers: Annotated[str, Option("Who may ask the session service, and what for (TOML).", metavar="FILE")] = (
        ""
    )

    signals: Annotated[
        str,
        Option(
            "Whose logout signals the session service takes, and who is told of logouts here (TOML).", metavar="FILE"
        ),
    ] = ""

    metrics: Annotated[
        str,
        Option(
            "Answer Prometheus there, at `/metrics`, with the counts of all processes; nobody is asked for a password.",
            metavar="HOST:PORT",
        ),
    ] = ""
    metrics_timeout_s: Annotated[
        float,
        Option(
            "How long each process may take to say what it has counted; the counts of one that is late are left out.",
            duration=True,
            minimum=0.05,
            maximum=60,
        ),
    ] = 1.0

    restart: Annotated[bool, Option("Restart a process that died.")] = True
    reload: Annotated[bool, Option("Development: a changed Python file restarts the web servers; sessions stay.")] = (
        False
    )
    reload_dir: Annotated[
        tuple[str, ...],
        Option("A directory to watch, by default the current one; may be given several times.", metavar="DIR"),
    ] = ()
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
    site: Annotated[
        str, Option("Which of `[sites]` this farm serves; by default the one without `paths`.", metavar="NAME")
    ] = ""
    hand_off: Annotated[
        HandOffMode,
        Option(
            "What takes a session along to another site: a `ticket` in the URL, which one browser can use once; or the "
            "`token-in-url` itself, which whoever sees the URL can use."
        ),
    ] = "ticket"
    handover_timeout_s: Annotated[
        float,
        Option(
            "How long an embedded session server may take at a stop to write its sessions down for the next start, and "
            "to read them there; 0: nothing is written, and a stop logs everyone out.",
            duration=True,
            minimum=0,
            maximum=3600,
        ),
    ] = 10.0

    director: DirectorSettings = DirectorSettings()
    session: SessionSettings = SessionSettings()
    cookie: CookiePolicy = CookiePolicy()
    site_table: tuple[Site, ...] = ()
    """`[sites.NAME]` of the file: where the pages live, if at more than one origin."""
    moving_in: MovingInSettings | None = None
    """`[session.moving_in]` of the file: the store of before, whose sessions continue here."""

    def __post_init__(self) -> None:
        judge(self)
        check(self)

    @property
    def sites(self) -> Sites | None:
        """The same with what is here; raises :class:`ConfigError`."""
        if not self.site_table:
            return None
        return Sites(table=self.site_table, here=self.site, hand_off=self.hand_off)

    @property
    def shares_ticket_keys(self) -> bool:
        """Whether TLS sessions are shared by ticket keys."""
        return bool(self.tls_certificate) and self.tls_sharing == "ticket-keys"

    @property
    def stores_tls_sessions(self) -> bool:
        """Whether TLS sessions are stored, and each is resumed once."""
        return bool(self.tls_certificate) and self.tls_sharing == "take-once"

    @property
    def keeps_tls_sessions(self) -> bool:
        """Whether the farm has a process of its own for them: directors may not ask session servers."""
        return self.stores_tls_sessions and self.tls == "director"

    def __repr__(self) -> str:
        # ``session_server`` may hold passwords.
        return f"FarmSettings(app={self.app!r}, name={self.name!r}, run_dir={self.run_dir!r})"


def check(settings: FarmSettings) -> None:
    """Refuse values that cannot work together.

    Raises:
        ConfigError: the first such pair, and the mend.
    """
    parse_session_servers(settings.session_server)
    servers = len(settings.session_server) or settings.session_servers
    if servers == 0:
        raise ConfigError("session_servers: at least 1 is needed, or give session_server URLs")
    check_copies(settings.session.copies, servers, "give" if settings.session_server else "start")
    settings.cookie.check_lifetime(settings.session.absolute_timeout_s)
    settings.cookie.check_binding(settings.session.device_binding)
    if settings.session.device_binding != "off" and settings.sites is not None:
        raise ConfigError("device_binding: not with [sites.NAME] yet; drop one of the two")
    if settings.cookie.insecure_localhost and not is_loopback(settings.host):
        raise ConfigError(
            f"insecure_localhost: only for a loopback host, not {shown(settings.host)!r}; drop one of them"
        )
    if settings.internal_links == "tcp" and settings.server == "granian":
        raise ConfigError(
            'internal_links: granian cannot check who comes by TCP; use internal_links = "unix", or server = "uvicorn"'
        )
    if settings.director.hsts_s and not settings.tls_certificate:
        raise ConfigError("hsts: only with tls_certificate; without it the proxy that speaks TLS has to say so")
    if settings.reload_dir and not settings.reload:
        raise ConfigError("reload_dir: only with reload; add reload, or drop reload_dir")
    if bool(settings.service) != bool(settings.service_callers):
        raise ConfigError("service: needs service_callers, and service_callers needs service; give both or none")
    if settings.metrics:
        parse_host_port(settings.metrics, "metrics")
    if settings.signals and not settings.service:
        raise ConfigError("signals: needs service and service_callers, whose process takes them; give all or none")
    if settings.service:
        host, port = parse_host_port(settings.service, "service")
        if not is_loopback(host):
            raise ConfigError("service: only on this machine; beyond it use coatcheck service serve, which speaks TLS")
        if port == 0:
            raise ConfigError("service: its callers must know the port; name one, such as 127.0.0.1:8100")
    check_plain_name("name", settings.name)
    outside = parse_session_servers(settings.session_server)
    if settings.key_ring == "shared" and not any(one.parts.scheme != "sqlite" for one in outside):
        raise ConfigError(
            'key_ring: "shared" needs a session_server that all machines reach, such as redis://HOST; give one, or '
            "drop it"
        )
    _check_sites(settings)
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise ConfigError("tls_certificate: needs tls_key, and tls_key needs tls_certificate; give both or none")
    _check_tls_sharing(settings)
    if settings.tls == "end-to-end" and not settings.tls_certificate:
        raise ConfigError("tls: end-to-end needs tls_certificate and tls_key; give both, or drop it")
    if settings.tls == "end-to-end" and settings.internal_links == "tcp":
        raise ConfigError('tls: end-to-end passes connections over Unix sockets; use internal_links = "unix"')
    if settings.takeover and settings.tls != "end-to-end":
        raise ConfigError("takeover: only with tls = end-to-end; add that, or drop takeover")
    if not settings.host:
        raise ConfigError("host: name an address, such as 127.0.0.1 or 0.0.0.0")
    if not settings.run_dir:
        raise ConfigError("run_dir: name a directory")
    for network in settings.trusted_proxy:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(
                f"trusted_proxy: {shown(str(error))}; write a network such as 10.0.0.0/8, or an address"
            ) from None


def _check_sites(settings: FarmSettings) -> None:
    sites = settings.sites
    if sites is not None:
        sites.check_cookies(settings.cookie)
        if not settings.session_server:
            raise ConfigError("sites: their farms share session_server URLs; the embedded ones are for one site alone")
        return
    if settings.site or settings.hand_off != "ticket":
        name = "site" if settings.site else "hand_off"
        raise ConfigError(f"{name}: only with [sites.NAME] in the file; add them, or drop {name}")


_OF_TLS_SHARING: Final = ("tls_sharing", "tls_session_lifetime", "tls_ticket_period", "tls_fetch_timeout")


def _check_tls_sharing(settings: FarmSettings) -> None:
    given = [
        each.key
        for each in settings_of(FarmSettings)
        if each.key in _OF_TLS_SHARING and getattr(settings, each.field) != each.default
    ]
    if given and not settings.tls_certificate:
        raise ConfigError(f"{given[0]}: only with tls_certificate; without it the proxy that speaks TLS keeps sessions")
    if "tls_ticket_period" in given and settings.tls_sharing != "ticket-keys":
        raise ConfigError('tls_ticket_period: only with tls_sharing = "ticket-keys"; drop one of them')
    if "tls_fetch_timeout" in given and settings.tls_sharing != "take-once":
        raise ConfigError('tls_fetch_timeout: only with tls_sharing = "take-once"; drop it')
    if settings.tls_session_lifetime_s > MAX_TICKET_PERIODS * settings.tls_ticket_period_s:
        raise ConfigError(
            f"tls_ticket_period: tickets of more than {MAX_TICKET_PERIODS} keys would be about; make it longer, or "
            "tls_session_lifetime shorter"
        )
    if "tls_session_lifetime" in given and settings.tls_sharing == "off":
        raise ConfigError('tls_session_lifetime: with tls_sharing = "off" it is OpenSSL\'s; drop one of them')
