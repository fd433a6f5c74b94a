"""Django's session object, on a session of coatcheck.

What Django calls the session key is the token in the cookie: it names the session, and nobody can guess or make one.
"""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted

from coatcheck.errors import ConflictError, SessionClosed
from coatcheck.events import public_id
from coatcheck.sessions import mapping
from coatcheck.sessions.cookies import ANONYMOUS_MARK, LOGIN_MARK
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.record import decode_data
from coatcheck.web.django.configuration import former, sessions
from coatcheck.web.django.former import EXPIRY
from coatcheck.web.django.steps import Steps, ask, await_, call, wait
from coatcheck.web.django.values import from_store, to_store
from coatcheck.web.moving_in import FormerSession, check_content

LOGIN_KEYS: Final = frozenset({SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY})
"""What a login has just put in."""
MARKS: Final = (ANONYMOUS_MARK.decode(), LOGIN_MARK.decode())
"""How our own keys begin; others are those of the engine of before."""
OVER: Final = (
    "The request's session was deleted before the request completed. The user may have logged out in a concurrent "
    "request, for example."
)


class SessionStore(SessionBase):
    """A session by its key; what it does is acknowledged when its methods return.

    :class:`coatcheck.SessionUnavailable` is raised while no session server answers.
    """

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._held: Session | None = None
        """The session as it was read or stored last; ``None``: not read yet, or it exists nowhere."""
        self._opened: Opened | None = None
        """The request that it was opened for, if it was."""
        self._is_fresh = False
        """Whether what is held was opened for this request, and not looked at yet."""
        self.was_flushed = False
        """Whether the app has ended it; then its cookie goes."""
        self._user: str | None = None
        """Who is to be named when the session begins."""
        self._moving: FormerSession | None = None
        """The session of before that this one goes on with, until that is stored."""

    @classmethod
    def of(cls, opened: Opened, shown: str | None) -> SessionStore:
        """The session of a request that shows ``shown`` in its cookie."""
        found = not opened.session.is_new
        store = cls(shown if found else None)
        store._opened = opened
        if found:
            store._held, store._is_fresh = opened.session, True
        return store

    @property
    def public_id(self) -> str | None:
        """What logs, audit records and ``coatcheck sessions`` call it; the same while its key is rotated."""
        key = None if self._held is None else self._held._request.copy_held
        return None if key is None else public_id(key.key)

    # -- what Django asks of a session store -------------------------------------------------------

    def load(self) -> dict[str, Any]:
        return wait(self._loading())

    async def aload(self) -> dict[str, Any]:
        return await await_(self._loading())

    def exists(self, session_key: str | None) -> bool:
        return wait(self._existing(session_key))

    async def aexists(self, session_key: str | None) -> bool:
        return await await_(self._existing(session_key))

    def create(self) -> None:
        wait(self._creating())

    async def acreate(self) -> None:
        await await_(self._creating())

    def save(self, must_create: bool = False) -> None:
        wait(self._saving(must_create))

    async def asave(self, must_create: bool = False) -> None:
        await await_(self._saving(must_create))

    def delete(self, session_key: str | None = None) -> None:
        wait(self._deleting(session_key))

    async def adelete(self, session_key: str | None = None) -> None:
        await await_(self._deleting(session_key))

    def flush(self) -> None:
        wait(self._flushing())

    async def aflush(self) -> None:
        await await_(self._flushing())

    def cycle_key(self) -> None:
        wait(self._cycling())

    async def acycle_key(self) -> None:
        await await_(self._cycling())

    def is_empty(self) -> bool:
        """Whether there is neither a key, also of before, nor data."""
        return self._moving is None and super().is_empty()

    @classmethod
    def clear_expired(cls) -> None:
        """Session servers forget what has expired; the store of before is cleared."""
        wait(cls._clearing())

    @classmethod
    async def aclear_expired(cls) -> None:
        """As :meth:`clear_expired`."""
        await await_(cls._clearing())

    def name_user(self, user: str) -> None:
        """Whose session it is, from the next write on: :func:`django.contrib.auth.login` has just said so.

        What another user has left in the session goes.
        """
        self.modified = True
        held = self._held
        if held is None:
            self._user = user
            return
        if held.user not in (None, user):
            former = self._stored()
            for key in [key for key in self._session if key not in LOGIN_KEYS and key in former]:
                del self._session[key]
        mapping.name_user(held, user)

    # -- the same for both kinds of callers --------------------------------------------------------

    def _loading(self) -> Steps[dict[str, Any]]:
        if self._is_fresh:
            self._is_fresh = False
        else:
            self._held = yield from self._finding(self.session_key)
        if self._held is None:
            found = yield from self.finding_former(self.session_key)
            self._take_key(None)
            if found is not None:
                self.move_in(found)
            return {} if self._moving is None else self._moving.content
        return self._stored()

    # -- the session of before -----------------------------------------------------------------------

    def finding_former(self, shown: str | None) -> Steps[FormerSession | None]:
        """The session that goes on here if the browser shows none of ours. Raises :class:`SessionUnavailable`."""
        if not _is_of_before(shown):
            return None
        found: FormerSession | None = yield from call(former().find, {settings.SESSION_COOKIE_NAME: shown})
        return found

    def move_in(self, found: FormerSession) -> None:
        """Go on with a session of before, if all of it can be stored; it is stored with the response."""
        if not check_content(to_store(found.content, {}, self.serializer)):
            return
        self._moving = found
        self._session_cache = found.content
        self.accessed = self.modified = True
        self._user = found.user

    def leaving_former(self) -> Steps[None]:
        """It is stored here now."""
        moved, self._moving = self._moving, None
        if moved is not None:
            yield from call(moved.leave)

    def _ending_former(self) -> Steps[None]:
        """Its user has logged out."""
        moved, self._moving, self._user = self._moving, None, None
        if moved is not None:
            yield from call(moved.end)

    @classmethod
    def _clearing(cls) -> Steps[None]:
        engine = former().engine
        if engine is not None:
            yield from call(engine.clear_expired)

    def _finding(self, key: str | None) -> Steps[Session | None]:
        if not key:
            return None
        found: Session | None = yield from ask("find_by_token", _text(key))
        return found

    def _existing(self, key: str | None) -> Steps[bool]:
        return (yield from self._finding(key)) is not None

    def _creating(self) -> Steps[None]:
        self._begin()
        yield from self._saving(must_create=True)
        self.modified = True

    def _saving(self, must_create: bool) -> Steps[None]:
        if must_create and (yield from self._existing(self.session_key)):
            raise CreateError
        if not must_create and self.session_key is None:
            yield from self._creating()
            return
        data = yield from self._data(no_load=must_create)
        if must_create:
            self._begin()
        elif self._held is None:
            self._held = yield from self._finding(self.session_key)
            if self._held is None:
                raise UpdateError
        yield from self._storing(data)

    def _storing(self, data: dict[str, Any]) -> Steps[None]:
        self.put(data)
        try:
            token: bytes = yield from ask("store_now", self._held)
        except (SessionClosed, ConflictError) as error:
            raise UpdateError(str(error)) from error
        self._take_key(token.decode())
        yield from self.leaving_former()

    def _deleting(self, key: str | None) -> Steps[None]:
        if key is None:
            yield from self._ending_former()
            key = self.session_key
        if _is_of_before(key):
            yield from call(former().end, key)
        elif key:
            yield from ask("close_by_token", _text(key))

    def _flushing(self) -> Steps[None]:
        self.clear()
        yield from self._deleting(None)
        self._begin()
        self.was_flushed = True

    def _cycling(self) -> Steps[None]:
        data = yield from self._data()
        if self._held is None:
            self._held = yield from self._finding(self.session_key)
        if self._held is None:
            yield from self._creating()
        else:
            self._held.regenerate()
            try:
                yield from self._storing(data)
            except UpdateError as error:
                raise SessionInterrupted(OVER) from error
        self._session_cache = data
        self.modified = True

    def _data(self, no_load: bool = False) -> Steps[dict[str, Any]]:
        """As :meth:`SessionBase._get_session`."""
        self.accessed = True
        if not hasattr(self, "_session_cache"):
            wanted = self.session_key is not None and not no_load
            self._session_cache = (yield from self._loading()) if wanted else {}
        return self._session_cache

    # -- from Django's dict to ours and back -------------------------------------------------------

    def put(self, data: dict[str, Any]) -> None:
        """What is to be stored, and until when; Django counts from the last change."""
        held = self._held
        if held is None:
            held = self._held = self._opened.session if self._opened is not None else Session()
        stored = to_store(data, decode_data(held._request.blob), self.serializer)
        held.mark_modified()
        dict.clear(held)
        dict.update(held, stored)
        if self._user is not None:
            held.regenerate(self._user)
            self._user = None
        mapping.end_at(held, sessions().now_ms() + 1000 * self.get_expiry_age(expiry=data.get(EXPIRY)))

    def _stored(self) -> dict[str, Any]:
        assert self._held is not None
        return from_store(decode_data(self._held._request.blob), self.serializer)

    def _take_key(self, key: str | None) -> None:
        self._session_key = key

    def _begin(self) -> None:
        """What is saved next is another session, which exists nowhere yet."""
        self._take_key(None)
        self._held, self._is_fresh = None, False
        if self._opened is not None and not self._opened.session.is_new:
            self._opened.session = fresh_beside(self._opened)


