"""What works but protects less than it could: rules about settings, without a look at the machine."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator
from typing import Final

from coatcheck.duration import format_duration
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.host_port import is_loopback, parse_host_port
from coatcheck.stores.session_server_url import SessionServerAddress, parse_session_servers
from coatcheck.url import TLS_OF

CLOCK_SKEW_S: Final = 5.0
"""What clocks of one farm may differ by without anybody noticing (``SessionPolicy.leeway_ms``)."""

YEAR_S: Final = 365 * 86400.0
"""The least that ASVS 3.4.1 asks of HSTS."""

WIDEST_PROXIES: Final = {4: 8, 6: 16}
"""Prefix lengths: public networks that are wider are nobody's proxies."""

LONG_LEASE_S: Final = 60.0
LONG_ROTATION_S: Final = 3600.0
LONG_GRACE_S: Final = 600.0
LONG_IDLE_S: Final = 12 * 3600.0
LONG_LIFE_S: Final = 30 * 86400.0
"""NIST SP 800-63B asks for a new login after 30 days at its lowest level (ASVS 7.3)."""


def weaknesses(settings: FarmSettings) -> Iterator[str]:
    """One line each: the setting, what it costs, and the mend."""
    yield from _of_the_way_in(settings)
    yield from _of_cookies(settings)
    yield from _of_copies(settings)
    yield from _of_times(settings)
    yield from _of_promises(settings)
    yield from _of_floods(settings)


def _of_the_way_in(settings: FarmSettings) -> Iterator[str]:
    public = not is_loopback(settings.host)
    if public and not settings.tls_certificate and not settings.trusted_proxy:
        yield (
            f"host: others reach {settings.host} by plain HTTP, which can be read and changed on the way, and to which "
            "browsers send no Secure cookie; give tls_certificate, or trusted_proxy for the proxy that speaks TLS"
        )
    if public and settings.tls_certificate and not settings.director.hsts_s:
        yield 'hsts: browsers are not told to come by HTTPS only; set "365d" once the host name serves nothing else'
    elif public and settings.tls_certificate and settings.director.hsts_s < YEAR_S:
        lasts = format_duration(settings.director.hsts_s)
        yield f"hsts: a browser that stays away for {lasts} comes by plain HTTP again; raise it to 365d in the end"
    if settings.tls_sharing == "off":
        yield (
            "tls_sharing: with off each process seals TLS tickets with one key for as long as it runs, and "
            "whoever gets that can read what it recorded of TLS 1.2; leave the default"
        )
    for text in settings.trusted_proxy:
        network = ipaddress.ip_network(text)
        if network.prefixlen < WIDEST_PROXIES[network.version] and not network.is_private:
            yield f"trusted_proxy: all of {text} may claim any address and HTTPS; name the network of your proxies"
    if settings.reload:
        yield "reload: whoever can write a file of the app runs code in the farm at once; for development only"
    if settings.metrics and not is_loopback(host := parse_host_port(settings.metrics, "metrics")[0]):
        yield (
            f"metrics: whoever reaches {host} reads what the farm counts, without TLS or a password; use 127.0.0.1, or "
            "let only Prometheus through the firewall"
        )
    if settings.web == 1:
        yield "web: with one web server nothing is served while it restarts; start 2 or more"


def _of_floods(settings: FarmSettings) -> Iterator[str]:
    director, session = settings.director, settings.session
    for rate in ("min_body_rate", "min_read_rate"):
        if not getattr(director, rate):
            yield f"{rate}: with 0 a few slow clients can hold all connections; leave the default"
    if director.max_connections_per_address >= director.max_connections:
        yield "max_connections_per_address: one client may take all connections; leave most of them to others"
    if not session.new_session_life_s:
        yield "new_session_life: with 0 clients without cookies fill the session servers; leave the default"
    if not session.new_sessions_per_minute:
        yield "new_sessions_per_minute: with 0 one client may begin sessions without end; leave the default"
    if not settings.audit_max_bytes:
        yield "audit_max_bytes: with 0 nobody can tell later who logged in from where; leave the default"


def _of_cookies(settings: FarmSettings) -> Iterator[str]:
    cookie = settings.cookie
    if cookie.insecure_localhost:
        yield "insecure_localhost: cookies are not Secure, and any port of this machine can set them; for development"
    if cookie.same_site == "none" and not cookie.partitioned:
        yield "cookie_same_site: other sites may send requests as your users; check Origin, or set cookie_partitioned"
    if cookie.domain:
        yield f"cookie_domain: every host below {cookie.domain} gets the cookie and can set it; one host needs none"
    yield from cookie.misfits(settings.session.idle_timeout_s, settings.session.rotate_after_s)


