"""A web server whose event loop is blocked for a while: everybody is answered by it, later, and nothing runs twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from .farm_process import Farm, eventually

BLOCKED_S = 0.7
BLOCKING_APP = """
import asyncio, os, time
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def block(request):
    mark = f"{request.method} {request.path_params['mark']}\\n"
    out = os.open("executed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, mark.encode())
    os.close(out)
    request.session["marks"] = request.session.get("marks", 0) + 1
    time.sleep(float(request.query_params["s"]))
    return PlainTextResponse(os.environ["COATCHECK_SERVER"])

async def quick(request):
    request.session.setdefault("seen", True)
    return PlainTextResponse(os.environ["COATCHECK_SERVER"])

async def inherited(request):
    if os.environ["COATCHECK_SERVER"] == request.query_params["by"]:
        # A child that is not told to close what it inherits, as multiprocessing's are not.
        child = os.fork()
        if child == 0:
            time.sleep(300)
            os._exit(0)
        with open("child", "w") as note:
            note.write(str(child))
        print("a child holds its connection", flush=True)
        await asyncio.sleep(600)
    return PlainTextResponse(os.environ["COATCHECK_SERVER"])

app = Starlette(routes=[
    Route("/inherited", inherited),
    Route("/block/{mark}", block, methods=["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"]),
    Route("/quick", quick),
])
"""
METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH")
StartFarm = Callable[..., Farm]


@pytest.fixture
def start(tmp_path: Path, farm: StartFarm) -> StartFarm:
    (tmp_path / "blocking.py").write_text(BLOCKING_APP)
    return lambda *arguments: farm(*arguments, app="blocking:app")


def executed(farm: Farm) -> Counter[str]:
    """How often each marked request was begun by any web server."""
    noted = farm.directory / "executed"
    return Counter(noted.read_text().splitlines() if noted.exists() else [])


def browser(farm: Farm) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=farm.base, timeout=60.0, trust_env=False)


async def browse(farm: Farm, over: asyncio.Event, seen: list[tuple[int, float]]) -> None:
    """Requests of a session of its own, one after another."""
    async with browser(farm) as client:
        while not over.is_set():
            began = time.monotonic()
            response = await client.get("/quick")
            seen.append((response.status_code, time.monotonic() - began))


def test_with_the_default_farm_nothing_fails_and_nothing_runs_twice(start: StartFarm) -> None:
    farm = start()

    async def story() -> None:
        over, seen = asyncio.Event(), list[tuple[int, float]]()
        others = [asyncio.create_task(browse(farm, over, seen)) for _ in range(8)]
        answers: dict[str, Any] = {}
        async with browser(farm) as client:
            home = (await client.get("/quick")).text
            for method in METHODS:
                response = await client.request(method, f"/block/{method}", params={"s": BLOCKED_S})
                answers[method] = response.status_code, "HEAD" if method == "HEAD" else response.text
        over.set()
        await asyncio.gather(*others)
        assert answers == {method: (200, "HEAD" if method == "HEAD" else home) for method in METHODS}
        assert executed(farm) == {f"{method} {method}": 1 for method in METHODS}
        assert {status for status, _ in seen} == {200}

    asyncio.run(story())
    details = farm.healthy_status()["director"][0]["details"]
    assert details["retries"] == 0


def test_a_frozen_web_server_is_killed_and_what_waited_for_it_is_served_elsewhere(start: StartFarm) -> None:
    farm = start("--unresponsive-after", "3s")

    async def story() -> None:
        async with browser(farm) as reader, browser(farm) as writer:
            home = (await reader.get("/quick")).text
            route = {"cookie": f"coatcheck-route={reader.cookies['coatcheck-route']}"}
            pid = farm.pid(home)
            os.kill(pid, signal.SIGSTOP)
            reads = [asyncio.create_task(reader.get("/quick")) for _ in range(4)]
            await asyncio.to_thread(eventually, lambda: f"{home} is busy" in farm.log, "the notice")
            # Not sent to the frozen one, so even what must not be repeated is safe.
            writes = [asyncio.create_task(writer.post(f"/block/{n}", params={"s": 0}, headers=route)) for n in range(4)]
            answers = await asyncio.gather(*reads, *writes)
            assert [answer.status_code for answer in answers] == [200] * 8
            assert home not in {answer.text for answer in answers}
            assert executed(farm) == {f"POST {n}": 1 for n in range(4)}
            await asyncio.to_thread(farm.wait_replaced, home, pid)

    asyncio.run(story())


def test_a_dead_web_servers_connections_are_dead_even_if_its_child_holds_them_open(start: StartFarm) -> None:
    farm = start("--first-byte-timeout", "10m")

    async def story() -> None:
        async with browser(farm) as client:
            home = (await client.get("/quick")).text
            waiting = asyncio.create_task(client.get("/inherited", params={"by": home}))
            await asyncio.to_thread(eventually, lambda: "a child holds" in farm.log, "the child")
            pid = farm.pid(home)
            os.kill(pid, signal.SIGKILL)
            answer = await waiting
            assert (answer.status_code, answer.text != home) == (200, True)
            await asyncio.to_thread(farm.wait_replaced, home, pid)

    try:
        asyncio.run(story())
    finally:
        os.kill(int((farm.directory / "child").read_text()), signal.SIGKILL)
