"""Two web servers of one project on one SQLite file: gunicorn's with WSGI, uvicorn's with ASGI."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx
import pytest

import coatcheck.errors
from ports import free_port

TESTS = Path(__file__).parents[2]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
DEADLINE_S = 120.0
SERVERS = {
    "wsgi": [
        "gunicorn",
        "-k",
        "gthread",
        "--threads",
        "4",
        "--preload",
        "-b",
        "127.0.0.1:{port}",
        "web.django.project.wsgi",
    ],
    "asgi": ["uvicorn", "--port", "{port}", "web.django.project.asgi:application"],
}
MAKE = """
import os, django; django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True)
from web.django.conftest import make_users
make_users()
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
ada = User.objects.get(username="ada")
before = SessionStore()
before.update({
    "_auth_user_id": str(ada.pk), "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
    "_auth_user_hash": ada.get_session_auth_hash(), "cart": ["tea"],
})
before.create()
open(f"{os.environ['SHOP_FOLDER']}/before", "w").write(before.session_key)
"""


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[list[str]]:
    environment = os.environ | {
        "SHOP_FOLDER": str(tmp_path),
        "SHOP_SESSIONS": f"sqlite:///{tmp_path}/sessions.db",
        "SHOP_FORMER": "django.contrib.sessions.backends.db",
        "DJANGO_SETTINGS_MODULE": "web.django.project.settings",
        "PYTHONPATH": f"{TESTS}:{SOURCE}",
    }
    subprocess.run([sys.executable, "-c", MAKE], env=environment, check=True, capture_output=True)
    running = []
    try:
        for name, command in SERVERS.items():
            port = free_port()
            with (tmp_path / f"{name}.log").open("wb") as out:
                words = [sys.executable, "-m", *(word.format(port=port) for word in command)]
                running.append((name, port, subprocess.Popen(words, env=environment, stdout=out, stderr=out)))
        for name, port, process in running:
            _wait(f"http://127.0.0.1:{port}/plain", process, tmp_path / f"{name}.log")
        yield [f"http://127.0.0.1:{port}" for _, port, _ in running]
    finally:
        for _, _, process in running:
            process.terminate()
        for _, _, process in running:
            process.wait(60)
    for name, _, _ in running:
        said = (tmp_path / f"{name}.log").read_text()
        assert "Traceback" not in said, said


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            httpx.get(address, timeout=30)
            return
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def test_a_session_is_the_same_on_two_servers(addresses: list[str]) -> None:
    one, other = addresses
    with httpx.Client(timeout=60) as browser:
        assert browser.get(f"{one}/add").json() == ["tea"]
        assert browser.get(f"{other}/aadd").json() == ["tea", "tea"]
        before = dict(browser.cookies)
        assert browser.get(f"{one}/in?user=ada").text == "in"
        found = browser.get(f"{other}/who").json()
        assert (found["user"], found["cart"], found["said"]) == ("ada", ["tea", "tea"], ["welcome ada"])
        assert httpx.get(f"{other}/who", cookies=before, timeout=60).json()["user"] == "", "the former key is dead"

        tabs = [httpx.Client(timeout=60, cookies=browser.cookies) for _ in range(2)]
        for tab, address in zip(tabs, addresses, strict=True):
            assert tab.get(f"{address}/who").json()["user"] == "ada"
        assert browser.get(f"{other}/aout").text == "out"
        for tab, address in zip(tabs, addresses, strict=True):
            assert tab.get(f"{address}/who").json() == {"user": "", "cart": None, "said": []}
            tab.close()


def test_the_admin_on_turns_of_two_servers(addresses: list[str]) -> None:
    one, other = addresses
    with httpx.Client(timeout=60) as browser:
        browser.get(f"{one}/admin/login/")
        form = {"username": "ada", "password": "ada", "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        assert browser.post(f"{other}/admin/login/?next=/admin/", data=form).status_code == 302
        for address in addresses * 3:
            page = browser.get(f"{address}/admin/auth/user/")
            assert page.status_code == 200
            assert "bob" in page.text


def test_first_visits_at_both_servers_at_once(addresses: list[str], tmp_path: Path) -> None:
    """Somebody who has logged in before the change opens several pages: all of them know the user, from then on."""
    old = (tmp_path / "before").read_text()
    together = Barrier(4, timeout=DEADLINE_S)

    def visit(number: int) -> list[tuple[int, str]]:
        with httpx.Client(timeout=DEADLINE_S) as client:
            client.cookies.set("sessionid", old, domain="127.0.0.1", path="/")
            together.wait()
            seen = []
            for address in (addresses[number % 2], addresses[(number + 1) % 2]):
                answer = client.get(f"{address}/who")
                seen.append((answer.status_code, answer.json()["user"]))
            assert client.cookies["sessionid"].startswith("l.")
            return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(visit, range(4))) == [[(200, "ada")] * 2] * 4
