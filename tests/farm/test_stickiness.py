"""Every browser stays with one web server, session or not: what keeps state in a process works with three of them."""

from __future__ import annotations

import ast
import asyncio
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import socketio

from .farm_process import Farm

ECHO = """
import os
import socketio

sio = socketio.AsyncServer(async_mode="asgi")

@sio.event
async def say(sid, words):
    return [words, os.environ["COATCHECK_SERVER"], sio.transport(sid)]

app = socketio.ASGIApp(sio)
"""

NICEGUI = """
from fastapi import FastAPI
from nicegui import ui

app = FastAPI()

@ui.page("/page")
def page():
    ui.label("hello")

ui.run_with(app)
"""

QUEUE = """
import asyncio, json, os
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.routing import Route

# As Gradio does it: a page, then POST /queue/join, whose answer comes as events of GET /queue/data.
queues = {}

async def page(request):
    return HTMLResponse("<title>a demo</title>")

async def join(request):
    body = await request.json()
    queues.setdefault(body["session_hash"], asyncio.Queue()).put_nowait(body["data"])
    return JSONResponse({"event_id": "1"})

async def data(request):
    queue = queues.get(request.query_params["session_hash"])
    if queue is None:
        return JSONResponse({"msg": "Session not found"}, 404)
    async def events():
        got = await queue.get()
        yield f"data: {json.dumps({'msg': 'process_completed', 'output': got[::-1]})}\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")

async def where(request):
    return JSONResponse(os.environ["COATCHECK_SERVER"])

app = Starlette(routes=[
    Route("/", page), Route("/queue/join", join, methods=["POST"]), Route("/queue/data", data), Route("/where", where),
])
"""

CLIENTS = 12
"""A third of them would meet the right server by chance; all of them never."""


def hang_up(client: socketio.Client) -> None:
    """Without a word: an orderly end may wait for a poll of half a minute (under granian, with or without a farm)."""
    client.eio.disconnect(abort=True)


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_socket_io_that_polls_first(farm: Callable[..., Farm], tmp_path: Path, server: str) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    running = farm("--web", "3", "--server", server, app="echo:app")
    servers = set()
    for _ in range(CLIENTS):
        client = socketio.Client(reconnection=False)
        client.connect(running.base, transports=["polling"], wait_timeout=60)
        answers = [client.call("say", f"word {number}", timeout=60) for number in range(8)]
        hang_up(client)
        assert [words for words, _, _ in answers] == [f"word {number}" for number in range(8)]
        assert len({name for _, name, _ in answers}) == 1
        servers.add(answers[0][1])
    assert len(servers) > 1, "and browsers are still spread"


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_socket_io_that_polls_first_and_goes_over_to_a_websocket(
    farm: Callable[..., Farm], tmp_path: Path, server: str
) -> None:
    """As its clients do it by default: the WebSocket has to reach the web server that answered the first poll."""
    (tmp_path / "echo.py").write_text(ECHO)
    running = farm("--web", "3", "--server", server, app="echo:app")

    async def talk() -> tuple[str, list[list[str]]]:
        # aiohttp's own jar keeps no cookies of hosts that are addresses.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            client = socketio.AsyncClient(reconnection=False, http_session=browser)
            await client.connect(running.base, wait_timeout=60)
            answers = [await client.call("say", f"word {number}", timeout=60) for number in range(8)]
            transport = client.transport()
            await client.eio.disconnect(abort=True)
            return transport, answers

    async def story() -> None:
        servers = set()
        for _ in range(CLIENTS):
            transport, answers = await talk()
            assert transport == "websocket"
            assert [words for words, _, _ in answers] == [f"word {number}" for number in range(8)]
            assert len({name for _, name, _ in answers}) == 1
            assert answers[-1][2] == "websocket"
            servers.add(answers[0][1])
        assert len(servers) > 1, "and browsers are still spread"

    asyncio.run(story())


def test_nicegui(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "gui.py").write_text(NICEGUI)
    running = farm("--web", "3", app="gui:app", NICEGUI_STORAGE_PATH=str(tmp_path / "storage"))
    for _ in range(CLIENTS // 2):
        browser = requests.Session()
        page = browser.get(f"{running.base}/page", timeout=60).text
        query: dict[str, Any] = ast.literal_eval(re.findall(r"query: (\{.*?\}),\n", page)[0])
        query |= {"tab_id": str(uuid.uuid4()), "document_id": str(uuid.uuid4()), "implicit_handshake": "false"}
        client = socketio.Client(reconnection=False, http_session=browser)
        client.connect(running.base, transports=["polling"], socketio_path="/_nicegui_ws/socket.io", wait_timeout=60)
        assert client.call("handshake", query, timeout=60) is True, "the page's own web server knows it"
        hang_up(client)


def test_a_queue_as_gradios(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "demo.py").write_text(QUEUE)
    running = farm("--web", "3", app="demo:app")
    for number in range(CLIENTS):
        with httpx.Client(base_url=running.base, timeout=60) as browser:
            browser.get("/")
            question = {"session_hash": f"hash-{number}", "data": f"data {number}"}
            assert browser.post("/queue/join", json=question).status_code == 200
            answer = browser.get("/queue/data", params={"session_hash": f"hash-{number}"})
            assert question["data"][::-1] in answer.text


def test_a_browser_stays_together_when_its_web_server_is_away(farm: Callable[..., Farm], tmp_path: Path) -> None:
    """A page's requests come at once, all with the route of the web server that is away: they meet at one other."""
    (tmp_path / "demo.py").write_text(QUEUE)
    running = farm("--web", "3", app="demo:app")

    async def all_at_once(browser: httpx.AsyncClient, cookies: str) -> list[str]:
        asked = [browser.get(f"{running.base}/where", headers={"cookie": cookies}) for _ in range(6)]
        return [answer.json() for answer in await asyncio.gather(*asked)]

    async def story() -> None:
        async with httpx.AsyncClient(timeout=60) as browser:
            home = await browser.get(f"{running.base}/where")
            route = home.headers["set-cookie"].partition(";")[0]
            away = home.json()
            assert running.run("drain", away).returncode == 0
            reached: list[str] = []
            for number in range(CLIENTS):
                servers = set(await all_at_once(browser, f"{route}; visitor={number}"))
                assert len(servers) == 1
                reached += servers
        assert set(reached) == {"web-1", "web-2", "web-3"} - {away}, "and browsers are still spread"

    asyncio.run(story())


def test_stickiness_may_be_left_to_sessions(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "demo.py").write_text(QUEUE)
    running = farm("--web", "3", "--sticky", "session", app="demo:app")
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        seen = {browser.get("/where").json() for _ in range(12)}
        assert seen == {"web-1", "web-2", "web-3"}
        assert not browser.cookies


def test_one_web_server_gives_no_route(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "demo.py").write_text(QUEUE)
    running = farm("--web", "1", app="demo:app")
    assert "set-cookie" not in httpx.get(running.base, timeout=60).headers
