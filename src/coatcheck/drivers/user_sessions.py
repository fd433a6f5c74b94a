"""The sessions of a user: for operators, for apps, and for the user's own page (protocol section 11)."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.drivers.own_loop import on_own_loop
from coatcheck.errors import SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.sessions.devices import Device
from coatcheck.sessions.everyone import Everyone
from coatcheck.sessions.provider import ProviderName
from coatcheck.sessions.provider_sessions import ProviderIndexes
from coatcheck.sessions.record import Record, decode_record
from coatcheck.sessions.request_state import RequestState
from coatcheck.sessions.users import UserClosed, UserIndexes, UserSession


class UserSessions(ABC):
    """What :class:`coatcheck.drivers.sessions.Sessions` does for users."""

    loop: asyncio.AbstractEventLoop | None
    users: UserIndexes
    everyone: Everyone
    providers: ProviderIndexes

    @property
    @abstractmethod
    def driver(self) -> AsyncioDriver:
        """What runs flows; raises :class:`CoatcheckError` before the start."""

    # -- for operators and apps ----------------------------------------------------------------------

    async def sessions_of(self, user: str) -> list[UserSession]:
        """The sessions of a user, the oldest first; no scan, and nothing changes.

        Raises :class:`SessionUnavailable` if too few session servers answer.
        """
        return await self.driver.run(self.users.sessions_of(user))

    async def close_user(self, user: str, but: bytes | None = None) -> UserClosed:
        """Close all sessions of a user, ``but`` the one with this key (ASVS 7.4.2, 7.4.3).

        A login that comes meanwhile is closed as well, or comes after it and stays: lock the account first. Repeating
        it is harmless. Raises :class:`SessionUnavailable` if nothing could be closed, and :class:`SessionClosed` if the
        session that is to stay is none of the user's.
        """
        return await self.driver.run(self.users.close_user(user, but, "with all sessions of its user, by an operator"))

    async def close_all(self) -> None:
        """Close everybody's sessions, also those of visitors without a name (ASVS 7.4.5).

        Returns when no web server serves them any more, a little more than a lease later. Sessions that begin within
        two seconds after it may be closed as well. Raises :class:`SessionUnavailable` if it has no effect yet.
        """
        await self.driver.run(self.everyone.close("by an operator"))

    # -- for identity providers ------------------------------------------------------------------------

    async def close_by_provider(self, name: ProviderName, moment_ms: int, why: str) -> UserClosed:
        """Close the sessions that an identity provider has ended by its name for them, if they were linked to it by
        ``moment_ms`` (Unix ms); of a session's name all, for good.

        Repeating it is harmless. Raises :class:`SessionUnavailable` if nothing could be closed.
        """
        return await self.driver.run(self.providers.close(name, moment_ms, why))

    async def close_user_until(self, user: str, moment_ms: int, why: str) -> UserClosed:
        """The same for the sessions of a user, by his name here, that were begun by ``moment_ms``."""
        return await self.driver.run(self.providers.close_user(user, moment_ms, why))

    async def was_used(self, message: ProviderName) -> bool:
        """Whether a message of an identity provider was used before, at any web server.

        Raises :class:`SessionUnavailable` if too few session servers answer.
        """
        return await self.driver.run(self.providers.was_used(message))

    async def use(self, message: ProviderName, ends_at: int) -> bool:
        """Remember that it was, until ``ends_at`` (Unix ms); ``False`` if somebody was faster."""
        return await self.driver.run(self.providers.use(message, ends_at))

    # -- for the user's own page: see Session ----------------------------------------------------------

    @on_own_loop
    async def devices(self, request: RequestState) -> list[Device]:
        """The sessions of whoever makes the request."""
        own = _own(request)
        if own is None:
            return []
        key, user = own
        return [
            Device(one.id, one.key == key.hex(), one.device, one.address, one.logged_in_at, one.last_seen_at)
            for one in await self.sessions_of(user)
        ]

    @on_own_loop
    async def close_device(self, request: RequestState, public: str) -> bool:
        """Close another session of whoever makes the request; whether there was such a one."""
        own = _own(request)
        if own is None:
            return False
        key, user = own
        await self._demand_open(key, user)
        others = [bytes.fromhex(one.key) for one in await self.sessions_of(user) if one.id == public]
        if not others or others == [key]:
            return False
        _demand_effect(await self.driver.run(self.users.close_keys(user, others, "by its user, elsewhere")))
        return True

    @on_own_loop
    async def close_other_devices(self, request: RequestState) -> int:
        """Close all other sessions of whoever makes the request; how many they were."""
        own = _own(request)
        if own is None:
            return 0
        key, user = own
        closed = await self.driver.run(self.users.close_user(user, key, "by its user, with all others"))
        _demand_effect(closed)
        return closed.closed

    async def _demand_open(self, key: bytes, user: str) -> None:
        """A session that was closed a moment ago, and is still served from a lease, closes no others."""
        if not await self.driver.run(self.users.is_open(key, user)):
            raise SessionClosed("the session is closed")


def _own(request: RequestState) -> tuple[bytes, str] | None:
    """The key and the user of the session that a request has; ``None`` without either."""
    copy = request.copy_held
    if copy is None:
        return None
    record: Record = copy.record or decode_record(copy.body)
    return None if record.user is None else (copy.key, record.user)


def _demand_effect(closed: UserClosed) -> None:
    if not closed.effective:
        raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
