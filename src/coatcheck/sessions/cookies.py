"""Cookies: their names, attributes and the one place where a Cookie header is read (ASVS 3.3)."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

from coatcheck.duration import format_duration
from coatcheck.errors import ConfigError
from coatcheck.options import Option, judge, shown

SameSite = Literal["lax", "strict", "none"]

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_PREFIXED: Final = re.compile(r"__(secure|host|http|host-http)-", re.IGNORECASE)
_PATH: Final = re.compile(r"/[!#-+\--:<-\[\]-~]*")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

MAX_COOKIE_BYTES: Final = 4096
MAX_PATH: Final = 1024
"""Bytes of a Path or Domain attribute; browsers ignore longer ones (RFC 6265bis section 5.6)."""
MAX_AGE_S: Final = 400 * 86400.0
"""Browsers keep no cookie longer than 400 days (RFC 6265bis section 5.5)."""


class CookiePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How the browser keeps its token. Judged where it is built.

    Raises:
        ConfigError: what no browser would take, or would take otherwise than it says.
    """

    name: Annotated[str, Option("The session cookie's name, without the `__Host-` prefix.")] = "coatcheck"
    max_age_s: Annotated[
        float,
        Option(
            "How long browsers keep the cookie; 0 forgets it with the browser's session.",
            duration=True,
            maximum=MAX_AGE_S,
        ),
    ] = 0.0
    same_site: Annotated[
        SameSite, Option("Which requests from other sites carry the cookie; `none` lets all, and needs `Secure`.")
    ] = "lax"
    domain: Annotated[
        str,
        Option(
            "Share the session with this domain and its subdomains; the prefix is `__Secure-` then.",
            metavar="DOMAIN",
        ),
    ] = ""
    path: Annotated[
        str, Option("Only requests below this path carry the cookie; the prefix is `__Secure-` then.", metavar="PATH")
    ] = "/"
    partitioned: Annotated[
        bool, Option("Each top-level site gets sessions of its own (CHIPS), for apps embedded in other sites.")
    ] = False
    clear_site_data: Annotated[
        bool,
        Option(
            "The answer to a logout has browsers forget every cookie of the whole registrable domain "
            "(`Clear-Site-Data`): those of other apps and of hosts beside this one, too."
        ),
    ] = False
    insecure_localhost: Annotated[
        bool,
        Option(
            "Development mode: cookies without `Secure`, for plain HTTP on this machine only. If not said, it is on "
            "for a loopback host without TLS and without a trusted proxy.",
            flag="--insecure-localhost",
            env="COATCHECK_INSECURE_LOCALHOST",
        ),
    ] = False

    def __post_init__(self) -> None:
        judge(self, "cookie_")
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"cookie_name: letters, digits and -_. only, 1 to 64 (got {shown(self.name)!r})")
        if _PREFIXED.match(self.name):
            raise ConfigError("cookie_name: the prefix is made from domain and path; write the name without it")
        if self.domain:
            _check_domain(self.domain)
        if len(self.path) > MAX_PATH or not _PATH.fullmatch(self.path):
            raise ConfigError(
                f"cookie_path: begins with /, without spaces, quotes, semicolons (got {shown(self.path)!r})"
            )
        if self.partitioned and self.same_site != "none":
            raise ConfigError('cookie_partitioned: needs same_site = "none", or no embedded page sees the cookie')
        if self.insecure_localhost and self.needs_secure:
            what = 'cookie_same_site "none"' if self.same_site == "none" else "cookie_domain"
            raise ConfigError(f"insecure_localhost: browsers refuse {what} without Secure cookies; drop one of the two")

    @property
    def needs_secure(self) -> bool:
        """Whether browsers would refuse such a cookie without ``Secure``, or on ``localhost``."""
        return self.same_site == "none" or bool(self.domain)

    @property
    def prefix(self) -> str:
        """``__Host-`` wherever the browser allows it: no subdomain and no plain HTTP can set such a cookie."""
        if self.insecure_localhost:
            return ""
        return "__Secure-" if self.domain or self.path != "/" else "__Host-"

    def for_whole_host(self) -> CookiePolicy:
        """The same without Domain, Path and Max-Age: for a cookie that steers the requests of one host."""
        return msgspec.structs.replace(self, domain="", path="/", max_age_s=0.0)

    def full_name(self, suffix: str = "") -> bytes:
        return f"{self.prefix}{self.name}{suffix}".encode()

    def attributes(self, max_age_s: float | None) -> bytes:
        """What follows the value in ``Set-Cookie``. ``max_age_s``: 0 deletes, ``None`` forgets it with the browser."""
        parts = [f"; Path={self.path}; HttpOnly"]
        if not self.insecure_localhost:
            parts.append("; Secure")
        if self.domain:
            parts.append(f"; Domain={self.domain}")
        if max_age_s is not None:
            parts.append(f"; Max-Age={math.ceil(max_age_s)}")
        parts.append(f"; SameSite={self.same_site.capitalize()}")
        if self.partitioned:
            parts.append("; Partitioned")
        return "".join(parts).encode()

    @property
    def device_path(self) -> str | None:
        """Below it is what browsers ask for their bound sessions; ``None`` where no session can be bound: browsers do
        that over TLS alone, and we for one host."""
        if self.insecure_localhost or self.domain:
            return None
        return f"{self.path.rstrip('/')}/.coatcheck/device/"

    def check_binding(self, device_binding: str) -> None:
        """Raises ConfigError for a cookie that cannot do what is demanded of it."""
        if device_binding != "off" and self.domain:
            raise ConfigError("device_binding: a session is bound at one host; drop cookie_domain, or device_binding")
        if device_binding == "require-after-login" and self.insecure_localhost:
            raise ConfigError(
                'device_binding: browsers bind no session without TLS; give tls_certificate, or use "offer"'
            )

    def check_lifetime(self, absolute_timeout_s: float) -> None:
        """Raises ConfigError for a cookie that outlives every session."""
        if self.max_age_s > absolute_timeout_s:
            raise ConfigError(
                "cookie_max_age: longer than absolute_timeout, so the cookie would outlive its session; "
                "shorten it or raise absolute_timeout (and idle_timeout)"
            )

    def misfits(self, idle_timeout_s: float, rotate_after_s: float) -> Iterator[str]:
        """What a session does not hold of what the cookie promises: one line each, the setting and the mend."""
        if self.max_age_s > idle_timeout_s:
            yield (
                f"cookie_max_age: longer than idle_timeout ({format_duration(idle_timeout_s)}), so whoever comes back "
                "later is logged out, cookie or not; raise idle_timeout, or shorten it"
            )
        if 0 < self.max_age_s <= rotate_after_s:
            yield (
                f"cookie_max_age: no longer than rotate_after ({format_duration(rotate_after_s)}), when the browser "
                "gets its next cookie: it forgets sessions in use; raise it, or shorten rotate_after"
            )


