"""Logins and logouts that the service does by itself: a command, or a web address."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.pool import LoginRefused, SignedIn
from coatcheck.pool.payload import Payload
from coatcheck.service_kit.addresses import NoRedirect, check_url

MAX_ANSWER_BYTES: Final = 128 * 1024
REFUSED_STATUS: Final = 77
"""A login command ends with it (``EX_NOPERM``) when the upstream refused the credentials for good; an address: 403."""

TIMEOUT_S: Final = 30.0
"""The pool's own limits (login_timeout, logout_timeout) are shorter or the same; this one ends the process."""

log: Final = logging.getLogger(__name__)

LoginFunction = Callable[..., Awaitable[SignedIn]]
LogoutFunction = Callable[[str, str], Awaitable[None]]


class LoginAnswer(msgspec.Struct, frozen=True):
    """What a login prints, or answers: ``{"token": "...", "expires_in_s": 900}``; all but ``token`` may be missing.

    ``payload``: a small object that belongs to the token. ``refresh_token``: for the next login, of a shared token.
    ``upstream_state``: by what the upstream finds its own state of the user again, for the next login.
    """

    token: str
    expires_in_s: float | None = None
    payload: Payload | None = None
    refresh_token: str | None = None
    upstream_state: str | None = None

    def __repr__(self) -> str:
        return "<LoginAnswer>"


def _asked(user: str, password: str | None, refresh_token: str | None, upstream_state: str | None) -> dict[str, Any]:
    """What a login is given, as JSON."""
    return {"user": user, "password": password, "refresh_token": refresh_token, "upstream_state": upstream_state}


class UpstreamError(Exception):
    """A login or logout outside did not work; the message holds no secret."""


class UpstreamRefused(UpstreamError):
    """It said that these credentials need not be tried again."""


def login_command(command: str) -> LoginFunction:
    """Run ``command`` (no shell) with ``{"user", "password", "refresh_token", "upstream_state"}`` as JSON on its input;
    it prints a login answer."""
    arguments = _split("login-command", command)

    async def login(
        user: str, password: str | None, *, refresh_token: str | None = None, upstream_state: str | None = None
    ) -> SignedIn:
        asked = _asked(user, password, refresh_token, upstream_state)
        with _refusing(user), _reported("login", user):
            return _signed_in(await _run(arguments, asked))

    return login


def logout_command(command: str) -> LogoutFunction:
    """Run ``command`` (no shell) with ``{"user", "token"}`` as JSON on its input."""
    arguments = _split("logout-command", command)

    async def logout(user: str, token: str) -> None:
        with _reported("logout", user):
            await _run(arguments, {"user": user, "token": token})

    return logout


def login_url(url: str) -> LoginFunction:
    """POST ``{"user", "password", "refresh_token", "upstream_state"}`` as JSON to ``url``; it answers 200 and a login
    answer."""
    check_url("login-url", url)

    async def login(
        user: str, password: str | None, *, refresh_token: str | None = None, upstream_state: str | None = None
    ) -> SignedIn:
        asked = _asked(user, password, refresh_token, upstream_state)
        with _refusing(user), _reported("login", user):
            return _signed_in(await asyncio.to_thread(_post, url, asked))

    return login


def logout_url(url: str) -> LogoutFunction:
    """POST ``{"user", "token"}`` as JSON to ``url``."""
    check_url("logout-url", url)

    async def logout(user: str, token: str) -> None:
        with _reported("logout", user):
            await asyncio.to_thread(_post, url, {"user": user, "token": token})

    return logout


def outside_logins(
    by_command: str | None, by_url: str | None, out_by_command: str | None, out_by_url: str | None
) -> tuple[LoginFunction | None, LogoutFunction | None]:
    """What logs in and out, of a command or an address each. Raises :class:`ConfigError` for both of them."""
    for kind, command, url in (("login", by_command, by_url), ("logout", out_by_command, out_by_url)):
        if command and url:
            raise ConfigError(f"{kind}-command and {kind}-url: only one of them")
    log_in = login_command(by_command) if by_command else login_url(by_url) if by_url else None
    log_out = logout_command(out_by_command) if out_by_command else logout_url(out_by_url) if out_by_url else None
    return log_in, log_out


@contextlib.contextmanager
def _refusing(user: str) -> Iterator[None]:
    try:
        yield
    except UpstreamRefused:
        raise LoginRefused(user) from None


@contextlib.contextmanager
def _reported(what: str, user: str) -> Iterator[None]:
    """The pool tells callers only that a login failed; why is for the operator."""
    try:
        yield
    except (UpstreamError, OSError) as error:
        log.warning("%s of %r failed: %s", what, user, error)
        raise


def _split(setting: str, command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None
    if not arguments:
        raise ConfigError(f"{setting}: a command is needed")
    if shutil.which(arguments[0]) is None:
        raise ConfigError(f"{setting}: {arguments[0]!r} is no program that can be run")
    return arguments


def _signed_in(answer: bytes) -> SignedIn:
    try:
        found = msgspec.json.decode(answer, type=LoginAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamError('the login answered something else than {"token": "..."}') from None
    return SignedIn(found.token, found.expires_in_s, found.payload, found.refresh_token, found.upstream_state)


async def _run(arguments: list[str], asked: dict[str, Any]) -> bytes:
    """The command's output. Its process is ended with the call, however that ends."""
    pipe = asyncio.subprocess.PIPE
    # Through the input and not the arguments: those can be read by everybody on the machine.
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=pipe, stdout=pipe, limit=MAX_ANSWER_BYTES, env=dict(os.environ)
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            process.stdin.write(msgspec.json.encode(asked))
            process.stdin.close()
            output = await process.stdout.read(MAX_ANSWER_BYTES + 1)
            while len(output) <= MAX_ANSWER_BYTES and (more := await process.stdout.read(MAX_ANSWER_BYTES)):
                output += more
            if len(output) > MAX_ANSWER_BYTES:
                raise UpstreamError(f"the command printed more than {MAX_ANSWER_BYTES} bytes")
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status == REFUSED_STATUS:
        raise UpstreamRefused("the command refused it for good")
    if status:
        raise UpstreamError(f"the command ended with status {status}")
    return output


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect)


def _post(url: str, asked: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, msgspec.json.encode(asked), {"Content-Type": "application/json"})
    try:
        with _opener.open(request, timeout=TIMEOUT_S) as response:
            answer: bytes = response.read(MAX_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        kind = UpstreamRefused if error.code == http.HTTPStatus.FORBIDDEN else UpstreamError
        raise kind(f"it answered {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UpstreamError(f"it did not answer: {type(error).__name__}") from None
    if len(answer) > MAX_ANSWER_BYTES:
        raise UpstreamError(f"it answered more than {MAX_ANSWER_BYTES} bytes")
    return answer
