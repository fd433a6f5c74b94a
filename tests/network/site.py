"""Two machines with a farm each, three Redis, and a link that can be cut wherever one talks to another."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from farm.farm_process import SOURCE, Farm, eventually
from ports import free_port

from .cuts import DOORS, MACHINES, STORES
from .links import Links

APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

def answer(request, status=200):
    written = [int(name[1:]) for name in request.session if name[0] == "w"]
    user = request.session.get("user")
    return JSONResponse({"user": user, "written": written, "server": os.environ["COATCHECK_SERVER"]}, status)

async def login(request):
    request.session.regenerate(request.path_params["user"])
    request.session["user"] = request.path_params["user"]
    return answer(request)

async def read(request):
    return answer(request)

async def write(request):
    if "user" in request.session:
        request.session["w" + request.path_params["number"]] = 1
    return answer(request)

async def logout(request):
    request.session.close()
    return answer(request)

app = Starlette(routes=[
    Route("/", read),
    Route("/login/{user}", login, methods=["POST"]),
    Route("/write/{number}", write, methods=["PUT"]),
    Route("/logout", logout, methods=["POST"]),
])
"""

STORE_TIMEOUT_S = 1.0
LEASE_S = 1.0
OPTIONS = (
    "--insecure-localhost", "--web", "2", "--store-timeout", f"{STORE_TIMEOUT_S:g}s",
    "--lease", f"{LEASE_S:g}s", "--rotate-after", "5s", "--unresponsive-after", "60s",
)  # fmt: skip


class Redis:
    """A session server of its own process, in memory."""

    def __init__(self, folder: Path) -> None:
        server = shutil.which("valkey-server") or shutil.which("redis-server")
        assert server is not None, "redis-server is missing: apt-get install redis-server"
        folder.mkdir()
        self.port = free_port()
        command = [server, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def listens(self) -> bool:
        assert self._process.poll() is None, "redis-server has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self._process.kill()
        self._process.wait(60)


class Site:
    """All of it; ``bases`` is where browsers find each machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.links = Links()
        self.redis: list[Redis] = []
        self.farms: dict[str, Farm] = {}
        self.bases: dict[str, str] = {}

    async def start(self) -> None:
        self.redis = [Redis(self._folder / f"redis-{store}") for store in STORES]
        for redis in self.redis:
            eventually(redis.listens, "the start of Redis")
        ports = {f"{machine}{store}": free_port() for machine in MACHINES for store in STORES}
        doors = {door: free_port() for door in DOORS}
        fronts = {machine: free_port() for machine in MACHINES}
        table = {
            name: (port, "127.0.0.1", redis.port)
            for machine in MACHINES
            for store, redis in zip(STORES, self.redis, strict=True)
            for name, port in [(f"{machine}{store}", ports[f"{machine}{store}"])]
        }
        table |= {f"door-{machine}": (doors[f"door-{machine}"], "127.0.0.1", fronts[machine]) for machine in MACHINES}
        tests = str(Path(__file__).parents[1])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), tests])}
        await self.links.start(table, env=env)
        key = base64.urlsafe_b64encode(os.urandom(32)).decode()
        for machine in MACHINES:
            folder = self._folder / f"machine-{machine}"
            folder.mkdir()
            (folder / "network_app.py").write_text(APP)
            servers = [f"s{store}=redis://127.0.0.1:{ports[f'{machine}{store}']}" for store in STORES]
            arguments = ["network_app:app", *OPTIONS, "--port", str(fronts[machine])]
            for server in servers:
                arguments += ["--session-server", server]
            self.farms[machine] = Farm(folder, tuple(arguments), {"COATCHECK_KEYS": key})
            self.bases[machine] = f"http://127.0.0.1:{doors[f'door-{machine}']}"
        for farm in self.farms.values():
            await asyncio.to_thread(farm.wait_running)

    async def stop(self) -> None:
        for farm in self.farms.values():
            await asyncio.to_thread(farm.end)
        await self.links.stop()
        for redis in self.redis:
            redis.end()

    def events(self) -> dict[str, dict[str, int]]:
        """What each machine's web servers reported, by kind; and that none of them was restarted."""
        found: dict[str, dict[str, int]] = {}
        for machine, farm in self.farms.items():
            status: dict[str, Any] = farm.healthy_status()
            total: dict[str, int] = {}
            for row in status["web_servers"]:
                assert row["restarts"] == 0, f"{row['name']} of machine {machine} was restarted: {farm.log[-2000:]}"
                for kind, count in row["events"].items():
                    total[kind] = total.get(kind, 0) + count
            found[machine] = total
        return found


def now() -> float:
    """Seconds of the clock that all times of a run are on."""
    return time.monotonic()
