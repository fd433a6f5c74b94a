"""The pages by task are run as a reader would run them: their files in a folder, their lines, farms of processes."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect as open_websocket

from coatcheck.farm.settings.configuration import load_settings
from farm.farm_process import Farm, eventually
from ports import free_port
from service.pages import NGINX, running, tool

ROOT = Path(__file__).parents[2]
BESIDE = {"PYTHONPATH": str(ROOT / "src")}


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.S | re.M)


def commands(name: str) -> list[list[str]]:
    """The words of each line that a reader types for coatcheck, without what only explains it."""
    text = "\n".join(blocks(name, "console"))
    return [line.split("#")[0].split() for line in re.findall(r"^\$ coatcheck (.*)$", text, re.M)]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Callable[..., Farm]]:
    """Starts a farm with the words of a page, in a folder, and waits until it serves."""
    farms: list[Farm] = []

    def start(*words: str, folder: Path = tmp_path, **env: str) -> Farm:
        farms.append(Farm(folder, words, env))
        farms[-1].wait_running()
        return farms[-1]

    yield start
    for each in farms:
        each.end()


def answered(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_farm(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (source,) = blocks("first-farm", "python")
    (tmp_path / "shop.py").write_text(source)
    serve, *others = commands("first-farm")
    assert serve[0] == "serve"
    assert others == [["status"], ["sessions", "ls"], ["drain", "web-2"], ["admit", "web-2"]]
    running_farm = farm(*serve[1:], "--port", "0")
    with httpx.Client(timeout=60) as browser:

        def visit() -> tuple[int, str]:
            found = re.fullmatch(r"visit (\d+), served by (web-\d)\n", browser.get(running_farm.base).text)
            assert found is not None
            return int(found[1]), found[2]

        (first, server), (second, same) = visit(), visit()
        assert (first, second, server) == (1, 2, same)
        assert "session server" in answered(running_farm.run(*others[0]))
        assert "live" in answered(running_farm.run(*others[1]))
        told = 'print(json.load(sys.stdin)["web_servers"][0]["pid"])'
        assert told.replace('"', "'") in page("first-farm")
        status = answered(running_farm.run("status", "--json"))
        python = [sys.executable, "-c", f"import json, sys; {told}"]
        pid = subprocess.run(python, input=status, capture_output=True, text=True, check=True).stdout
        assert int(pid) == running_farm.pid("web-1")
        old = running_farm.pid(server)
        os.kill(old, 9)
        assert visit()[0] == 3
        running_farm.wait_replaced(server, old)
        for words in others[2:]:
            answered(running_farm.run(*words))
        assert visit()[0] == 4
        running_farm.process.send_signal(2)
        assert running_farm.process.wait(60) == 0
        running_farm = farm(*serve[1:], "--port", "0")
        assert visit()[0] == 5


def test_users_and_their_sessions(farm: Callable[..., Farm], tmp_path: Path) -> None:
    routes = ("log_in", "sign_out", "sign_out_elsewhere")
    (tmp_path / "shop.py").write_text(
        "\n".join(blocks("users", "python"))
        + "from starlette.applications import Starlette\nfrom starlette.responses import PlainTextResponse\n"
        + "from starlette.routing import Route\n"
        + "async def who(request):\n    return PlainTextResponse(str(request.session.user))\n"
        + f"verbs = [Route('/' + verb.__name__, verb, methods=['POST']) for verb in ({', '.join(routes)})]\n"
        + "app = Starlette(routes=[Route('/', who), *verbs])\n"
    )
    shop = farm("shop:app", "--port", "0", "--web", "2")

    def browser() -> httpx.Client:
        return httpx.Client(base_url=shop.base, timeout=60)

    with browser() as laptop, browser() as phone, browser() as desk:
        for one in (laptop, phone, desk):
            one.post("/log_in")
        ids = [row["id"] for row in json.loads(answered(shop.run("sessions", "ls", "--user", "ada", "--json")))]
        assert len(ids) == 3
        assert phone.post("/sign_out_elsewhere").status_code == 303
        eventually(lambda: [one.get("/").text for one in (laptop, desk)] == ["None", "None"], "the end of both")
        assert phone.get("/").text == "ada"
        phone.post("/sign_out")
        assert phone.get("/").text == "None"
        for one in (laptop, phone, desk):
            one.post("/log_in")
        ids = [row["id"] for row in json.loads(answered(shop.run("sessions", "ls", "--user", "ada", "--json")))]
        told = commands("users")
        assert [words[:2] for words in told] == [["sessions", "ls"]] * 2 + [
            ["sessions", "show"],
            ["audit", "--user"],
        ] + [["sessions", "close"]] * 3
        outputs = [answered(shop.run(*(ids[0] if word == "5c1f00d2" else word for word in words))) for words in told]
        assert [ids[0] in outputs[at] for at in range(4)] == [True] * 4
        assert outputs[-2] == "2 sessions closed\n"
        eventually(lambda: [one.get("/").text for one in (laptop, phone, desk)] == ["None"] * 3, "the end of all")


def test_a_deploy_in_a_loop(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (loop,) = blocks("deploy", "sh")
    code = "\n".join(blocks("first-farm", "python"))
    (tmp_path / "shop.py").write_text(code)
    shop = farm("shop:app", "--port", "0", "--web", "3", "--session-servers", "2")
    (tmp_path / "coatcheck").write_text(f'#!/bin/sh\nexec {sys.executable} -m coatcheck.cli "$@"\n')
    (tmp_path / "coatcheck").chmod(0o755)
    environment = {**os.environ, **BESIDE, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def deploy(source: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "shop.py").write_text(source)
        return subprocess.run(
            ["sh", "-c", loop], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    with httpx.Client(base_url=shop.base, timeout=60) as browser:
        assert browser.get("/").text.startswith("visit 1, ")
        done = deploy(code.replace("visit {", "call {"))
        assert (done.returncode, done.stderr) == (0, "")
        assert browser.get("/").text.startswith("call 2, ")
        done = deploy("import a_module_that_is_not_there\n")
        assert "web-1" in done.stderr
        assert [row["state"] for row in shop.note()["processes"] if row["name"] in ("web-2", "web-3")] == ["ready"] * 2
        assert browser.get("/").text.startswith("call 3, ")
        (stop,) = re.findall(r"^\$ kill -TERM \$\((.*)\)$", page("deploy"), re.M)
        pid = subprocess.run(["sh", "-c", stop], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert int(pid) == shop.process.pid


@pytest.fixture
def two_redis(tmp_path: Path) -> Iterator[list[int]]:
    ports = [free_port(), free_port()]
    servers = []
    for port in ports:
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "PASSWORD"]
        with (tmp_path / f"redis-{port}.log").open("wb") as log:
            servers.append(subprocess.Popen([tool("redis-server"), *words, "--dir", str(tmp_path)], stdout=log))
    yield ports
    for server in servers:
        server.kill()
        server.wait(60)


def test_several_machines(farm: Callable[..., Farm], tmp_path: Path, two_redis: list[int]) -> None:
    """Each machine is a folder of its own."""
    (settings,) = blocks("several-machines", "toml")
    for address, port in zip(("10.0.0.21", "10.0.0.22"), two_redis, strict=True):
        settings = settings.replace(address, f"127.0.0.1:{port}")
    settings = settings.replace("port = 8000", "port = 0").replace("/etc/shop/keys.json", "keys.json")
    settings = settings.replace("10.0.0.2/32", "127.0.0.2/32")
    farms = []
    for name in ("one", "other"):
        machine = tmp_path / name
        machine.mkdir()
        (machine / "farm.toml").write_text(settings)
        (machine / "shop.py").write_text("\n".join(blocks("first-farm", "python")))
        if farms:
            (machine / "keys.json").write_bytes((tmp_path / "one" / "keys.json").read_bytes())
            (machine / "keys.json").chmod(0o600)
        given = {"COATCHECK_HOST": "127.0.0.1"}
        farms.append(farm("--config", "farm.toml", folder=machine, **given))
        check, serve, ls = commands("several-machines")
        assert serve == ["serve", "--config", "farm.toml"]
        assert farms[-1].run(*check, **given).returncode < 2
        assert "active" in answered(farms[-1].run(*ls))
    jar = {}
    for count in range(1, 5):  # a browser that the load balancer sends to the one and the other in turns
        answer = httpx.get(farms[count % 2].base, cookies=jar, headers={"x-forwarded-proto": "https"}, timeout=60)
        jar = {**jar, **dict(answer.cookies)}
        assert answer.text.startswith(f"visit {count}, ")
    rotated = answered(farms[0].run("keys", "rotate")).split()[0]
    assert rotated in answered(farms[1].run("keys", "ls"))


APP = """
import json

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": (await receive())["text"]})
        await send({"type": "websocket.close"})
        return
    session = scope["session"]
    session["visits"] = session.get("visits", 0) + 1
    headers = [[name.decode(), value.decode()] for name, value in scope["headers"] if b"forwarded" in name]
    told = {"visits": session["visits"], "client": scope["client"][0], "scheme": scope["scheme"], "headers": headers}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