def _check_domain(domain: str) -> None:
    labels = domain.split(".")
    try:
        ipaddress.ip_address(domain)
    except ValueError:
        if len(domain) <= 253 and len(labels) > 1 and all(_LABEL.fullmatch(label) for label in labels):
            return
    raise ConfigError(
        f"cookie_domain: a host name of two labels or more, no dot in front, no address (got {shown(domain)!r})"
    )


class CookieJar:
    """Reads and writes one cookie name; bytes in, bytes out."""

    __slots__ = ("_attributes", "_length", "_policy", "_prefix", "deletion", "name")

    def __init__(self, policy: CookiePolicy, suffix: str = "", remembered_s: float = 0.0) -> None:
        """``remembered_s``: the Max-Age of a remembered session's cookie, where the policy says none."""
        self._policy = policy
        self.name = policy.full_name(suffix)
        self._prefix = self.name + b"="
        self._length = len(self._prefix)
        kept_s = policy.max_age_s or remembered_s
        self._attributes = {
            None: policy.attributes(policy.max_age_s or None),
            False: policy.attributes(None),
            True: policy.attributes(min(kept_s, MAX_AGE_S) or None),
        }
        self.deletion = self._prefix + b'""; Expires=Thu, 01 Jan 1970 00:00:00 GMT' + policy.attributes(0)

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

    def set_cookie(self, value: bytes, remember: bool | None = None) -> tuple[bytes, bytes]:
        """``remember``: whether the browser keeps it when it ends; ``None``: as the policy says."""
        return (b"set-cookie", self._prefix + value + self._attributes[remember])

    def set_short_cookie(self, value: bytes, life_s: float) -> tuple[bytes, bytes]:
        """``life_s``: how long the browser keeps it, whatever the policy says."""
        return (b"set-cookie", self._prefix + value + self._policy.attributes(life_s))

    @property
    def fixed_attributes(self) -> str:
        """What each Set-Cookie of it says of itself, but for how long it lives."""
        return self._policy.attributes(None).decode().removeprefix("; ")

    def delete_cookie(self) -> tuple[bytes, bytes]:
        return (b"set-cookie", self.deletion)


ANONYMOUS_MARK: Final = b"s."
LOGIN_MARK: Final = b"l."
"""How the one cookie of a framework begins; the token follows."""


class MarkedJar(CookieJar):
    """Reads and writes the value of a cookie alone, which somebody else names; the value begins with a mark."""

    __slots__ = ()

    def __init__(self, mark: bytes) -> None:
        self._policy = CookiePolicy()
        self.name = self._prefix = mark
        self._length = len(mark)
        self._attributes = {None: b"", False: b"", True: b""}
        self.deletion = b""

    def read(self, header: bytes) -> bytes | None:
        """``header``: the cookie's value; ``None`` if it does not begin with the mark."""
        return header[self._length :] if header.startswith(self._prefix) else None

    def set_short_cookie(self, value: bytes, life_s: float) -> tuple[bytes, bytes]:
        """How long the cookie lives is for the framework to say."""
        return self.set_cookie(value)
