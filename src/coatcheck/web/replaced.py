"""What stands in ``scope["session"]`` when the response starts: our session, what the app put in its place, or another
session layer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgspec

from coatcheck.errors import SessionDataError

ABSENT: Final = object()
"""Nothing stands there: the app deleted it."""

_AS_THEY_ARE: Final = (bytes, date, datetime, time, timedelta, Decimal, UUID)
"""What sessions hold besides JSON (docs/values.md)."""

MAX_LAYERS_NAMED: Final = 16
"""Other session layers that one web server names in its log; each is named once."""


def content_of(found: Any) -> dict[str, Any]:
    """The session's content after the app put ``found`` in its place; empty for what frameworks mean by "cleared".

    Litestar's ``clear_session()`` leaves its sentinel ``Empty``, and ``set_session()`` takes a dict, a dataclass, a
    pydantic model or a msgspec struct. Raises :class:`SessionDataError` for what is no mapping.
    """
    if found is ABSENT or found is None or _is_sentinel(found):
        return {}
    if isinstance(found, Mapping):
        return dict(found)
    dump = getattr(found, "model_dump", None)
    try:
        content = dump() if callable(dump) else msgspec.to_builtins(found, builtin_types=_AS_THEY_ARE)
    except TypeError:
        content = None
    if not isinstance(content, dict):
        name = type(found).__name__
        raise SessionDataError(
            f"scope['session'] was replaced by a {name}; a session is a mapping, or None if it is over"
        )
    return content


def _is_sentinel(found: Any) -> bool:
    """Litestar 2's ``Empty`` is a member of an enum, before 2.9 it was a class."""
    return (isinstance(found, Enum) and found.name == "EMPTY") or (
        isinstance(found, type) and found.__name__ == "Empty"
    )


def other_layer(found: Any, scope: MutableMapping[str, Any]) -> str | None:
    """The name of the session layer that put ``found`` there for its own ends; ``None``: the app did, for us.

    A layer keeps book of what was changed, as Starlette's ``Session`` does, or is installed as a middleware of one of
    the apps that this request came through.
    """
    if isinstance(found, Mapping) and hasattr(found, "modified"):
        kind = type(found)
        return f"{kind.__module__}.{kind.__qualname__}"
    for middleware in _installed(scope):
        if middleware.__name__ == "SessionMiddleware" and not middleware.__module__.startswith("coatcheck."):
            return f"{middleware.__module__}.{middleware.__qualname__}"
    return None


def _installed(scope: MutableMapping[str, Any]) -> Iterable[type]:
    """The middleware classes of the innermost Starlette app, and of all layers of a Litestar route."""
    resolve = getattr(scope.get("route_handler"), "resolve_middleware", None)
    for listed in (getattr(scope.get("app"), "user_middleware", None), resolve() if callable(resolve) else None):
        for entry in listed if isinstance(listed, list | tuple) else ():
            named = getattr(entry, "cls", None) or getattr(entry, "middleware", None) or entry
            if isinstance(named, type):
                yield named
