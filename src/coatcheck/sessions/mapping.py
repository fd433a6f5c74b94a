"""The session as an app sees it: a dict, and three verbs (mission A, issue "Sessions")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.replication.cache import Copy
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.record import EMPTY_DATA, decode_data
from coatcheck.tokens.chain import Shown
from coatcheck.tokens.sealed import SealedToken

_IMMUTABLE: Final = frozenset({str, int, float, bool, type(None), bytes})
"""Whoever is handed one of these cannot change the session behind our back."""


REMEMBER: Final = "_remember"
"""The key of the session that says whether its cookie outlives the browser; Django and scs keep it there too."""


class Session(dict[str, Any]):
    """A dict that can be changed freely, nested values included; it is saved with the response.

    Behaves as Starlette's ``request.session``. Besides, :meth:`rotate`, :meth:`regenerate` and
    :meth:`close` say what is to happen when the response leaves.
    """

    # Class attributes are the defaults: a session that is only read sets four of them.
    blob: bytes = EMPTY_DATA
    """The mapping as it was opened, encoded."""
    saved_blob: bytes = EMPTY_DATA
    """The mapping as it is to be stored; set when the response leaves."""
    copy_held: Copy | None = None
    """The acknowledged copy that this mapping was opened from; ``None``: it exists nowhere yet."""
    unheard: tuple[bytes, ...] = ()
    """Keys of sessions that this browser shows and that could be neither found nor declared lost (protocol 6)."""
    shown: SealedToken | None = None
    verdict: Shown = Shown.CURRENT
    login: bool = False
    accessed: bool = False
    modified: bool = False
    unsettled: bool = False
    """Whether the response must look closer: the mapping was changed, a mutable value was handed out, a verb was
    used, or the browser is to be told something. While it is false, nothing is to be saved or sent."""
    rotating: bool = False
    closing: bool = False
    cleared: bool = False
    new_login: bool = False
    new_user: str | None = None
    lost: str | None = None
    """Why this visitor's session is gone although nobody ended it (``session.rolled_back``, ``session.not_found``):
    said once, in the fresh session of the request that found it out. ``None`` otherwise."""
    flushed: bool = False
    """Whether another user logged in: then nothing of the former one's is carried over, whoever stored it meanwhile."""
    ended_by: Callable[[Session], Awaitable[SessionEnd]] | None = None
    """Who knows when a session ends; set by whoever hands it to the app."""

    # -- the verbs -------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Give the browser a new token with this response (A3). The session stays the same."""
        self.rotating = True
        self.accessed = self.unsettled = True

    def regenerate(self, user: str | None = None, *, remember: bool | None = None) -> None:
        """Call on login and on any change of privilege: a new session key, under the logged-in cookie; the old session
        is closed at once (ASVS 7.2.4).

        ``user`` is kept for operators to find; ``None`` keeps the one named before. The data stays, and the absolute
        timeout goes on, unless this is the login of somebody: then the timeout starts anew, and if the session was
        another user's, it is emptied of all that was in it when the request began, but for plain values that this
        request has already replaced.

        ``remember``: whether the browser keeps the cookie when it ends ("remember me"); ``None`` leaves it as it was,
        and at first to the cookie's ``max_age``. It is kept in the session, under :data:`REMEMBER`.

        Raises :class:`TypeError` for a ``user`` that is no text, such as a number, and :class:`ValueError` for an empty
        one; then nothing has changed.
        """
        if user is not None and not isinstance(user, str):
            raise TypeError(f"regenerate: the user's name is text, not {type(user).__name__}; write str(...)")
        if user == "":
            raise ValueError("regenerate: the user's name is empty; leave it out to keep the one named before")
        former = self.user
        if user is not None and former is not None and user != former:
            self._flush()
        self.new_login = True
        self.new_user = user if user is not None else self.new_user
        if remember is not None:
            _setitem(self, REMEMBER, bool(remember))
        self.mark_modified()

    def _flush(self) -> None:
        opened = {} if self.flushed else decode_data(self.blob)
        for key in list(dict.keys(self)):
            value = _getitem(self, key)
            # A list or dict may be the former user's own, changed in place.
            if self.flushed or (key in opened and (type(value) not in _IMMUTABLE or value == opened[key])):
                dict.pop(self, key)
        self.flushed = True

    def close(self) -> None:
        """End the session on every server (logout). Its data and its tokens are dead from then on."""
        self.closing = True
        self.mark_modified()
        super().clear()

    async def ended(self) -> SessionEnd:
        """Wait until the session is over (logout anywhere, timeout, loss) and return why; for what stays open.

        Of a session that nothing was ever stored in, the end never comes. Raises :class:`CoatcheckError` outside a
        request.
        """
        if self.ended_by is None:
            raise CoatcheckError("session.ended() can be awaited for the session of a request or a WebSocket only")
        return await self.ended_by(self)

    @property
    def remember(self) -> bool | None:
        """What :meth:`regenerate` was told, in this request or before; ``None``: nothing."""
        found = _get(self, REMEMBER, None)
        return found if isinstance(found, bool) else None

    @property
    def is_new(self) -> bool:
        """Whether this session exists nowhere yet."""
        return self.copy_held is None

    @property
    def is_nothing(self) -> bool:
        """Whether the browser has shown no session at all: there is nothing to end."""
        return self.copy_held is None and not self.unheard

    @property
    def user(self) -> str | None:
        """Whom :meth:`regenerate` named, in this request or before."""
        if self.new_user is not None:
            return self.new_user
        record = self.copy_held.record if self.copy_held is not None else None
        return record.user if record is not None else None

    # -- the dict, with Starlette's two flags ------------------------------------------------------

    def mark_accessed(self) -> None:
        self.accessed = True

    def mark_modified(self) -> None:
        self.accessed = self.modified = self.unsettled = True

    def clear(self) -> None:
        """Empty the session. One that is still empty when the response leaves is closed, as a logout is."""
        self.mark_modified()
        self.cleared = True
        super().clear()

    def replace(self, content: dict[str, Any]) -> None:
        """Take ``content`` for all that the session holds; with nothing in it, this is :meth:`clear`."""
        self.clear()
        super().update(content)

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        return super().__iter__()

    def __contains__(self, key: object) -> bool:
        self.accessed = True
        return _contains(self, key)

    def __getitem__(self, key: str) -> Any:
        self.accessed = True
        value = _getitem(self, key)
        if type(value) not in _IMMUTABLE:
            self.unsettled = True
        return value

    def get(self, key: str, default: Any = None) -> Any:
        self.accessed = True
        value = _get(self, key, default)
        if type(value) not in _IMMUTABLE:
            self.unsettled = True
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.accessed = self.modified = self.unsettled = True
        _setitem(self, key, value)


_contains = dict.__contains__
_getitem: Callable[[dict[str, Any], str], Any] = dict.__getitem__
_get: Callable[[dict[str, Any], str, Any], Any] = dict.get
_setitem: Callable[[dict[str, Any], str, Any], None] = dict.__setitem__


def _listing(name: str) -> Callable[..., Any]:
    """A method that hands out all values at once, some of which may be mutable."""
    original = getattr(dict, name)

    def method(self: Session, *args: Any) -> Any:
        self.accessed = self.unsettled = True
        return original(self, *args)

    method.__name__ = name
    return method


def _changing(name: str) -> Callable[..., Any]:
    original = getattr(dict, name)

    def method(self: Session, *args: Any, **kwargs: Any) -> Any:
        self.accessed = self.modified = self.unsettled = True
        return original(self, *args, **kwargs)

    method.__name__ = name
    return method


for _name in ("keys", "values", "items", "copy", "__or__", "__ror__"):
    setattr(Session, _name, _listing(_name))
for _name in ("__delitem__", "pop", "popitem", "setdefault", "update", "__ior__"):
    setattr(Session, _name, _changing(_name))
