"""``coatcheck check``: what is wrong or weak about a configuration, before a farm is started with it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography import x509

from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import ENV as KEYS_VARIABLE
from coatcheck.farm.files.keys import load_or_create
from coatcheck.farm.files.run_directory import KEYS_FILE
from coatcheck.farm.operations.reload import check_reload
from coatcheck.farm.processes.application import (
    HAS_ITS_OWN,
    installs_starlette_sessions,
    keeps_own_sessions,
    load_application,
)
from coatcheck.farm.processes.moving_in import moving_in_of
from coatcheck.farm.processes.tls_context import tls_context
from coatcheck.farm.settings.configuration import try_settings
from coatcheck.farm.settings.error_pages import load_error_pages
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.farm.settings.weaknesses import weaknesses
from coatcheck.tls.openssl import OpenSslRefused, open_door

EXIT_CLEAN: Final = 0
EXIT_WEAK: Final = 1
EXIT_WRONG: Final = 2

CERTIFICATE_DAYS: Final = 14
"""A certificate that ends sooner is weak."""

GIT_TIMEOUT_S: Final = 5.0
NOT_IGNORED: Final = 1
"""What `git check-ignore` exits with; 128 is an error of its own."""
DESCRIPTORS_A_CONNECTION: Final = 2
"""A browser's connection, and one to a web server."""
CAP_NET_BIND_SERVICE: Final = 10


class Finding(msgspec.Struct, frozen=True):
    """``wrong`` keeps a farm from starting or from working; ``weak`` protects less than it could."""

    level: Literal["wrong", "weak"]
    line: str

    def __str__(self) -> str:
        return f"{self.level}: {self.line}"


