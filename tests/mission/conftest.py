"""Farms of the mission's app: one for each file that asks for it, in a directory of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tls.conftest import certificates, redis_url, servers, session_server_url, sqlite_url, store

from .mission_farm import MissionFarm

__all__ = ["certificates", "redis_url", "servers", "session_server_url", "sqlite_url", "start", "store"]

StartFarm = Callable[..., MissionFarm]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartFarm]:
    """Starts farms, waits until they serve, and ends them when the file's tests are done."""
    farms: list[MissionFarm] = []

    def start_farm(*arguments: str) -> MissionFarm:
        farm = MissionFarm(tmp_path_factory.mktemp("farm"), arguments)
        farms.append(farm)
        farm.wait_running()
        return farm

    yield start_farm
    for each in farms:
        each.end()
