"""zeep, sync and async, with leased tokens at the real provider."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zeep
from zeep.exceptions import Fault
from zeep.transports import AsyncTransport, Transport

from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, LoginFailed, TokenPool
from coatcheck.pool.adapters.zeep import AsyncZeepSessions, SessionHeaders, SessionPlugin, ZeepSessions

from ..soap.provider_process import ProviderProcess

PASSWORD = "secret"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    started = ProviderProcess(
        *("--user", f"*:{PASSWORD}", "--single-use", "--max-sessions-per-user", "4"),
        log=tmp_path_factory.mktemp("provider") / "log",
    )
    yield started
    started.end()


class Caller:
    """A zeep client with its plugin and pool."""

    def __init__(
        self, provider: ProviderProcess, session_type: str = "Stateless", port: str = "ProviderPort", **options: Any
    ) -> None:
        self.plugin = SessionPlugin(SessionHeaders(session_type))
        self.client = zeep.Client(provider.wsdl, plugins=[self.plugin])
        self.service = self.client.bind("ProviderService", port)
        self.pool = TokenPool(**{"login": self.sign_in, "logout": self.sign_out, "per_user": 4, **options})
        self.sessions = ZeepSessions(self.plugin, self.pool)

    def sign_in(self, user: str) -> str:
        return self.plugin.sign_in(self.service.WhoAmI, user, PASSWORD)

    def sign_out(self, user: str, token: str) -> None:
        self.plugin.sign_out(self.service.Logout, token)


@pytest.fixture(params=["ProviderPort", "ProviderPort12"], ids=["SOAP 1.1", "SOAP 1.2"])
def caller(provider: ProviderProcess, request: pytest.FixtureRequest) -> Iterator[Caller]:
    made = Caller(provider, port=request.param)
    yield made
    made.pool.close()


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)[:100]


def test_calls_share_one_session(caller: Caller, user: str) -> None:
    seen = [caller.sessions.call(user, caller.service.WhoAmI) for _ in range(4)]
    assert [(each["username"], each["requests"]) for each in seen] == [(user, n) for n in (2, 3, 4, 5)]
    assert caller.pool.stats()[user].logins_total == 1


def test_the_written_out_form(caller: Caller, user: str) -> None:
    with caller.pool.lease(user) as held, caller.plugin.using(held):
        first = held.token
        assert caller.service.Echo("one") == "one"
        assert held.token != first
        assert caller.service.Echo("two") == "two"
    assert caller.pool.stats()[user].free == 1
    assert caller.service.WhoAmI()["username"] == "anonymous"


def test_a_fault_of_a_session_that_is_alive_keeps_its_token(caller: Caller, user: str) -> None:
    with pytest.raises(Fault, match="no account"):
        caller.sessions.call(user, caller.service.QueryAccount, "missing")
    assert caller.pool.stats()[user].free == 1
    assert caller.sessions.call(user, caller.service.Echo, "alive") == "alive"
    assert caller.pool.stats()[user].logins_total == 1


def test_expired_tokens_are_replaced_by_one_login(caller: Caller, provider: ProviderProcess, user: str) -> None:
    leases = [caller.pool.lease(user).acquire() for _ in range(3)]
    for held in leases:
        held.release()
    provider.admin(f"expire-tokens?user={user}")
    assert caller.sessions.call(user, caller.service.Echo, "again") == "again"
    stats = caller.pool.stats()[user]
    assert (stats.logins_total, stats.free, stats.leased) == (4, 1, 0)


def test_a_call_that_is_refused_whatever_the_token_costs_no_login(provider: ProviderProcess, user: str) -> None:
    caller = Caller(provider, clock=lambda: 1_000.0)
    sessions = ZeepSessions(caller.plugin, caller.pool, is_expired=lambda error: "no account" in str(error))
    for _ in range(3):
        with pytest.raises(Fault, match="no account"):
            sessions.call(user, caller.service.QueryAccount, "missing")
    stats = caller.pool.stats()[user]
    assert (stats.logins_total, stats.free) == (1, 1)
    caller.pool.close()


def test_stateful_sessions_keep_state_through_the_pool(provider: ProviderProcess, user: str) -> None:
    caller = Caller(provider, "Stateful", per_user=1)
    with caller.sessions.lease(user):
        caller.service.UpdateAccount(name="a", note="draft", commit=False)
    found = caller.sessions.call(user, caller.service.QueryAccount, "a")
    assert (found["note"], found["committed"]) == ("draft", False)
    provider.admin(f"kill-sessions?user={user}")
    with pytest.raises(Fault, match="no account"):
        caller.sessions.call(user, caller.service.QueryAccount, "a")
    assert caller.pool.stats()[user].logins_total == 2
    caller.pool.close()


def test_a_transport_error_gives_the_lease_back(caller: Caller, user: str) -> None:
    class Cut(Transport):
        def post_xml(self, *_: Any) -> Any:
            raise ConnectionError("cut")

    caller.sessions.call(user, caller.service.Echo, "first")
    working, caller.client.transport = caller.client.transport, Cut()
    with pytest.raises(ConnectionError):
        caller.sessions.call(user, caller.service.Echo, "x")
    caller.client.transport = working
    stats = caller.pool.stats()[user]
    assert (stats.leased, stats.free) == (0, 0)
    assert caller.sessions.call(user, caller.service.Echo, "back") == "back"


def test_a_wrong_password_is_login_failed(caller: Caller, user: str) -> None:
    def wrong(user: str) -> str:
        return caller.plugin.sign_in(caller.service.WhoAmI, user, "wrong")

    with TokenPool(login=wrong) as pool, pytest.raises(LoginFailed) as failed:
        ZeepSessions(caller.plugin, pool).call(user, caller.service.Echo, "x")
    assert isinstance(failed.value.__cause__, Fault)
    assert caller.plugin._carried.get() is None


def test_eight_threads_stay_within_four_sessions(caller: Caller, provider: ProviderProcess, user: str) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(10):
                assert caller.sessions.call(user, caller.service.Echo, str(number)) == str(number)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    busy = provider.counter("fault.SessionBusy")
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert caller.pool.stats()[user].logins_total <= 4
    assert provider.counter("fault.SessionBusy") == busy
    assert provider.counter("fault.TooManySessions") == 0


@pytest.mark.parametrize("port", ["ProviderPort", "ProviderPort12"], ids=["SOAP 1.1", "SOAP 1.2"])
def test_zeep_async(provider: ProviderProcess, user: str, port: str) -> None:
    async def run(open_client: Callable[[], Any]) -> None:
        plugin = SessionPlugin()
        async with httpx.AsyncClient(timeout=60) as http:
            with httpx.Client() as wsdl:
                client = zeep.AsyncClient(
                    provider.wsdl, transport=AsyncTransport(client=http, wsdl_client=wsdl), plugins=[plugin]
                )
                service = client.bind("ProviderService", port)

                async def sign_in(user: str) -> str:
                    return await plugin.sign_in_async(service.WhoAmI, user, PASSWORD)

                async def sign_out(user: str, token: str) -> None:
                    await plugin.sign_out_async(service.Logout, token)

                async with AsyncTokenPool(login=sign_in, logout=sign_out, per_user=4) as pool:
                    sessions = AsyncZeepSessions(plugin, pool)
                    calls = (sessions.call(user, service.Echo, str(n)) for n in range(40))
                    assert await asyncio.gather(*calls) == [str(n) for n in range(40)]
                    assert (await pool.stats())[user].logins_total <= 4
                    provider.admin(f"expire-tokens?user={user}")
                    assert await sessions.call(user, service.Echo, "again") == "again"
                    slow = [asyncio.create_task(sessions.call(user, service.SlowEcho, "s", 5000)) for _ in range(6)]
                    await asyncio.sleep(0.3)
                    for task in slow:
                        task.cancel()
                    assert all(
                        isinstance(end, asyncio.CancelledError)
                        for end in await asyncio.gather(*slow, return_exceptions=True)
                    )
                    stats = (await pool.stats())[user]
                    assert (stats.leased, stats.waiting) == (0, 0)
                    with pytest.raises(ConfigError):
                        ZeepSessions(plugin, pool)  # type: ignore[arg-type]

    asyncio.run(run(httpx.AsyncClient))
    assert provider.counter("fault.TooManySessions") == 0


def test_the_example_runs() -> None:
    example = Path(__file__).parents[3] / "examples" / "soap_pool.py"
    command = [sys.executable, str(example), "--calls", "12"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "12 calls, 1 login\n"
