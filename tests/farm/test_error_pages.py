"""A directory of pages for a whole farm: what the director and the web servers answer by themselves."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from .farm_process import Command, Farm, eventually

HTML = {"accept": "text/html,*/*;q=0.8"}


def pages_in(directory: Path) -> None:
    folder = directory / "pages"
    folder.mkdir()
    (folder / "5xx.html").write_text("<h1>Back soon</h1>")
    (folder / "503.json").write_text('{"sorry": true}')
    (folder / "400.html").write_text("<h1>What?</h1>")
    (folder / ".5xx.html.swp").write_text("an editor's")


def malformed(farm: Farm) -> bytes:
    host, _, port = farm.note()["address"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        answer = b""
        while received := connection.recv(65536):
            answer += received
    return answer


def test_director_and_web_servers_show_the_operators_pages(farm: Callable[..., Farm], tmp_path: Path) -> None:
    pages_in(tmp_path)
    running = farm("--web", "1", "--no-restart", "--error-pages", "pages")
    assert malformed(running).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert malformed(running).endswith(b"<h1>What?</h1>")
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        assert browser.get("/").status_code == 200
        for name in ("session-1", "session-2"):
            os.kill(running.pid(name), signal.SIGKILL)
        eventually(lambda: browser.get("/", headers=HTML).status_code == 503, "the loss of all session servers")
        of_the_web_server = browser.get("/", headers=HTML)
        assert of_the_web_server.text == "<h1>Back soon</h1>"
        assert browser.get("/", headers={"accept": "application/json"}).json() == {"sorry": True}
        assert "session" in browser.get("/", headers={"accept": "text/plain"}).text
        os.kill(running.pid("web-1"), signal.SIGKILL)
        eventually(lambda: browser.get("/", headers=HTML).headers.get("server") is None, "the end of the web server")
        of_the_director = browser.get("/", headers=HTML)
        assert (of_the_director.status_code, of_the_director.text) == (503, "<h1>Back soon</h1>")
        assert of_the_director.headers["content-type"] == "text/html; charset=utf-8"
        assert of_the_director.headers["cache-control"] == "no-store"
        assert browser.head("/", headers=HTML).content == b""
        assert browser.get("/", headers={"accept": "text/plain"}).text == "503 Service Unavailable\n"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("503.htm", "", "error_pages: name pages 503.html, 5xx.html, 404.json or 400.txt (got '503.htm')"),
        ("503.html", "x" * 65537, "error_pages: 503.html is larger than 65536 bytes"),
        ("images/logo.png", "", "error_pages: pages holds more than pages: 'images'; give it a directory"),
    ],
)
def test_what_is_no_page_is_said_before_anything_starts(command: Command, name: str, content: str, line: str) -> None:
    file = command.directory / "pages" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    done = command.run("serve", "counter:app", "--port", "0", "--error-pages", "pages")
    assert done.returncode == 2
    assert done.stderr.startswith(f"coatcheck: {line}")
    assert done.stderr.count("\n") == 1
    checked = command.run("check", "counter:app", "--error-pages", "pages")
    assert (checked.returncode, checked.stdout.splitlines()[0][: len(line) + 7]) == (2, f"wrong: {line}")


def test_a_directory_that_is_not_there(command: Command) -> None:
    done = command.run("serve", "counter:app", "--port", "0", "--error-pages", "nowhere")
    assert done.returncode == 2
    assert "error_pages: " in done.stderr
    assert "No such file or directory; name a readable directory" in done.stderr
