"""Identity providers and services for the tests, ended when they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.conftest import farm
from service.service_process import ServiceProcess

from .identity_provider import IdentityProvider
from .receiver import Receiver

__all__ = ["farm"]

StartService = Callable[..., "SignalService"]
CALLERS = '[shop]\nscopes = ["create", "verify", "renew", "update", "close", "close-user", "list-user"]\n'
FORM = "application/x-www-form-urlencoded"
EVENT = "application/secevent+jwt"


class SignalService(ServiceProcess):
    """A service that takes the signals of a provider, ``idp``."""

    def __init__(self, folder: Path, signals: str, *arguments: str, store: str = "") -> None:
        (folder / "signals.toml").write_text(signals)
        files = ("--signals", str(folder / "signals.toml"))
        super().__init__(folder, *files, *arguments, store=store, callers=CALLERS)

    def log_in(self, user: str, id_token: dict[str, Any] | None = None, cookie: str = "") -> str:
        made = self.ask("", user=user, id_token=id_token, cookie=cookie)
        assert made.status_code == 201, made.text
        return str(made.json()["cookie"])

    def is_open(self, cookie: str) -> bool:
        status = self.ask("/verify", cookie=cookie).status_code
        assert status in (200, 404)
        return status == 200

    def logout(self, token: str, provider: str = "idp") -> Any:
        return self.http.post(f"/v1/signals/{provider}/logout", data={"logout_token": token})

    def event(self, token: str, provider: str = "idp") -> Any:
        return self.http.post(f"/v1/signals/{provider}/events", content=token, headers={"Content-Type": EVENT})


@pytest.fixture(scope="module")
def idp() -> Iterator[IdentityProvider]:
    made = IdentityProvider()
    yield made
    made.close()


@pytest.fixture
def new_idp() -> Iterator[Callable[..., IdentityProvider]]:
    made: list[IdentityProvider] = []

    def make(*arguments: Any) -> IdentityProvider:
        made.append(IdentityProvider(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, idp: IdentityProvider) -> Iterator[SignalService]:
    """One for a file, on SQLite."""
    started = SignalService(tmp_path_factory.mktemp("signals"), idp.settings())
    yield started
    assert started.end() == 0
    assert "Traceback" not in started.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartService]:
    started: list[SignalService] = []

    def start_service(signals: str, *arguments: str, **named: Any) -> SignalService:
        folder = tmp_path / f"service-{len(started)}"
        folder.mkdir()
        started.append(SignalService(folder, signals, *arguments, **named))
        return started[-1]

    yield start_service
    for each in started:
        each.end()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()
