"""``coatcheck serve`` with WSGI apps: found out by itself, drained, reloaded, streamed through, in bounded memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .farm_process import Farm, eventually
from .test_drain import Browsing

StartFarm = Callable[..., Farm]
MB = 1 << 20
TRANSFER_MB = 50
MAX_GROWTH_MB = 12
"""Of a web server's memory, while so much goes through it."""

WSGI_COUNTER = """
import json, os, time
from urllib.parse import parse_qs

def app(environ, start):
    session, path = environ["coatcheck.session"], environ["PATH_INFO"]
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    told = {"server": os.environ["COATCHECK_SERVER"]}
    if path == "/held":
        print("a request is held", flush=True)
        while not os.path.exists("release"):
            time.sleep(0.02)
        session["slow"] = told["slow"] = session.get("slow", 0) + 1
    elif path == "/size":
        size = 0
        while piece := environ["wsgi.input"].read(65536):
            size += len(piece)
        told["size"] = size
    elif path == "/large":
        start("200 OK", [("Content-Type", "application/octet-stream")])
        return (b"x" * 65536 for _ in range(int(query["pieces"])))
    elif path == "/endless":
        return endless(start)
    elif path == "/error":
        environ["wsgi.errors"].write("the app has complained\\\\n")
        raise KeyError("a mistake of the app")
    elif path == "/environ":
        told = {name: environ.get(name) for name in query["names"].split(",")}
    else:
        session["count"] = told["count"] = session.get("count", 0) + 1
    body = json.dumps(told).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

def endless(start):
    try:
        start("200 OK", [("Content-Type", "text/plain")])
        while True:
            yield b"tick "
            time.sleep(0.01)
    finally:
        print("the stream is closed", flush=True)
""".replace("\\\\n", "\\n")


@pytest.fixture
def start(tmp_path: Path, farm: StartFarm) -> StartFarm:
    (tmp_path / "wsgi_counter.py").write_text(WSGI_COUNTER)
    return lambda *arguments, **more: farm(*arguments, app=more.pop("app", "wsgi_counter:app"), **more)


@pytest.fixture
def one(start: StartFarm) -> Farm:
    return start("--web", "1")


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_drain_under_load_fails_no_request(start: StartFarm, server: str) -> None:
    running = start("--web", "3", "--server", server)
    with Browsing(running.base) as browsing:
        eventually(lambda: browsing.servers == {"web-1", "web-2", "web-3"}, "the use of all web servers")
        for name in ("web-2", "web-1"):
            done = running.run("drain", name)
            assert done.returncode == 0, done.stderr
            browsing.watch_anew()
            eventually(lambda: browsing.servers, "requests elsewhere")
            assert name not in browsing.servers
        for name in ("web-2", "web-1"):
            assert running.run("admit", name).returncode == 0
        enough = browsing.requests + 100
        eventually(lambda: browsing.problems or browsing.requests > enough, "requests with all web servers again")
    assert browsing.problems == []
    status = running.healthy_status()
    assert status["restarts"] == 0
    assert status["web_servers"][2]["threads"]["most"] == 8
    assert running.stop() == 0


def test_drain_waits_for_a_thread_that_is_at_work(start: StartFarm) -> None:
    running = start("--web", "2")
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=running.base, timeout=60) as browser:
        name = browser.get("/").json()["server"]
        held = pool.submit(browser.get, "/held")
        eventually(lambda: "a request is held" in running.log, "the open request")
        early = running.run("drain", name, "--timeout", "300ms")
        assert early.returncode == 1
        assert f"{name} still has 1 open requests" in early.stderr
        drained = pool.submit(running.run, "drain", name)
        time.sleep(1)
        assert not held.done()
        assert not drained.done()
        (running.directory / "release").touch()
        assert drained.result(60).returncode == 0, drained.result().stderr
        assert held.result(60).json() == {"slow": 1, "server": name}


def test_a_thread_that_hangs_keeps_no_farm_from_stopping(start: StartFarm) -> None:
    running = start("--web", "1", "--stop-grace", "1")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(httpx.get, f"{running.base}/held", timeout=60)
        eventually(lambda: "a request is held" in running.log, "the open request")
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 20
        assert held.exception(60) is not None or held.result().status_code >= 500


