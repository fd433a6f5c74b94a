"""Which statement of docs/spec a test is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])


def cites(*numbers: str) -> Callable[[Test], Test]:
    """The test holds the product to these statements; ``test_statements.py`` reads it."""
    assert numbers

    def same(test: Test) -> Test:
        return test

    return same
