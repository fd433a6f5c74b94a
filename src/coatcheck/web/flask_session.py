"""The session of Flask and Quart: their own kind of session and coatcheck's in one, and the values that it carries.

Both frameworks have the same class of session and the same tags for values that JSON has no type for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

from flask.json.tag import JSONTag, PassDict, PassList, TagDict, TaggedJSONSerializer, TagMarkup
from flask.sessions import SessionMixin
from werkzeug.exceptions import HTTPException, default_exceptions

from coatcheck.errors import SessionDataError
from coatcheck.sessions.answer import RETRY_AFTER_S, Answer
from coatcheck.sessions.mapping import REMEMBER, Session, move_in
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.record import decode_data
from coatcheck.web.moving_in import FormerSession, check_content

PERMANENT: Final = "_permanent"
"""Where Flask keeps :attr:`SessionMixin.permanent`."""

PARTS_OF_A_LIFETIME: Final = 8
"""A token older than this part of ``PERMANENT_SESSION_LIFETIME`` is replaced where Flask would sign its cookie anew, so
a session ends that much later at most."""

_TAGGED: Final = re.compile(rb"\x81(?:[\xa1-\xbf]|\xd9.) ", re.DOTALL)
"""In MessagePack: a map of one key that begins with a space, as those of all tags do. A look in C, instead of one at
each value of each session."""

_PLAIN: Final = frozenset({str, int, float, bool, type(None), bytes})


class _NaiveDateTime(JSONTag):
    """A datetime without a zone is taken for one in UTC, as Flask's own cookie does; others are stored as they are."""

    __slots__ = ()

    def check(self, value: Any) -> bool:
        return isinstance(value, datetime) and value.tzinfo is None

    def to_json(self, value: Any) -> Any:
        return value.replace(tzinfo=UTC)

    tag = to_json


class _Tuple(JSONTag):
    """A tuple is stored as one; what is in it may have tags."""

    __slots__ = ()

    def check(self, value: Any) -> bool:
        return isinstance(value, tuple)

    def to_json(self, value: Any) -> Any:
        return tuple(self.serializer.tag(item) for item in value)

    tag = to_json


