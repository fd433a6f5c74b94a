"""Services for the tests, ended when they are done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]


@pytest.fixture(autouse=True)
def files_for_their_owner_alone() -> Iterator[None]:
    """Files of secrets that others can read are refused."""
    before = os.umask(0o077)
    yield
    os.umask(before)


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
    """One for a file, in process, callers log in."""
    started = ServiceProcess(tmp_path_factory.mktemp("service"), "--per-user", "2", "--lease", "20s")
    yield started
    assert started.end() == 0
