"""What forward-auth adds to a request behind nginx: the session service, and the same in Starlette with Redis, paired.

One nginx has three doors to one page: without anybody's leave, with that of the service, and with that of the peer of
:mod:`benchmarks.service`. One client, one connection to each door, a request through each in turn. Usage::

    python -m benchmarks.behind_nginx [--quick] [--write-results]
"""

from __future__ import annotations

import argparse
import getpass
import http.client
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.processes import OTHER_CORE, Processes, free_port
from benchmarks.report import table, write_section
from benchmarks.service import OURS, PEER, Server, start_both

OPEN = "nginx alone"
CONF = """
user {user}; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000; proxy_http_version 1.1; proxy_set_header Connection "";
  {upstreams}
  server {{ listen 127.0.0.1:{page}; location / {{ return 200 "page"; }} }}
  upstream page {{ server 127.0.0.1:{page}; keepalive 8; }}
  server {{ listen 127.0.0.1:{open}; location / {{ proxy_pass http://page; }} }}
  {doors}
}}
"""
UPSTREAM = "upstream auth{number} {{ server 127.0.0.1:{port}; keepalive 8; keepalive_requests 1000000; }}"
DOOR = """
  server {{
    listen 127.0.0.1:{door};
    location / {{ auth_request /leave; proxy_pass http://page; }}
    location = /leave {{
      internal; proxy_pass http://auth{number}/v1/forward-auth; proxy_pass_request_body off;
      proxy_set_header Content-Length ""; proxy_set_header Authorization "Bearer {bearer}";
      proxy_set_header X-Original-URI $request_uri;
    }}
  }}
"""


def start_nginx(processes: Processes, folder: Path, servers: list[Server]) -> dict[str, int]:
    """The ports of its doors, by name."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if nginx is None:
        raise SystemExit("nginx is missing: apt-get install nginx-light")
    ports = {OPEN: free_port(), **{server.label: free_port() for server in servers}}
    numbered = list(enumerate(servers))
    conf = CONF.format(
        user=getpass.getuser(),
        folder=folder,
        page=free_port(),
        open=ports[OPEN],
        upstreams="\n  ".join(UPSTREAM.format(number=number, port=server.port) for number, server in numbered),
        doors="".join(
            DOOR.format(door=ports[server.label], number=number, bearer=server.bearer) for number, server in numbered
        ),
    )
    (folder / "nginx.conf").write_text(conf)
    command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    processes.start("nginx", command, ports[OPEN], OTHER_CORE)
    return ports


def logged_in(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Authorization": f"Bearer {server.bearer}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/sessions", json.dumps({"user": "ada", "data": {"role": "boss"}}), headers)
    cookie: str = json.loads(connection.getresponse().read())["cookie"]
    connection.close()
    return cookie


def measure(ports: dict[str, int], cookies: dict[str, str], requests: int) -> dict[str, list[float]]:
    """Milliseconds of each request, by door. Raises :class:`RuntimeError` for one that was not let through."""
    doors = {name: http.client.HTTPConnection("127.0.0.1", port, timeout=10) for name, port in ports.items()}
    taken: dict[str, list[float]] = {name: [] for name in doors}
    dice = random.Random(1)
    for _ in range(requests):
        for name in dice.sample(list(doors), len(doors)):
            began = time.perf_counter()
            doors[name].request("GET", "/", headers={"Cookie": cookies.get(name, "")})
            answer = doors[name].getresponse()
            body = answer.read()
            taken[name].append((time.perf_counter() - began) * 1e3)
            if (answer.status, body) != (200, b"page"):
                raise RuntimeError(f"{name}: {answer.status}")
    return {name: times[requests // 20 :] for name, times in taken.items()}


def results(taken: dict[str, list[float]]) -> str:
    rows = []
    for name, times in taken.items():
        added = [one - other for one, other in zip(times, taken[OPEN], strict=True)]
        rows.append(
            [
                name,
                f"{median(times):.2f}",
                f"{quantiles(times, n=100)[98]:.2f}",
                f"{median(added):.2f}" if name != OPEN else "",
            ]
        )
    return table(["", "median, ms", "99th percentile, ms", "added, median of pairs, ms"], rows)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write-results", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        servers = start_both(processes, Path(folder))
        ports = start_nginx(processes, Path(folder), servers)
        cookies = {server.label: logged_in(server) for server in servers}
        assert set(cookies) == {OURS, PEER}
        text = results(measure(ports, cookies, 200 if asked.quick else 5000))
    print(text)
    if asked.write_results:
        write_section("behind-nginx", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
