"""What a registered class is made of: how its instances become plain fields, and fields an instance again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import msgspec

Made = tuple[Any, dict[str, Any] | None]
"""An instance, and the stored fields that its class does not know."""


class Shape(msgspec.Struct, frozen=True):
    """How a class is taken apart, and made again of what was stored by this or another version of it."""

    take: Callable[[Any], Any]
    make: Callable[[Any], Made]
    has_fields: bool = False
    """Whether an instance is taken apart into fields by name, which versions may add to."""
    take_plainly: Callable[[Any], Any] | None = None
    """The same with values of JSON alone, for a class that can say them, where others have types of their own."""


def shape_of(
    cls: type,
    encode: Callable[[Any], Any] | None,
    decode: Callable[[Any], Any] | None,
    unknown_fields: str | None,
) -> Shape:
    """Raises :class:`ValueError` for a class that cannot be registered so."""
    if (encode is None) != (decode is None):
        raise ValueError("give both encode and decode, or neither")
    if encode is not None and decode is not None:
        if unknown_fields is not None:
            raise ValueError("unknown_fields goes with the fields of a class, not with encode and decode")
        made_by = decode
        return Shape(encode, lambda payload: (made_by(payload), None))
    if isinstance(cls, type) and issubclass(cls, Enum):
        if unknown_fields is not None:
            raise ValueError("an Enum has no fields for unknown_fields")
        return Shape(lambda member: member.value, lambda payload: (cls(payload), None))
    if issubclass(cls, msgspec.Struct):
        return _of_fields(cls, cls.__struct_fields__, (), unknown_fields)
    if dataclasses.is_dataclass(cls):
        return _of_dataclass(cls, unknown_fields)
    if callable(getattr(cls, "model_dump", None)) and callable(getattr(cls, "model_validate", None)):
        return _of_model(cls, unknown_fields)
    raise ValueError("it is no msgspec Struct, dataclass, pydantic model or Enum; give encode and decode")


def _of_dataclass(cls: Any, unknown_fields: str | None) -> Shape:
    parameters = inspect.signature(cls).parameters
    fields = dataclasses.fields(cls)
    names = [field.name for field in fields]
    for parameter in parameters.values():
        if parameter.name not in names and parameter.default is parameter.empty:
            raise ValueError(f"it cannot be made of its fields: {parameter.name!r} is none; give encode and decode")
    return _of_fields(cls, names, [field.name for field in fields if not field.init], unknown_fields)


def _of_fields(cls: type, names: Iterable[str], set_later: Iterable[str], unknown_fields: str | None) -> Shape:
    known, later = tuple(names), frozenset(set_later)
    if unknown_fields is not None and unknown_fields not in known:
        raise ValueError(f"unknown_fields: it has no field {unknown_fields!r}")
    stored = tuple(name for name in known if name != unknown_fields)

    def take(value: Any) -> dict[str, Any]:
        rest = {} if unknown_fields is None else dict(getattr(value, unknown_fields) or {})
        return rest | {name: getattr(value, name) for name in stored if hasattr(value, name)}

    def make(payload: Any) -> Made:
        fields, unknown = _split(payload, stored)
        if unknown_fields is not None:
            fields[unknown_fields], unknown = unknown, {}
        value = cls(**{name: inner for name, inner in fields.items() if name not in later})
        for name in later & fields.keys():
            object.__setattr__(value, name, fields[name])
        return value, unknown

    return Shape(take, make, has_fields=True)


def _split(payload: Any, known: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    if type(payload) is not dict:
        raise ValueError("no fields are stored")
    fields = {name: payload[name] for name in known if name in payload}
    return fields, {name: inner for name, inner in payload.items() if name not in fields}


def _of_model(cls: Any, unknown_fields: str | None) -> Shape:
    """A pydantic model, or what looks like one: its own rules say what its fields become and what is refused."""
    if unknown_fields is not None:
        raise ValueError('unknown_fields: a pydantic model keeps them itself with extra="allow"')
    by_name = (
        {"by_alias": False, "by_name": True} if "by_name" in inspect.signature(cls.model_validate).parameters else {}
    )
    keeps_all = getattr(cls, "model_config", {}).get("extra") == "allow"
    known = frozenset(getattr(cls, "model_fields", ()))
    is_root = getattr(cls, "__pydantic_root_model__", False)

    def take(value: Any) -> Any:
        return value.model_dump(by_alias=False, round_trip=True)

    def take_plainly(value: Any) -> Any:
        return value.model_dump(mode="json", by_alias=False, round_trip=True)

    def make(payload: Any) -> Made:
        fields, unknown = (payload, None) if is_root or keeps_all else _split(payload, known)
        return cls.model_validate(fields, strict=False, **by_name), unknown

    return Shape(take, make, not is_root, take_plainly)
