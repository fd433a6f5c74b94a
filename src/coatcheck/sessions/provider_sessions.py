"""Sessions that an identity provider can end: found by its names for them, without a scan (protocol section 11).

Each name has an index, an entry of the same kind as a user's, under a keyed hash of its own kind. It is written at the
login, lists session keys, and ends when the last of its sessions must have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from coatcheck.errors import CoatcheckError, SessionClosed
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Flow
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.provider import ProviderLogin, ProviderName
from coatcheck.sessions.record import Record
from coatcheck.sessions.user_index import Listed, UserIndex
from coatcheck.sessions.users import Renewal, UserClosed, UserIndexes

KeysOfName = Callable[[bytes], Sequence[bytes]]
"""The keys under which the index of a name may be: by each key of the ring, the primary's first."""


class ProviderIndexes:
    """The indexes of identity providers' names, as one web server touches them."""

    def __init__(self, users: UserIndexes, copies: Copies, policy: SessionPolicy, keys_of: KeysOfName) -> None:
        self._users = users
        self._copies = copies
        self._policy = policy
        self._keys_of = keys_of
        self._world = copies.world

    # -- a session is listed -----------------------------------------------------------------------

    def add(self, provider: ProviderLogin, key: bytes, record: Record) -> Flow[None]:
        """List a session that was just stored under each name, before anybody is told of it.

        Raises :class:`SessionClosed` if the provider has ended what it came from, and :class:`SessionUnavailable`.
        """
        new = self._listing(provider, key, record)
        for name in provider.names():
            yield from self._users.touch(self._keys_of(name.clear()), partial(_added, new, name.is_session))

    def renew(self, renewal: Renewal) -> Flow[None]:
        """A session is used: list it again if its index was lost, and close it if it was to end. Usually only read."""
        listed, provider = renewal.listed, renewal.provider
        assert provider is not None
        new = msgspec.structs.replace(listed, since=provider.since, ends_at=renewal.ends_at, device="", address="")
        for name in provider.names():
            keys = self._keys_of(name.clear())
            index = yield from self._users.read(keys)
            if index.find(new.key) is None:
                index = yield from self._users.touch(keys, partial(_listed_again, new, name.is_session))
            known = index.find(new.key)
            if known is not None and known.doomed:
                yield from self._close_keys(keys, [new.key], "ended by its identity provider")

    def _listing(self, provider: ProviderLogin, key: bytes, record: Record) -> Listed:
        """For as long as it can live at most, so that it need not be listed again while it is used."""
        return Listed(key, provider.since, record.created_at + self._policy.absolute_timeout_ms)

    # -- a provider ends them ------------------------------------------------------------------------

    def close(self, name: ProviderName, moment_ms: int, why: str) -> Flow[UserClosed]:
        """Close all sessions of a name that were linked to it by ``moment_ms`` (Unix ms); of a session's name all, and
        for good: one that is linked later is refused.

        Repeating it goes on with what is left. Raises :class:`SessionUnavailable` if the index cannot be written:
        nothing was closed.
        """
        moment_ms = self._world.now_ms() if name.is_session else moment_ms
        return self._close_all(self._keys_of(name.clear()), moment_ms, name.is_session, why)

    def close_user(self, user: str, moment_ms: int, why: str) -> Flow[UserClosed]:
        """The same for the sessions of a user by his name here."""
        return self._close_all(self._users.keys_of(user), moment_ms, False, why)

    def _close_all(self, keys: Sequence[bytes], moment_ms: int, every_one: bool, why: str) -> Flow[UserClosed]:
        index = yield from self._users.touch(keys, partial(_closing, moment_ms, every_one))
        return (yield from self._close_keys(keys, index.doomed(), why))

    def _close_keys(self, index_keys: Sequence[bytes], keys: Sequence[bytes], why: str) -> Flow[UserClosed]:
        def report(key: bytes, how: Closed, record: Record | CoatcheckError) -> None:
            self._report(key, f"{why}, {how.holds} of {how.servers}", record)

        return self._users.close_marked(index_keys, keys, report)

    def _report(self, key: bytes, detail: str, record: Record | CoatcheckError) -> None:
        user = record.user if isinstance(record, Record) else None
        self._world.report(Event(EventKind.SESSION_CLOSED, public_id(key), detail, user or ""))

    # -- messages that are used once -----------------------------------------------------------------

    def was_used(self, message: ProviderName) -> Flow[bool]:
        """Whether :meth:`use` has remembered this message, here or at another web server."""
        index = yield from self._users.read(self._keys_of(message.clear()))
        return bool(index.listed)

    def use(self, message: ProviderName, ends_at: int) -> Flow[bool]:
        """Remember a message until ``ends_at`` (Unix ms); ``False`` if somebody was faster.

        Raises :class:`SessionUnavailable` if it cannot be written where all hear of it.
        """
        keys = self._keys_of(message.clear())
        mark = Listed(self._world.random_bytes(len(keys[0])), self._world.now_ms(), ends_at)
        index = yield from self._users.touch(keys, lambda known: known if known.listed else known.with_one(mark))
        return index.find(mark.key) is not None


def _has_ended(index: UserIndex, since: int, is_session: bool) -> bool:
    return index.closed_before >= since or (is_session and index.closed_before > 0)


def _added(new: Listed, is_session: bool, index: UserIndex) -> UserIndex:
    if _has_ended(index, new.since, is_session):
        raise SessionClosed("the identity provider has ended this login")
    return index.with_one(new)


def _listed_again(new: Listed, is_session: bool, index: UserIndex) -> UserIndex:
    if index.find(new.key) is not None:
        return index
    return index.with_one(msgspec.structs.replace(new, doomed=_has_ended(index, new.since, is_session)))


def _closing(moment_ms: int, every_one: bool, index: UserIndex) -> UserIndex:
    return index.closed_until(moment_ms, every_one)
