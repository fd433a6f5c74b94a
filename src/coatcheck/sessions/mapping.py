"""The session as an app sees it: a dict, and three verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.replication.cache import Copy
from coatcheck.sessions.devices import Device, SessionHome
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.provider import provider_session_of
from coatcheck.sessions.record import (
    NOT_PLAIN,
    Record,
    decode_data,
    decode_plain,
    decode_record,
    encode_data,
    encode_plain,
    open_data,
)
from coatcheck.sessions.request_state import RequestState, SharedData
from coatcheck.sessions.values import FROZEN, PLAIN, is_immutable
from coatcheck.sessions.values import IMMUTABLE as _IMMUTABLE
from coatcheck.tokens.sealed import SealedToken

REMEMBER: Final = "_remember"
"""The key of the session that says whether its cookie outlives the browser; Django and scs keep it there too."""


SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods by which nothing is to change (RFC 9110, 9.2.1): browsers send them cross-site, with cookies."""

MAX_USER_BYTES: Final = 1024
"""Of a user's name in UTF-8. It is for operators to find, and stands in every copy of the session."""


class BoundTo(msgspec.Struct, frozen=True):
    """What a session is bound to. ``thumbprint`` names the browser's key (RFC 7638); ``since`` is when it was
    registered, ``last_proof`` when it last signed, both Unix ms."""

    thumbprint: str
    since: int
    last_proof: int