"""
LIES = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Proto": "ftp",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=6.6.6.6;host=evil.example",
}
CONFIGURATIONS = {"nginx": "nginx", "haproxy": "haproxy", "caddy": "caddyfile", "envoy": "yaml"}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_behind_a_proxy(kind: str, farm: Callable[..., Farm], tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    (settings,) = blocks("behind-a-proxy", "toml")
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "farm.toml").write_text(settings.replace("port = 8000", "port = 0"))
    check, serve = commands("behind-a-proxy")
    shop = farm(*serve[1:])
    assert shop.run(*check).returncode < 2
    port, (chain, key) = free_port(), certificate
    both = tmp_path / "both.pem"
    both.write_bytes(chain.read_bytes() + key.read_bytes())
    text = blocks("behind-a-proxy", CONFIGURATIONS[kind])[0]
    upstream = shop.base.rpartition(":")[2]
    for old, new in {
        "/etc/shop/shop.pem": str(chain),
        "/etc/shop/shop.key": str(key),
        "/etc/shop/both.pem": str(both),
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "port_value: 8000": f"port_value: {upstream}",
        "shop.example:8443": f":{port}",  # the certificate of the test is for no name
        "8443": str(port),
    }.items():
        text = text.replace(old, new)
    conf = tmp_path / "conf.yaml"
    match kind:
        case "nginx":
            conf.write_text(
                NGINX.format(folder=tmp_path, user="user root;" if os.getuid() == 0 else "", documented=text)
            )
            command = [tool("nginx"), "-p", str(tmp_path), "-c", str(conf)]
        case "haproxy":
            conf.write_text(text)
            command = [tool("haproxy"), "-f", str(conf)]
        case "caddy":
            conf.write_text(text)
            command = [tool("caddy"), "run", "--config", str(conf), "--adapter", "caddyfile"]
        case _:
            conf.write_text(text)
            command = [tool("envoy"), "-c", str(conf), "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
    trust = ssl.create_default_context(cafile=str(chain))
    with running(command, port, tmp_path / "proxy.log", HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path)):
        # Another address than the proxy's, so that it can be told from it.
        transport = httpx.HTTPTransport(verify=trust, local_address="127.0.0.2")
        with httpx.Client(transport=transport, base_url=f"https://127.0.0.1:{port}", timeout=60) as browser:
            for count in (1, 2, 3):
                answer = browser.get("/", headers=LIES)
                answer.raise_for_status()
                told = answer.json()
                assert (told["visits"], told["client"], told["scheme"]) == (count, "127.0.0.2", "https")
                assert "evil.example" not in json.dumps(told["headers"])
            assert all(cookie.secure for cookie in browser.cookies.jar)
        with open_websocket(f"wss://127.0.0.1:{port}/", ssl=trust) as socket:
            socket.send("hello")
            assert socket.recv(60) == "hello"


def test_when_something_is_wrong_names_settings_and_events_that_are(tmp_path: Path) -> None:
    from coatcheck.events import EventKind
    from coatcheck.farm.metrics.catalogue import METRICS
    from coatcheck.farm.settings.configuration import SETTINGS

    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", page("trouble")))
    known = {kind.value for kind in EventKind} | {setting.key for setting in SETTINGS}
    known |= {metric.name for metric in METRICS}
    others = {"stalls", "last_end", "status", "detail", "https", "sessions"}
    assert len(named & known) >= 6
    assert named - known - others == set()
    assert load_settings().session.idle_timeout_s == 1800
    assert load_settings().unresponsive_after_s == 5


def test_rows_beside_the_peers_are_rows_of_the_results() -> None:
    rows = [line for line in page("peers").splitlines() if line.startswith("|") and "---" not in line]
    assert len(rows) > 6
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text().splitlines()
    assert [row for row in rows if row not in results] == []
