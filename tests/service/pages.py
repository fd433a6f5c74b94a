"""Pages of other languages and the proxies in front of them, each a process.

The proxies are configured as docs/forward-auth.md says.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ports import free_port

from .service_process import FARM, ServiceProcess, credential_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "session_service"
PATIENCE_S = 60.0
AUDIENCE = "https://shop.example"
WASM = bytes.fromhex("0061736d01000000")


def tool(name: str) -> str:
    """Debian has proxies where only root looks; Envoy comes with the development group."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    found = shutil.which(name, path=path)
    assert found is not None, f"{name} is missing: make test installs it"
    return found


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path, **env: str) -> Iterator[str]:
    """The process, once it accepts connections."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **env}, start_new_session=True
        )
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # PHP leaves its workers behind
        process.wait()


@contextlib.contextmanager
def node(script: str, folder: Path, **env: str) -> Iterator[str]:
    with node_at(free_port(), script, folder, **env) as url:
        yield url


@contextlib.contextmanager
def node_at(port: int, script: str, folder: Path, **env: str) -> Iterator[str]:
    with running([tool("node"), str(EXAMPLES / script)], port, folder / "node.log", PORT=str(port), **env) as url:
        yield url


@contextlib.contextmanager
def php(script: str, folder: Path, **env: str) -> Iterator[str]:
    port = free_port()
    command = [tool("php"), "-S", f"127.0.0.1:{port}", str(EXAMPLES / script)]
    with running(command, port, folder / "php.log", PHP_CLI_SERVER_WORKERS="4", CACHE=str(folder), **env) as url:
        yield url


@contextlib.contextmanager
def static(folder: Path) -> Iterator[str]:
    """A server of files, which know nothing of sessions."""
    (folder / "static").mkdir(exist_ok=True)
    (folder / "static" / "app.wasm").write_bytes(WASM)
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with running(command, port, folder / "static.log") as url:
        yield url


def page_env(service: ServiceProcess) -> dict[str, str]:
    return {"JWKS": f"{service.url}/v1/jwks", "AUDIENCE": AUDIENCE, "ISSUER": f"coatcheck:{FARM}"}


NGINX = """
{user} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  types {{ application/wasm wasm; }}
  {documented}
}}
"""
PROXIES = ("nginx", "haproxy", "envoy", "caddy")


def documented(language: str) -> str:
    """The first configuration of this kind in the documentation."""
    page = (ROOT / "docs" / "forward-auth.md").read_text()
    found = re.search(rf"^```{language}\n(.*?)^```$", page, re.S | re.M)
    assert found is not None, language
    return found[1]


@contextlib.contextmanager
def proxy(kind: str, folder: Path, service_url: str, upstream: str, caller: str = "site") -> Iterator[str]:
    """In front of one upstream, which it lets requests through to as the service says."""
    port = free_port()
    folder.mkdir()
    places = {
        "127.0.0.1:8100": service_url.removeprefix("http://"),
        "127.0.0.1:3000": upstream.removeprefix("http://"),
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "port_value: 8100": f"port_value: {service_url.rpartition(':')[2]}",
        "port_value: 3000": f"port_value: {upstream.rpartition(':')[2]}",
        "port_value: 8080": f"port_value: {port}",
        "/etc/haproxy/coatcheck.lua": str(folder / "coatcheck.lua"),
        "/srv/shop": str(folder.parent),
        "CREDENTIAL": credential_of(caller),
    }

    def placed(language: str) -> str:
        text = documented(language).replace(", CREDENTIAL = ", ", SECRET = ").replace(".. CREDENTIAL", ".. SECRET")
        for old, new in places.items():
            text = text.replace(old, new)
        return text

    conf = folder / "conf.yaml"
    match kind:
        case "nginx":
            conf.write_text(NGINX.format(folder=folder, user=f"user {getpass.getuser()};", documented=placed("nginx")))
            command = [tool("nginx"), "-p", str(folder), "-c", str(conf)]
        case "haproxy":
            conf.write_text(placed("haproxy"))
            (folder / "coatcheck.lua").write_text(placed("lua"))
            command = [tool("haproxy"), "-f", str(conf)]
        case "envoy":
            conf.write_text(placed("yaml"))
            command = [tool("envoy"), "-c", str(conf), "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
        case _:
            conf.write_text(placed("caddyfile"))
            command = [tool("caddy"), "run", "--config", str(conf), "--adapter", "caddyfile"]
    with running(command, port, folder / "log", HOME=str(folder), XDG_DATA_HOME=str(folder)) as url:
        yield url