def fresh_beside(opened: Opened) -> Session:
    """A session that exists nowhere yet, for a request whose own was closed."""
    session, before = Session(), opened.session._request
    session._request.home = before.home
    session._request.method, session._request.headers, session._request.client = (
        opened.method, opened.headers, opened.client,
    )  # fmt: skip
    return session


def _is_of_before(key: str | None) -> bool:
    return bool(key) and not str(key).startswith(MARKS) and not former().is_over()


def _text(key: str) -> bytes:
    return key.encode("utf-8", "replace")


class BorrowedStore(SessionStore):
    """The session that a layer outside of Django has opened: what is done to it is stored with the response.

    Its key is the outer layer's; here it has its public name.
    """

    def __init__(self, outer: Session) -> None:
        held = outer._request.copy_held
        super().__init__(None if held is None else public_id(held.key))
        self.outer = outer

    @property
    def public_id(self) -> str | None:
        known: str | None = self.session_key
        return known

    def name_user(self, user: str) -> None:
        former = self.outer.user
        if former not in (None, user):
            before = self._stored()
            for key in [key for key in self._session if key not in LOGIN_KEYS and key in before]:
                del self._session[key]
        self.modified = True
        self.outer.regenerate(user)

    def _loading(self) -> Steps[dict[str, Any]]:
        return self._stored()
        yield

    def _stored(self) -> dict[str, Any]:
        return from_store(copy.deepcopy(self.outer.copy()), self.serializer)

    def _existing(self, key: str | None) -> Steps[bool]:
        return key is not None and key == self.session_key
        yield

    def _creating(self) -> Steps[None]:
        if not self.outer.is_new:
            self.outer.regenerate()
        yield from self._saving(must_create=True)
        self.modified = True

    def _saving(self, must_create: bool) -> Steps[None]:
        self.put((yield from self._data(no_load=must_create)))

    def put(self, data: dict[str, Any]) -> None:
        outer = self.outer
        if outer._request.closing and not outer._request.begins_anew:
            outer.regenerate()  # what is put in after a flush begins another session
        stored = to_store(data, dict(outer.copy()), self.serializer)
        outer.mark_modified()
        dict.clear(outer)
        dict.update(outer, stored)
        if self._user is not None:
            outer.regenerate(self._user)
            self._user = None
        now = self._now_ms()
        mapping.end_at(outer, now + 1000 * self.get_expiry_age(expiry=data.get(EXPIRY)))

    def _now_ms(self) -> int:
        home: Any = self.outer._request.home
        known = home.now_s() if home is not None else datetime.now().timestamp()
        return int(known * 1000)

    def _deleting(self, key: str | None) -> Steps[None]:
        if key is None or key == self.session_key:
            self.outer.close()
        return
        yield

    def _flushing(self) -> Steps[None]:
        self.clear()
        self.outer.close()
        yield from self._ending_former()
        self._session_key = None
        self.was_flushed = True

    def _cycling(self) -> Steps[None]:
        self._session_cache = yield from self._data()
        self.outer.regenerate()
        self.modified = True
