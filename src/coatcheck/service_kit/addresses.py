"""Web addresses that an operator gives us, and what we never do with what we send there."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from typing import Final

from coatcheck.errors import ConfigError

_PLAIN: Final = re.compile(r"[\x21-\x7e]+")


def check_url(setting: str, url: str) -> None:
    """Raises :class:`ConfigError` unless it is the address of a web server, in ASCII (RFC 3986)."""
    try:
        parts = urllib.parse.urlsplit(url)
        # Reading the port judges it.
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:
        right = False
    # A user in an address would not be sent; so that nobody relies on it, and no password is shown, it is refused.
    if not right or not _PLAIN.fullmatch(url) or "@" in parts.netloc:
        raise ConfigError(f"{setting}: an address such as http://127.0.0.1:8200 is needed")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send a bearer token or a password on to somebody else."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None
