"""A12: "The page may be any web resource: a static file, an applet or wasm file, a page of another language's server
(JSP, ASP, PHP), an app of ours." """

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx

from ports import free_port
from service.pages import WASM, node, page_env, php, proxy, running, static
from service.service_process import FARM, KEY, ServiceProcess

APP = """
from coatcheck import SessionMiddleware, connect

async def page(scope, receive, send):
    session = scope["session"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"app {session.user} {session.get('role', '')}".encode()})

app = SessionMiddleware(page, connect("STORE", key="KEY", farm="FARM"))
"""


def test_one_session_opens_pages_of_every_kind(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    (tmp_path / "app.py").write_text(APP.replace("STORE", store).replace("KEY", KEY).replace("FARM", FARM))
    with ExitStack() as stack:
        service = ServiceProcess(tmp_path, store=store)
        stack.callback(service.end)
        servers = {
            "node": stack.enter_context(node("page.mjs", tmp_path, **page_env(service))),
            "php": stack.enter_context(php("page.php", tmp_path, **page_env(service))),
            "wasm": stack.enter_context(static(tmp_path)),
            "app": stack.enter_context(_app(tmp_path)),
        }
        cookie = service.login("ada", role="boss")
        seen: dict[str, bytes] = {}
        for kind, url in servers.items():
            behind = stack.enter_context(proxy("nginx", tmp_path / kind, service.url, url))
            path = f"{behind}/static/app.wasm" if kind == "wasm" else behind
            assert httpx.get(path, trust_env=False, timeout=60).status_code == 401
            answer = httpx.get(path, headers={"Cookie": cookie}, trust_env=False, timeout=60)
            assert answer.status_code == 200, kind
            seen[kind] = answer.content
        assert seen == {"node": b"node ada boss", "php": b"php ada boss", "wasm": WASM, "app": b"app ada boss"}


def _app(folder: Path) -> AbstractContextManager[str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), "app:app", "--port", str(port)]
    return running(command, port, folder / "app.log")
