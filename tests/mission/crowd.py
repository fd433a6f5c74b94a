"""Many browsers at once, each with data of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .mission_farm import Browser, Holdings, MissionFarm


class Visitor:
    """A browser, what its session holds, and the web server that hosts it."""

    def __init__(self, number: int, browser: Browser) -> None:
        self.browser = browser
        self.data: dict[str, Any] = {}
        self.server = ""
        for name, value in (("who", f"visitor {number}"), ("cart", {"tea": number, "list": [number, "more"]})):
            self.put(name, value)
        self.key = browser.key

    def put(self, name: str, value: Any) -> None:
        answer = self.browser.put(name, value)
        self.data[name] = value
        self.server = answer["server"]
        assert answer["data"] == self.data

    def read(self) -> str:
        """Check that all data is there; returns the web server that answered."""
        answer = self.browser.read()
        assert answer["data"] == self.data
        self.server = answer["server"]
        return self.server


@contextmanager
def crowd_of(farm: MissionFarm, count: int) -> Iterator[list[Visitor]]:
    with ExitStack() as stack:
        yield [Visitor(number, stack.enter_context(Browser(farm))) for number in range(count)]


def holders(holdings: Holdings, visitor: Visitor) -> set[str]:
    """The session servers that hold this visitor's session, with all its data and not one item more or less."""
    return {
        server for server, held in holdings.items() if visitor.key in held and held[visitor.key].data == visitor.data
    }


def keys_held(holdings: Holdings) -> dict[str, set[bytes]]:
    return {server: set(held) for server, held in holdings.items()}
