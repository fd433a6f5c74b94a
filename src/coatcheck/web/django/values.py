"""What Django's users put into a session, as it is stored: a mapping that servers of every kind can read.

What counts is what ``SESSION_SERIALIZER`` makes of a value. Of Django's own, JSON, the values stand in the record as
what JSON makes of them. What MessagePack cannot hold (an integer beyond 64 bits), or another serializer knows more of
than JSON does, stands there as that serializer has written it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from django.contrib.sessions.serializers import JSONSerializer

from coatcheck.errors import SessionDataError
from coatcheck.sessions.record import encode_data

SERIALIZED: Final = "$django"
"""The only key of a dict that stands for a value, whose bytes the serializer has written."""

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def to_store(data: dict[Any, Any], stored: dict[str, Any], serializer: type[Any]) -> dict[str, Any]:
    """``data`` as it is to be stored; ``stored``: what was read before, of which what is unchanged stays as it is, in
    whatever types another server has stored it.

    Raises what the serializer raises for a value that it cannot write, as Django's own engines do.
    """
    kept = {key: value for key, value in stored.items() if key in data and _same(_shown(value, serializer), data[key])}
    changed = {key: value for key, value in data.items() if key not in kept}
    if not changed:
        return kept
    if serializer is JSONSerializer:
        written: dict[str, Any] = json.loads(serializer().dumps(changed))
        try:
            encode_data(written)
        except SessionDataError:
            written = {key: _held(value, serializer) for key, value in written.items()}
    else:
        written = {
            str(key): value if _is_plain(value) else {SERIALIZED: serializer().dumps(value)}
            for key, value in changed.items()
        }
    return kept | written


def from_store(stored: dict[str, Any], serializer: type[Any]) -> dict[str, Any]:
    """What the view finds in its session. A value that the serializer cannot read any more is left out."""
    found = {}
    for key, value in stored.items():
        try:
            found[key] = _shown(value, serializer)
        except Exception:  # noqa: BLE001, S112 - serializers raise what they like
            continue
    return found


def _shown(value: Any, serializer: type[Any]) -> Any:
    if type(value) is dict and len(value) == 1 and type(value.get(SERIALIZED)) is bytes:
        return serializer().loads(value[SERIALIZED])
    return value


def _held(value: Any, serializer: type[Any]) -> Any:
    try:
        encode_data({"": value})
    except SessionDataError:
        return {SERIALIZED: serializer().dumps(value)}
    return value


def _is_plain(value: Any) -> bool:
    """Whether any server reads it as what it is."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and _is_plain(inner) for key, inner in value.items())
    return type(value) in _PLAIN and _held(value, _Nothing) is value


class _Nothing:
    def dumps(self, value: Any) -> bytes:
        return b""


def _same(one: Any, other: Any) -> bool:
    # Equal is not enough: 1 == True, and what is stored must be what the app wrote.
    return type(one) is type(other) and one == other and repr(one) == repr(other)
