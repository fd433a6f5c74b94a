"""starlette-admin, unmodified, in a farm of three: its login outlives its web server, and ends everywhere."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import httpx

from .farm_process import SOURCE, Farm

TESTS = Path(__file__).parents[1]


def hidden(page: httpx.Response) -> dict[str, str]:
    """What the page's forms send by themselves: the token against forged requests."""
    found = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    assert found, page.text
    return found


def test_a_login_outlives_its_web_server_and_ends_on_all(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "3", app="farm.starlette_admin_app:app", PYTHONPATH=f"{SOURCE}:{TESTS}")
    with httpx.Client(base_url=running.base, timeout=60, follow_redirects=True) as browser:
        page = browser.get("/admin/")
        assert page.url.path == "/admin/login"
        page = browser.post(str(page.url), data={"username": "ada", "password": "ada", **hidden(page)})
        assert (page.url.path, "this is ada" in page.text) == ("/admin/", True), page.text

        name = browser.get("/server").text
        os.kill(running.pid(name), signal.SIGKILL)
        page = browser.get("/admin/")
        assert (page.status_code, page.url.path, "this is ada" in page.text) == (200, "/admin/", True)
        name = browser.get("/server").text
        done = running.run("drain", name)
        assert done.returncode == 0, done.stderr
        assert "this is ada" in browser.get("/admin/").text
        assert browser.get("/server").text != name

        stolen = dict(browser.cookies)
        browser.post("/admin/logout", data=hidden(browser.get("/admin/")))
        assert browser.get("/admin/").url.path == "/admin/login"
    answer = httpx.get(f"{running.base}/admin/", cookies=stolen, timeout=60)
    assert answer.headers["location"].partition("?")[0].endswith("/admin/login")
    assert "Traceback" not in running.log
