"""How the service is started: who may listen where, TLS, and logins that it does by itself."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from coatcheck.pool import LoginFailed, LoginRateLimited, TokenPool
from forked import run_coatcheck

from .conftest import StartService
from .service_process import BEARER, ServiceProcess


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_coatcheck("pool", *arguments)


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    file = tmp_path / "bearer"
    file.write_text(BEARER)
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "0.0.0.0:0"), "--allow-insecure"),
        (("--listen", "[::]:0"), "--allow-insecure"),
        (("--listen", "example.com:0"), "--allow-insecure"),
        (("--listen", "nonsense"), "listen"),
        (("--listen", "127.0.0.1:99999"), "listen"),
        (("--listen", "127.0.0.1:" + "9" * 5000), "listen"),
        (("--listen", "[::1:0"), "listen"),
        (("--listen", "::1:0"), "listen"),
        (("--store", "redis://127.0.0.1:1/0"), "key"),
        (("--store", "nonsense://x", "--key-file", "KEY"), "store"),
        (("--ttl", "soon"), "ttl"),
        (("--per-user", "0"), "per_user"),
        (("--login-command", "true", "--login-url", "http://127.0.0.1:1/"), "only one"),
        (("--login-command", "'"), "login-command"),
        (("--login-command", "/no/such/program x"), "login-command"),
        (("--login-url", "ftp://x/"), "login-url"),
        (("--login-url", "http://127.0.0.1:port/"), "login-url"),
        (("--login-url", "http://[::1/"), "login-url"),
        (("--logout-url", "http://127.0.0.1/a b"), "logout-url"),
        (("--key-file", "KEY"), "--store"),
        (("--tls-certificate", "missing.pem"), "tls-certificate"),
        (("--tls-certificate", "missing.pem", "--tls-key", "missing.pem"), "cannot be read"),
    ],
)
def test_wrong_settings_end_it_with_one_line(
    token_file: str, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    filled = [str(key) if argument == "KEY" else argument for argument in arguments]
    ended = run("serve", "--token-file", token_file, "--listen", "127.0.0.1:0", *filled)
    assert ended.returncode == 2
    assert words in ended.stderr and ended.stderr.count("\n") == 1 and ended.stderr.startswith("coatcheck: ")


@pytest.mark.parametrize("content", ["", "# only a comment\n", "short\n", "ä" * 30])
def test_weak_or_missing_bearer_tokens_end_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bearer"
    file.write_text(content)
    assert run("serve", "--token-file", str(file)).returncode == 2
    assert run("serve", "--token-file", str(tmp_path / "missing")).returncode == 2


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_files_of_secrets_that_others_can_read_are_refused(tmp_path: Path, mode: int) -> None:
    bearer, key = tmp_path / "bearer", tmp_path / "key"
    bearer.write_text(BEARER)
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    store = ("--store", f"sqlite:///{tmp_path / 'tokens.db'}", "--key-file", str(key))
    asked_service = ("ls", "--url", "http://127.0.0.1:1", "--token-file", str(bearer))
    for file, commands in (
        (bearer, (("serve", "--token-file", str(bearer)), asked_service)),
        (key, (("serve", "--token-file", str(bearer), *store), ("ls", *store))),
    ):
        file.chmod(mode)
        for command in commands:
            ended = run(*command)
            assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
            assert "chmod 600" in ended.stderr and str(file) in ended.stderr
        file.chmod(0o600)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:port", "http://[::1", "http://exa mple", "http://127.0.0.1:1/a b", "http://u:p@127.0.0.1"]
)
def test_what_is_no_address_of_a_service_is_told(token_file: str, url: str) -> None:
    ended = run("ls", "--url", url, "--token-file", token_file)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("coatcheck: url: ")


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Redirects to another host, which notes what it is shown."""

    shown: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/v1/"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")  # type: ignore[attr-defined]
        else:
            self.shown.append(self.headers.get("Authorization"))
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_an_operators_command_follows_no_redirect(token_file: str) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        ended = run("ls", "--url", f"http://127.0.0.1:{server.server_address[1]}", "--token-file", token_file)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (ended.returncode, ended.stderr) == (1, "coatcheck: it answered 302\n")
    assert Elsewhere.shown == []


