"""The host of the director: the embedded one as shipped, before the web servers of a site."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, Final

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.simulation.site.http_server import CREDENTIAL, HTTP_PORT
from coatcheck.simulation.world.machine import Machine
from coatcheck.simulation.world.world import SimulatedWorld

PORT: Final = 8000
HURRIED: Final = {"resend_after_s": 1.5, "first_byte_timeout_s": 4.0, "hold_response_s": 0.3, "upstream_idle_s": 1.0}
"""Settings of every other farm: deadlines that a history lives to see."""


class DirectorHost:
    """The director can be frozen, killed and started again; its host's address stays."""

    name = "director"

    def __init__(self, world: SimulatedWorld, webs: Iterable[str], dice: Random) -> None:
        address_of = world.hosts.address_of
        servers = tuple(
            WebServer(name, address_of(name), HTTP_PORT, tag=tag_of(name), credential=CREDENTIAL) for name in webs
        )
        hurried: dict[str, Any] = HURRIED if dice.random() < 0.5 else {}
        self.options = DirectorOptions(servers=servers, host=address_of(self.name), port=PORT, **hurried)
        self._world = world
        self.machine: Machine
        self._director: EmbeddedDirector
        self.start()

    def start(self) -> None:
        """A new process, which knows nothing of the one before."""
        self.machine = self._world.machine(self.name)
        self.machine.call(self._build)
        self.machine.start(self._director.start())

    def _build(self) -> None:
        self._director = EmbeddedDirector(self.options)

    @property
    def alive(self) -> bool:
        return self.machine.alive

    def kill(self) -> None:
        self.machine.kill()

    def freeze(self) -> None:
        self.machine.freeze()

    def thaw(self) -> None:
        self.machine.thaw()

    def web_died(self, name: str) -> None:
        """What a supervisor tells it."""
        self.machine.call(self._director.server_died, name)

    def status(self) -> dict[str, Any]:
        """Its own counters."""
        answer: dict[str, Any] = self.machine.call(self._director.status)
        return answer


def tag_of(name: str) -> str:
    """What the route cookie says of a web server."""
    return f"{name}.tag"
