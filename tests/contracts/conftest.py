"""Fixtures of the contract suites."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from store_backends import BACKENDS, NETWORKED, Backend, NetworkedBackend

QUICK_S = 1.0
"""The time-out of stores whose server is about to be killed or frozen."""


@pytest.fixture(scope="module", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each backend, once per module: the tests use fresh keys."""
    backend = BACKENDS[request.param](tmp_path_factory.mktemp(request.param))
    backend.start()
    yield backend
    backend.stop()


@pytest.fixture(params=list(NETWORKED))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkedBackend]:
    """A server process of its own, for tests that kill or freeze it."""
    server = NETWORKED[request.param](tmp_path_factory.mktemp(request.param), QUICK_S)
    server.start()
    yield server
    server.stop()
