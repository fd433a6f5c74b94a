"""Cookies: their names, attributes and the one place where a Cookie header is read (ASVS 3.3)."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from coatcheck.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
MAX_COOKIE_BYTES = 4096


class CookiePolicy(msgspec.Struct, frozen=True):
    """How the browser keeps its token.

    ``insecure_localhost`` is the development mode for plain HTTP on one's own machine: no ``Secure``, no ``__Host-``.
    ``domain`` shares the session among subdomains, and gives up ``__Host-``. ``max_age_s``: ``None`` forgets the cookie
    with the browser's session.
    """

    name: str = "coatcheck"
    domain: str | None = None
    same_site: Literal["lax", "strict", "none"] = "lax"
    max_age_s: int | None = None
    insecure_localhost: bool = False

    def check(self) -> None:
        """Raises :class:`ConfigError` for what no browser would take."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"cookie name {self.name!r}: letters, digits and -_. only, at most 64")
        if self.same_site == "none" and self.insecure_localhost:
            raise ConfigError("same_site 'none' needs Secure cookies, so not the insecure localhost mode")
        if self.domain is not None and not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", self.domain):
            raise ConfigError(f"cookie domain {self.domain!r} is no host name")

    def full_name(self, suffix: str = "") -> bytes:
        prefix = "" if self.insecure_localhost else "__Secure-" if self.domain else "__Host-"
        return f"{prefix}{self.name}{suffix}".encode()

    def attributes(self) -> bytes:
        parts = ["; Path=/; HttpOnly"]
        if not self.insecure_localhost:
            parts.append("; Secure")
        if self.domain:
            parts.append(f"; Domain={self.domain}")
        if self.max_age_s is not None:
            parts.append(f"; Max-Age={self.max_age_s}")
        parts.append(f"; SameSite={self.same_site.capitalize()}")
        return "".join(parts).encode()


class CookieJar:
    """Reads and writes one cookie name; bytes in, bytes out."""

    __slots__ = ("_attributes", "_length", "_prefix", "deletion", "name")

    def __init__(self, policy: CookiePolicy, suffix: str = "") -> None:
        self.name = policy.full_name(suffix)
        self._prefix = self.name + b"="
        self._length = len(self._prefix)
        self._attributes = policy.attributes()
        forget = msgspec.structs.replace(policy, max_age_s=0).attributes()
        self.deletion = self._prefix + b'""; Expires=Thu, 01 Jan 1970 00:00:00 GMT' + forget

    def read(self, header: bytes) -> bytes | None:
        """The first value of this cookie in a Cookie header (RFC 6265 section 5.4), or ``None``."""
        if header.startswith(self._prefix):
            start = self._length
        else:
            at = header.find(self._prefix)
            if at < 0 or (header[at - 2 : at] != b"; " and (at := self._find_plainly(header)) < 0):
                return None
            start = at + self._length
        end = header.find(b";", start)
        return header[start:] if end < 0 else header[start:end]

    def _find_plainly(self, header: bytes) -> int:
        """Some clients separate cookies by ``;`` without a space; other cookies' names and values may end as ours."""
        at = 0
        for part in header.split(b";"):
            stripped = part.lstrip(b" \t")
            if stripped.startswith(self._prefix):
                return at + len(part) - len(stripped)
            at += len(part) + 1
        return -1

    def set_cookie(self, value: bytes) -> tuple[bytes, bytes]:
        return (b"set-cookie", self._prefix + value + self._attributes)

    def delete_cookie(self) -> tuple[bytes, bytes]:
        return (b"set-cookie", self.deletion)
