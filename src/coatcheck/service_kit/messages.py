"""The bodies that all our services have in common."""

from __future__ import annotations

from typing import Final

import msgspec

PROBLEM_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:coatcheck:problem:"


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The root of request bodies; no body at all is ``{}``."""


class Problem(msgspec.Struct, frozen=True):
    """What went wrong (RFC 9457). ``type`` is for programs, ``detail`` for people; neither holds a secret."""

    type: str
    title: str
    status: int
    detail: str
