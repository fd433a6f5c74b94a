"""The addresses of a service in one table, from which its routes and its OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from coatcheck.service_kit.messages import Body


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One method of one address. ``answers``: status to body (``None``: empty; ``str``: text of that media type).

    ``problems``: the statuses of its errors, beyond those that every operation has. ``body_needed``: whether ``{}`` is
    no request. ``open``: anybody may ask. ``scope``: what a caller must be allowed to do.
    """

    method: str
    path: str
    name: str
    words: str
    answers: Mapping[int, Any]
    body: type[Body] | None = None
    problems: tuple[int, ...] = ()
    body_needed: bool = False
    open: bool = False
    scope: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Request headers that it reads, and what for."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Query parameters that are ``true`` or ``false``, and what for."""


@dataclass(frozen=True, slots=True)
class Api:
    """A service as its document describes it. ``parameters``: the schemas of the parts of paths, by name.

    ``security``: by name, the schemes of OpenAPI, any one of which opens it. ``common_problems``: the statuses of
    errors that each operation has.
    """

    title: str
    words: str
    operations: Sequence[ApiOperation]
    parameters: Mapping[str, Mapping[str, Any]]
    security: Mapping[str, Mapping[str, Any]]
    common_problems: tuple[int, ...]


BODY_PROBLEMS: Final = (408, 413, 415)
"""Of operations that read a body: too slow, too large, no JSON."""
