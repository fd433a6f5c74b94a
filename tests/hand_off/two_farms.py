"""Two farms on two host names, each `coatcheck serve` with its own processes, and session servers that they share."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coatcheck.farm.files.keys import load_or_create
from farm.farm_process import Farm
from ports import free_port

APP = """
import json, os
from html import escape
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

async def page(request):
    session, verb = request.session, request.url.path.rsplit("/", 1)[-1]
    body = (await request.body()).decode()
    if verb.startswith("login-"):
        session.regenerate(verb.removeprefix("login-"))
    elif verb == "add":
        session["cart"] = session.get("cart", 0) + 1
    user = session.user
    if verb == "logout":
        user = None
        session.close()
    said = {"user": user, "cart": None if verb == "logout" else session.get("cart"), "path": request.url.path,
            "query": request.url.query, "method": request.method, "body": body, "farm": os.environ["FARM"]}
    links = {"seats": "/tickets/seats?row=3", "basket": "/add", "out": "/tickets/logout"}
    html = "".join(f'<a id="{name}" href="{url}">{name}</a> ' for name, url in links.items())
    form = '<form method=post action="/tickets/buy"><input name=seats value=two><button id=buy>buy</button></form>'
    return HTMLResponse(f"<!doctype html><body><pre id=said>{escape(json.dumps(said))}</pre>{html}{form}")

app = Starlette(routes=[Route("/{rest:path}", page, methods=["GET", "POST"])])
"""
HOSTS = {"shop": "shop.localhost", "tickets": "tickets.localhost"}


class LossyWay:
    """What stands between browsers and a farm: while it loses, the answers to requests with ``losing`` in them."""

    def __init__(self, port: int, to: int) -> None:
        self._to = to
        self.losing = b""
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._to)) as server, contextlib.suppress(OSError):
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                if self.losing and self.losing in data:
                    self.lost += 1
                    client.shutdown(socket.SHUT_WR)
                    with socket.create_connection(("127.0.0.1", self._to)) as alone:
                        alone.sendall(data)
                        alone.recv(65536)  # it was carried out
                    return
                server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)

    def close(self) -> None:
        self._listener.close()


class TwoFarms:
    """``shop`` and ``tickets``: origins. ``way``: to the tickets."""

    def __init__(
        self, directory: Path, session_servers: list[str], hosts: dict[str, str] = HOSTS, more: str = ""
    ) -> None:
        ports = {name: free_port() for name in hosts}
        self.shop, self.tickets = (f"http://{host}:{ports[name]}" for name, host in hosts.items())
        behind = free_port()
        self.way = LossyWay(ports["tickets"], behind)
        keys = directory / "keys.json"
        load_or_create(keys, {})
        urls = ", ".join(f'"{url}"' for url in session_servers)
        self.farms: dict[str, Farm] = {}
        for name in hosts:
            home = directory / name
            home.mkdir()
            (home / "app.py").write_text(APP)
            (home / "farm.toml").write_text(
                f'[farm]\nsite = "{name}"\nkeys_file = "{keys}"\n'
                f"port = {behind if name == 'tickets' else ports[name]}\n"
                f"session_server = [{urls}]\n{more}\n"
                '[session]\nstore_timeout = "5s"\n'  # a busy machine's Redis is late, and not what is tested
                f'[sites.shop]\norigin = "{self.shop}"\n'
                f'[sites.tickets]\norigin = "{self.tickets}"\npaths = ["/tickets/*"]\n'
            )
            self.farms[name] = Farm(home, ("app:app", "--config", "farm.toml"), {"FARM": name})

    def wait(self) -> None:
        for each in self.farms.values():
            each.wait_running()

    def close(self) -> None:
        self.way.close()
        for each in self.farms.values():
            each.end()


@contextmanager
def two_farms(
    directory: Path, session_servers: list[str], hosts: dict[str, str] = HOSTS, more: str = ""
) -> Iterator[TwoFarms]:
    both = TwoFarms(directory, session_servers, hosts, more)
    try:
        both.wait()
        yield both
    finally:
        both.close()
