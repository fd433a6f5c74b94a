"""Farms of real processes, one for a file."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .real_farm import RealFarm

StartRealFarm = Callable[..., RealFarm]


@pytest.fixture(scope="module")
def start_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRealFarm]:
    farms: list[RealFarm] = []

    def start(*arguments: str, certificate: tuple[Path, Path] | None = None, **env: str) -> RealFarm:
        directory = tmp_path_factory.mktemp("farm")
        if certificate is None:
            farm = RealFarm(directory, *arguments, **env)
        else:
            files = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]))
            farm = RealFarm(directory, *files, *arguments, secure=True, **env)
            farm.tls = ssl.create_default_context(cafile=str(certificate[0]))
        farms.append(farm)
        farm.wait()
        return farm

    yield start
    for each in farms:
        each.end()
