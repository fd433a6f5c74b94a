"""What a running farm does for the command line: status, sessions, drain, admit, stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from coatcheck.farm.control.lines import ControlError, Message
from coatcheck.farm.operations.key_operations import KeyOperations
from coatcheck.farm.operations.status import farm_status
from coatcheck.farm.operations.tls_operations import TlsOperations
from coatcheck.farm.supervision.child import StartFailed
from coatcheck.farm.supervision.keeper import Keeper
from coatcheck.farm.supervision.supervisor import Supervisor

CALL_TIMEOUT_S: Final = 5.0
LIST_TIMEOUT_S: Final = 60.0
DRAIN_POLL_S: Final = 0.1
QUIET_POLLS: Final = 3
"""How often in a row nothing must be in flight, so that a request between director and web server is seen."""

MAX_LISTED: Final = 10_000

Progress = Callable[[Message], None]


class Operations:
    """Answers the requests on the supervisor's control socket."""

    def __init__(self, farm: Supervisor) -> None:
        self._farm = farm
        self._moving: set[str] = set()
        self._keys = KeyOperations(farm)
        self._tls = TlsOperations(farm)
        self._answers: dict[str, Callable[[Message, Progress], Awaitable[Message]]] = {
            "status": self._status,
            "counts": self._counts,
            "drain": self._drain,
            "admit": self._admit,
            "sessions.ls": self._list,
            "sessions.show": self._show,
            "sessions.close": self._close,
            "keys.ls": self._keys.ls,
            "keys.announce": self._keys.announce,
            "keys.rotate": self._keys.rotate,
            "keys.revoke": self._keys.revoke,
            "service.credential": self._keys.credential,
            "tls.status": self._tls.status,
            "tls.rotate": self._tls.rotate,
        }

    async def answer(self, message: Message, progress: Progress) -> Message:
        """Carry out one request.

        Raises:
            ControlError: the caller reads its one line.
        """
        operation = self._answers.get(str(message.get("op")))
        if operation is None:
            raise ControlError(f"unknown operation {message.get('op')!r}")
        return await operation(message, progress)

    async def _status(self, message: Message, progress: Progress) -> Message:
        return {"status": await farm_status(self._farm)}

    async def _counts(self, message: Message, progress: Progress) -> Message:
        """The same for who counts: each process has the time that the settings give it."""
        return {"counts": await farm_status(self._farm, self._farm.settings.metrics_timeout_s)}

    # Draining

    async def _drain(self, message: Message, progress: Progress) -> Message:
        keeper = self._web_server(message.get("server"))
        given = message.get("timeout_s")
        timeout_s = float(given) if isinstance(given, int | float) else self._farm.settings.drain_timeout_s
        with _Moving(self._moving, keeper.name):
            return await self._drain_one(keeper, timeout_s, progress)

    async def _drain_one(self, keeper: Keeper, timeout_s: float, progress: Progress) -> Message:
        if keeper.state == "drained":
            return {"drained": keeper.name, "seconds": 0.0}
        if not [other for other in self._farm.web_servers if other is not keeper and other.state == "ready"]:
            raise ControlError(f"{keeper.name} is the last web server that takes requests; admit another first")
        began = time.monotonic()
        self._farm.drained.add(keeper.name)
        await self._tell_directors("drain", keeper.name)
        if keeper.state == "ready":
            # Its health check stays good until it stops: an ill server's open requests are sent elsewhere.
            keeper.mark_draining()
        self._farm.console.say(f"{keeper.name} drains: no new requests, the open ones go on")
        open_requests = await self._wait_quiet(keeper, began + timeout_s, progress)
        if open_requests:
            raise ControlError(
                f"{keeper.name} still has {open_requests} open requests after {timeout_s:g} s; it gets no new ones: "
                f"drain it again to wait on, or admit it"
            )
        await keeper.stop(self._farm.settings.stop_grace_s, final="drained")
        self._farm.console.say(f"{keeper.name} is drained and stopped")
        return {"drained": keeper.name, "seconds": round(time.monotonic() - began, 2)}

    async def _tell_directors(self, operation: str, server: str) -> None:
        """A director that is down now is told at its start."""
        for director in self._farm.directors:
            if director.state == "ready":
                await director.call(operation, CALL_TIMEOUT_S, server=server)

    async def _wait_quiet(self, keeper: Keeper, deadline: float, progress: Progress) -> int:
        quiet, shown = 0, -1
        while True:
            if keeper.state != "draining":
                return 0
            # Again each time: one may have been on its way from a director.
            await keeper.call("hang_up", CALL_TIMEOUT_S)
            in_flight = await self._in_flight(keeper)
            quiet = 0 if in_flight else quiet + 1
            if quiet >= QUIET_POLLS:
                return 0
            if time.monotonic() >= deadline:
                return in_flight
            if in_flight != shown:
                progress({"progress": f"{in_flight} requests open"})
                shown = in_flight
            await asyncio.sleep(DRAIN_POLL_S)

    async def _in_flight(self, keeper: Keeper) -> int:
        """Open requests of a web server, as it and as the directors count them."""
        counts = [int((await keeper.call("status", CALL_TIMEOUT_S))["status"]["in_flight"])]
        for director in self._farm.directors:
            if director.state == "ready":
                status = (await director.call("status", CALL_TIMEOUT_S))["status"]
                counts += [int(row.get("in_flight", 0)) for row in status["servers"] if row["name"] == keeper.name]
        return max(counts)

    async def _admit(self, message: Message, progress: Progress) -> Message:
        keeper = self._web_server(message.get("server"))
        with _Moving(self._moving, keeper.name):
            if keeper.state in ("drained", "dead", "stopped"):
                try:
                    await keeper.start()
                except StartFailed as failure:
                    raise ControlError(f"{keeper.name}: {failure}") from None
            elif keeper.state == "draining":
                keeper.mark_ready()
            self._farm.drained.discard(keeper.name)
            await self._tell_directors("admit", keeper.name)
        self._farm.console.say(f"{keeper.name} takes requests")
        return {"admitted": keeper.name}

    async def reload(self, name: str, quiet_s: float) -> None:
        """Restart a web server with the code as it stands now; one that the operator took out stays out.

        Its open requests have ``quiet_s``, and ``stop_grace`` after that.

        Raises:
            ControlError: it cannot be started, or somebody else is moving it.
        """
        keeper = self._web_server(name)
        if keeper.state in ("draining", "drained"):
            return
        with _Moving(self._moving, name):
            self._farm.drained.add(name)
            await self._tell_directors("drain", name)
            if keeper.state == "ready":
                keeper.mark_draining()
                with contextlib.suppress(ControlError):  # it has died meanwhile
                    await self._wait_quiet(keeper, time.monotonic() + quiet_s, lambda message: None)
            await keeper.stop(self._farm.settings.stop_grace_s)
            self._farm.drained.discard(name)
            try:
                await keeper.start()
            except StartFailed as failure:
                raise ControlError(f"{name} cannot be restarted: {failure}") from None
            finally:
                await self._tell_directors("admit", name)

    def _web_server(self, name: object) -> Keeper:
        for keeper in self._farm.web_servers:
            if keeper.name == name:
                return keeper
        known = ", ".join(keeper.name for keeper in self._farm.web_servers)
        raise ControlError(f"there is no web server {name!r}; choose one of {known}")

    # Sessions

    async def _list(self, message: Message, progress: Progress) -> Message:
        limit = max(1, min(int(message.get("limit") or 100), MAX_LISTED))
        return await self._ask_web_server("sessions.ls", limit=limit, user=message.get("user"))

    async def _show(self, message: Message, progress: Progress) -> Message:
        return await self._ask_web_server("sessions.show", key=str(message.get("key")))

    async def _close(self, message: Message, progress: Progress) -> Message:
        asked = {name: message.get(name) for name in ("user", "all")}
        return await self._ask_web_server("sessions.close", key=str(message.get("key")), **asked)

    async def _ask_web_server(self, operation: str, **arguments: Any) -> Message:
        """Any one that answers: each can reach every session."""
        problem = "no web server is ready"
        for keeper in self._farm.web_servers:
            if keeper.state in ("ready", "draining"):
                try:
                    reply = await keeper.call(operation, LIST_TIMEOUT_S, **arguments)
                except ControlError as error:
                    problem = str(error)
                else:
                    return {name: value for name, value in reply.items() if name != "id"}
        raise ControlError(problem)


class _Moving:
    """One drain or admit of a web server at a time."""

    def __init__(self, moving: set[str], name: str) -> None:
        self._moving = moving
        self._name = name

    def __enter__(self) -> None:
        if self._name in self._moving:
            raise ControlError(f"{self._name} is being drained or admitted right now; try again")
        self._moving.add(self._name)

    def __exit__(self, *_: object) -> None:
        self._moving.discard(self._name)
