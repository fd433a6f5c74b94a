"""Requests per second of the embedded director against HAProxy: ``python -m benchmarks.director [--write-results]``.

Paired: all directors are up at once before the same web servers, each round visits every one of them, and the table
has medians over the rounds. One worker, or one thread, each. The web servers are one more HAProxy that answers by
itself, so that they are not what is measured. Needs ``haproxy`` and ``wrk``; everything is on loopback.

* *HAProxy* routes by the cookie, removes what the client may not say, and sets the same headers as the embedded one.
* *HAProxy, bare* only balances and sets X-Forwarded-For.
* *browser* requests carry 13 headers, the same over one connection; in *changing* ones a cookie differs each time,
  so that nothing of a head can be remembered.
* *answer* and *upload* are bodies of 100 KB, in one direction each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import write_section

BODY_BYTES = 100 * 1024
KINDS = ("plain", "browser", "changing", "answer", "upload")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.9",
    "Accept-Encoding": "gzip, deflate, br",
    "Cache-Control": "max-age=0",
    "Connection": "keep-alive",
    "Sec-Ch-Ua": '"Chromium";v="120", "Not?A_Brand";v="8"',
    "Sec-Ch-Ua-Mobile": "?0",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Upgrade-Insecure-Requests": "1",
    "Cookie": "coatcheck-route=tag-1; session=" + "abcdefghij" * 12,
}
DEFAULTS = """
global
    maxconn 4000
    nbthread 1
defaults
    mode http
    timeout connect 500ms
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 30s
    http-reuse safe
"""
# A body is answered when it has come in full, so a buffer has to hold one.
WEB_SERVERS = f"""
global
    tune.bufsize {2 * BODY_BYTES}
frontend web
    bind 127.0.0.1:{{web_1}}
    bind 127.0.0.1:{{web_2}}
    http-request wait-for-body time 10s if METH_POST
    http-request return status 200 content-type text/plain file {{body}} if {{{{ path /body }}}}
    http-request return status 200 content-type text/plain string "hello, world"
"""
BALANCE = """
    balance leastconn
    server web-1 127.0.0.1:{web_1} check inter 250ms
    server web-2 127.0.0.1:{web_2} check inter 250ms
"""
SAME_JOB = """
    http-request deny if { path_beg /.well-known/coatcheck/ }
    http-request del-header x-session- -m beg
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header Forwarded for=%[src];host=\\"%[req.hdr(host)]\\";proto=http
    http-request set-header Via "1.1 haproxy"
    use-server web-1 if { req.cook(coatcheck-route) -m str tag-1 }
    use-server web-2 if { req.cook(coatcheck-route) -m str tag-2 }
    option httpchk GET /.well-known/coatcheck/health
"""


@dataclass(frozen=True)
class Measured:
    """One run of the load generator."""

    director: str
    requests: str
    connections: int
    per_s: float
    p99_ms: float
    cpu_us: float
    failed: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(stack: ExitStack, command: list[str], port: int) -> int:
    """Start a process, wait until it listens, and end it by its process ID when all is done."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process.pid
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{command[0]} did not start")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def scripts(folder: Path) -> dict[str, tuple[list[str], str]]:
    """What makes wrk send each kind of request, and to which path."""
    lines = [f"wrk.headers[{name!r}] = {value!r}" for name, value in BROWSER_HEADERS.items()]
    changing = folder / "changing.lua"
    changing.write_text(
        "\n".join(lines)
        + '\nlocal n = 0\nlocal cookie = wrk.headers["Cookie"]\nfunction request()\n  n = n + 1\n'
        + '  wrk.headers["Cookie"] = cookie .. n\n  return wrk.format()\nend\n'
    )
    browser = folder / "browser.lua"
    browser.write_text("\n".join(lines) + "\n")
    upload = folder / "upload.lua"
    upload.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {BODY_BYTES})\n')
    return {
        "plain": ([], "/"),
        "browser": (["-s", str(browser)], "/"),
        "changing": (["-s", str(changing)], "/"),
        "answer": ([], "/body"),
        "upload": (["-s", str(upload)], "/"),
    }


def millis(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def measure(
    name: str, pid: int, port: int, kind: str, script: tuple[list[str], str], connections: int, seconds: int
) -> Measured:
    before = cpu_s(pid)
    options, path = script
    url = f"http://127.0.0.1:{port}{path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *options, url]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    spent = cpu_s(pid) - before
    count = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    failures = re.findall(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)", output)
    return Measured(
        name,
        kind,
        connections,
        float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),  # type: ignore[index]
        millis(re.search(r"\n\s+99%\s+(\S+)", output)[1]),  # type: ignore[index]
        spent / count * 1e6,
        sum(int(one or other) for one, other in failures),
    )


