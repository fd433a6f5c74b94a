"""What the user can mend is one line on stderr, exit code 2, and nothing left running."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .farm_process import Command


def refused(command: Command, *arguments: str, **env: str) -> str:
    done = command.run("serve", "--insecure-localhost", *arguments, **env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    # What the processes say meanwhile is the log, not the error.
    lines = [line for line in done.stderr.splitlines() if line.startswith("coatcheck: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    assert not (command.directory / ".coatcheck/farm.json").exists()
    assert not left_running(command.directory)
    return lines[0]


def left_running(directory: Path) -> list[str]:
    """Farm processes whose working directory is ours."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if (each / "cwd").resolve() == directory and b"coatcheck.farm" in (each / "cmdline").read_bytes():
                found.append(each.name)
        except OSError:
            continue
    return found


def test_port_in_use(command: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(command, "counter:app", "--port", str(port))
    assert f"port: {port} on 127.0.0.1 is in use" in line


def test_port_in_use_by_another_farm_of_ours(command: Command) -> None:
    # Not even where the other one would share it.
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refused(command, "counter:app", "--port", str(taken.getsockname()[1]))
    assert "is in use" in line


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("nowhere:app", "there is no module 'nowhere'"),
        ("counter:nothing", "no attribute 'nothing'"),
        ("counter:not_callable", "is a int, not an ASGI or WSGI app"),
        ("counter", "write MODULE:ATTRIBUTE"),
        ("broken:app", "ZeroDivisionError"),
        ("lifespan:app", "lifespan start-up failed"),
    ],
)
def test_bad_app(command: Command, app: str, words: str) -> None:
    (command.directory / "broken.py").write_text("app = 1 / 0\n")
    (command.directory / "lifespan.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from starlette.applications import Starlette\n"
        "@asynccontextmanager\n"
        "async def start(app):\n"
        "    raise SystemExit(5)\n"
        "    yield\n"
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'lifespan'\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n"
    )
    line = refused(command, app, "--port", "0", "--web", "1", "--session-servers", "1", "--copies", "1")
    assert line.startswith("coatcheck: app: ")
    assert words in line


def test_bad_certificate_and_bad_network(command: Command) -> None:
    for name in ("cert.pem", "key.pem"):
        (command.directory / name).write_text("nonsense")
    line = refused(command, "counter:app", "--port", "0", "--tls-certificate", "cert.pem", "--tls-key", "key.pem")
    assert "tls_certificate: cannot load cert.pem with tls_key key.pem" in line
    line = refused(command, "counter:app", "--port", "0", "--tls-certificate", "none.pem", "--tls-key", "none.pem")
    assert "tls_certificate: cannot load none.pem with tls_key none.pem: No such file" in line
    assert "trusted_proxy: 'everyone'" in refused(command, "counter:app", "--port", "0", "--trusted-proxy", "everyone")


def test_no_app(command: Command) -> None:
    assert "app: name the app to serve" in refused(command)


def test_bad_config_file(command: Command) -> None:
    file = command.directory / "farm.toml"
    file.write_text("[farm]\nwebs = 3\n")
    line = refused(command, "counter:app", "--config", str(file))
    assert "[farm] has no setting 'webs'; did you mean 'web'?" in line
    assert "farm.toml" in line


def test_bad_environment(command: Command) -> None:
    assert "COATCHECK_PORT: " in refused(command, "counter:app", COATCHECK_PORT="http")


def test_bad_key_ring(command: Command) -> None:
    directory = command.directory / ".coatcheck"
    directory.mkdir(mode=0o700)
    keys = directory / "keys.json"
    keys.write_text(json.dumps({"keys": ["c2hvcnQ="], "primary": 0, "session_server_password": "x"}))
    assert "run chmod 600" in refused(command, "counter:app", "--port", "0")
    keys.chmod(0o600)
    assert "at least 32 random bytes" in refused(command, "counter:app", "--port", "0")
    assert "COATCHECK_KEYS" in refused(command, "counter:app", "--port", "0", COATCHECK_KEYS="abc")


def test_commands_without_a_farm(command: Command) -> None:
    for arguments in (["status"], ["drain", "web-1"], ["sessions", "ls"], ["admit", "web-1"]):
        done = command.run(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("coatcheck: no farm is running in")
        assert len(done.stderr.splitlines()) == 1


def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "coatcheck.cli", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "coatcheck: [Errno 28] No space left on device\n"
