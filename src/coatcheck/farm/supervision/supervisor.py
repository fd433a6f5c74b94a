"""The supervisor: it starts a farm's processes, keeps them alive, and stops them without orphans."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.farm.control.channel import Answer, ControlServer
from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.files.keys import ENV as KEYS_VARIABLE
from coatcheck.farm.files.keys import FarmKeys, KeyPlace, load_or_create, place_of
from coatcheck.farm.files.run_directory import RunDirectory
from coatcheck.farm.plan.plan import Plan, make_plan, shared_by_machines, tls_session_ring
from coatcheck.farm.plan.ports import InternalAddresses, InternalPorts, InternalSockets, listen_on_public_address
from coatcheck.farm.plan.roles import (
    Address,
    DirectorRole,
    MetricsRole,
    Role,
    SessionOrders,
    SessionServerRole,
    SessionServiceRole,
    WebServerRole,
)
from coatcheck.farm.settings.error_pages import load_error_pages
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.farm.supervision.child import StartFailed, environment_of_python
from coatcheck.farm.supervision.console import Console
from coatcheck.farm.supervision.farm_keys import FarmKeyRing, KeyHosts
from coatcheck.farm.supervision.farm_tickets import FarmTickets, places_of_items
from coatcheck.farm.supervision.handover import Handovers, discard
from coatcheck.farm.supervision.keeper import Keeper, KeeperOptions
from coatcheck.farm.supervision.key_sources import EnvironmentKeys, FarmKeySource, FileKeys
from coatcheck.farm.supervision.launching import Launcher, launcher_of
from coatcheck.farm.supervision.shared_keys import SharedKeys
from coatcheck.farm.supervision.telling import tell_all
from coatcheck.stores.session_server_url import parse_session_servers

State = Literal["starting", "running", "stopping"]

HANG_UP_EVERY_S: Final = 0.3
TELL_TIMEOUT_S: Final = 1.0
"""How long a director may take to hear of a web server's death."""


class FarmFailed(CoatcheckError):
    """The farm could not be started, for a reason that is not the configuration's; nothing is left running."""


