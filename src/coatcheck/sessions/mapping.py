"""The session as an app sees it: a dict, and three verbs (mission A, issue "Sessions")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from coatcheck.replication.cache import Copy
from coatcheck.sessions.record import EMPTY_DATA
from coatcheck.tokens.chain import Shown
from coatcheck.tokens.sealed import SealedToken


class Session(dict[str, Any]):
    """A dict that can be changed freely, nested values included; it is saved with the response.

    Behaves as Starlette's ``request.session``. Besides, :meth:`rotate`, :meth:`regenerate` and
    :meth:`close` say what is to happen when the response leaves.
    """

    __slots__ = (
        "accessed", "blob", "cleared", "closing", "copy_held", "login", "modified", "new_login",
        "new_user", "rotating", "saved_blob", "shown", "verdict",
    )  # fmt: skip

    copy_held: Copy | None
    """The acknowledged copy that this mapping was opened from; ``None``: it exists nowhere yet."""

    def __init__(self, data: dict[str, Any] | None = None, blob: bytes = EMPTY_DATA) -> None:
        if data:
            super().__init__(data)
        else:
            super().__init__()
        self.blob = blob
        self.saved_blob = blob
        self.copy_held = None
        self.shown: SealedToken | None = None
        self.verdict = Shown.CURRENT
        self.login = False
        self.accessed = False
        self.modified = False
        self.rotating = False
        self.closing = False
        self.cleared = False
        self.new_login = False
        self.new_user: str | None = None

    # -- the verbs -------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Give the browser a new token with this response (A3). The session stays the same."""
        self.rotating = True
        self.accessed = True

    def regenerate(self, user: str | None = None) -> None:
        """Call on login and on any change of privilege: a new session with the same data, under the logged-in
        cookie; the old session is closed at once (ASVS 7.2.4). ``user`` is kept for operators to find."""
        self.new_login = True
        self.new_user = user
        self.accessed = self.modified = True

    def close(self) -> None:
        """End the session on every server (logout). Its data and its tokens are dead from then on."""
        self.closing = True
        self.accessed = self.modified = True
        super().clear()

    @property
    def is_new(self) -> bool:
        """Whether this session exists nowhere yet."""
        return self.copy_held is None

    @property
    def user(self) -> str | None:
        """Whom :meth:`regenerate` named, in this request or before."""
        if self.new_login:
            return self.new_user
        record = self.copy_held.record if self.copy_held is not None else None
        return record.user if record is not None else None

    # -- the dict, with Starlette's two flags ------------------------------------------------------

    def mark_accessed(self) -> None:
        self.accessed = True

    def mark_modified(self) -> None:
        self.accessed = self.modified = True

    def clear(self) -> None:
        """Empty the session. One that is still empty when the response leaves is closed, as a logout is."""
        self.mark_modified()
        self.cleared = True
        super().clear()

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        return super().__iter__()


def _reading(name: str) -> Callable[..., Any]:
    original = getattr(dict, name)

    def method(self: Session, *args: Any) -> Any:
        self.accessed = True
        return original(self, *args)

    method.__name__ = name
    return method


def _changing(name: str) -> Callable[..., Any]:
    original = getattr(dict, name)

    def method(self: Session, *args: Any, **kwargs: Any) -> Any:
        self.accessed = self.modified = True
        return original(self, *args, **kwargs)

    method.__name__ = name
    return method


for _name in ("__getitem__", "__contains__", "get", "keys", "values", "items", "copy", "__or__", "__ror__"):
    setattr(Session, _name, _reading(_name))
for _name in ("__setitem__", "__delitem__", "pop", "popitem", "setdefault", "update", "__ior__"):
    setattr(Session, _name, _changing(_name))
