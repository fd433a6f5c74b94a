"""The classic session pool: check out, check in, remove, clean up, and the null token (mission D2 to D6).

The client logs in by itself::

    token_object = pool.check_out("SADMIN", "secret")
    if token_object is NULL_TOKEN:
        reply = log_in("SADMIN", "secret")                    # a login also makes the call
    else:
        reply = call(token=token_object.token)
    pool.check_in("SADMIN", token_object, reply.session_token)

It is exact rather than convenient; for waiting, logins and recovery of crashed borrowers use ``TokenPool``.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from hmac import compare_digest
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.pool.credentials import Credentials
from coatcheck.pool.duration import Duration, seconds
from coatcheck.pool.errors import LeaseLost, PoolFull
from coatcheck.pool.masking import check_password, check_token, check_user, masked
from coatcheck.pool.payload import Payload
from coatcheck.pool.state import NONE_GIVEN
from coatcheck.tokens.keyring import KeyRing

MAX_USERS: Final = 10_000
MAX_TOKENS_PER_USER: Final = 1_000

Clock = Callable[[], float]


class TokenObject:
    """One session token of the upstream, as the pool keeps it (mission D3).

    ``expiration_time`` is a moment on the pool's clock, in seconds. ``token_id`` names the token in the tables; it
    stays when the token string changes. ``None``: the pool does not know this token yet. ``payload``: what the login of
    a ``TokenPool`` brought beside the token.
    """

    __slots__ = ("_credentials", "expiration_time", "last_time_usage", "payload", "token", "token_id", "usage_counter")

    def __init__(self, token: str, expiration_time: float = 0.0, *, token_id: int | None = None) -> None:
        self.token = token
        self.usage_counter = 1
        self.last_time_usage = False
        self.expiration_time = expiration_time
        self.token_id = token_id
        self.payload: Payload | None = None
        self._credentials = NONE_GIVEN

    def __repr__(self) -> str:
        shown = masked(self.token) if self.token else "null"
        return f"<TokenObject {shown}, used {self.usage_counter} times{', last' if self.last_time_usage else ''}>"

    def __bool__(self) -> bool:
        """``False`` for the null token only."""
        return bool(self.token)


NULL_TOKEN: Final = TokenObject("")
"""What check-out answers when there is no valid token: log in, then check the new token in (mission D6)."""


class UserSessionPool:
    """The tokens of one user: tables from token ID to token, ``locked`` (in use) and ``unlocked`` (free).

    Not thread-safe by itself; :class:`SessionPool` holds its lock around each call. The tables are for looking.
    """

    def __init__(
        self, expiration_time: Duration, maximum_usage: int, *, check_usage: bool = True, clock: Clock = time.monotonic
    ) -> None:
        self.expiration_time = seconds("expiration_time", expiration_time)
        if isinstance(maximum_usage, bool) or not isinstance(maximum_usage, int) or maximum_usage < 1:
            raise ConfigError("maximum_usage: must be a whole number of at least 1")
        self.maximum_usage = maximum_usage
        self.check_usage = check_usage
        self.locked: dict[int, TokenObject] = {}
        self.unlocked: dict[int, TokenObject] = {}
        self._clock = clock
        self._ids = itertools.count(1)

    def check_out(self, credentials: bytes = NONE_GIVEN) -> TokenObject:
        """Move a valid token to ``locked`` and return it, or :data:`NULL_TOKEN` (mission D2, D4, D5, D6).

        ``credentials``: the hash of those that opened it.
        """
        self._drop_expired(self.unlocked)
        for token_id in reversed(list(self.unlocked)):
            if not compare_digest(self.unlocked[token_id]._credentials, credentials):
                continue
            token = self.unlocked.pop(token_id)
            token.usage_counter += 1
            if self.check_usage:
                if token.usage_counter > self.maximum_usage:
                    continue  # used up for good: it leaves the tables
                token.last_time_usage = token.usage_counter == self.maximum_usage
            self.locked[token_id] = token
            return token
        return NULL_TOKEN

    def check_in(
        self, user: str, token_object: TokenObject, token_string: str, credentials: bytes = NONE_GIVEN
    ) -> None:
        """Store the refreshed string, renew the expiration time, unlock. Raises as :meth:`SessionPool.check_in`.

        ``credentials``: the hash of those that opened a new token.
        """
        token_id = token_object.token_id
        if token_id is None:
            if len(self.locked) + len(self.unlocked) >= MAX_TOKENS_PER_USER and not self._make_room(credentials):
                raise PoolFull(f"{user!r} has {MAX_TOKENS_PER_USER} tokens already")
            token_id = next(self._ids)
            token = TokenObject(token_string, token_id=token_id)
            token._credentials = credentials
        elif self.locked.get(token_id) is token_object:
            token = self.locked.pop(token_id)
            token.token = token_string
        else:
            raise LeaseLost(user, token_id)
        token.expiration_time = self._clock() + self.expiration_time
        self.unlocked[token_id] = token

    def _make_room(self, credentials: bytes) -> bool:
        """Drop a free token of other credentials, so that a changed password does not wait for the old one's."""
        for token_id, token in self.unlocked.items():
            if not compare_digest(token._credentials, credentials):
                del self.unlocked[token_id]
                return True
        return False

    def remove(self, token_object: TokenObject) -> bool:
        """Drop a dead token from ``locked``; ``False`` if it is not there (mission D5, D7)."""
        token_id = token_object.token_id
        if token_id is None or self.locked.get(token_id) is not token_object:
            return False
        del self.locked[token_id]
        return True

    def clean_up(self) -> int:
        """Drop expired tokens from both tables; returns how many (mission D5)."""
        return self._drop_expired(self.unlocked) + self._drop_expired(self.locked)

    def _drop_expired(self, table: dict[int, TokenObject]) -> int:
        now = self._clock()
        expired = [token_id for token_id, token in table.items() if now >= token.expiration_time]
        for token_id in expired:
            del table[token_id]
        return len(expired)


