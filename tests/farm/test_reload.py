"""``serve --reload``: a change of the code is served by restarted web servers; sessions stay, and broken code waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from coatcheck import ConfigError
from coatcheck.farm.operations.reload import check_reload
from coatcheck.farm.settings.configuration import load_settings

from .farm_process import Command, Farm, eventually

APP = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
import greeting

async def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"], "greeting": greeting.WORDS})

app = Starlette(routes=[Route("/", count)])
"""


def write(directory: Path, words: str) -> None:
    # In one step, as editors save; of a new length, for Python compares compiled files by second and size.
    draft = directory / "draft.tmp"
    draft.write_text(words)
    draft.replace(directory / "greeting.py")


@pytest.mark.parametrize("servers", ["1", "2"])
def test_a_change_is_served_and_sessions_stay(farm: Callable[..., Farm], tmp_path: Path, servers: str) -> None:
    (tmp_path / "hello.py").write_text(APP)
    write(tmp_path, "WORDS = 'good morning'\n")
    running = farm("--web", servers, "--reload", app="hello:app")
    eventually(lambda: "reload: watching" in running.log, "the watch")
    kept = {name: running.pid(name) for name in ("session-1", "session-2", "director-1")}
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        assert browser.get("/").json() == {"count": 1, "greeting": "good morning"}
        write(tmp_path, "WORDS = 'good evening, all'\n")
        eventually(lambda: "reload: done" in running.log, "the reload")
        assert browser.get("/").json() == {"count": 2, "greeting": "good evening, all"}

        # Broken code restarts nothing, and its line says where it is broken.
        pids = {f"web-{n}": running.pid(f"web-{n}") for n in range(1, int(servers) + 1)}
        write(tmp_path, "WORDS = 'good night\n")
        eventually(lambda: "nothing is restarted, the former code goes on: " in running.log, "the refusal")
        assert "SyntaxError: unterminated string literal" in running.log
        assert browser.get("/").json() == {"count": 3, "greeting": "good evening, all"}
        assert {name: running.pid(name) for name in pids} == pids

        write(tmp_path, "WORDS = 'good night, everybody'\n")
        eventually(lambda: running.log.count("reload: done") == 2, "the second reload")
        assert browser.get("/").json() == {"count": 4, "greeting": "good night, everybody"}
    assert {name: running.pid(name) for name in kept} == kept
    assert running.status()["web_servers"][0]["restarts"] == 0  # of a death
    assert running.stop() == 0


def test_a_web_server_that_the_operator_drained_stays_out(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(APP)
    write(tmp_path, "WORDS = 'good morning'\n")
    running = farm("--web", "2", "--reload", app="hello:app")
    eventually(lambda: "reload: watching" in running.log, "the watch")
    assert running.run("drain", "web-1").returncode == 0
    write(tmp_path, "WORDS = 'good evening, all'\n")
    eventually(lambda: "reload: done" in running.log, "the reload")
    assert running.state("web-1") == "drained"
    assert httpx.get(running.base, timeout=60).json()["greeting"] == "good evening, all"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--reload-dir", "src"), "reload_dir: only with reload; add reload, or drop reload_dir"),
        (
            ("--reload", "--reload-dir", "nowhere"),
            "reload_dir: 'nowhere' is no directory; name one with the app",
        ),
    ],
)
def test_what_cannot_be_watched_is_said(command: Command, arguments: tuple[str, ...], line: str) -> None:
    done = command.run("serve", "counter:app", "--port", "0", *arguments)
    assert (done.returncode, done.stderr) == (2, f"coatcheck: {line}\n")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"reload: watchfiles is not installed; pip install 'coatcheck\[reload\]'"):
        check_reload(load_settings(None, {}, {"app": "a:b", "reload": "yes"}))
    check_reload(load_settings(None, {}, {"app": "a:b"}))