def start_all(stack: ExitStack, folder: Path) -> dict[str, tuple[int, int]]:
    """All directors, before the same web servers: name to process ID and port."""
    web_1, web_2, same, bare, ours = (free_port() for _ in range(5))

    def haproxy(name: str, text: str, port: int) -> int:
        (folder / name).write_text(DEFAULTS + text)
        return started(stack, ["haproxy", "-db", "-f", str(folder / name)], port)

    (folder / "body").write_bytes(b"x" * BODY_BYTES)
    haproxy("web.cfg", WEB_SERVERS.format(web_1=web_1, web_2=web_2, body=folder / "body"), web_1)
    balance = BALANCE.format(web_1=web_1, web_2=web_2)
    servers = ["--server", f"web-1=127.0.0.1:{web_1}#tag-1", "--server", f"web-2=127.0.0.1:{web_2}#tag-2"]
    command = [sys.executable, "-m", "coatcheck.director", "--listen", f"127.0.0.1:{ours}", *servers]
    directors = {
        "coatcheck": (started(stack, command, ours), ours),
        "HAProxy": (haproxy("same.cfg", f"listen d\n    bind 127.0.0.1:{same}{SAME_JOB}{balance}", same), same),
        "HAProxy, bare": (
            haproxy("bare.cfg", f"listen d\n    bind 127.0.0.1:{bare}\n    option forwardfor{balance}", bare),
            bare,
        ),
    }
    time.sleep(1.0)
    return directors


def report(runs: list[Measured], rounds: int) -> str:
    def median(name: str, kind: str, connections: int, of: Callable[[Measured], float]) -> float:
        chosen = [r for r in runs if (r.director, r.requests, r.connections) == (name, kind, connections)]
        return statistics.median(of(run) for run in chosen)

    def ratio(kind: str, connections: int, peer: str) -> float:
        # Paired: each round's own ratio, and then the median of those.
        ours = [r.per_s for r in runs if (r.director, r.requests, r.connections) == ("coatcheck", kind, connections)]
        theirs = [r.per_s for r in runs if (r.director, r.requests, r.connections) == (peer, kind, connections)]
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))

    lines = [
        f"Medians of {rounds} interleaved rounds; one worker or thread each; {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}.",
        "",
        "| requests | connections | coatcheck req/s | HAProxy req/s | ratio | HAProxy, bare req/s | ratio "
        "| coatcheck / HAProxy CPU µs | p99 ms | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, connections in dict.fromkeys((r.requests, r.connections) for r in runs):
        per_s = {
            name: median(name, kind, connections, lambda r: r.per_s)
            for name in ("coatcheck", "HAProxy", "HAProxy, bare")
        }
        cpu = [median(name, kind, connections, lambda r: r.cpu_us) for name in ("coatcheck", "HAProxy")]
        p99 = [median(name, kind, connections, lambda r: r.p99_ms) for name in ("coatcheck", "HAProxy")]
        failed = sum(r.failed for r in runs if (r.requests, r.connections) == (kind, connections))
        lines.append(
            f"| {kind} | {connections} | {per_s['coatcheck']:,.0f} | {per_s['HAProxy']:,.0f} "
            f"| **{ratio(kind, connections, 'HAProxy'):.2f}** | {per_s['HAProxy, bare']:,.0f} "
            f"| {ratio(kind, connections, 'HAProxy, bare'):.2f} | {cpu[0]:.1f} / {cpu[1]:.1f} "
            f"| {p99[0]:.2f} / {p99[1]:.2f} | {failed} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path, help="where to write every run")
    parser.add_argument("--write-results", action="store_true", help="renew the table in RESULTS.md")
    arguments = parser.parse_args()
    for tool in ("haproxy", "wrk"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed (Debian: apt install {tool})")
    runs: list[Measured] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directors = start_all(stack, folder)
        kinds = scripts(folder)
        for name, (pid, port) in directors.items():
            measure(name, pid, port, "plain", kinds["plain"], 32, 1)  # Warm-up: not kept.
        for _ in range(arguments.rounds):
            for kind in arguments.kinds:
                for connections in arguments.connections:
                    for name, (pid, port) in directors.items():
                        runs.append(measure(name, pid, port, kind, kinds[kind], connections, arguments.seconds))
    text = report(runs, arguments.rounds)
    print(text)
    if arguments.write_results:
        write_section("director", text)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs]) + "\n")


if __name__ == "__main__":
    main()
