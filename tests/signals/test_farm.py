"""A provider's logout in a real farm: at every web server, and while session servers hang or are dead."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from farm.farm_process import Farm, eventually
from ports import free_port

from .conftest import CALLERS
from .identity_provider import IdentityProvider
from .receiver import Receiver

APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def log_in(request):
    request.session.regenerate(request.query_params["user"], id_token=await request.json())
    return JSONResponse({})

async def log_out(request):
    request.session.close()
    return JSONResponse({})

async def who(request):
    return JSONResponse({"user": request.session.user, "server": os.environ["COATCHECK_SERVER"]})

routes = [Route("/in", log_in, methods=["POST"]), Route("/out", log_out, methods=["POST"]), Route("/", who)]
app = Starlette(routes=routes)
"""
LEASE_S = 2.0


class SignalFarm:
    def __init__(self, running: Farm, port: int) -> None:
        self.running = running
        self.service = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.running.base, timeout=60, trust_env=False)

    def log_in(self, user: str, id_token: dict[str, Any]) -> httpx.Client:
        one = self.browser()
        assert one.post("/in", params={"user": user}, json=id_token).status_code == 200
        assert self.user_of(one) == user
        return one

    def user_of(self, one: httpx.Client) -> str | None:
        answer = one.get("/")
        assert answer.status_code == 200, answer.text
        found: str | None = answer.json()["user"]
        return found

    def at_each_web_server(self, one: httpx.Client) -> dict[str, str | None]:
        """Whom each web server takes a browser for."""
        login = {name: value for name, value in one.cookies.items() if "route" not in name}
        found: dict[str, str | None] = {}

        def all_found() -> bool:
            with self.browser() as other:
                other.cookies.update(login)
                answer = other.get("/").json()
                found[answer["server"]] = answer["user"]
            return len(found) == 2

        eventually(all_found, "an answer of each web server")
        return found

    def logout(self, token: str) -> httpx.Response:
        return self.service.post("/v1/signals/idp/logout", data={"logout_token": token})

    @contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        pids = [self.running.pid(name) for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def start(farm: Callable[..., Farm], tmp_path: Path) -> Callable[..., SignalFarm]:
    def start_farm(signals: str, *arguments: str) -> SignalFarm:
        (tmp_path / "signals.toml").write_text(signals)
        (tmp_path / "callers.toml").write_text(CALLERS)
        (tmp_path / "linked.py").write_text(APP)
        port = free_port()
        settings = ("--web", "2", "--session-servers", "3", "--service", f"127.0.0.1:{port}")
        files = ("--service-callers", "callers.toml", "--signals", "signals.toml")
        return SignalFarm(farm(*settings, *files, *arguments, app="linked:app"), port)

    return start_farm


def test_a_logout_is_heard_at_every_web_server_and_while_a_session_server_hangs_or_is_dead(
    start: Callable[..., SignalFarm], idp: IdentityProvider
) -> None:
    farm = start(idp.settings(), "--no-restart")
    ada, bob, eve = (farm.log_in(name, idp.id_token(f"sid-{name}", f"sub-{name}")) for name in ("ada", "bob", "eve"))
    zoe = farm.log_in("zoe", idp.id_token("sid-zoe", "sub-zoe"))
    assert set(farm.at_each_web_server(zoe).values()) == {"zoe"}
    began = time.monotonic()
    assert farm.logout(idp.logout_token(sid="sid-ada")).status_code == 200
    assert time.monotonic() - began < LEASE_S + 10, "a lease and a little, on a busy machine"
    assert set(farm.at_each_web_server(ada).values()) == {None}
    with farm.stopped("session-2"):
        assert farm.logout(idp.logout_token(sid="sid-bob")).status_code == 200
        assert set(farm.at_each_web_server(bob).values()) == {None}
    assert set(farm.at_each_web_server(bob).values()) == {None}, "and after it went on"
    # One of three may be away: the one that hung is to be back with everybody.
    farm.running.healthy_status()
    eventually(lambda: all(farm.service.get("/healthz").json()["session_servers"].values()), "the service's links")
    os.kill(farm.running.pid("session-3"), signal.SIGKILL)
    assert farm.logout(idp.logout_token(sub="sub-eve")).status_code == 200
    assert set(farm.at_each_web_server(eve).values()) == {None}
    assert farm.user_of(zoe) == "zoe"


def test_what_cannot_be_ended_now_is_answered_503_and_ended_when_the_token_comes_again(
    start: Callable[..., SignalFarm], idp: IdentityProvider
) -> None:
    farm = start(idp.settings())
    ada = farm.log_in("ada", idp.id_token("sid-far", "sub-far"))
    token = idp.logout_token(sid="sid-far")
    with farm.stopped("session-1", "session-2"):
        answer = farm.logout(token)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
    answers = [answer.status_code]

    def taken() -> bool:
        answers.append(farm.logout(token).status_code)
        return answers[-1] == 200

    eventually(taken, "a logout that is taken")
    assert set(answers[:-1]) == {503}
    assert set(farm.at_each_web_server(ada).values()) == {None}
    assert farm.logout(token).status_code == 400, "now it is used"
    audit = farm.running.run("audit", "--json").stdout.splitlines()
    kinds = [json.loads(line)["event"] for line in audit]
    assert kinds.count("signal.taken") == 1
    assert "signal.refused" in kinds


def test_a_logout_at_a_web_server_is_told_to_others(
    start: Callable[..., SignalFarm], idp: IdentityProvider, receiver: Receiver
) -> None:
    farm = start(idp.settings() + receiver.settings("https://shop.example", "security-event"))
    jwks = farm.service.get("/v1/signals/jwks").json()
    ada = farm.log_in("ada", idp.id_token("sid-out", "sub-out"))
    assert ada.post("/out").status_code == 200
    [told] = receiver.wait(1)
    assert told.verified(jwks)["sub_id"]["user"] == {"format": "iss_sub", "iss": "https://shop.example", "sub": "ada"}
    bob = farm.log_in("bob", idp.id_token("sid-theirs", "sub-bob"))
    assert farm.logout(idp.logout_token(sid="sid-theirs")).status_code == 200
    assert receiver.wait(2)[1].verified(jwks)["sub_id"]["user"]["sub"] == "bob", "what was ended from outside goes on"
    assert farm.user_of(bob) is None
    assert farm.running.run("keys", "rotate").returncode == 0
    jwks = farm.service.get("/v1/signals/jwks").json()
    assert len(jwks["keys"]) == 2
    eve = farm.log_in("eve", idp.id_token("sid-eve"))
    eve.post("/out")
    last = receiver.wait(3)[2]
    assert last.verified(jwks)["sub_id"]["user"]["sub"] == "eve"
    assert last.header["kid"] != told.header["kid"], "signed by the new key"
    processes = farm.running.status()["web_servers"]
    assert sum(one["signals"]["told"] for one in processes) == 2
