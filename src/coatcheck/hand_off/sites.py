"""Which pages of a farm live at which site: origins, patterns, and who shares a cookie (protocol section 12)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.host_port import is_loopback
from coatcheck.options import check_plain_name, shown
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.site_chains import HOME, MAX_SITES

OWN_PATHS: Final = "/.coatcheck/"
"""Below it nothing belongs to an app; and directors answer 404 for what is below ``/.well-known/coatcheck/``."""
HAND_OFF_PATH: Final = OWN_PATHS + "hand-off"
MAX_PATTERNS: Final = 64
MAX_PAGE: Final = 2048
"""Characters of a path with its query that a session is handed over with."""

_PATTERN: Final = re.compile(r"/[A-Za-z0-9._~!$&'()+,;=:@%/-]{0,255}")
_PAGE: Final = re.compile(r"/[\x21-\x7e]*")
_DOTS: Final = re.compile(r"(^|/)(\.|%2e){1,2}(/|$)", re.IGNORECASE)
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")


HandOffMode = Literal["ticket", "token-in-url"]
"""A ticket that one browser can use once; or the token itself, which whoever sees the URL can use (mission A9)."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """``origin``: scheme, host and port, as browsers write it. ``paths``: the pages that live there, each a path, or
    ``/tickets/*`` for ``/tickets`` and all below it; none: all that no other site has."""

    name: str
    origin: str
    paths: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """Without the port, which cookies do not know."""
        return urlsplit(self.origin).hostname or ""


class Sites(msgspec.Struct, frozen=True, kw_only=True):
    """The table of all sites, the same at each of them, and which one is ``here``. Judged where it is built.

    Raises:
        ConfigError: one line that names the site and the mend.
    """

    table: tuple[Site, ...]
    here: str = ""
    """A site's name; not said, the home site's."""
    hand_off: HandOffMode = "ticket"
    """What travels in the URL."""

    def __post_init__(self) -> None:
        _check(self.table)
        if self.hand_off not in get_args(HandOffMode):
            raise ConfigError(f"hand_off: choose one of {', '.join(get_args(HandOffMode))}")
        names = [site.name for site in self.table]
        if self.here and self.here not in names:
            raise ConfigError(f"site: {shown(self.here)!r} is none of [sites]; name one of {', '.join(names)}")

    @property
    def home(self) -> Site:
        """The site without patterns: its tokens and its chain are those of a farm without sites."""
        return next(site for site in self.table if not site.paths)

    @property
    def own(self) -> Site:
        """The site that is served here."""
        return next((site for site in self.table if site.name == self.here), self.home)

    def of_origin(self, origin: str) -> Site | None:
        """The site of an origin, if it is one of ours."""
        return next((site for site in self.table if site.origin == origin), None)

    def of_page(self, path: str) -> Site | None:
        """Where a path lives: by the longest pattern, an exact one before one with a star.

        Letters, digits and ``-._~`` are the same in percent-encoding (RFC 3986, 6.2.2.2).

        ``None`` for a path with dot segments, which browsers and servers read in different ways: nobody is sent there.
        """
        if not _PAGE.fullmatch(path) or _DOTS.search(path):
            return None
        path = _ENCODED.sub(_plain, path)  # what an app is given: another spelling is no other page
        fitting = [(_weight(pattern), site) for site in self.table for pattern in site.paths if _fits(pattern, path)]
        return max(fitting, key=lambda one: one[0])[1] if fitting else self.home

    def scope(self, site: Site, cookies: CookiePolicy) -> str:
        """What a site's cookie is for: the host, or the domain that it is shared by."""
        domain = cookies.domain.lower()
        return domain if domain and (site.host == domain or site.host.endswith("." + domain)) else site.host

    def chain_name(self, site: Site, cookies: CookiePolicy) -> str:
        """Which chain of a record, and which audience of tokens, is a site's: that of the home site's cookie has no
        name."""
        scope = self.scope(site, cookies)
        return HOME if scope == self.scope(self.home, cookies) else scope

    def check_cookies(self, cookies: CookiePolicy) -> None:
        """Raises :class:`ConfigError` for cookies that cannot be handed from site to site."""
        own = self.scope(self.own, cookies)
        if all(self.scope(site, cookies) == own for site in self.table):
            return
        if cookies.same_site == "strict":
            raise ConfigError('cookie_same_site: "strict" cookies do not come along from another site; use "lax"')
        if cookies.path != "/":
            raise ConfigError("cookie_path: with [sites] of several hosts the cookie is for the whole host; drop it")


def _weight(pattern: str) -> tuple[int, bool]:
    return (len(pattern.removesuffix("/*")), not pattern.endswith("/*"))


def _fits(pattern: str, path: str) -> bool:
    if not pattern.endswith("/*"):
        return path == pattern
    stem = pattern[:-2]
    return path == stem or path.startswith(stem + "/")


def _plain(encoded: re.Match[str]) -> str:
    letter = chr(int(encoded[0][1:], 16))
    return letter if _UNRESERVED.fullmatch(letter) else encoded[0].upper()


def _check(table: tuple[Site, ...]) -> None:
    if not 2 <= len(table) <= MAX_SITES:
        raise ConfigError(f"sites: 2 to {MAX_SITES} of them, not {len(table)}; one site alone needs no table")
    for site in table:
        check_plain_name("sites", site.name)
        _check_origin(site)
        for mistake in _mistakes(site):
            raise ConfigError(f"[sites.{site.name}] {mistake}")
    homes = [site.name for site in table if not site.paths]
    if len(homes) != 1:
        raise ConfigError(
            f"sites: exactly one has no paths, for all pages that no other one has; now {', '.join(homes) or 'none'}"
        )
    for what, values in (
        ("name", [site.name for site in table]),
        ("origin", [site.origin for site in table]),
        ("path", [path for site in table for path in site.paths]),
    ):
        twice = next((one for one in values if values.count(one) > 1), None)
        if twice is not None:
            raise ConfigError(f"sites: the {what} {shown(twice)!r} stands there twice; drop one of the two")


def _check_origin(site: Site) -> None:
    where = f"[sites.{site.name}] origin"
    try:
        parts = urlsplit(site.origin)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(f"{where}: an origin such as https://shop.example (got {shown(site.origin)!r})") from None
    default = {"https": 443, "http": 80}.get(parts.scheme)
    written = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}" + (f":{port}" if port else "")
    if default is None or not host or site.origin != written or port == default or not site.origin.isascii():
        raise ConfigError(
            f"{where}: as browsers write it, https://HOST or https://HOST:PORT, in lower case, without a path and "
            f"without the port that goes without saying (got {shown(site.origin)!r})"
        )
    if re.search(r"[^a-z0-9.:_-]", host):
        raise ConfigError(f"{where}: a host of letters, digits, dots and hyphens (got {shown(host)!r})")
    if parts.scheme == "http" and not (is_loopback(host) or host.endswith(".localhost")):
        raise ConfigError(f"{where}: https:// for every host but this machine's own, or tickets can be read on the way")


def _mistakes(site: Site) -> Iterator[str]:
    if len(site.paths) > MAX_PATTERNS:
        yield f"paths: {MAX_PATTERNS} at most"
    for path in site.paths:
        if not _PATTERN.fullmatch(path.removesuffix("*")) or _DOTS.search(path) or path in ("/", "/*"):
            yield f'paths: a path such as "/about", or "/tickets/*" for all below it (got {shown(path)!r})'
        elif path.endswith("*") and not path.endswith("/*"):
            yield f"paths: a star stands for whole segments, as in /tickets/* (got {shown(path)!r})"
        elif (path.removesuffix("*") + "/").startswith(OWN_PATHS):
            yield f"paths: what is below {OWN_PATHS} is coatcheck's own"
