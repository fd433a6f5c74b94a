"""A fresh upstream for each test, and pools that log in at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coatcheck.pool import TokenPool

from .upstream import Upstream


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    service = Upstream()
    service.start()
    yield service
    service.stop()


@pytest.fixture
def pool(upstream: Upstream) -> Iterator[TokenPool]:
    with TokenPool(login=upstream.sign_in, per_user=2, wait="5s") as made:
        yield made
