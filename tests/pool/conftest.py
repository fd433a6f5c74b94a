"""Real stores for the tests of the pool."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CONTRACTS = Path(__file__).resolve().parent.parent / "contracts"


def backends() -> dict[str, Any]:
    """The contract suite's stores, by name; its folder is no package."""
    name = "token_store_backends"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CONTRACTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found: dict[str, Any] = sys.modules[name].TOKEN_BACKENDS
    return found


def running(name: str) -> Iterator[Any]:
    """A backend from start to stop."""
    backend = backends()[name]()
    backend.start()
    try:
        yield backend
    finally:
        backend.stop()


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a store that processes share."""
    for backend in running(request.param):
        yield backend.url
