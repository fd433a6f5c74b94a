"""docs/adapters.md is run as a reader would run it: its files in a folder, and gunicorn with threads and forks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import coatcheck.errors
from ports import free_port

ROOT = Path(__file__).parents[2]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
FILE = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.S)
KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
START_TIMEOUT_S = 60.0
THREADS = 8


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    for name, text in FILE.findall((ROOT / "docs" / "adapters.md").read_text()):
        (tmp_path / name).write_text(text)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", str(THREADS)]
    environment = os.environ | {"SESSION_KEY": KEY, "PYTHONPATH": str(SOURCE)}
    log = (tmp_path / "gunicorn.log").open("wb")
    server = subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}", "shop:app"], cwd=tmp_path, env=environment, stdout=log, stderr=log
    )
    try:
        began = time.monotonic()
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                assert server.poll() is None, (tmp_path / "gunicorn.log").read_text()
                assert time.monotonic() - began < START_TIMEOUT_S
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        assert server.wait(60) == 0
        said = (tmp_path / "gunicorn.log").read_text()
        assert "Traceback" not in said, said
    finally:
        server.kill()
        server.wait(60)
        log.close()


def test_a_shop_on_two_forked_workers_with_threads(address: str) -> None:
    def shopper(number: int) -> None:
        """Each request may reach another worker: what one has stored the other one serves."""
        with httpx.Client(base_url=address, timeout=60) as browser:
            assert browser.get("/").text == "None 0"
            assert not browser.cookies
            for count in range(1, 6):
                answer = browser.get("/add")
                assert (answer.text, answer.headers["cache-control"]) == (f"None {count}", "no-store")
            assert browser.get("/login").text == "ada 5"
            assert set(browser.cookies) == {"coatcheck-login"}
            loot = dict(browser.cookies)
            assert browser.get("/").text == "ada 5"
            browser.get("/logout")
            assert not browser.cookies
            assert httpx.get(f"{address}/", cookies=loot, timeout=60).text == "None 0"

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(shopper, range(THREADS)))


def test_the_adapter_has_thirty_lines_or_few_more() -> None:
    files = dict(FILE.findall((ROOT / "docs" / "adapters.md").read_text()))
    adapter = files["wsgi_sessions.py"].partition("\ndef refuse")[0]
    assert len([line for line in adapter.splitlines() if line.strip() and not line.startswith("from")]) <= 32
