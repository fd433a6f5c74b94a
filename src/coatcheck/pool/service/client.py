"""A client of the service for the command line: blocking, standard library alone."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final, TypeVar

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.pool import PoolError
from coatcheck.pool.service import messages as m
from coatcheck.service_kit.addresses import NoRedirect, check_url
from coatcheck.service_kit.messages import Problem

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
TIMEOUT_S: Final = 30.0

Answer = TypeVar("Answer")


class ServiceRefused(PoolError):
    """The service answered with a problem, or not at all. ``status``: of HTTP; 0 without an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServiceClient:
    """Asks a service at ``url`` with a bearer token. ``authority``: a file of certificates to trust instead."""

    def __init__(self, url: str, bearer: str, authority: str | None = None) -> None:
        check_url("url", url)
        try:
            context = ssl.create_default_context(cafile=authority)
        except OSError as error:
            raise ConfigError(f"ca-file: {error}") from None
        self._url = url.rstrip("/")
        self._bearer = bearer
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), NoRedirect, urllib.request.HTTPSHandler(context=context)
        )

    def stats(self) -> m.Stats:
        return self.ask("GET", "/v1/stats", m.Stats)

    def tokens(self, user: str | None = None) -> list[Any]:
        path = "/v1/users" if user is None else f"/v1/users/{_quoted(user)}"
        return list(self.ask("GET", path, m.Users).tokens)

    def remove(self, user: str, token_id: int | None = None, *, soft: bool = False) -> int:
        path = f"/v1/users/{_quoted(user)}"
        if token_id is not None:
            path += f"/tokens/{token_id}"
        if soft:
            path += "?soft=true"
        return self.ask("DELETE", path, m.Removed).removed

    def clean_up(self) -> int:
        return self.ask("POST", "/v1/clean-up", m.Removed).removed

    def ask(self, method: str, path: str, kind: type[Answer], body: Any = None) -> Answer:
        """One request; its answer, judged. Raises :class:`ServiceRefused`."""
        content = msgspec.json.encode(body) if body is not None else b"{}" if method == "POST" else None
        headers = {"Authorization": f"Bearer {self._bearer}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, content, headers, method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return msgspec.json.decode(response.read(MAX_ANSWER_BYTES) or b"null", type=kind)
        except urllib.error.HTTPError as error:
            raise ServiceRefused(error.code, _told(error)) from None
        except (OSError, http.client.BadStatusLine) as error:
            reason = getattr(error, "reason", error)
            if not isinstance(error, OSError):
                reason = "what is there speaks no HTTP"
            raise ServiceRefused(0, f"{self._url} does not answer: {reason}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, http.client.HTTPException):
            raise ServiceRefused(0, f"{self._url} is no service of a pool") from None


def _quoted(user: str) -> str:
    return urllib.parse.quote(user, safe="")


def _told(error: urllib.error.HTTPError) -> str:
    with error:
        try:
            problem = msgspec.json.decode(error.read(MAX_ANSWER_BYTES), type=Problem)
        except (msgspec.DecodeError, UnicodeDecodeError, OSError, http.client.HTTPException):
            return f"it answered {error.code}"
    return f"{problem.title}: {problem.detail}"
