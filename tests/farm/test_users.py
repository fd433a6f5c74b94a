"""The sessions of users in a real farm: on the command line, on the user's own page, and while servers are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coatcheck import connect
from coatcheck.demo.browser import BrowserError, ShopBrowser
from coatcheck.farm.files.keys import load_or_create
from ports import free_port

from .farm_process import Command, Farm, environment, eventually
from .kill_crowd import whole

APP = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def log_in(request):
    request.session.regenerate(request.path_params["user"])
    return JSONResponse({})

async def who(request):
    return JSONResponse({"user": request.session.user})

async def use(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse({"user": request.session.user})

async def others(request):
    return JSONResponse({"closed": await request.session.close_other_devices()})

async def devices(request):
    return JSONResponse([one.id for one in await request.session.devices()])

app = Starlette(routes=[
    Route("/in/{user}", log_in, methods=["POST"]), Route("/others", others, methods=["POST"]),
    Route("/use", use, methods=["POST"]), Route("/who", who), Route("/devices", devices),
])
"""
USERS = 6
LIMIT = 3
StartFarm = Callable[..., Farm]


@pytest.fixture
def start(tmp_path: Path, farm: StartFarm) -> StartFarm:
    (tmp_path / "users.py").write_text(APP)
    return lambda *arguments: farm("--web", "3", *arguments, app="users:app")


def browser(farm: Farm, agent: str = "Firefox") -> httpx.Client:
    return httpx.Client(base_url=farm.base, headers={"user-agent": agent.encode("latin-1")}, timeout=30.0)


def test_the_shop_shows_its_customers_their_devices_and_ends_them(farm: StartFarm) -> None:
    shop = farm("--web", "3", app="coatcheck.demo.shop:app")
    with browser(shop, "a <b>laptop</b>") as laptop, browser(shop, "a phone") as phone, browser(shop) as bob:
        laptop.post("/add", data={"item": "hat"})
        before = dict(laptop.cookies)
        for one, name in ((laptop, "ada"), (phone, "ada"), (bob, "bob")):
            assert one.post("/login", data={"name": name}).status_code == 303
        assert dict(laptop.cookies) != before
        assert "1 × Top hat" in laptop.get("/").text
        page = laptop.get("/devices").text
        assert "a &lt;b&gt;laptop&lt;/b&gt;" in page
        assert "a phone" in page
        assert "(this one)" in page
        [other] = re.findall(r'name="id" value="([0-9a-f]{12})"', page)
        assert bob.get("/devices").text.count("<li>") == 1
        bob.post("/devices/close", data={"id": other})
        assert laptop.get("/devices/close", params={"id": other}).status_code == 405
        assert "a phone" in laptop.get("/devices").text
        laptop.post("/devices/close", data={"id": other})
        assert "a phone" not in laptop.get("/devices").text
        assert phone.get("/devices").status_code == 303, "it is logged out"
        assert bob.get("/devices").status_code == 200
        laptop.post("/logout")
        assert laptop.get("/devices").status_code == 303