def check_configuration(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> Iterator[Finding]:
    """Everything that can be found without starting a process; imports the app, changes nothing."""
    settings, mistakes = try_settings(config, environ, flags)
    for mistake in mistakes:
        yield Finding("wrong", str(mistake))
    if settings is None:
        return
    yield from _app(settings)
    yield from _moving_in(settings)
    yield from _tls(settings)
    yield from _keys(settings, environ)
    try:
        check_reload(settings)
        load_error_pages(settings.error_pages)
    except ConfigError as error:
        yield Finding("wrong", str(error))
    yield from _run_directory(settings)
    yield from _audit_directory(settings)
    yield from _address(settings)
    yield from _files_that_decide(settings, config)
    yield from _passwords_in_sight(settings, config, flags)
    yield from _signals(settings)
    yield from (Finding("weak", line) for line in weaknesses(settings))


def exit_code(findings: list[Finding]) -> int:
    """2 if something is wrong (as ``serve`` would exit), 1 if something is weak, else 0."""
    levels = {finding.level for finding in findings}
    return EXIT_WRONG if "wrong" in levels else EXIT_WEAK if "weak" in levels else EXIT_CLEAN


def _app(settings: FarmSettings) -> Iterator[Finding]:
    try:
        app = load_application(settings.app, settings.factory, settings.interface)
    except ConfigError as error:
        yield Finding("wrong", str(error))
        return
    except SystemExit as error:
        yield Finding("wrong", f"app: importing {settings.app!r} ends the process (exit code {error.code})")
        return
    if installs_starlette_sessions(app):
        yield Finding("wrong", f"app: {settings.app} installs Starlette's SessionMiddleware, which hides our session")
    if keeps_own_sessions(app):
        yield Finding("weak", f"app: {settings.app} {HAS_ITS_OWN}")


def _moving_in(settings: FarmSettings) -> Iterator[Finding]:
    if settings.moving_in is None:
        return
    try:
        moving_in_of(settings.moving_in)
    except ConfigError as error:
        yield Finding("wrong", str(error))
        return
    if settings.moving_in.until <= datetime.now(UTC).date():
        yield Finding("weak", f"moving_in: it is over since {settings.moving_in.until}; drop [session.moving_in]")


def _tls(settings: FarmSettings) -> Iterator[Finding]:
    if not settings.tls_certificate:
        return
    try:
        context = tls_context(settings.tls_certificate, settings.tls_key)
    except ConfigError as error:
        yield Finding("wrong", str(error))
        return
    if settings.tls_sharing != "off":
        yield from _tls_sharing(context)
    if _others_may(Path(settings.tls_key), stat.S_IROTH):
        yield Finding("weak", f"tls_key: everybody on this machine can read {settings.tls_key}; run chmod 600 on it")
    certificate = x509.load_pem_x509_certificate(Path(settings.tls_certificate).read_bytes())
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    if left.total_seconds() <= 0:
        yield Finding("wrong", f"tls_certificate: it ended on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")
    elif left.days < CERTIFICATE_DAYS:
        yield Finding("weak", f"tls_certificate: it ends on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")


def _tls_sharing(context: ssl.SSLContext) -> Iterator[Finding]:
    try:
        open_door(context)
    except OpenSslRefused as refused:
        yield Finding("weak", f"tls_sharing: this Python cannot: {refused}; each process resumes only its own")


def _keys(settings: FarmSettings, environ: Mapping[str, str]) -> Iterator[Finding]:
    path = Path(settings.keys_file) if settings.keys_file else Path(settings.run_dir) / KEYS_FILE
    from_environment = bool(environ.get(KEYS_VARIABLE))
    if not from_environment and not path.exists():
        return  # the first start makes it
    try:
        load_or_create(path, environ)
    except ConfigError as error:
        yield Finding("wrong", str(error))
    if from_environment:
        yield Finding(
            "weak",
            f"{KEYS_VARIABLE}: an environment is seen in crash reports and by docker inspect, and coatcheck keys "
            "cannot rotate it; write the keys into keys_file (chmod 600)",
        )
    elif tree := _in_git(path):
        yield Finding("weak", f"keys_file: git in {tree} does not ignore {path}; whoever has it can forge sessions")


def _files_that_decide(settings: FarmSettings, config: Path | None) -> Iterator[Finding]:
    callers = Path(settings.service_callers) if settings.service_callers else None
    signals = Path(settings.signals) if settings.signals else None
    files = (
        (config, "what the farm runs"),
        (callers, "who may ask the session service"),
        (signals, "who may log anybody out"),
    )
    for path, what in files:
        if path is not None and _others_may(path, stat.S_IWGRP | stat.S_IWOTH):
            yield Finding("weak", f"{path}: others can change it, and so {what}; run chmod go-w on it")


def _passwords_in_sight(settings: FarmSettings, config: Path | None, flags: Mapping[str, object]) -> Iterator[Finding]:
    if not _holds_password(settings):
        return
    if flags.get("session_server"):
        yield Finding(
            "weak",
            "session_server: a password on the command line is seen by every user of this machine; give it by a config "
            "file (chmod 600)",
        )
    elif config is not None and _others_may(config, stat.S_IRGRP | stat.S_IROTH):
        yield Finding(
            "weak", f"{config}: others can read it, and it may hold session servers' passwords; run chmod 600"
        )


def _run_directory(settings: FarmSettings) -> Iterator[Finding]:
    path = Path(settings.run_dir)
    if why := unusable(path):
        yield Finding("wrong", f"run_dir: {why}; choose another")
    elif path.exists() and _others_may(path, stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("weak", f"run_dir: others can look into {path}; run chmod 700 on it")


def _audit_directory(settings: FarmSettings) -> Iterator[Finding]:
    if settings.audit_dir and settings.audit_max_bytes and (why := unusable(Path(settings.audit_dir))):
        yield Finding("wrong", f"audit_dir: {why}; choose another, or audit_max_bytes 0")


def _signals(settings: FarmSettings) -> Iterator[Finding]:
    if not settings.signals:
        return
    try:
        from coatcheck.service.signals.settings import bearer_of, read_signals, weak_signals
    except ModuleNotFoundError as error:
        yield Finding("wrong", f"signals: {error.name} is missing; pip install 'coatcheck[service]'")
        return
    path = Path(settings.signals)
    try:
        found = read_signals(path)
        for receiver in found.receivers.values():
            bearer_of(receiver, path)
    except ConfigError as error:
        yield Finding("wrong", str(error))
        return
    yield from (Finding("weak", line) for line in weak_signals(found))


def unusable(directory: Path) -> str:
    """Why a process of this user can neither make the directory nor write to it; empty if it can. Makes nothing."""
    there = directory
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is no directory"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def _address(settings: FarmSettings) -> Iterator[Finding]:
    try:
        socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        yield Finding("wrong", f"host: {settings.host!r} is no address of this machine ({error})")
    if settings.port and not _may_bind(settings.port):
        yield Finding("wrong", f"port: {settings.port} is for the administrator; choose one from 1024 on, or grant it")
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = settings.director.max_connections * DESCRIPTORS_A_CONNECTION
    if allowed != resource.RLIM_INFINITY and wanted > allowed:
        fits = allowed // DESCRIPTORS_A_CONNECTION
        line = f"max_connections: the system allows {allowed} open files, so about {fits} connections; raise ulimit -n"
        yield Finding("weak", line)


def _may_bind(port: int) -> bool:
    """Whether this user may listen on a port below 1024 (man 7 capabilities, man 7 ip)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    return port >= first_free or bool(effective >> CAP_NET_BIND_SERVICE & 1)


def _holds_password(settings: FarmSettings) -> bool:
    return any("@" in text for text in settings.session_server)


def _others_may(path: Path, bits: int) -> bool:
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & bits)
    except OSError:
        return False


def _in_git(path: Path) -> str:
    """The work tree whose next commit may take the file along; empty if there is none, or git cannot tell."""
    git = shutil.which("git")
    trees = [parent for parent in path.absolute().parents if (parent / ".git").exists()]
    if git is None or not trees:
        return ""
    command = [git, "-C", str(path.absolute().parent), "check-ignore", "-q", path.name]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return str(trees[0]) if done.returncode == NOT_IGNORED else ""
