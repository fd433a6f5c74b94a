"""The sessions of one web server, on asyncio: what middleware and farm hold in their hands."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial

import msgspec

from coatcheck.device.challenges import ChallengeCodec
from coatcheck.drivers.asyncio_driver import AsyncioDriver, World
from coatcheck.drivers.background_repair import BackgroundRepair
from coatcheck.drivers.key_refresh import KeyRefresh, RefreshKeys
from coatcheck.drivers.session_operations import SessionInfo, SessionOperations
from coatcheck.drivers.session_requests import SessionRequests
from coatcheck.drivers.user_sessions import UserSessions
from coatcheck.drivers.user_work import UserWork
from coatcheck.drivers.visit import VISIT
from coatcheck.drivers.watching import Watching
from coatcheck.errors import CoatcheckError, ConfigError, CorruptEntry
from coatcheck.events import LOSSES, Event, EventKind, public_id
from coatcheck.hand_off.messages import HandOffCodec
from coatcheck.hand_off.rules import HandOffs
from coatcheck.hand_off.sites import Sites
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Tell
from coatcheck.replication.entry import KEY_BYTES
from coatcheck.replication.notice import EVERYBODY, Notice, decode_message
from coatcheck.replication.placement import Copies as CopiesWanted
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.stall_guard import StallGuard
from coatcheck.replication.version import SERVER_ID_BYTES
from coatcheck.sessions.by_token import ByToken
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.durable import TicketCodec
from coatcheck.sessions.ending import OpenStreams
from coatcheck.sessions.everyone import Everyone
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.newcomers import Newcomers
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.provider_sessions import ProviderIndexes
from coatcheck.sessions.requests import Requests
from coatcheck.sessions.users import UserIndexes, UserSession
from coatcheck.stores.port import Store
from coatcheck.take_once.port import TakeOnceStore
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import TokenCodec, audience_of

_all: weakref.WeakSet[Sessions] = weakref.WeakSet()
_inherited: list[object] = []
"""What a parent process had open at the fork, kept so that nothing here closes it: SQLite would delete its log."""


def _after_fork_in_child() -> None:
    for sessions in list(_all):
        sessions._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Sessions(SessionRequests, SessionOperations, UserSessions):
    """The sessions of one web server: :meth:`open` with each request, :meth:`finish` when its response starts, and
    :meth:`end` when its body was streamed.

    Build it anywhere, also before a fork; it belongs to the event loop on which :meth:`start` runs. Another loop that
    is alive at the same time (a test client makes one for each WebSocket) gets a twin, :meth:`on_this_loop`: to the
    session servers that is one more web server. ``cookies``: how browsers keep their tokens; ``None``: ``Secure`` and
    ``__Host-``, but for sessions in memory, which are for tests on plain HTTP. ``server_name`` is unique in the farm;
    ``stores`` are the session servers, or what makes them: only then there can be twins. ``farm`` is authenticated in
    every token, so that farms that share a key ring by mistake still refuse each other's tokens. ``list_number``: of
    this list of session servers, 0 to 63, raised with each change of it. ``refresh_keys`` is asked, once a second at
    most, when something was sealed with a key that is not in the ring: it brings the ring up to date
    (:meth:`change_keys`) and returns whether it could. Without it the ring is what it is. ``sites``: where
    the farm's pages live, if at more than one origin; then ``items`` makes what keeps tickets, under the names of the
    session servers.
    """

    CLOCK_PERIOD_S = 1.0

    def __init__(
        self,
        *,
        farm: str,
        server_name: str,
        stores: Sequence[Store] | Callable[[], Sequence[Store]],
        ring: KeyRing,
        copies: CopiesWanted = 2,
        list_number: int = 0,
        replication: ReplicationPolicy | None = None,
        policy: SessionPolicy | None = None,
        open_streams: OpenStreams = "end",
        in_memory: bool = False,
        newcomers: Newcomers | None = None,
        cookies: CookiePolicy | None = None,
        sites: Sites | None = None,
        items: Callable[[], Sequence[TakeOnceStore]] = tuple,
        observer: Callable[[Event], None] = lambda event: None,
        refresh_keys: RefreshKeys | None = None,
    ) -> None:
        self._binding = threading.Lock()
        self._make_stores = stores if callable(stores) else None
        self._twin_of: Sessions | None = None
        self._make_twin = partial(
            Sessions, farm=farm, server_name=server_name, stores=stores, ring=ring, copies=copies,
            list_number=list_number,
            replication=replication, policy=policy, open_streams=open_streams, in_memory=in_memory, observer=observer,
            newcomers=newcomers, cookies=cookies, sites=sites, items=items, refresh_keys=refresh_keys,
        )  # fmt: skip
        self.server_name = server_name
        self._observer = observer
        self.in_memory = in_memory
        """Whether sessions live in this process alone, for tests and trials."""
        self._ring = ring
        # Cut off while these sessions are closed: a ring may outlive those of many event loops.
        self._own_keys = ring.branch()
        self._refresh_keys = refresh_keys
        self.asks_for_keys = refresh_keys is not None
        """Whether somebody can be asked about a key that is not known here."""
        self.cookies = cookies or CookiePolicy(insecure_localhost=in_memory)
        self.sites = sites
        self._make_items = items
        self._items: Mapping[str, TakeOnceStore] = {}
        self._site = ""
        if sites is not None:
            sites.check_cookies(self.cookies)
            self._site = sites.chain_name(sites.own, self.cookies)
        self.ends_streams = open_streams == "end"
        """Whether what is open is ended with its session; else the app is told (:meth:`Session.ended`) and no more."""
        self.events: Counter[EventKind] = Counter()
        self._last_event: dict[EventKind, Event] = {}
        self._policy = policy = policy or SessionPolicy()
        self.transport = self.transport_of(self.cookies)
        self.newcomers = Newcomers(1, 0) if newcomers is None else newcomers
        replication = replication or ReplicationPolicy()
        self._replication = msgspec.structs.replace(
            replication, tombstone_ms=policy.tombstone_ms, linger_ms=policy.linger_ms
        )
        self._copies_wanted = copies
        self._world = World({}, self._report)
        self._sealer = PayloadSealer(self._own_keys, farm, self._world.random_bytes)
        self._list_number = list_number
        self._codecs = {
            False: TokenCodec(self._own_keys, "anonymous", audience_of(farm, self._site), self._world.random_bytes),
            True: TokenCodec(self._own_keys, "login", audience_of(farm, self._site), self._world.random_bytes),
        }
        self.challenges: ChallengeCodec | None = None
        """Of sessions that are bound to their browsers; ``None``: none are."""
        if policy.device_binding != "off":
            if sites is not None:
                raise ConfigError("device_binding: not with sites yet; drop one of the two")
            self.cookies.check_binding(policy.device_binding)
            self.challenges = ChallengeCodec(self._own_keys, farm, self._world.random_bytes)
        self.demands_binding = policy.device_binding == "require-after-login"
        """Whether logins end that are not bound."""
        self._tickets = TicketCodec(self._own_keys, farm, self._world.random_bytes)
        self._hand_off_codec: HandOffCodec | None = None
        if sites is not None:
            self._hand_off_codec = HandOffCodec(self._own_keys, farm, sites.home.origin, self._world.random_bytes)
        self._open_anonymous, self._open_login = self._codecs[False].open, self._codecs[True].open
        self._index_mac = self._own_keys.mac("user-index", farm)
        self._provider_mac = self._own_keys.mac("identity-provider", farm)
        self._take_stores(stores() if callable(stores) else stores)
        self._forget_run()
        self._used = False
        _all.add(self)

    def _take_stores(self, stores: Sequence[Store]) -> None:
        self._stores: Mapping[str, Store] = {store.name: store for store in stores}
        self._world.take(self._stores)
        self._watching = False
        self._build()

    def _index_keys(self, user: str) -> list[bytes]:
        return self._index_mac.marks(user.encode(), KEY_BYTES)

    def _provider_keys(self, name: bytes) -> list[bytes]:
        return self._provider_mac.marks(name, KEY_BYTES)

    def _build(self) -> None:
        """Begin with nothing in the cache, as a web server that was just started."""
        self.server_id = self._world.random_bytes(SERVER_ID_BYTES)
        placement = Placement(list(self._stores), self._copies_wanted, self._list_number)
        self.copies = Copies(self.server_id, placement, self._replication, self._sealer, self._world)
        self.lifecycle = Lifecycle(self.copies, self._policy, self._site)
        self.lifecycle.home = self
        self.users = self.lifecycle.users = UserIndexes(self.copies, self._policy, self._index_keys)
        self.providers = self.lifecycle.providers = ProviderIndexes(
            self.users, self.copies, self._policy, self._provider_keys
        )
        self.users.renew_provider = self.providers.renew
        self.everyone = self.lifecycle.everyone = Everyone(self.copies, self.users)
        self.hand_offs: HandOffs | None = None
        if self.sites is not None and self._hand_off_codec is not None:
            self.hand_offs = HandOffs(self.sites, self._hand_off_codec, self.lifecycle, self.cookies)
        asks = self._refresh_keys is not None
        self.by_token = ByToken(
            self.lifecycle, self._open_anonymous, self._open_login, self.seal, keys_may_be_newer=asks
        )
        self.requests = Requests(
            self.lifecycle,
            self.newcomers,
            self._open_anonymous,
            self._open_login,
            self.seal,
            self._rejected,
            keys_may_be_newer=asks,
            challenges=self.challenges,
        )

    def _forget_run(self) -> None:
        """Belong to no event loop."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop on which the sessions are open."""
        self.is_open = False
        self._bound: asyncio.AbstractEventLoop | None = None
        self._twins: dict[asyncio.AbstractEventLoop, Sessions] = {}
        self._driver: AsyncioDriver | None = None
        self._repair: BackgroundRepair | None = None
        self._stall_guard: StallGuard | None = None
        self._clock_timer: asyncio.TimerHandle | None = None
        self._watching_ends: Watching | None = None
        self._user_work: UserWork | None = None
        self._opening: asyncio.Future[None] | None = None
        self._closes_with_loop: AsyncGenerator[None, None] | None = None

    # -- the life of this web server -------------------------------------------------------------

    async def on_this_loop(self) -> Sessions:
        """The started sessions of the running event loop: these, or a twin of theirs.

        Raises :class:`ConfigError` as :meth:`start` does, and :class:`CoatcheckError` where there can be no twin.
        """
        loop = asyncio.get_running_loop()
        with self._binding:
            here = self._place(loop)
            if here._bound is not loop:
                here._bind(loop)
        await here.start()
        return here

    def here(self) -> Sessions:
        """The sessions of the running event loop, open or not."""
        with self._binding:
            return self._place(asyncio.get_running_loop())

    def _place(self, loop: asyncio.AbstractEventLoop) -> Sessions:
        if self._bound is None or self._bound is loop or self._bound.is_closed():
            return self
        for gone in [one for one in self._twins if one.is_closed()]:
            self._ring.cut(self._twins.pop(gone)._own_keys)
        twin = self._twins.get(loop)
        if twin is None:
            if self._make_stores is None:
                raise CoatcheckError(
                    "these sessions are open on another event loop, which is still running; give Sessions a "
                    "function that makes its stores, or one Sessions to each loop"
                )
            twin = self._twins[loop] = self._make_twin()
            twin._twin_of = self
        return twin

    async def start(self) -> None:
        """Connect to the session servers; those that are away are retried in the background. Repeatable.

        Each opening is a run of its own, with a server ID drawn anew: also in a process that was forked. What is open
        is closed with its event loop, if nobody does so before. Raises :class:`ConfigError` for a session server that
        cannot work as it is configured.
        """
        loop = asyncio.get_running_loop()
        if self._bound is not loop:
            self._bind(loop)
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._start())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except Exception:
            if self._opening is opening:
                self._opening = None  # what was wrong may have been mended by the next time
            raise

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._bound is not None:
            if not self._bound.is_closed():
                raise CoatcheckError("these sessions are open on another event loop; see Sessions.on_this_loop()")
            self._forget_run()  # it ended without closing anything: what it had open can only be left to itself
        if self._used and self._make_stores is not None:
            self._take_stores(self._make_stores())
        else:
            self._build_again()
        self._used = True
        self._ring.join(self._own_keys)
        self._bound = loop

    def _build_again(self) -> None:
        if self._used:
            self._build()
        else:
            self.server_id = self.copies.server_id = self._world.random_bytes(SERVER_ID_BYTES)

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._world.watch_clocks()
        await asyncio.gather(*(store.open() for store in self._stores.values()))
        if not self._watching:
            self._watching = True
            self._world.watch_stores()
            for store in self._stores.values():
                store.watch(self._on_change)
        fresh_keys = KeyRefresh(self._refresh_keys) if self._refresh_keys is not None else None
        self._items = {store.name: store for store in self._make_items()}
        await asyncio.gather(*(store.open() for store in self._items.values()))
        driver = AsyncioDriver(self._stores, self._report, fresh_keys, self._items)
        repair = BackgroundRepair(self.copies, self._stores, driver, self._world)
        links = self.copies.links
        for store in self._stores.values():
            store.subscribe(self.server_id, self._on_message)
            store.subscribe(EVERYBODY, self._on_message)
            if links.prolong:
                store.watch_notices(links.heard, links.beat_s)
        repair.start()
        self._look_at_clocks()
        self._stall_guard = StallGuard(self.copies, time.monotonic, loop.call_later)
        everyone = self.everyone
        self._watching_ends = Watching(self.copies, driver, lambda: everyone.closed_before)
        everyone.on_closed = self._watching_ends.noticed_all
        self._user_work = UserWork(self.users, everyone, driver)
        self._driver, self._repair = driver, repair
        self._closes_with_loop = self._close_with_loop()
        await anext(self._closes_with_loop)
        self.loop = loop
        self.is_open = True

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """An event loop that ends in order (``asyncio.run``) closes the asynchronous generators that it has begun: a
        server or a test without a lifespan leaves nothing open."""
        try:
            yield
        finally:
            if self._closes_with_loop is not None:
                self._closes_with_loop = None
                await self.aclose()

    def change_keys(self, secrets: Sequence[bytes], primary: int) -> None:
        """Seal with the primary of these secrets and open with any, from now on, as when a key is rotated or revoked.

        Raises :class:`ConfigError` for a ring that cannot be; then nothing has changed.
        """
        self._ring.change(secrets, primary)

    async def aclose(self, timeout_s: float = 2.0) -> None:
        """Settle what was acknowledged early, then release everything. It can be opened again, on any event loop."""
        self.is_open = False
        self.loop = None
        if self._stall_guard is not None:
            self._stall_guard.stop()
        if self._watching_ends is not None:
            self._watching_ends.stop()
        if self._clock_timer is not None:
            self._clock_timer.cancel()
        if self._repair is not None:
            await self._repair.stop()
        if self._user_work is not None:
            await self._user_work.stop()
            self._user_work = None
        if self._driver is not None:
            await self._driver.settle(timeout_s)
        self._driver = self._repair = self._opening = None
        await asyncio.gather(*(store.aclose() for store in self._stores.values()))
        await asyncio.gather(*(store.aclose() for store in self._items.values()))
        self._items = {}
        closes_with_loop, self._closes_with_loop = self._closes_with_loop, None
        if closes_with_loop is not None:
            await closes_with_loop.aclose()
        if self._twin_of is not None and self._bound is not None:
            self._twin_of._twins.pop(self._bound, None)
        self._bound = None
        self._ring.cut(self._own_keys)

    def _after_fork(self) -> None:
        """In the child: what the parent has open is the parent's, and must not even be closed here."""
        if self._bound is not None:
            kept = (self._stores, self._items, self._driver, self._repair, self._closes_with_loop, self._twins)
            _inherited.append(kept)
            self._used = True
        self._forget_run()
        self._binding = threading.Lock()

    def remembers(self, issue: Issue) -> bool | None:
        """Whether the browser keeps the cookie of a session that has just arrived, as its login said."""
        session = self.lifecycle.open_cached(issue.token, issue.login)
        return session.remember if session is not None else None

    @property
    def driver(self) -> AsyncioDriver:
        if self._driver is None:
            raise CoatcheckError("these sessions are not started: await start() first, or open() a request")
        return self._driver

    @property
    def watching(self) -> Watching:
        if self._watching_ends is None:
            raise CoatcheckError("these sessions are not started: await start() first, or open() a request")
        return self._watching_ends

    # -- inside ----------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Tell operators what the layer above has noticed."""
        self._report(event)

    def _report(self, event: Event) -> None:
        self.events[event.kind] += 1
        self._last_event[event.kind] = event
        if event.kind in LOSSES and (visit := VISIT.get()) is not None:
            visit.lost = event.kind.value
        self._observer(event)

    def _look_at_clocks(self) -> None:
        self._world.clock.tick()
        self._clock_timer = asyncio.get_running_loop().call_later(self.CLOCK_PERIOD_S, self._look_at_clocks)

    def _on_change(self, server: str, reachable: bool) -> None:
        if self._repair is not None:
            self._repair.on_change(server, reachable)

    def _on_message(self, raw: bytes) -> None:
        try:
            message = decode_message(raw)
        except CorruptEntry as corrupt:
            self._report(Event(EventKind.CORRUPT_ENTRY, detail=f"notice: {corrupt}"))
            return
        answer: Tell | None = self.copies.on_message(message)
        if isinstance(message, Notice) and self._watching_ends is not None:
            self._watching_ends.noticed(message.key)
            if self._user_work is not None and self.everyone.is_about_it(message):
                self._user_work.ask_about_all()
        if answer is not None and self._driver is not None:
            self._driver.tell(answer)


__all__ = ["SessionInfo", "Sessions", "UserSession", "public_id"]