def test_threads_that_all_wait_block_neither_the_leases_nor_the_operators(start: StartFarm) -> None:
    running = start("--web", "2", "--threads", "2", "--sticky", "session")
    with ThreadPoolExecutor(4) as pool:
        browsers = [httpx.Client(base_url=running.base, timeout=60) for _ in range(4)]
        for browser in browsers:
            assert browser.get("/").json()["count"] == 1
        held = [pool.submit(browser.get, "/held") for browser in browsers]
        eventually(lambda: running.log.count("a request is held") >= 2, "open requests")
        time.sleep(3)  # longer than a lease
        status = running.healthy_status()
        busy = [row["threads"]["busy"] for row in status["web_servers"]]
        assert sum(busy) >= 2
        (running.directory / "release").touch()
        assert [one.result(60).status_code for one in held] == [200] * 4
        assert [browser.get("/").json()["count"] for browser in browsers] == [2] * 4
        for browser in browsers:
            browser.close()
    assert "session.rolled_back" not in running.log


def memory_mb(pid: int, what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
@pytest.mark.parametrize("chunked", [True, False])
def test_large_bodies_pass_in_bounded_memory(start: StartFarm, server: str, chunked: bool) -> None:
    running = start("--web", "1", "--server", server)
    size = TRANSFER_MB * MB

    def pieces() -> Iterator[bytes]:
        for _ in range(size // 65536):
            yield b"x" * 65536

    with httpx.Client(base_url=running.base, timeout=120) as browser:
        assert browser.get("/").json()["count"] == 1
        assert browser.post("/size", content=b"x" * MB).json()["size"] == MB  # what is loaded once is loaded
        pid = running.pid("web-1")
        before = memory_mb(pid, "VmHWM")
        headers = {} if chunked else {"content-length": str(size)}
        assert browser.post("/size", content=pieces(), headers=headers).json()["size"] == size
        up = memory_mb(pid, "VmHWM")
        found = 0
        with browser.stream("GET", f"/large?pieces={size // 65536}") as answer:
            for number, piece in enumerate(answer.iter_bytes(65536)):
                found += len(piece)
                if number == 10:
                    time.sleep(1)  # a client that does not read for a while
        assert found == size
        down = memory_mb(pid, "VmHWM")
    assert (up - before, down - before) <= (MAX_GROWTH_MB, MAX_GROWTH_MB)


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_a_stream_whose_client_leaves_is_closed(start: StartFarm, server: str) -> None:
    running = start("--web", "1", "--threads", "1", "--server", server)
    with httpx.Client(base_url=running.base, timeout=60) as browser, browser.stream("GET", "/endless") as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if len(text) > 50 * len("tick "):
                break
    eventually(lambda: "the stream is closed" in running.log, "the close of the stream")
    assert httpx.get(running.base, timeout=60).json()["count"] == 1, "the only thread is free"
    assert "Traceback" not in running.log


def test_errors_of_the_app_are_in_the_log(one: Farm) -> None:
    answer = httpx.get(f"{one.base}/error")
    assert answer.status_code == 500
    assert "mistake" not in answer.text
    eventually(lambda: "KeyError: 'a mistake of the app'" in one.log, "the traceback")
    assert "the app has complained" in one.log


def test_what_the_app_is_told_behind_the_director_is_true(start: StartFarm) -> None:
    running = start("--web", "1", "--trusted-proxy", "127.0.0.1")
    names = ("SCRIPT_NAME", "REMOTE_ADDR", "wsgi.url_scheme", "SERVER_NAME", "SERVER_PORT", "HTTP_X_USER", "PATH_INFO")
    headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "Host": "shop.example", "X_User": "admin"}
    found = httpx.get(f"{running.base}/environ", params={"names": ",".join(names)}, headers=headers).json()
    assert found == {
        "SCRIPT_NAME": "", "REMOTE_ADDR": "192.0.2.7", "wsgi.url_scheme": "https", "SERVER_NAME": "shop.example",
        "SERVER_PORT": "443", "HTTP_X_USER": None, "PATH_INFO": "/environ",
    }  # fmt: skip


def test_a_change_of_the_code_is_served_and_sessions_stay(start: StartFarm, tmp_path: Path) -> None:
    running = start("--web", "2", "--reload")
    eventually(lambda: "reload: watching" in running.log, "the watch")
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        assert browser.get("/").json()["count"] == 1
        draft = tmp_path / "draft.tmp"
        draft.write_text("def app(environ):\n    return 1\n")
        draft.replace(tmp_path / "wsgi_counter.py")
        eventually(lambda: "the former code goes on: app: 'wsgi_counter:app' is no app" in running.log, "the refusal")
        draft.write_text(WSGI_COUNTER.replace("+ 1\n    body", "+ 100\n    body"))
        draft.replace(tmp_path / "wsgi_counter.py")
        eventually(lambda: "reload: done" in running.log, "the reload")
        assert browser.get("/").json()["count"] == 101


FACTORIES = """
def flask_app():
    from flask import Flask, request
    app = Flask(__name__)
    @app.get("/")
    def count():
        session = request.environ["coatcheck.session"]
        session["n"] = session.get("n", 0) + 1
        return {"n": session["n"]}
    return app

def quart_app():
    from quart import Quart, request
    app = Quart(__name__)
    @app.get("/")
    async def count():
        session = request.scope["session"]
        session["n"] = session.get("n", 0) + 1
        return {"n": session["n"]}
    return app

def fastapi_app():
    from fastapi import FastAPI, Request
    app = FastAPI()
    @app.get("/")
    async def count(request: Request):
        request.session["n"] = request.session.get("n", 0) + 1
        return {"n": request.session["n"]}
    return app

def litestar_app():
    from typing import Any
    from litestar import Litestar, get, Request
    @get("/")
    async def count(request: Request[Any, Any, Any]) -> dict[str, int]:
        session = request.scope["session"]
        session["n"] = session.get("n", 0) + 1
        return {"n": session["n"]}
    return Litestar([count])
"""


@pytest.mark.parametrize("name", ["flask", "quart", "fastapi", "litestar"])
def test_factories(farm: StartFarm, tmp_path: Path, name: str) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    running = farm("--web", "2", "--factory", app=f"factories:{name}_app")
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        assert [browser.get("/").json() for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
    threads = running.status()["web_servers"][0]["threads"]
    assert (threads is not None) is (name == "flask")


DJANGO = {
    "site/__init__.py": "",
    "site/settings.py": """
SECRET_KEY = "for tests"
ROOT_URLCONF = "shop_site.urls"
ALLOWED_HOSTS = ["*"]
WSGI_APPLICATION = "shop_site.wsgi.application"
""",
    "site/urls.py": """
from django.http import JsonResponse
from django.urls import path

def count(request):
    found = request.environ["coatcheck.session"] if hasattr(request, "environ") else request.scope["session"]
    found["n"] = found.get("n", 0) + 1
    return JsonResponse({"n": found["n"], "kind": type(request).__name__, "ip": request.META["REMOTE_ADDR"]})

urlpatterns = [path("", count)]
""",
    "site/wsgi.py": """
import os
from django.core.wsgi import get_wsgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop_site.settings")
application = get_wsgi_application()
""",
    "site/asgi.py": """
import os
from django.core.asgi import get_asgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop_site.settings")
application = get_asgi_application()
""",
}


@pytest.mark.parametrize(
    ("app", "arguments", "env", "kind"),
    [
        ("shop_site.wsgi:application", (), {}, "WSGIRequest"),
        ("shop_site.asgi:application", (), {}, "ASGIRequest"),
        ("", (), {"DJANGO_SETTINGS_MODULE": "shop_site.settings"}, "WSGIRequest"),
        ("", ("--interface", "asgi"), {"DJANGO_SETTINGS_MODULE": "shop_site.settings"}, "ASGIRequest"),
    ],
)
def test_a_django_project(
    farm: StartFarm, tmp_path: Path, app: str, arguments: tuple[str, ...], env: dict[str, str], kind: str
) -> None:
    (tmp_path / "shop_site").mkdir()
    for name, text in DJANGO.items():
        (tmp_path / name.replace("site/", "shop_site/", 1)).write_text(text)
    running = farm("--web", "1", *arguments, app=app, **env)
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        assert [browser.get("/").json() for _ in range(2)] == [
            {"n": n, "kind": kind, "ip": "127.0.0.1"} for n in (1, 2)
        ]


def test_our_own_middleware_steps_back_and_the_log_says_so(farm: StartFarm, tmp_path: Path) -> None:
    wrapped = WSGI_COUNTER + (
        "import coatcheck\nfrom coatcheck.web.wsgi import SessionMiddleware\n"
        "key = 'for-tests-only-for-tests-only-for-tests-001'\n"
        "sessions = coatcheck.connect('memory://', key=key, driver='threads')\n"
        "app = SessionMiddleware(app, sessions)\n"
    )
    (tmp_path / "wrapped.py").write_text(wrapped)
    running = farm("--web", "2", "--sticky", "session", app="wrapped:app")
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        counts: list[Any] = [browser.get("/").json()["count"] for _ in range(6)]
    assert counts == list(range(1, 7))
    assert "wrapped:app is wrapped in coatcheck.web.wsgi.SessionMiddleware, which steps back here" in running.log
