"""A real browser whose web servers die: headless Chromium keeps its connection, and its page sees no network error."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tls.farm import Balancer
from tls.test_browser import pin

from .farm_process import DEADLINE_S, Farm, eventually
from .live_crowd import LIVE_APP
from .live_kills import counts
from .live_wire import Certificate, address

BROWSER_PATIENCE_S = 3 * DEADLINE_S
"""It starts a dozen processes."""
UPLOAD_BYTES = 50_000
"""Less than ``kept_body_bytes``."""
PAGE = """<!doctype html><link rel="icon" href="data:,"><script>
(async () => {
  const said = [];
  const ask = async (path, how) => {
    const answer = await fetch(path, {cache: "no-store", ...how});
    said.push({status: answer.status, ...await answer.json()});
  };
  const idle = () => fetch("http://127.0.0.1:SIGNALS/", {mode: "no-cors", cache: "no-store"});
  try {
    await ask("/hello");
    await ask("/count", {method: "POST"});
    await ask("/once/upload", {method: "PUT", body: new Uint8Array(UPLOAD_BYTES)});
    for (let turn = 0; turn < 3; turn++) {
      await idle();
      await ask("/hello");
      await ask("/count", {method: "POST"});
    }
  } catch (wrong) { said.push(String(wrong)); }
  await fetch("/report", {method: "POST", body: JSON.stringify(said)});
})();
</script>"""
APP = (
    LIVE_APP
    + """
async def page(request):
    return Response(open("page.html").read(), media_type="text/html")

async def report(request):
    with open("report.tmp", "wb") as file:
        file.write(await request.body())
    os.replace("report.tmp", "report.json")
    return Response(status_code=204)

app.router.routes[:0] = [Route("/page", page), Route("/report", report, methods=["POST"])]
"""
)


class Signals:
    """The page asks here when its connection is idle, and goes on when it is answered."""

    def __init__(self) -> None:
        signals = self
        self.waiting = threading.Semaphore(0)
        self.answers = threading.Semaphore(0)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                signals.waiting.release()
                signals.answers.acquire(timeout=BROWSER_PATIENCE_S)
                self.send_response(204)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self) -> None:
        assert self.waiting.acquire(timeout=BROWSER_PATIENCE_S), "the page does not get there"

    def go_on(self) -> None:
        self.answers.release()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def browser(url: str, certificate: Certificate, folder: Path) -> Iterator[None]:
    found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert found is not None, "chromium is missing: apt-get install chromium-headless-shell"
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0"]
    command += [f"--ignore-certificate-errors-spki-list={pin(certificate[0])}", url]
    with (folder / "browser.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(DEADLINE_S)


def server_now(farm: Farm) -> str:
    """The web server that has the browser's connection."""
    (found,) = farm.healthy_status()["director"]
    busy = [str(row["name"]) for row in found["details"]["servers"] if row["in_flight"]]
    assert len(busy) == 1, "it has made a new connection"
    return busy[0]


@pytest.mark.parametrize("how", ["kill", "drain"])
def test_a_page_goes_on_and_its_connection_too(
    farm: Callable[..., Farm], tmp_path: Path, certificate: Certificate, how: str
) -> None:
    signals = Signals()
    page = PAGE.replace("SIGNALS", str(signals.port)).replace("UPLOAD_BYTES", str(UPLOAD_BYTES))
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "live.py").write_text(APP)
    tls = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--no-insecure-localhost")
    running = farm(*tls, "--tls", "end-to-end", "--takeover", "--web", "2", app="live:app")
    arrived: list[int] = []
    way = Balancer([address(running)[1]], lambda number, connection: arrived.append(number))
    carried_out = tmp_path / "carried_out"

    def lose(name: str) -> None:
        if how == "kill":
            old = running.pid(name)
            os.kill(old, signal.SIGKILL)
            running.wait_replaced(name, old)
        else:
            assert running.run("drain", name).returncode == 0
            assert running.run("admit", name).returncode == 0
            eventually(lambda: running.state(name) == "ready", "its return")

    try:
        with browser(f"https://127.0.0.1:{way.port}/page", certificate, tmp_path):
            eventually(carried_out.exists, "the upload")
            if how == "kill":
                lose(server_now(running))
                eventually(lambda: carried_out.read_text().split() == ["upload"] * 2, "the upload, elsewhere")
            (tmp_path / "release").touch()
            for _ in range(3):
                signals.wait()
                connections = len(arrived)
                lose(server_now(running))
                signals.go_on()
            eventually((tmp_path / "report.json").exists, "the page's report")
            assert len(arrived) == connections == 1, "it has made a new connection"
    finally:
        signals.close()
        way.close()
    said: list[Any] = json.loads((tmp_path / "report.json").read_text())
    assert [each["status"] for each in said] == [200] * 9
    assert said[2]["body"] == UPLOAD_BYTES
    assert [each["count"] for each in said if "count" in each] == [1, 2, 3, 4], "nothing was done twice"
    servers = [(each["server"], each["pid"]) for each in said if "server" in each]
    assert len(set(servers)) >= 4, "each of them was lost"
    found = counts(running)
    assert (found["taken_over"], found["moved"], found["broken_off"]) == ((4, 0, 0) if how == "kill" else (0, 3, 0))