class Supervisor:
    """One farm. Use it from one event loop: ``await start()``, then ``await stop()``.

    Its processes end with it, however it ends.
    """

    def __init__(self, settings: FarmSettings, console: Console, environ: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.console = console
        self.state: State = "starting"
        self.run_directory = RunDirectory(Path(settings.run_dir))
        self.drained: set[str] = set()
        self.session_servers: tuple[Keeper, ...] = ()
        self.web_servers: tuple[Keeper, ...] = ()
        self.tls_sessions: tuple[Keeper, ...] = ()
        self.session_services: tuple[Keeper, ...] = ()
        self.directors: tuple[Keeper, ...] = ()
        self.metrics: tuple[Keeper, ...] = ()
        self._environ = os.environ if environ is None else environ
        self._started_at = time.monotonic()
        self._launcher: Launcher | None = None
        self._listener: socket.socket | None = None
        self._internal: InternalAddresses | None = None
        self._control: ControlServer | None = None
        self._answer: Answer | None = None
        self._plan: Plan | None = None
        self._public: Address | None = None
        self._note_failed = False
        self._telling: set[asyncio.Task[None]] = set()
        self._handovers: Handovers | None = None
        self._keys: FarmKeys | None = None
        self._key_ring: FarmKeyRing | None = None
        self._key_place: KeyPlace | None = None
        self.tickets: FarmTickets | None = None
        """The keys of TLS tickets, where the farm's directors share sessions by them."""

    @property
    def plan(self) -> Plan:
        assert self._plan is not None, "the farm was not started"
        return self._plan

    @property
    def address(self) -> Address:
        """Where the farm is reached."""
        assert self._public is not None, "the farm was not started"
        return self._public

    @property
    def url(self) -> str:
        """Where a browser reaches the farm."""
        return f"{'https' if self.settings.tls_certificate else 'http'}://{self.address}"

    @property
    def keepers(self) -> tuple[Keeper, ...]:
        """Every process, in the order in which they stop."""
        return self.directors + self.hosts + self.session_servers + self.tls_sessions + self.metrics

    @property
    def hosts(self) -> tuple[Keeper, ...]:
        """The processes that host sessions, and so have the key ring."""
        return self.web_servers + self.session_services

    @property
    def tls_ends(self) -> tuple[Keeper, ...]:
        """The processes that end the TLS of clients."""
        return self.web_servers if self.settings.tls == "end-to-end" else self.directors

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started_at

    @property
    def keys(self) -> FarmKeys:
        assert self._keys is not None, "the farm was not started"
        return self._keys

    @property
    def key_ring(self) -> FarmKeyRing:
        assert self._key_ring is not None, "the farm was not started"
        return self._key_ring

    @property
    def key_place(self) -> KeyPlace:
        """Where the farm was given its keys."""
        assert self._key_place is not None, "the farm was not started"
        return self._key_place

    def _use_keys(self, keys: FarmKeys) -> None:
        """Give these to every process that starts from now on, and to what is handed over at the stop."""
        self._keys = keys
        if self._handovers is not None:
            self._handovers.use(keys)
        if self.tickets is not None:
            self.tickets.use_keys(keys)

    async def _tell_tls_keys(self, timeout_s: float) -> list[str]:
        """What follows for TLS sessions that are stored; the names of those that could not be told in time."""
        if not self.settings.stores_tls_sessions:
            return []
        secrets, primary = tls_session_ring(self.keys)
        told = [secret.hex() for secret in secrets]
        return await tell_all(self.tls_ends, "tls_keys", timeout_s, keys=told, primary=primary)

    def roster(self) -> list[tuple[str, Keeper, Address]]:
        """Every process of ours: the list of ``status`` that it belongs to, its keeper, and its address."""
        plan = self.plan
        groups: tuple[tuple[str, Sequence[Keeper], Sequence[Role]], ...] = (
            ("director", self.directors, plan.directors),
            ("web_servers", self.web_servers, plan.web_servers),
            ("session_servers", self.session_servers, plan.session_servers),
            ("session_services", self.session_services, plan.session_services),
            ("tls_sessions", self.tls_sessions, plan.tls_sessions),
            ("metrics", self.metrics, plan.metrics),
        )
        return [
            (group, keeper, role.address)
            for group, keepers, roles in groups
            for keeper, role in zip(keepers, roles, strict=True)
        ]

    def processes_now(self) -> list[dict[str, Any]]:
        """Name, pid, address and state of each process, without asking any."""
        return [
            {"name": keeper.name, "pid": keeper.pid, "address": str(address), "state": keeper.state}
            for _, keeper, address in self.roster()
        ]

    async def start(self, answer: Answer) -> None:
        """Start every process; returns when the director takes requests. ``answer`` speaks on the control socket.

        Raises:
            ConfigError: the user can mend it. Nothing is left running.
            FarmFailed: anything else that kept a process from starting. Nothing is left running.
        """
        self._answer = answer
        self.run_directory.acquire()
        try:
            self._begin_keys()
            await self.key_ring.source.start()
            self._prepare()
            self._control = ControlServer(self.run_directory.control_socket, answer)
            try:
                await self._control.start()
            except OSError as error:
                where = self.run_directory.path
                raise ConfigError(f"run_dir: no socket in {where}: {error.strerror}; choose another") from None
            self._note()
            if self.tickets is not None:
                await self.tickets.start()
            # In the order of who needs whom, so that none begins with a warning that another is not there yet.
            for keepers in (self.session_servers, self.tls_sessions, self.hosts, self.directors, self.metrics):
                await self._start_all(keepers)
        except BaseException:
            await self.stop(immediate=True)
            raise
        self.state = "running"
        self.key_ring.start()
        self._note()

    def _begin_keys(self) -> None:
        settings, console = self.settings, self.console
        keys_file = Path(settings.keys_file) if settings.keys_file else self.run_directory.keys_file
        keys = load_or_create(keys_file, self._environ)
        self._key_place = place_of(keys_file, keys, self._environ)
        source: FarmKeySource
        if settings.key_ring == "shared":
            shared = shared_by_machines(parse_session_servers(settings.session_server))
            places = functools.partial(places_of_items, shared, settings.name)
            source = SharedKeys(settings.name, keys, self.run_directory.path, places, console)
        elif self._environ.get(KEYS_VARIABLE):
            source = EnvironmentKeys(keys)
        else:
            source = FileKeys(keys_file, keys, console)
        hosts = KeyHosts(lambda: self.hosts, self._tell_tls_keys, self._use_keys)
        self._key_ring = FarmKeyRing(source, hosts, console)

    def _prepare(self) -> None:
        settings = self.settings
        load_error_pages(settings.error_pages)  # what is wrong with them is said before anything starts
        self._keys = keys = self.key_ring.source.keys
        self.key_ring.told_at_start(keys)
        self._listener, self._public = listen_on_public_address(settings.host, settings.port)
        if settings.internal_links == "tcp":
            self._internal = InternalPorts()
        else:
            self._internal = InternalSockets(self.run_directory.sockets)
        self._plan = plan = make_plan(settings, keys, self._public, self._internal)
        if settings.shares_ticket_keys:
            self.tickets = FarmTickets(settings, keys, plan.outside, lambda: self.tls_ends)
        options = KeeperOptions(
            settings.restart,
            settings.unresponsive_after_s,
            settings.start_timeout_s,
            settings.log_format,
            settings.log_level,
        )
        self._launcher = launcher = launcher_of(
            environment_of_python(os.environ), self.console.say, settings.start_timeout_s
        )
        keeper = functools.partial(
            Keeper, options=options, launcher=launcher, console=self.console, on_change=self._note
        )
        self._handovers = self._begin_handovers(keys)
        self.session_servers = tuple(
            keeper(role.name, functools.partial(self._session_server_role, role)) for role in plan.session_servers
        )
        self.tls_sessions = tuple(keeper(role.name, functools.partial(_as_planned, role)) for role in plan.tls_sessions)
        self.web_servers = tuple(
            keeper(
                role.name,
                functools.partial(self._web_role, role),
                on_death=functools.partial(self._tell_of_death, role.name),
                on_ask=functools.partial(self._asked, role.name),
            )
            for role in plan.web_servers
        )
        self.session_services = tuple(
            keeper(
                role.name,
                functools.partial(self._session_service_role, role),
                on_ask=functools.partial(self._asked, role.name),
            )
            for role in plan.session_services
        )
        self.directors = tuple(
            keeper(role.name, functools.partial(self._director_role, role)) for role in plan.directors
        )
        self.metrics = tuple(
            keeper(role.name, functools.partial(_as_planned, role), on_ask=self._asked_for_counts)
            for role in plan.metrics
        )

    def _begin_handovers(self, keys: FarmKeys) -> Handovers | None:
        """Name this run, so that no later start takes what is older; ``None`` if nothing is handed over."""
        directory, limit_s = self.run_directory.path, self.settings.handover_timeout_s
        names = [role.name for role in self.plan.session_servers]
        try:
            handovers = Handovers(directory, self.settings.name, keys, limit_s)
        except OSError as error:
            self.console.say(f"sessions are not handed over from stop to start: {directory}: {error.strerror}")
        else:
            if names and limit_s:
                handovers.assign(names)
                return handovers
        try:
            if unused := discard(directory):
                self.console.say(f"what {unused} session servers left at the last stop is not taken over, and removed")
        except OSError as error:
            raise ConfigError(
                f"run_dir: {directory}: {error.strerror}: the sessions of an older stop would come back at the next "
                f"start; remove the files *.handover there"
            ) from None
        return None

    def _session_server_role(self, role: SessionServerRole) -> SessionServerRole:
        if self._handovers is None:
            return role
        return msgspec.structs.replace(role, handover=self._handovers.orders(role.name))

    def _web_role(self, role: WebServerRole) -> WebServerRole:
        access = msgspec.structs.replace(role.sessions, keys=self.keys.keys, primary_key=self.keys.primary)
        ends = role.ends_tls
        if ends is not None:
            tickets = self.tickets.orders() if self.tickets is not None else None
            ends = msgspec.structs.replace(ends, tickets=tickets, sessions=self._session_orders(ends.sessions))
        return msgspec.structs.replace(role, sessions=access, ends_tls=ends)

    def _session_service_role(self, role: SessionServiceRole) -> SessionServiceRole:
        access = msgspec.structs.replace(role.sessions, keys=self.keys.keys, primary_key=self.keys.primary)
        return msgspec.structs.replace(role, sessions=access)

    def _director_role(self, role: DirectorRole) -> DirectorRole:
        if self._listener is None:
            raise StartFailed("the farm stops")
        return msgspec.structs.replace(
            role,
            sessions=self._session_orders(role.sessions),
            listener=self._listener.fileno(),
            drained=tuple(sorted(self.drained)),
            tickets=self.tickets.orders() if self.tickets is not None and not role.passes_tls else None,
        )

    def _session_orders(self, planned: SessionOrders | None) -> SessionOrders | None:
        if planned is None:
            return None
        secrets, primary = tls_session_ring(self.keys)
        return msgspec.structs.replace(planned, keys=secrets, primary=primary)

    def _asked(self, host: str, what: str) -> None:
        if what == "keys":
            self.key_ring.asked(next(keeper for keeper in self.hosts if keeper.name == host))

    def _asked_for_counts(self, what: str) -> None:
        if what == "counts":
            self._in_background(self._tell_counts())

    async def _tell_counts(self) -> None:
        """What ``coatcheck metrics`` gets as well, for the process that Prometheus asks."""
        assert self._answer is not None, "the farm was not started"
        counts = await self._answer({"op": "counts"}, lambda progress: None)
        for keeper in self.metrics:
            with contextlib.suppress(ControlError):  # it asks again
                await keeper.call("counts", TELL_TIMEOUT_S, **counts)

    def _tell_of_death(self, web_server: str) -> None:
        """Tell the directors: a child of the dead process may hold its connections open, and silence is no death."""
        for keeper in self.directors:
            self._in_background(self._tell(keeper, web_server))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, director: Keeper, web_server: str) -> None:
        # One that is not running, or frozen, finds out by itself.
        with contextlib.suppress(ControlError):
            await director.call("died", TELL_TIMEOUT_S, server=web_server)

    async def _start_all(self, keepers: Sequence[Keeper]) -> None:
        """Start them side by side; the first failure ends the others."""
        if not keepers:
            return
        tasks = {asyncio.create_task(keeper.start()): keeper for keeper in keepers}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task, keeper in tasks.items():
            failure = None if task.cancelled() else task.exception()
            if isinstance(failure, StartFailed):
                if failure.config:
                    raise ConfigError(str(failure))
                raise FarmFailed(f"{keeper.name}: {failure}")
            if failure is not None:
                raise failure

    async def stop(self, immediate: bool = False) -> None:
        """Stop in the order of a request's way: directors finish theirs, then web servers, then session servers.

        Takes at most ``stop_grace_s`` for each kind; ``immediate`` takes none and kills. Session servers hand over
        what they hold once no web server can write any more, in ``handover_timeout_s`` at most.
        """
        self.state = "stopping"
        if immediate:
            for keeper in self.directors + self.hosts:
                keeper.kill()
        # The directors close theirs when they are told to stop: from then on connections are refused.
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self.tickets is not None:
            await self.tickets.aclose()
        leaving = asyncio.create_task(self._key_ring.aclose()) if self._key_ring is not None else None
        grace_s = 0.0 if immediate else self.settings.stop_grace_s
        hanging_up = asyncio.create_task(self._hang_up())
        for keepers in (self.directors, self.hosts):
            await asyncio.gather(*(keeper.stop(grace_s) for keeper in keepers))
            hanging_up.cancel()
        await self._hand_over()
        last = self.session_servers + self.tls_sessions + self.metrics
        await asyncio.gather(*(keeper.stop(grace_s) for keeper in last))
        await asyncio.gather(hanging_up, return_exceptions=True)
        if self._launcher is not None:
            await self._launcher.aclose()
        if leaving is not None:
            await leaving
        if self._control is not None:
            await self._control.aclose()
            self._control = None
        if self._internal is not None:
            self._internal.close()
        self.run_directory.release()

    async def _hand_over(self) -> None:
        """Let every session server leave what it holds to the next start; one that cannot loses it, as in a crash."""
        if self._handovers is None:
            return
        ready = [keeper for keeper in self.session_servers if keeper.state == "ready"]
        limit_s, sealing = self.settings.handover_timeout_s, self._handovers.sealing
        answers = await asyncio.gather(
            *(keeper.call("hand_over", limit_s, **sealing) for keeper in ready), return_exceptions=True
        )
        for keeper, answer in zip(ready, answers, strict=True):
            if isinstance(answer, ControlError):
                self.console.say(f"{keeper.name}: its sessions are not handed over: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self.console.say(f"{keeper.name}: {answer['entries']} sessions are handed over to the next start")

    async def _hang_up(self) -> None:
        """While the directors finish: no WebSocket ends by itself. Again and again, for one may just have come in."""
        while True:
            for keeper in self.web_servers:
                with contextlib.suppress(ControlError):
                    await keeper.call("hang_up", HANG_UP_EVERY_S)
            await asyncio.sleep(HANG_UP_EVERY_S)

    def kill_all(self) -> None:
        """End every process at once. The farm cannot go on after it."""
        for keeper in self.keepers:
            keeper.kill()

    def _note(self) -> None:
        """Write ``farm.json``: what was started, for ``status`` and for whoever finds the directory later.

        A full disk or a deleted directory costs the note, and never the farm: processes are kept alive without it.
        """
        if self._control is None or self._public is None:
            return
        farm = {
            "name": self.settings.name,
            "pid": os.getpid(),
            "state": self.state,
            "address": str(self.address),
            "control": str(self.run_directory.control_socket),
            "processes": self.processes_now(),
        }
        try:
            self.run_directory.write(farm)
        except OSError as error:
            if not self._note_failed:
                self.console.say(f"farm.json cannot be written in {self.run_directory.path}: {error.strerror}")
            self._note_failed = True
        else:
            self._note_failed = False


def _as_planned(role: SessionServerRole | MetricsRole) -> SessionServerRole | MetricsRole:
    return role