class SessionPool:
    """From user name to :class:`UserSessionPool`; safe to use from several threads (mission D2 to D6).

    ``check_usage``: ``True``: a token is valid when it has not expired and its usage does not exceed
    ``maximum_usage``; ``False``: only expiry counts. ``clock``: seconds that never go back.
    """

    def __init__(
        self,
        expiration_time: Duration,
        maximum_usage: int = 500,
        *,
        check_usage: bool = True,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = (expiration_time, maximum_usage)
        self._check_usage = check_usage
        self._clock = clock
        self._lock = threading.Lock()
        self._credentials = Credentials(KeyRing([os.urandom(32)]), "classic")
        self.users: dict[str, UserSessionPool] = {}
        self._new_user_pool()  # settings that are wrong fail here, not at the first check-in

    def _new_user_pool(self) -> UserSessionPool:
        return UserSessionPool(*self._settings, check_usage=self._check_usage, clock=self._clock)

    def check_out(self, username: str, password: str | None = None) -> TokenObject:
        """Return a valid token, now locked, or :data:`NULL_TOKEN`: then log in and check the new token in.

        A token is given out only with the ``password`` that opened it, or without one if none did; no more than a
        keyed hash of it is kept. Raises ``ValueError`` for arguments of the wrong form.
        """
        check_user(username)
        check_password(password)
        credentials = self._credentials.of(username, password)
        with self._lock:
            pool = self.users.get(username)
            token = NULL_TOKEN if pool is None else pool.check_out(_one(credentials))
        self._credentials.checked_out_in_vain(username, credentials if token is NULL_TOKEN else ())
        return token

    def check_in(
        self, username: str, token_object: TokenObject, token_string: str, password: str | None = None
    ) -> None:
        """Store the refreshed ``token_string`` and unlock the token; with :data:`NULL_TOKEN`: a new token.

        A new token belongs to the credentials with which this thread (or task) checked out in vain; ``password``: to
        these. Raises ``LeaseLost`` if the token is not checked out (checked in before, removed, or cleaned up),
        ``PoolFull`` at the limits, ``ValueError`` for arguments of the wrong form; nothing changes then.
        """
        check_user(username)
        check_token(token_string)
        check_object(token_object)
        check_password(password)
        is_new = token_object.token_id is None
        credentials = _one(self._credentials.of_new(username, password)) if is_new else NONE_GIVEN
        with self._lock:
            pool = self.users.get(username)
            if pool is None:
                if token_object.token_id is not None:
                    raise LeaseLost(username, token_object.token_id)
                if len(self.users) >= MAX_USERS:
                    raise PoolFull(f"the pool has {MAX_USERS} users already")
                pool = self.users[username] = self._new_user_pool()
            pool.check_in(username, token_object, token_string, credentials)
        if is_new:
            self._credentials.checked_in(username)

    def remove(self, username: str, token_object: TokenObject) -> bool:
        """Drop a token that the upstream called invalid; ``False`` if it is not checked out (mission D7)."""
        check_user(username)
        check_object(token_object)
        with self._lock:
            pool = self.users.get(username)
            return pool is not None and pool.remove(token_object)

    def clean_up(self) -> int:
        """Drop expired tokens from both tables of all users; returns how many. Call it at intervals (mission D5)."""
        with self._lock:
            dropped = sum(pool.clean_up() for pool in self.users.values())
            for username in [name for name, pool in self.users.items() if not pool.locked and not pool.unlocked]:
                del self.users[username]
            return dropped


def _one(hashes: tuple[bytes, ...]) -> bytes:
    return hashes[0] if hashes else NONE_GIVEN


def check_object(token_object: object) -> None:
    """Raises ``ValueError`` for anything that is no :class:`TokenObject`."""
    if not isinstance(token_object, TokenObject):
        raise ValueError(f"a TokenObject is needed, not {type(token_object).__name__}")