def _of_copies(settings: FarmSettings) -> Iterator[str]:
    servers = parse_session_servers(settings.session_server)
    count = len(servers) or settings.session_servers
    if settings.session.copies == 1:
        mend = "set it to 2" if count > 1 else "start 2 session servers"
        yield f"copies: with 1 copy, a session server that dies or is restarted takes its sessions along; {mend}"
    elif settings.session.copies == "all" and count > 3:
        yield f"copies: every write waits for {count} session servers, and one that is slow slows all; 2 or 3 will do"
    if not servers and not settings.handover_timeout_s:
        yield "handover_timeout: with 0 every planned stop logs everybody out; leave the default"
    for server in servers:
        yield from _of_server(server)


def _of_server(server: SessionServerAddress) -> Iterator[str]:
    parts = server.parts
    if not parts.host or is_loopback(parts.host):
        return
    if not parts.password:
        yield f"session_server: {server.name} asks for no password; whoever reaches it can delete sessions"
    if parts.scheme not in TLS_OF:
        yield (
            f"session_server: {server.name} is reached without TLS; who is on the way can change what it says; use it "
            "on one machine, and rediss:// or valkeys:// beyond"
        )
    elif not TLS_OF[parts.scheme]:
        yield f"session_server: {server.name} is reached without TLS, its password in clear; use rediss:// or valkeys://"


def _of_times(settings: FarmSettings) -> Iterator[str]:
    session = settings.session
    needed = session.lease_s + 2 * session.store_timeout_s + CLOCK_SKEW_S
    if session.theft != "refuse" and session.grace_s < needed:
        yield (
            f"grace: {format_duration(session.grace_s)} is shorter than lease, two store_timeouts and "
            f"{CLOCK_SKEW_S:g} s of clock skew, so that honest parallel requests are taken for theft; "
            f"set it to {format_duration(math.ceil(needed))} or more"
        )
    if session.rotate_after_s >= session.idle_timeout_s:
        yield "rotate_after: as long as idle_timeout: stolen tokens are hardly ever replaced; set it to minutes"
    elif session.rotate_after_s > LONG_ROTATION_S:
        lasts = format_duration(session.rotate_after_s)
        yield f"rotate_after: a stolen token is good for {lasts} before anybody can notice; set it to minutes"
    if session.grace_s > max(LONG_GRACE_S, math.ceil(needed)):
        lasts = format_duration(session.grace_s)
        yield f"grace: a stolen token is good for {lasts} after it was replaced; set it to a minute"
    if session.lease_s > LONG_LEASE_S:
        lasts = format_duration(session.lease_s)
        yield f"lease: a web server that is cut off serves what was closed elsewhere for {lasts}; set it to seconds"
    if session.idle_timeout_s > LONG_IDLE_S:
        yield f"idle_timeout: a browser left open stays logged in for {format_duration(session.idle_timeout_s)}"
    if session.absolute_timeout_s > LONG_LIFE_S:
        yield f"absolute_timeout: nobody is asked to log in again for {format_duration(session.absolute_timeout_s)}"


def _of_promises(settings: FarmSettings) -> Iterator[str]:
    session = settings.session
    if settings.hand_off != "ticket":
        yield (
            "hand_off: with token-in-url whoever sees the URL of a redirect, in a log or a history, has the session "
            'for half a minute; use "ticket"'
        )
    if session.open_streams == "tell":
        yield 'open_streams: with "tell" WebSockets go on after a logout unless the app itself ends them; use "end"'
    if session.durability == "async":
        yield 'durability: with "async" an answer leaves before a copy is written, and a crash takes it back; use "all"'
    elif session.durability == "one" and session.copies != 1:
        yield 'durability: with "one" a write is acknowledged at one copy, which may die with its server; use "all"'
    if session.below_target == "degrade":
        yield 'below_target: with "degrade" a write is acknowledged however few copies there are; use "quorum"'
    if session.theft != "close":
        yield f'theft: with "{session.theft}" whoever stole a token is not logged out; use "close"'
    if session.rolled_back == "accept":
        yield 'rolled_back: with "accept" a logout or an order that was acknowledged may come back undone; use "close"'
    if session.too_few_answers == "serve":
        yield 'too_few_answers: with "serve" an old state may be served while session servers are away; use "refuse"'