class Session(dict[str, Any]):
    """A dict that can be changed freely, nested values included; it is saved with the response.

    Behaves as Starlette's ``request.session``. Besides, :meth:`rotate`, :meth:`regenerate` and
    :meth:`close` say what is to happen when the response leaves.
    """

    __slots__ = ("_request",)
    _request: RequestState

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request = RequestState()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is of the data alone."""
        return type(self), (self.copy(),)

    # -- the verbs -------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Give the browser a new token with this response (mission A3). The session stays the same."""
        request = self._request
        request.rotating = request.accessed = request.unsettled = True

    def refresh(self) -> None:
        """Tell the browser its token with this response though it has it, so that it keeps the cookie for longer.

        Nothing is stored for it. Told is the newest token, and none to a browser that has been told a newer one.
        """
        request = self._request
        request.telling = request.unsettled = True

    def regenerate(
        self, user: str | None = None, *, remember: bool | None = None, id_token: Mapping[str, Any] | None = None
    ) -> None:
        """Call on login and on any change of privilege: a new session key, under the logged-in cookie; the old session
        is closed at once (ASVS 7.2.4).

        ``user`` is kept for operators to find; ``None`` keeps the one named before. The data stays, and the absolute
        timeout goes on, unless this is the login of somebody: then the timeout starts anew, and if the session was
        another user's, it is emptied of all that was in it when the request began, but for plain values that this
        request has already replaced. After :meth:`close` in the same request a session begins that has nothing of the
        closed one: what was put in since, no user but the one named now, and a timeout of its own.

        ``remember``: whether the browser keeps the cookie when it ends ("remember me"); ``None`` leaves it as it was,
        and at first to the cookie's ``max_age``. It is kept in the session, under :data:`REMEMBER`.

        ``id_token``: the claims of the ID token that the app has verified, where an identity provider logged the user
        in. Its ``iss``, ``sid`` and ``sub`` are kept beside the data, so that the provider can end the session
        (docs/logout-signals.md); ``None`` keeps those of the same user. Raises :class:`ValueError` for claims without
        them, and for those of nobody: it goes with a ``user``.

        Raises :class:`TypeError` for a ``user`` that is no text, such as a number, or a ``remember`` that is neither
        true nor false, and :class:`ValueError` for a name that is empty, cannot be written as UTF-8, or has more than
        :data:`MAX_USER_BYTES`; then nothing has changed.
        """
        user = _checked_user(user)
        provider = None if id_token is None else provider_session_of(id_token)
        if provider is not None and user is None and self.user is None:
            raise ValueError("regenerate: id_token goes with the user's name, by which the session is listed")
        if remember is not None and not isinstance(remember, bool):
            raise TypeError(f"regenerate: remember is True, False or None, not {type(remember).__name__}")
        request = self._request
        request.begins_anew = request.closing
        former = self.user
        if user is not None and former is not None and user != former:
            self._flush()
        request.new_login = True
        if user is not None:
            request.new_user = user
        if provider is not None or (user is not None and user != former):
            request.new_provider = provider
        if remember is not None:
            _setitem(self, REMEMBER, remember)
        self.mark_modified()

    def _flush(self) -> None:
        request = self._request
        opened = {} if request.flushed else {**decode_data(request.blob), **(request.moved_in or {})}
        for key in list(dict.keys(self)):
            value = _getitem(self, key)
            # A list or dict may be the former user's own, changed in place.
            if request.flushed or (key in opened and (type(value) not in _IMMUTABLE or _equal(value, opened[key]))):
                dict.pop(self, key)
        request.flushed = True

    def close(self) -> None:
        """End the session on every server (logout). Its data and its tokens are dead from then on.

        What the request puts in afterwards goes with it, unless :meth:`regenerate` then begins another session.
        """
        self._request.closing = True
        self._request.drop_new()
        self.mark_modified()
        super().clear()

    async def ended(self) -> SessionEnd:
        """Wait until the session is over (logout anywhere, timeout, loss) and return why; for what stays open.

        Of a session that nothing was ever stored in, the end never comes. Raises :class:`CoatcheckError` outside a
        request.
        """
        request = self._request
        if request.home is None:
            raise CoatcheckError("session.ended() can be awaited for the session of a request or a WebSocket only")
        return await request.home.ended(request)

    async def devices(self) -> list[Device]:
        """The sessions of this session's user, the oldest first; none if it has no user.

        Raises :class:`SessionUnavailable`, and :class:`CoatcheckError` outside a request.
        """
        return await self._at_home().devices(self._request)

    async def close_device(self, public: str) -> bool:
        """Close one of the user's other sessions, by its :attr:`Device.id`; whether there was such a one (ASVS 7.5.2).

        It is closed when this returns. Another user's is none of them; this very session is ended by :meth:`close`.
        Raises :class:`SessionUnavailable` if too few session servers could be told, and :class:`CoatcheckError` in a
        request that should change nothing, such as a GET (RFC 9110, 9.2.1), or outside of one.
        """
        return await self._at_home(changes=True).close_device(self._request, public)

    async def close_other_devices(self) -> int:
        """Close all sessions of the user but this one, and return how many they were (ASVS 7.4.3).

        Raises as :meth:`close_device` does.
        """
        return await self._at_home(changes=True).close_other_devices(self._request)

    def _at_home(self, changes: bool = False) -> SessionHome:
        request = self._request
        if request.home is None:
            raise CoatcheckError("a user's sessions can be asked for by the session of a request only")
        if changes and request.method in SAFE_METHODS:
            raise CoatcheckError(f"a {request.method} request closes no sessions: any page can make a browser send one")
        return request.home

    @property
    def remember(self) -> bool | None:
        """What :meth:`regenerate` was told, in this request or before; ``None``: nothing."""
        found = _get(self, REMEMBER, None)
        return found if isinstance(found, bool) else None

    @property
    def is_new(self) -> bool:
        """Whether this session exists nowhere yet."""
        return self._request.copy_held is None

    @property
    def lost(self) -> str | None:
        """Why this visitor's session is gone although nobody ended it (``session.rolled_back``,
        ``session.not_found``): said once, in the fresh session of the request that found it out; otherwise ``None``."""
        return self._request.lost

    @property
    def user(self) -> str | None:
        """Whom :meth:`regenerate` named, in this request or before."""
        request = self._request
        if request.new_user is not None or request.begins_anew:
            return request.new_user
        held = request.copy_held
        if held is None:
            return None
        record: Record = held.record or decode_record(held.body)
        return record.user

    @property
    def bound(self) -> BoundTo | None:
        """The browser's key that this session is bound to; ``None``: it is not, or not yet known to be."""
        held = self._request.copy_held
        if held is None:
            return None
        record: Record = held.record or decode_record(held.body)
        binding = record.bound
        if binding is None:
            return None
        shown = self._request.shown
        if not binding.is_in_force and (shown is None or shown.session_id != binding.first):
            return None
        return BoundTo(binding.key.thumbprint, binding.since, binding.proved_at)

    # -- the dict, with Starlette's two flags ------------------------------------------------------

    @property
    def accessed(self) -> bool:
        """Whether the app looked at the session."""
        return self._request.accessed

    @property
    def modified(self) -> bool:
        """Whether the app changed the session itself; of a change in a nested value this says nothing."""
        return self._request.modified

    @modified.setter
    def modified(self, value: bool) -> None:
        if value:
            self.mark_modified()
        else:
            self._request.modified = False

    def mark_accessed(self) -> None:
        """Keep caches away from this response."""
        self._request.accessed = True

    def mark_modified(self) -> None:
        """The same as a change of the session itself."""
        request = self._request
        request.accessed = request.modified = request.unsettled = request.deep = True

    def clear(self) -> None:
        """Empty the session. One that is still empty when the response leaves is closed, as a logout is."""
        self.mark_modified()
        self._request.cleared = True
        super().clear()

    def __iter__(self) -> Iterator[str]:
        self._request.accessed = True
        return super().__iter__()

    def __contains__(self, key: object) -> bool:
        self._request.accessed = True
        return _contains(self, key)

    def __getitem__(self, key: str) -> Any:
        request = self._request
        request.accessed = True
        value = _getitem(self, key)
        if (kind := type(value)) not in _IMMUTABLE and (kind not in FROZEN or not is_immutable(value)):
            request.unsettled = request.deep = True
            if request.shared is not None:
                _share_no_more(self, request)
                return _getitem(self, key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        request = self._request
        request.accessed = True
        value = _get(self, key, default)
        if (kind := type(value)) not in _IMMUTABLE and (kind not in FROZEN or not is_immutable(value)):
            request.unsettled = request.deep = True
            if request.shared is not None:
                _share_no_more(self, request)
                return _get(self, key, default)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        request = self._request
        request.accessed = request.modified = request.unsettled = True
        if type(value) not in PLAIN or type(key) is not str:
            request.deep = True
        _setitem(self, key, value)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except ArithmeticError:
        return True  # a Decimal that refuses to be compared; nobody says that they differ


def _checked_user(user: Any) -> str | None:
    """The name as it is stored: text of any kind as text. Raises as :meth:`Session.regenerate` says."""
    if user is None:
        return None
    if not isinstance(user, str):
        raise TypeError(f"regenerate: the user's name is text, not {type(user).__name__}; write str(...)")
    if user == "":
        raise ValueError("regenerate: the user's name is empty; leave it out to keep the one named before")
    plain = str.__str__(user)
    try:
        size = len(plain.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"regenerate: the user's name is no text that UTF-8 can write: {error.reason}") from None
    if size > MAX_USER_BYTES:
        raise ValueError(f"regenerate: the user's name is {size} bytes long; at most {MAX_USER_BYTES} are kept")
    return plain


_contains = dict.__contains__
_getitem: Callable[[dict[str, Any], str], Any] = dict.__getitem__
_get: Callable[[dict[str, Any], str, Any], Any] = dict.get
_setitem: Callable[[dict[str, Any], str, Any], None] = dict.__setitem__


def _listing(name: str) -> Callable[..., Any]:
    """A method that hands out all values at once, some of which may be mutable."""
    original = getattr(dict, name)

    def method(self: Session, *args: Any) -> Any:
        request = self._request
        request.accessed = request.unsettled = request.deep = True
        if request.shared is not None:
            _share_no_more(self, request)
        return original(self, *args)

    method.__name__ = name
    return method


def _changing(name: str) -> Callable[..., Any]:
    original = getattr(dict, name)

    def method(self: Session, *args: Any, **kwargs: Any) -> Any:
        request = self._request
        request.accessed = request.modified = request.unsettled = request.deep = True
        if request.shared is not None:
            _share_no_more(self, request)
        return original(self, *args, **kwargs)

    method.__name__ = name
    return method


for _name in ("keys", "values", "items", "copy", "__or__", "__ror__"):
    setattr(Session, _name, _listing(_name))
for _name in ("__delitem__", "pop", "popitem", "setdefault", "update", "__ior__"):
    setattr(Session, _name, _changing(_name))


def move_in(session: Session, content: dict[str, Any], user: str | None) -> None:
    """Go on with what a session of before held, which was ``user``'s: as if this request had opened it."""
    dict.update(session, content)
    session._request.moved_in = content
    session.mark_modified()
    if user is not None:
        with suppress(ValueError):  # a name that is not kept
            session.regenerate(user)


def replace(session: Session, content: dict[str, Any]) -> None:
    """Take ``content`` for all that the session holds; with nothing in it, this is :meth:`Session.clear`."""
    session.clear()
    dict.update(session, content)


def name_user(session: Session, user: str) -> None:
    """Whose session it is, said by a framework that gives a login its new key before it says who logs in.

    With the next write that user is named. A session that this very request has begun has a new key already, and one
    that is this user's is not begun anew; any other is, as by :meth:`Session.regenerate`. Raises as that does.
    """
    former = session.user
    if former == user and not session.is_new:
        return
    if session._request.begun and former is None:
        session._request.named = _checked_user(user)
        session.mark_modified()
    else:
        session.regenerate(user)


def end_at(session: Session, moment_ms: int) -> None:
    """When the session ends (Unix ms), as the next write stores it; idle and absolute timeout may only end it sooner.

    One that exists nowhere yet is stored then, even if nothing is in it.
    """
    session._request.ends_at = moment_ms
    session._request.unsettled = True


def ends_at(session: Session) -> int | None:
    """What :func:`end_at` has said, in this request or before (Unix ms); ``None``: nothing."""
    request = session._request
    if request.ends_at is not None or request.copy_held is None:
        return request.ends_at
    record: Record = request.copy_held.record or decode_record(request.copy_held.body)
    return record.deadline


def _share_no_more(session: Session, request: RequestState) -> None:
    """Before a value that can be changed is handed out: the session gets values of its own, which nobody else sees."""
    shared, request.shared = request.shared, None
    assert shared is not None
    assert shared.mapping is not None
    data, request.kept = open_data(shared.data)
    for key, value in data.items():
        if type(value) not in _IMMUTABLE and _get(session, key, None) is shared.mapping[key]:
            _setitem(session, key, value)
    shared.pays = False


def session_of(
    copy: Copy, token: SealedToken, login: bool, home: SessionHome | None, shared: dict[bytes, SharedData]
) -> Session:
    """The session of a copy whose record is decoded, for a request that showed ``token``.

    ``shared``: by session key, the data that requests share. The hot path: a third of what it takes to call the class.
    """
    request = RequestState()
    request.blob = data = copy.record.data
    request.copy_held = copy
    request.shown = token
    request.home = home
    if login:
        request.login = True
    session: Session = _new(Session)
    session._request = request
    found = shared.get(copy.key)
    if found is not None and found.data == data and found.pays:
        if found.mapping is None:
            found.mapping, found.kept = open_data(data)
        request.shared = found
        if found.kept is not None:
            request.kept = found.kept
        _update(session, found.mapping)
        return session
    try:
        _update(session, decode_plain(data))
    except NOT_PLAIN:
        read_again(session)
    return session


def read_again(session: Session) -> None:
    """Take what is stored for all that the session holds. Raises :class:`CorruptEntry`."""
    request = session._request
    data, request.kept = open_data(request.blob)
    dict.clear(session)
    _update(session, data)


def encoded(session: Session) -> bytes:
    """The mapping as it is to be stored. Raises :class:`SessionDataError` for what cannot be.

    The hot path: of a session that was opened with plain values alone, a closer look is taken only if the app could
    have put others in, and either the bytes have changed or the app has set something itself.
    """
    request = session._request
    if request.kept is not None:
        return encode_data(session, request.kept)
    if request.copy_held is None:
        return encode_data(session)
    if not request.deep:
        return encode_plain(session)
    return encode_data(session, unless=b"" if request.modified else request.blob)


_new = dict.__new__
_update: Callable[[dict[str, Any], dict[str, Any]], None] = dict.update
