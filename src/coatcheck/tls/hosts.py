"""Host names as TLS clients send them, and which of them may resume each other's sessions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from coatcheck.errors import ConfigError

MAX_HOST_BYTES: Final = 255


class Siblings:
    """Which host names may resume each other's sessions: each its own, unless said otherwise.

    ``groups``: names that one certificate covers and the same servers answer. Raises :class:`ConfigError` if a name is
    in two of them, or none.
    """

    def __init__(self, groups: Iterable[Iterable[str]] = ()) -> None:
        self._family: dict[str, int] = {}
        self._first: dict[int, str] = {}
        for number, group in enumerate(groups):
            names = [group] if isinstance(group, str) else list(group)
            for name in names:
                host = as_host(name) if isinstance(name, str) else ""
                if not host or self._family.setdefault(host, number) != number:
                    raise ConfigError(f"siblings: each host name once, in one group (got {name!r})")
                self._first.setdefault(number, host)

    def first_of(self, host: str) -> str:
        """The same name for all of a group; a host of none is its own."""
        family = self._family.get(host)
        return host if family is None else self._first[family]

    def may_share(self, one: str, other: str) -> bool:
        """Both as :func:`as_host` writes them."""
        if one == other:
            return True
        family = self._family.get(one)
        return family is not None and family == self._family.get(other)


def as_host(name: str | bytes) -> str:
    """A host name as it is compared, and as clients send it: in ASCII (RFC 6066 section 3); empty if it is none."""
    raw = name.encode() if isinstance(name, str) else name
    if not 0 < len(raw) <= MAX_HOST_BYTES or not raw.isascii():
        return ""
    return raw.decode().lower().rstrip(".")
