"""Services for the tests, ended when they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tls.conftest import redis_url

from .service_process import ServiceProcess

__all__ = ["redis_url"]

StartService = Callable[..., ServiceProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartService]:
    started: list[ServiceProcess] = []

    def start_service(*arguments: str, **named: Any) -> ServiceProcess:
        service = ServiceProcess(tmp_path, *arguments, **named)
        started.append(service)
        return service

    yield start_service
    for each in started:
        each.end()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One for a file, on SQLite."""
    started = ServiceProcess(tmp_path_factory.mktemp("service"))
    yield started
    assert started.end() == 0
    assert "Traceback" not in started.log.read_text()
