"""Values of sessions as JSON has them: for those who look from outside, and for frameworks that want JSON alone."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.msgpack import Ext

from coatcheck.sessions.value_reading import UnknownValue


def not_json(data: Mapping[str, Any]) -> dict[str, str]:
    """Which keys hold what JSON would not give back as it was, and the first such thing in each: where, and its type.

    Empty: all is ``None``, true, false, text, an integer, a finite float, a list, or a dict with keys of text. Of a
    session, this counts neither as a look nor as a change.
    """
    pairs = dict.items(data) if isinstance(data, dict) else data.items()
    found = {key: _first_odd(value, "") for key, value in pairs}
    return {key: words for key, words in found.items() if words is not None}


def _first_odd(value: Any, where: str) -> str | None:
    kind = type(value)
    if kind is dict:
        inside: Iterable[tuple[Any, Any]] = value.items()
        for key in value:
            if type(key) is not str:
                return _words(where, f"a key of type {type(key).__name__}")
    elif kind is list:
        inside = enumerate(value)
    elif kind in (str, int, bool, type(None)) or (kind is float and math.isfinite(value)):
        return None
    else:
        return _words(where, "a float that is not finite" if kind is float else kind.__name__)
    for key, inner in inside:
        odd = _first_odd(inner, f"{where}[{key!r:.80}]")
        if odd is not None:
            return odd
    return None


def _words(where: str, what: str) -> str:
    return f"{where[:160]}: {what}" if where else what


def json_form(value: Any) -> Any:
    """The value as JSON can show it; what is not JSON is not what it was any more.

    Tuples are lists, and sets are lists in the order of their text. A value of a registered class, which
    :func:`coatcheck.sessions.record.look_into_data` gives as :class:`UnknownValue`, is a dict of its name and what is
    stored. Bytes, dates, UUIDs and Decimals are left to the encoder, which writes them as text.
    """
    if isinstance(value, dict):
        return {
            key if isinstance(key, str | bytes) else _text_of(key): json_form(inner) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [json_form(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(json_form, value), key=repr)
    if isinstance(value, UnknownValue):
        return {"$value": value.name, "payload": json_form(value.payload)}
    if isinstance(value, Ext):
        return {"$extension": value.code, "payload": b64encode(value.data).decode()}
    return value


def _text_of(key: Any) -> str:
    if key is None:
        return "null"
    return str(key).lower() if isinstance(key, bool) else str(key)
