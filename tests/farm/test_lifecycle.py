"""Start and stop on real processes: nothing is left, however the end comes."""

from __future__ import annotations

import os
import re
import signal
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from .farm_process import Farm, alive, eventually


def all_dead(farm: Farm) -> bool:
    return bool(farm.seen) and not any(alive(pid) for pid in farm.seen)


def test_serves_an_unmodified_app_and_stops_cleanly(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--stop-grace", "90")
    with httpx.Client(base_url=running.base) as browser:
        assert [browser.get("/").json()["count"] for _ in range(3)] == [1, 2, 3]
        environment = browser.get("/say", params={"words": "in the log"}).json()["environment"]
    assert [name for name in environment if name.startswith("COATCHECK_")] == ["COATCHECK_SERVER"]
    eventually(lambda: "hello from the app in the log" in running.log, "the app's line in the log")
    line = next(line for line in running.log.splitlines() if "hello from the app" in line)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z web-", line)
    assert running.stop(60) == 0  # so nothing had to wait until the grace was over
    assert all_dead(running)
    left = {path.name for path in (running.directory / ".coatcheck").iterdir()}
    assert left == {".gitignore", "audit", "keys.json", "lock", "run.json", "session-1.handover", "session-2.handover"}
    assert "Traceback" not in running.log


def test_secrets_are_neither_on_command_lines_nor_readable(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    directory = running.directory / ".coatcheck"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in ("keys.json", "control.sock", "farm.json"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600, name
    secrets = [word for word in (directory / "keys.json").read_text().split('"') if len(word) >= 30]
    assert len(secrets) == 2
    running.note()
    for pid in running.seen:
        shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert not [secret for secret in secrets if secret.encode() in shown]
    assert not [secret for secret in secrets if secret in running.log or secret in str(running.status())]


def test_sigkill_of_the_supervisor_leaves_no_orphans(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    running.note()
    # One that cannot even run must end too.
    os.kill(running.pid("web-2"), signal.SIGSTOP)
    running.process.kill()
    running.process.wait(30)
    eventually(lambda: all_dead(running), "the end of the orphans")
    # What the dead farm left is taken over, keys and all.
    keys = (running.directory / ".coatcheck/keys.json").read_bytes()
    again = farm("--web", "1")
    assert (again.directory / ".coatcheck/keys.json").read_bytes() == keys
    assert again.status()["state"] == "running"


def test_a_second_signal_stops_at_once(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1", "--stop-grace", "90")
    with httpx.Client(base_url=running.base, timeout=60) as browser, browser.stream("GET", "/") as first:
        first.read()
    os.kill(running.pid("web-1"), signal.SIGSTOP)
    running.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in running.log, "the first signal")
    time.sleep(0.3)
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 130  # long before the grace is over
    eventually(lambda: all_dead(running), "the end of every process")


def test_a_slow_request_is_finished_at_a_stop(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(httpx.get, running.base + "/slow?s=1.5", timeout=60)
        eventually(lambda: "a slow request has begun" in running.log, "the slow request")
        assert running.stop() == 0
        assert slow.result(60).json()["slow"] == 1


def test_a_live_run_directory_is_refused(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    done = running.run("serve", "counter:app", "--port", "0")
    assert done.returncode == 2
    assert "a farm is running in" in done.stderr
    assert str(running.process.pid) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert running.status()["state"] == "running"


def test_sighup_reloads_nothing_and_says_so(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    running.process.send_signal(signal.SIGHUP)
    eventually(lambda: "SIGHUP reloads nothing" in running.log, "the line about SIGHUP")
    assert running.status()["state"] == "running"


def test_https_with_secure_cookies(farm: Callable[..., Farm], certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    files = ("--tls-certificate", str(chain), "--tls-key", str(key))
    running = farm("--web", "1", "--no-insecure-localhost", *files)
    context = ssl.create_default_context(cafile=str(chain))
    with httpx.Client(base_url=running.status()["address"], verify=context) as browser:
        assert [browser.get("/").json()["count"] for _ in range(2)] == [1, 2]
        assert {name for name in browser.cookies if not name.startswith("__Host-")} == set()
        assert browser.cookies
        assert "strict-transport-security" not in browser.get("/").headers


WHO = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{scope['client'][0]} {scope['scheme']}".encode()})
"""


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_a_trusted_proxy_tells_the_app_who_its_client_is(
    farm: Callable[..., Farm], tmp_path: Path, server: str
) -> None:
    (tmp_path / "who.py").write_text(WHO)
    running = farm("--web", "1", "--server", server, "--trusted-proxy", "127.0.0.8/30", app="who:app")
    told = {"X-Forwarded-For": "203.0.113.6, 198.51.100.7", "X-Forwarded-Proto": "https"}
    for peer, seen in (("127.0.0.9", "198.51.100.7 https"), ("127.0.0.1", "127.0.0.1 http")):
        transport = httpx.HTTPTransport(local_address=peer)
        with httpx.Client(base_url=running.base, transport=transport, headers=told) as browser:
            assert browser.get("/").text == seen


HEADERS = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    own = [(b"strict-transport-security", b"max-age=5")] if scope["path"] == "/own" else []
    await send({"type": "http.response.start", "status": 200, "headers": own})
    await send({"type": "http.response.body", "body": b"x"})
"""


def test_hsts_where_the_director_speaks_tls(
    farm: Callable[..., Farm], tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """ASVS 3.4.1: on all responses, the director's own errors among them; what the app says stands."""
    chain, key = certificate
    (tmp_path / "headers.py").write_text(HEADERS)
    files = ("--tls-certificate", str(chain), "--tls-key", str(key))
    running = farm("--web", "1", "--no-insecure-localhost", "--hsts", "365d", *files, app="headers:app")
    context = ssl.create_default_context(cafile=str(chain))
    year = f"max-age={365 * 86400}"
    with httpx.Client(base_url=running.status()["address"], verify=context) as browser:
        for path, status, value in (
            ("/", 200, year),
            ("/own", 200, "max-age=5"),
            ("/.well-known/coatcheck/health", 404, year),
            ("/" + "x" * 40_000, 431, year),
        ):
            answer = browser.get(path)
            assert (answer.status_code, answer.headers.get_list("strict-transport-security")) == (status, [value])


def test_the_directors_bounds_are_settings(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1", "--first-byte-timeout", "500ms", "--resend-after", "0", "--max-head-bytes", "2000")
    with httpx.Client(base_url=running.base, timeout=20) as browser:
        assert browser.get("/slow?s=0.1").status_code == 200
        assert browser.get("/slow?s=10").status_code == 504
        assert browser.get("/", headers={"X-Long": "x" * 2000}).status_code == 431


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_the_access_log_has_the_visits_and_not_the_health_checks(farm: Callable[..., Farm], server: str) -> None:
    running = farm("--web", "1", "--server", server, "--access-log")
    assert httpx.get(running.base + "/?visit=1").status_code == 200
    eventually(lambda: "GET /" in running.log, "the line about the visit")
    time.sleep(0.6)  # two more health checks
    assert "/health" not in running.log