def test_operators_list_and_close_the_sessions_of_a_user_and_read_who_did_what(start: StartFarm) -> None:
    running = start()
    follower = subprocess.Popen(
        [sys.executable, "-u", "-m", "coatcheck.cli", "audit", "--follow", "--user", "ada"],
        cwd=running.directory, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with browser(running, "a \x9b phone") as phone, browser(running) as laptop, browser(running) as bob:
            phone.post("/in/ada")
            laptop.post("/in/ada")
            bob.post("/in/bob")
            listed = json.loads(running.run("sessions", "ls", "--user", "ada", "--json").stdout)
            assert [one["address"] for one in listed] == ["127.0.0.1"] * 2
            table = running.run("sessions", "ls", "--user", "ada").stdout
            assert "a  phone" in table
            assert "Firefox" in table
            assert running.run("sessions", "ls", "--user", "nobody").stdout == "no sessions\n"
            assert json.loads(running.run("sessions", "ls", "--json").stdout)[0]["state"] == "live"
            assert running.run("sessions", "close", "--user", "ada").stdout == "2 sessions closed\n"
            assert [one.get("/who").json()["user"] for one in (phone, laptop, bob)] == [None, None, "bob"]
            assert running.run("sessions", "close", "--all").stdout == "closed, all sessions of everybody\n"
            assert bob.get("/who").json()["user"] is None
            for wrong in (("--user", "a", "--all"), (), ("abc", "--all")):
                refused = running.run("sessions", "close", *wrong)
                assert refused.returncode == 2
                assert "name one session by its ID, or give --user USER, or --all" in refused.stderr
        told = running.run("audit").stdout.splitlines()
        times = [line.split()[0] for line in told]
        assert times == sorted(times), "of all web servers in the order of time"
        for event in ("session.login", "session.closed", "user.closed", "sessions.all_closed"):
            assert any(f"  {event}  " in line for line in told), event
        as_json = [json.loads(line) for line in running.run("audit", "--json", "--user", "ada").stdout.splitlines()]
        assert {one["event"] for one in as_json} == {"session.login", "session.closed", "user.closed"}
        assert follower.stdout is not None
        followed = [follower.stdout.readline() for _ in as_json]
        assert [line.split()[2] for line in sorted(followed)] == [one["event"] for one in as_json]
    finally:
        follower.kill()
        follower.wait()


@pytest.fixture(params=["sqlite", "redis"])
def session_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/sessions.db"
        return
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    yield f"redis://127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_without_a_farm_of_ours_operators_ask_the_session_servers(command: Command, session_server: str) -> None:
    keys_file = command.directory / "keys.json"
    keys = load_or_create(keys_file, {})
    place = ("--session-server", session_server, "--name", "shop", "--keys-file", str(keys_file))

    async def story() -> None:
        sessions = connect(session_server, key=list(keys.keys), farm="shop")
        await sessions.start()
        opened = await sessions.open(b"", "192.0.2.7", None, "POST", [(b"user-agent", b"Firefox")])
        opened.session.regenerate("ada")
        cookie = (await sessions.finish(opened)).cookies[0][1].split(b";")[0]
        listed = await asyncio.to_thread(command.run, "sessions", "ls", "--user", "ada", *place)
        assert "Firefox" in listed.stdout, listed.stderr
        assert "live" in (await asyncio.to_thread(command.run, "sessions", "ls", *place)).stdout
        done = await asyncio.to_thread(command.run, "sessions", "close", "--user", "ada", *place)
        assert done.stdout == "1 sessions closed\n", done.stderr
        assert (await sessions.open(cookie)).session.user is None
        again = await sessions.open()
        again.session["n"] = 1
        cookie = (await sessions.finish(again)).cookies[0][1].split(b";")[0]
        done = await asyncio.to_thread(command.run, "sessions", "close", "--all", *place)
        assert done.stdout == "closed, all sessions of everybody\n", done.stderr
        assert dict((await sessions.open(cookie)).session) == {}
        await sessions.aclose()

    eventually(lambda: "no sessions" in command.run("sessions", "ls", *place).stdout, "the session server")
    asyncio.run(story())
    for missing in (place[:2], (*place[:-1], str(command.directory / "none"))):
        refused = command.run("sessions", "ls", *missing)
        assert refused.returncode == 1
        assert "keys_file: name the web servers' key ring" in refused.stderr


class Device:
    """One cookie jar of a user; what was told when is kept to be judged."""

    def __init__(self, farm: Farm, user: str) -> None:
        host, port = farm.note()["address"].rsplit(":", 1)
        self.browser = ShopBrowser(host, int(port))
        self.user = user

    async def ask(self, method: str, path: str) -> Any:
        """The answer, or ``None``: it failed, and nothing was promised."""
        try:
            status, answer = await self.browser.request(method, path)
        except BrowserError:
            return None
        return answer if status == 200 else None


async def live(farm: Farm, user: str, enough: asyncio.Event, tally: dict[str, int]) -> list[Device]:
    """One user, who logs in on one device after the other and now and then closes all others; returns those that
    should still be logged in."""
    told: list[Device] = []
    dice = random.Random(user)
    while not enough.is_set():
        device = Device(farm, user)
        if await device.ask("POST", f"/in/{user}") is not None:
            tally["logins"] += 1
            told.append(device)
            living = [one for one in told if (await one.ask("GET", "/who") or {}).get("user") == user]
            assert len(living) <= LIMIT, f"{user} has {len(living)} sessions of {LIMIT}"
        if told and dice.random() < 0.4:
            keeper = told[-1]
            if await keeper.ask("POST", "/others") is not None:
                tally["closes"] += 1
                for one in told[:-1]:
                    found = await one.ask("GET", "/who")
                    assert found is None or found["user"] is None, f"{user} was closed, and a session lives"
                told = [keeper]
        if told:
            await told[-1].ask("POST", "/use")
    return told


@pytest.mark.serial
@pytest.mark.parametrize("session_servers", ["2", "3"])
def test_limits_and_closes_hold_while_servers_are_killed(start: StartFarm, session_servers: str) -> None:
    """Two copies of each session, and one process at a time killed with SIGKILL: every index survives it."""
    running = start("--session-servers", session_servers, "--sessions-per-user", str(LIMIT))
    tally = {"logins": 0, "closes": 0}

    async def story() -> None:
        enough = asyncio.Event()
        crowd = [asyncio.create_task(live(running, f"user-{n}", enough, tally)) for n in range(USERS)]
        for victim in ("web-1", "session-1", "web-2", "session-2", "web-3"):
            before = tally["logins"]
            os.kill(running.pid(victim), signal.SIGKILL)
            await whole(running)
            while tally["logins"] < before + USERS and not any(task.done() for task in crowd):
                await asyncio.sleep(0.05)
        enough.set()
        await asyncio.gather(*crowd)
        assert tally["logins"] >= 5 * USERS
        assert tally["closes"] >= 1

    asyncio.run(story())
    for user in (f"user-{n}" for n in range(USERS)):
        listed = json.loads(running.run("sessions", "ls", "--user", user, "--json").stdout)
        assert len(listed) <= LIMIT
    closed = running.run("sessions", "close", "--user", "user-0")
    assert closed.returncode == 0, closed.stderr
    assert running.run("sessions", "ls", "--user", "user-0").stdout == "no sessions\n"
    print(tally)
