"""Where the judge looks on: at the stores' port, and at what a response is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coatcheck.drivers.sessions import Sessions
from coatcheck.replication.effects import GetReply, PutReply
from coatcheck.replication.entry import Entry
from coatcheck.replication.notice import Notice, decode_message
from coatcheck.replication.version import Version
from coatcheck.sessions.issuing import Issue
from coatcheck.simulation.site.observed_rules import ATTEMPT, ObservedLifecycle, ObservedRequests
from coatcheck.stores.networked import NetworkedStore
from coatcheck.stores.port import ScanReply


class ObservedStore:
    """A store, and the judge's eyes on it; see :class:`coatcheck.stores.port.Store`."""

    def __init__(self, store: NetworkedStore, web: Any) -> None:
        self.name = store.name
        self._store = store
        self._web = web
        self._watched = False
        self.publish = store.publish
        self.scan: Callable[[int, int, Callable[[ScanReply], None]], None] = store.scan
        self.watch_clock = store.watch_clock
        self.watch_notices = store.watch_notices
        self.open = store.open
        self.aclose = store.aclose

    @property
    def reachable(self) -> bool:
        return self._store.reachable

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        replies = self._web.asked(key, self.name)

        def take(answer: GetReply) -> None:
            replies[self.name] = answer
            reply(answer)

        self._store.get(key, take)

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        self._web.putting(key, new, self.name, seen)
        self._store.put(key, seen, new, reply, notify)

    def subscribe(self, server_id: bytes, on_message: Callable[[bytes], None]) -> None:
        def hear(raw: bytes) -> None:
            if self._web.loses_notice():
                live = self._store._link._live
                if live is not None:
                    live.drop("the session server gave up a subscriber that read too slowly")
                return
            message = decode_message(raw)
            before = self._web.copies.cache.get(message.key)
            on_message(raw)
            if isinstance(message, Notice):
                self._web.judge.heard(self._web, message, before)

        self._store.subscribe(server_id, hear)

    def watch(self, on_change: Callable[[str, bool], None]) -> None:
        if not self._watched:
            self._watched = True
            self._store.watch(lambda server, reachable: self._web.judge.lost_contact(self._web, server))
        self._store.watch(on_change)


class ObservedSessions(Sessions):
    """The sessions of one web server, as shipped, over :class:`ObservedLifecycle`."""

    def __init__(self, web: Any, **arguments: Any) -> None:
        self._web = web
        super().__init__(**arguments)

    def _build(self) -> None:
        super()._build()
        self.lifecycle = observed = ObservedLifecycle(self.copies, self._policy)
        observed.web, observed.home = self._web, self
        self._web.copies, self._web.lifecycle = self.copies, observed
        self.requests = ObservedRequests(
            observed, self.newcomers, self._open_anonymous, self._open_login, self.seal, self._rejected,
            keys_may_be_newer=self._refresh_keys is not None,
        )  # fmt: skip

    def seal(self, issue: Issue) -> bytes:
        attempt = ATTEMPT.get()
        if attempt is not None:
            self._web.judge.issued(self._web, attempt, issue)
        return super().seal(issue)
