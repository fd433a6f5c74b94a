"""The session service against forward-auth written in Starlette with sessions in Redis: requests per second, paired.

Both are up at once, each a process on one core, with a Redis of its own on the other core, where the load is, too.
Rounds are interleaved; the ratio is of the two in one round. Usage::

    python -m benchmarks.service [--quick] [--write-results]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.processes import SERVER_CORE, Processes, cpu_us, environment, free_port
from benchmarks.report import table, write_section

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
CALLERS = """
[load]
scopes = ["create", "verify", "renew", "forward-auth"]
audience = "shop"
claims = ["role"]
requests_per_minute = 10000000
"""
CONNECTIONS = 16
CASES = {
    "forward-auth": "a request that a proxy asks about",
    "verify": "verify",
    "renew": "renew, a new token each time",
}
OURS, PEER = "coatcheck", "Starlette and Redis"


@dataclass
class Server:
    label: str
    port: int
    pid: int
    bearer: str


@dataclass
class Sample:
    per_s: float
    cpu_us: float
    failed: int


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


def post(server: Server, path: str, body: dict[str, object]) -> bytes:
    text = json.dumps(body).encode()
    return (
        f"POST /v1/sessions{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.bearer}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    ).encode() + text


async def browser(server: Server, case: str, until: float, counted: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    made = post(server, "", {"user": "ada", "data": {"role": "boss"}})
    cookie = json.loads((await ask(reader, writer, made))[1])["cookie"]
    auth = f"Authorization: Bearer {server.bearer}\r\nCookie: {cookie}\r\n"
    while time.monotonic() < until:
        if case == "forward-auth":
            request = f"GET /v1/forward-auth HTTP/1.1\r\nHost: x\r\n{auth}\r\n".encode()
        else:
            body: dict[str, object] = {"cookie": cookie}
            request = post(server, f"/{case}", {**body, "now": True} if case == "renew" else body)
        status, answer = await ask(reader, writer, request)
        counted[0 if status == 200 else 1] += 1
        if case == "renew":
            cookie = json.loads(answer)["cookie"]
    writer.close()


async def load(server: Server, case: str, window_s: float) -> Sample:
    counted = [0, 0]
    before, began = cpu_us(server.pid), time.monotonic()
    await asyncio.gather(*(browser(server, case, began + window_s, counted) for _ in range(CONNECTIONS)))
    took_s = time.monotonic() - began
    return Sample(counted[0] / took_s, (cpu_us(server.pid) - before) / max(1, sum(counted)), counted[1])


def start_both(processes: Processes, folder: Path) -> list[Server]:
    from coatcheck.service.callers import credential
    from coatcheck.tokens.keyring import KeyRing
    from coatcheck.tokens.secret import parse_key

    (folder / "callers.toml").write_text(CALLERS)
    stores = [processes.start_redis(f"redis-{number}")[0] for number in (1, 2)]
    ports = [free_port(), free_port()]
    bearer = credential("load", 1, KeyRing([parse_key(KEY, "key")]), "farm")
    command = [sys.executable, "-m", "coatcheck.cli", "service", "serve", "--listen", f"127.0.0.1:{ports[0]}"]
    command += ["--session-server", f"redis://127.0.0.1:{stores[0]}", "--callers", str(folder / "callers.toml")]
    ours = processes.start(OURS, command, ports[0], SERVER_CORE, environment(COATCHECK_KEYS=KEY))
    command = [sys.executable, "-m", "uvicorn", "benchmarks.service_peer:app", "--port", str(ports[1])]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    env = environment(STORE=f"redis://127.0.0.1:{stores[1]}", BEARER=bearer)
    peer = processes.start(PEER, command, ports[1], SERVER_CORE, env)
    return [Server(OURS, ports[0], ours, bearer), Server(PEER, ports[1], peer, bearer)]


def measure(servers: list[Server], rounds: int, window_s: float) -> dict[tuple[str, str], list[Sample]]:
    taken: dict[tuple[str, str], list[Sample]] = {}
    for number in range(rounds):
        for case in CASES:
            for server in random.Random(number).sample(servers, len(servers)):
                taken.setdefault((case, server.label), []).append(asyncio.run(load(server, case, window_s)))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return taken


def results(taken: dict[tuple[str, str], list[Sample]]) -> str:
    rows = []
    for case, words in CASES.items():
        ours, peer = taken[case, OURS], taken[case, PEER]
        ratios = [one.cpu_us / other.cpu_us for one, other in zip(ours, peer, strict=True)]
        rows.append(
            [
                words,
                *(f"{median(one.per_s for one in each):,.0f}" for each in (ours, peer)),
                *(f"{median(one.cpu_us for one in each):,.0f}" for each in (ours, peer)),
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{sum(one.failed for one in (*ours, *peer))}",
            ]
        )
    heads = ["", "ours, requests/s", "peer's", "ours, CPU µs each", "peer's", "CPU, ours to peer's", "failed"]
    return table(heads, rows)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write-results", action="store_true")
    asked = parser.parse_args()
    rounds, window_s = (1, 1.0) if asked.quick else (7, 3.0)
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        taken = measure(start_both(processes, Path(folder)), rounds, window_s)
    text = results(taken)
    print(text)
    if asked.write_results:
        write_section("service", text)
    return any(sample.failed for each in taken.values() for sample in each)


if __name__ == "__main__":
    sys.exit(main())