class ValueTags(TaggedJSONSerializer):
    """Flask's tags, but for what a session stores as it is: tuples, UUIDs, bytes, and datetimes with a zone.

    An app may :meth:`register` tags of its own.
    """

    default_tags = [TagDict, PassDict, _Tuple, PassList, TagMarkup, _NaiveDateTime]  # noqa: RUF012

    def stored(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """What is stored of a session. Raises :class:`SessionDataError` for what is nested too deep."""
        try:
            return {key: value if type(value) in _PLAIN else self.tag(value) for key, value in content.items()}
        except RecursionError:
            raise SessionDataError("the session cannot be stored: values are nested too deep") from None

    def shown(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """What the app sees of it."""
        return {key: value if type(value) in _PLAIN else self._untagged(value) for key, value in content.items()}

    def _untagged(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.untag({key: self._untagged(inner) for key, inner in value.items()})
        if isinstance(value, list):
            return [self._untagged(inner) for inner in value]
        if type(value) is tuple:
            return tuple(self._untagged(inner) for inner in value)
        return value


class FrameworkSession(Session, SessionMixin):
    """What ``flask.session`` and ``quart.session`` are: coatcheck's session, with ``permanent``, ``new``, ``modified``
    and ``accessed`` as Flask's has them.

    ``regenerate(remember=True)`` is ``permanent = True``. After ``modified = False`` nothing of the data is stored,
    unless the session is changed after that.
    """

    _opened: Opened | None = None
    _stored: Session
    """The same session as it is stored; :attr:`_request` belongs to both."""
    _has_tags: bool = False
    _said_unmodified: bool = False
    _found: FormerSession | None = None
    """The session of before that was moved in, until it is stored."""
    _is_over: bool = False
    """Whether what the browser showed has outlived ``PERMANENT_SESSION_LIFETIME``, and another layer opened it."""

    @classmethod
    def of(cls, stored: Session, tags: ValueTags, opened: Opened | None = None) -> FrameworkSession:
        """The session of a request; ``opened`` is left out where another layer has opened it, and saves it."""
        session = cls.__new__(cls)
        request = session._request = stored._request
        session._stored = stored
        session._opened = opened
        session._has_tags = request.moved_in is not None or _TAGGED.search(request.blob) is not None
        dict.update(session, tags.shown(_plain(stored)) if session._has_tags else _plain(stored))
        dict.pop(session, REMEMBER, None)
        return session

    def regenerate(
        self, user: str | None = None, *, remember: bool | None = None, id_token: Mapping[str, Any] | None = None
    ) -> None:
        super().regenerate(user, remember=remember, id_token=id_token)
        if remember is not None:
            dict.pop(self, REMEMBER, None)
            self.permanent = remember

    regenerate.__doc__ = Session.regenerate.__doc__

    @property
    def remember(self) -> bool | None:
        """What :meth:`regenerate` was told: whether the session is permanent."""
        found = dict.get(self, PERMANENT)
        return found if isinstance(found, bool) else None

    @property
    def new(self) -> bool:  # type: ignore[override]
        """Whether this session exists nowhere yet."""
        return self.is_new

    @property
    def accessed(self) -> bool:
        """Whether the app looked at the session."""
        return self._request.accessed

    @accessed.setter
    def accessed(self, value: bool) -> None:
        self._request.accessed = value

    @property
    def modified(self) -> bool:
        """Whether the app changed the session itself. A change in a nested value is stored without it."""
        return self._request.modified

    @modified.setter
    def modified(self, value: bool) -> None:
        self._said_unmodified = not value
        if value:
            self.mark_modified()
        else:
            self._request.modified = False

    # -- for the interface ---------------------------------------------------------------------------

    def hand_over(self, tags: ValueTags) -> None:
        """Bring what the app did to what is stored. Raises :class:`SessionDataError`."""
        request, stored = self._request, self._stored
        if not request.unsettled:
            return
        if self._said_unmodified and not request.modified and not request.new_login:
            content = decode_data(request.blob)
        else:
            content = _plain(self)
            if request.deep or self._has_tags:
                content = tags.stored(content)
            if self._opened is None:
                self._say_remember(content)
        dict.clear(stored)
        dict.update(stored, content)

    def _say_remember(self, content: dict[str, Any]) -> None:
        """To the layer outside, which writes the cookie: whether the browser keeps it when it ends."""
        permanent = dict.get(self, PERMANENT)
        if permanent is not None:
            content[REMEMBER] = bool(permanent)

    def token_age_s(self) -> float:
        """Of the token that the browser showed; 0 if it showed none."""
        shown = self._request.shown
        return 0.0 if shown is None else time.time() - shown.timestamp / 1000

    def has_outlived(self, lifetime: timedelta) -> bool:
        """Whether nobody has used it for so long that Flask would take its cookie no more."""
        lifetime_s = lifetime.total_seconds()
        return self.token_age_s() > lifetime_s + lifetime_s / PARTS_OF_A_LIFETIME

    def refresh_for(self, lifetime: timedelta) -> None:
        """Where Flask would sign its cookie anew: the browser is told its token, or a new one."""
        self.refresh()
        if self.token_age_s() > lifetime.total_seconds() / PARTS_OF_A_LIFETIME:
            accessed = self._request.accessed
            self.rotate()
            self._request.accessed = accessed

    def move_in(self, found: FormerSession, tags: ValueTags) -> None:
        """Go on with a session of before, if all of it can be stored."""
        if not check_content(tags.stored(found.content)):
            return
        move_in(self, found.content, found.user)
        self._found = found

    def leave_if_emptied(self) -> bool:
        """Whether the app has emptied the session, and the browser is to forget it, as Flask's sessions do.

        That of a user is closed on every server; any other stays as it is stored, empty, for requests that run beside
        this one.
        """
        request = self._request
        if len(self) or not request.modified or (request.new_login and self.user is not None):
            return False
        if request.login or request.new_login or self.user is not None:
            self.close()
        return True


def _plain(session: Session) -> dict[str, Any]:
    """The same as a plain dict, without looking at the session in the app's name, as ``dict(session)`` would."""
    return dict(dict.items(session))


class UnavailableSession(dict[str, Any], SessionMixin):
    """In the place of a session that cannot be had now: who looks at it first raises the refusal, an
    :class:`werkzeug.exceptions.HTTPException` of 503 or 429, and then only the app's page for that may leave, which
    finds it empty. A page that needs no session is served."""

    modified = False

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.was_asked = False

    def is_said_by(self, status: int) -> bool:
        """Whether a response of this status says that the session could not be had."""
        return status == self.answer.status

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.was_asked = True
        raise refusal_of(self.answer)

    __setitem__ = __delitem__ = __or__ = __ror__ = __ior__ = _refuse
    pop = popitem = setdefault = update = clear = rotate = regenerate = close = refresh = _refuse
    __hash__ = None  # type: ignore[assignment]


def _reading(name: str) -> Any:
    original = getattr(dict, name)

    def method(self: UnavailableSession, *args: Any) -> Any:
        if not self.was_asked:
            self._refuse()
        return original(self, *args)

    method.__name__ = name
    return method


for _name in ("__getitem__", "__contains__", "__iter__", "__len__", "__eq__", "__ne__", "__reversed__"):
    setattr(UnavailableSession, _name, _reading(_name))
for _name in ("get", "keys", "values", "items", "copy"):
    setattr(UnavailableSession, _name, _reading(_name))


def refusal_of(answer: Answer) -> HTTPException:
    """What an app's error handlers are given for a session that could be neither had nor stored."""
    kind = default_exceptions[answer.status]
    error = kind(f"session unavailable: {answer.refused}")
    if answer.status in (429, 503):
        error.retry_after = RETRY_AFTER_S  # type: ignore[attr-defined]
    return error