@pytest.mark.parametrize(
    "answer", [b"-ERR unknown command\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"]
)
def test_what_is_no_service_is_told_in_one_line(token_file: str, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        ended = run("ls", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}", "--token-file", token_file)
        thread.join()
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("coatcheck: http://127.0.0.1")


def test_tls(start: StartService, certificate: tuple[Path, Path]) -> None:
    chain, private = certificate
    service = start("--tls-certificate", str(chain), "--tls-key", str(private), trust=chain)
    assert service.url.startswith("https://")
    assert service.signed_in()["token"] == "T1"
    asked = run(
        "stats", "--url", service.url, "--token-file", str(service.token_file), "--ca-file", str(chain), "--json"
    )
    assert json.loads(asked.stdout)["users"]["ANN"]["leased"] == 1
    refused = run("stats", "--url", service.url, "--token-file", str(service.token_file))
    assert refused.returncode == 1 and "certificate" in refused.stderr


SCRIPT = """
import json, sys
asked = json.load(sys.stdin)
if "token" in asked:
    open(sys.argv[1], "a").write(asked["token"] + "\\n")
elif asked["password"] == "wrong":
    sys.exit(3)
elif asked["password"] == "refused":
    sys.exit(77)
else:
    print(json.dumps({"token": asked["user"] + "/" + str(asked["password"]), "expires_in_s": 60}))
"""


def test_it_logs_in_by_a_command(start: StartService, tmp_path: Path) -> None:
    script, gone = tmp_path / "login.py", tmp_path / "gone"
    script.write_text(SCRIPT)
    command = f"{sys.executable} {script} {gone}"
    service = start("--login-command", command, "--logout-command", command)
    lease = service.checkout(password="word").json()
    assert lease["token"] == "ANN/word"
    assert service.end_lease(lease["lease"], "drop", sign_out=True).status_code == 204
    failed = service.checkout("BOB", password="wrong")
    assert (failed.status_code, failed.json()["type"]) == (502, "urn:coatcheck:problem:login-failed")
    assert "wrong" not in failed.text
    refused = service.checkout("BOB", password="refused")
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:coatcheck:problem:login-refused")
    service.end()
    assert gone.read_text() == "ANN/word\n"


OAUTH = """
import json, sys
asked = json.load(sys.stdin)
with open(sys.argv[1], "a") as log:
    log.write(str(asked["refresh_token"]) + "\\n")
count = len(open(sys.argv[1]).readlines())
print(json.dumps({"token": f"T{count}", "expires_in_s": 3600, "payload": {"n": count}, "refresh_token": f"R{count}"}))
"""


def test_shared_tokens_are_for_all_and_renewed_with_what_the_login_left(start: StartService, tmp_path: Path) -> None:
    script, logins = tmp_path / "login.py", tmp_path / "logins"
    script.write_text(OAUTH)
    store = ("--store", f"sqlite:///{tmp_path / 'tokens.db'}", "--key-file", str(tmp_path / "key"))
    services = [start(*store, "--login-command", f"{sys.executable} {script} {logins}") for _ in range(2)]

    def shared(service: ServiceProcess, **asked: Any) -> tuple[str, Any]:
        answer = service.http.post("/v1/users/API/shared", json=asked).json()
        assert 3_000 < answer["expires_in_s"] <= 3_600
        return answer["token"], answer["payload"]

    def refuse(service: ServiceProcess, token: str) -> bool:
        again: bool = service.http.post("/v1/users/API/shared/refuse", json={"token": token}).json()["again"]
        return again

    with ThreadPoolExecutor(8) as callers:
        assert set(callers.map(lambda n: shared(services[n % 2])[0], range(16))) == {"T1"}
    assert shared(services[0])[1] == {"n": 1}
    assert refuse(services[0], "T1")
    assert shared(services[0]) == ("T2", {"n": 2})
    assert refuse(services[1], "T1"), "another one had it refused before"
    assert shared(services[1])[0] == "T2"
    assert not refuse(services[1], "T2"), "it comes from a login just now"
    assert logins.read_text().split() == ["None", "R1"]
    assert shared(services[0], password="another")[0] == "T3", "other credentials have another one"


CART = """
import json, sys
asked = json.load(sys.stdin)
cart = asked["upstream_state"] or "C1"
print(json.dumps({"token": f"session of {cart}" + "!" * (asked["upstream_state"] is not None), "upstream_state": cart}))
"""


def test_the_state_of_the_upstream_is_found_again(start: StartService, tmp_path: Path) -> None:
    script = tmp_path / "login.py"
    script.write_text(CART)
    service = start("--login-command", f"{sys.executable} {script}")
    first = service.checkout("ANN").json()
    assert first["token"] == "session of C1"
    assert service.end_lease(first["lease"], "drop").status_code == 204
    assert service.checkout("ANN").json()["token"] == "session of C1!"


def test_a_caller_who_logs_in_is_given_the_state_that_it_told(start: StartService) -> None:
    service = start()

    def state_after(password: str | None, told: str | None) -> str | None:
        place = service.checkout("ANN", password=password).json()
        done = service.end_lease(place["lease"], "complete", token="T", upstream_state=told, password=password)
        assert done.status_code == 200, done.text
        assert "C1" not in done.text
        assert service.end_lease(place["lease"], "drop").status_code == 204
        found: str | None = place["upstream_state"]
        return found

    assert [state_after("one", told) for told in ("C1", None, "", None)] == [None, "C1", "C1", None]
    assert [state_after("one", "C1"), state_after("two", None), state_after(None, "C2")] == [None, None, None]
    assert state_after("one", None) == "C1"
    assert state_after(None, None) == "C2"
    long = service.end_lease(
        service.checkout("BOB").json()["lease"], "complete", token="T", upstream_state="x" * 20_000
    )
    assert long.status_code == 400


class Login(http.server.BaseHTTPRequestHandler):
    """A login service that answers as its path says."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/good": (200, b'{"token": "from-the-web"}'),
        "/refused": (403, b"no"),
        "/redirect": (302, b""),
        "/nonsense": (200, b"<html>"),
        "/endless": (200, b"x" * 200_000),
    }

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.answers[self.path]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/good")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def login_service() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Login)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["good", "refused", "redirect", "nonsense", "endless"])
def test_it_logs_in_at_a_web_address(start: StartService, login_service: str, path: str) -> None:
    service = start("--login-url", f"{login_service}/{path}", "--logout-url", f"{login_service}/good")
    answer = service.checkout()
    if path == "good":
        assert answer.json()["token"] == "from-the-web"
        assert service.end_lease(answer.json()["lease"]).status_code == 204
    else:
        expected = (403, "login-refused") if path == "refused" else (502, "login-failed")
        assert (answer.status_code, answer.json()["type"]) == (expected[0], f"urn:coatcheck:problem:{expected[1]}")


def test_a_store_that_does_not_answer_is_503(start: StartService, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    service = start("--store", "redis://127.0.0.1:1/0", "--key-file", str(key))
    for answer in (service.checkout(), service.http.get("/healthz"), service.http.get("/v1/stats")):
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:coatcheck:problem:store-unavailable")
    asked = run("ls", "--store", "redis://127.0.0.1:1/0", "--key-file", str(key))
    assert asked.returncode == 1 and asked.stderr.count("\n") == 1


def test_operators_ask_the_store_or_the_service(start: StartService, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    store = ("--store", f"sqlite:///{tmp_path / 'tokens.db'}", "--key-file", str(key))
    service = start(*store, "--lease", "10m")  # the lease must outlive a dozen commands
    asked_service = ("--url", service.url, "--token-file", str(service.token_file))
    service.end_lease(service.signed_in("secret-1")["lease"])
    service.signed_in("secret-2", "BOB/1")
    for target in (store, asked_service):
        listed = run("ls", *target)
        assert listed.returncode == 0 and "secret" not in listed.stdout
        lines = listed.stdout.splitlines()
        assert lines[0].split()[:4] == ["user", "token", "id", "state"]
        assert ("ANN" in lines[1], " free " in lines[1], "BOB/1" in lines[2], " leased " in lines[2]) == (True,) * 4
        rows = json.loads(run("ls", *target, "--user", "BOB/1", "--json").stdout)
        assert [(row["user"], row["state"]) for row in rows] == [("BOB/1", "leased")]
        assert json.loads(run("stats", *target, "--json").stdout)["users"]["ANN"]["free"] == 1
        assert "ANN" in run("stats", *target).stdout
        assert run("clean-up", *target).stdout == "0 removed\n"
    token_id = str(rows[0]["token_id"])
    for target in (store, asked_service):
        assert run("remove", "BOB/1", token_id, *target, "--soft").stdout == "1 removed\n"
        (row,) = json.loads(run("ls", *target, "--user", "BOB/1", "--json").stdout)
        assert row["state"] == "leased", "used on"
    assert run("remove", "BOB/1", token_id, *store, "--json").stdout.split() == ["{", '"removed":', "1", "}"]
    assert run("remove", "ANN", *asked_service).stdout == "1 removed\n"
    assert run("ls", *store).stdout == "no tokens\n"
    assert run("ls").returncode == 2
    assert run("ls", *store, *asked_service).returncode == 2
    assert run("ls", "--url", service.url).returncode == 2


def test_a_user_who_is_locked_up_is_reset(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("nW6iq3cBq0gq1uQ3yqf7sHzXlE5t2rJ8aPv4oKdMx9Y")
    url = f"sqlite:///{tmp_path / 'tokens.db'}"
    failing = TokenPool(_refuse, store=url, key=key.read_text(), login_backoff=("1h", "2h"), wait="1s")
    with failing as pool:
        with pytest.raises(LoginFailed):
            pool.lease("ANN").__enter__()
        with pytest.raises(LoginRateLimited):
            pool.lease("ANN").__enter__()
        done = run("reset", "ANN", "--store", url, "--key-file", str(key))
        assert (done.returncode, done.stdout) == (0, "ANN is reset; 0 removed\n")
        with pytest.raises(LoginFailed):
            pool.lease("ANN").__enter__()
    assert run("reset", "ANN").returncode == 2


def _refuse(user: str) -> str:
    raise RuntimeError("no")


def test_watching_shows_it_again_until_it_is_stopped(start: StartService) -> None:
    import signal

    service = start()
    service.signed_in()
    command = [sys.executable, "-m", "coatcheck.cli", "pool", "ls", "--watch", "--url", service.url]
    command += ["--token-file", str(service.token_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        seen = [watching.stdout.readline() for _ in range(4)]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=60)
    assert sum("ANN" in line for line in seen) == 2
    assert watching.returncode == 0
