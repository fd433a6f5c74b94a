"""Bases of small classes in modules that may be compiled (``hatch_build.py``).

mypyc drops what a class says in its own brackets, without a word (python/mypy#21938), and keeps what its base says.
"""

from __future__ import annotations

from typing import dataclass_transform

import msgspec


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, frozen=True):
    """What is never changed once it is made, and equal to another one with the same fields."""


class Lean(msgspec.Struct, gc=False, eq=False):
    """What there are as many of as sessions: the garbage collector never visits it, and it equals itself alone."""
