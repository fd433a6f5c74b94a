"""Connections to one web server that are in no use at the moment: which one is next, and which ones are given up."""

from __future__ import annotations

from typing import Generic, TypeVar

Link = TypeVar("Link")


class IdlePool(Generic[Link]):
    """At most ``most`` unused connections, the latest used first; what they are is the shell's business.

    One that nobody has used for ``idle_s`` seconds is given up.
    """

    __slots__ = ("_idle_s", "_links", "_most", "is_open")

    def __init__(self, most: int, idle_s: float) -> None:
        self._most = most
        self._idle_s = idle_s
        # In the order of release, so that the first one has been unused longest.
        self._links: dict[Link, float] = {}
        self.is_open = True
        """Whether connections are still kept: not any more once the director stops."""

    def __len__(self) -> int:
        return len(self._links)

    def keep(self, link: Link, now: float) -> bool:
        """Keep a connection; ``False``: there is no room or no use for it, close it."""
        if not self.is_open or len(self._links) >= self._most:
            return False
        self._links[link] = now
        return True

    def take(self) -> Link | None:
        """The connection that was used last."""
        return self._links.popitem()[0] if self._links else None

    def forget(self, link: Link) -> None:
        """A connection has ended by itself, or is not to be used again."""
        self._links.pop(link, None)

    def expired(self, now: float) -> list[Link]:
        """Those that nobody has used for too long: they are forgotten here, close them."""
        old: list[Link] = []
        for link, since in self._links.items():
            if since > now - self._idle_s:
                break
            old.append(link)
        for link in old:
            del self._links[link]
        return old

    def take_all(self) -> list[Link]:
        """All of them: they are forgotten here, close them."""
        links = list(self._links)
        self._links.clear()
        return links
