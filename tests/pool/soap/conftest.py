"""One provider for a file, well-behaved at the start of each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .provider_process import ProviderProcess

StartProvider = Callable[..., ProviderProcess]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProvider]:
    """Starts providers and ends them when the file's tests are done."""
    started: list[ProviderProcess] = []
    folder: Path = tmp_path_factory.mktemp("provider")

    def start_provider(*arguments: str) -> ProviderProcess:
        provider = ProviderProcess(*arguments, log=folder / f"{len(started)}.log")
        started.append(provider)
        return provider

    yield start_provider
    for each in started:
        each.end()


@pytest.fixture(scope="module")
def provider(start: StartProvider) -> ProviderProcess:
    return start("--user", "SADMIN:secret", "--user", "ANN:word")
