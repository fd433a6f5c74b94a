"""nginx, HAProxy and Envoy, each twice, as one farm: a client that comes back to the other one resumes its session."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.tls import ProxyFiles, feed_proxies
from coatcheck.tls.proxy_tickets import ProxyTickets
from coatcheck.tls.ticket_keys import TicketKey
from ports import free_port

from .farm import HOST, KEY, PATIENCE_S, VERSIONS

PERIOD_S = 2.0

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_timeout 5m;
    ssl_session_ticket_key {folder}/now.key; ssl_session_ticket_key {folder}/before.key;
    ssl_session_ticket_key {folder}/next.key;
    location / {{ return 200 "x"; }}
  }}
}}
"""

HAPROXY = """
global
  stats socket {folder}/haproxy.sock mode 600 level admin
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend shop
  bind 127.0.0.1:{port} ssl crt {certificate} tls-ticket-keys {folder}/tickets ssl-min-ver TLSv1.2
  http-request return status 200 content-type text/plain string x
"""

ENVOY = """
node: {{id: proxy, cluster: shop}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates:
            - certificate_chain: {{filename: {certificate}}}
              private_key: {{filename: {certificate}}}
          session_ticket_keys_sds_secret_config:
            name: ticket_keys
            sds_config: {{path_config_source: {{path: {folder}/tickets.json}}, resource_api_version: V3}}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: shop
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: shop
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: x}}}}}}]
"""


def tool(name: str) -> str:
    """Debian has proxies where only root looks; Envoy comes with the development group."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    found = shutil.which(name, path=path)
    assert found is not None, f"{name} is missing: make test installs it"
    return found


def nginx(folder: Path) -> tuple[ProxyFiles, list[str], str]:
    words = [tool("nginx"), "-p", str(folder), "-c", str(folder / "conf")]
    return ProxyFiles(nginx=str(folder), reload=" ".join([*words, "-s", "reload"])), words, NGINX


def haproxy(folder: Path) -> tuple[ProxyFiles, list[str], str]:
    files = ProxyFiles(haproxy=str(folder / "tickets"), haproxy_socket=str(folder / "haproxy.sock"))
    return files, [tool("haproxy"), "-f", str(folder / "conf")], HAPROXY


def envoy(folder: Path) -> tuple[ProxyFiles, list[str], str]:
    words = [
        tool("envoy"),
        "-c",
        str(folder / "conf.yaml"),
        "--use-dynamic-base-id",
        "--concurrency",
        "1",
        "-l",
        "error",
    ]
    return ProxyFiles(envoy=str(folder / "tickets.json")), words, ENVOY


KINDS: dict[str, Callable[[Path], tuple[ProxyFiles, list[str], str]]] = {
    "nginx": nginx, "haproxy": haproxy, "envoy": envoy,
}  # fmt: skip


class Proxy:
    """One that is fed by a process of its own machine: here, a thread."""

    def __init__(self, kind: str, folder: Path, certificates: Path, **feed: Any) -> None:
        folder.mkdir()
        self.port = free_port()
        files, words, text = KINDS[kind](folder)
        first = ProxyFiles(**{**{f: getattr(files, f) for f in files.__struct_fields__}, "haproxy_socket": ""})
        if kind == "nginx":
            first = ProxyFiles(nginx=str(folder), reload="true")
        feed_proxies(first, **feed).close()  # it starts with the keys in their place
        self.certificate = certificates / "server.pem"
        conf = folder / ("conf.yaml" if kind == "envoy" else "conf")
        conf.write_text(text.format(folder=folder, port=self.port, certificate=self.certificate))
        self._said = folder / "said"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(words, stdout=said, stderr=said)
        self._wait()
        self.feed = feed_proxies(files, **feed)

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            assert self.process.poll() is None, f"it ended: {self._said.read_text()}"
            assert time.monotonic() < until, f"it does not listen: {self._said.read_text()}"
            time.sleep(0.02)

    def visit(self, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        raw = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        with context.wrap_socket(raw, server_hostname=HOST, session=session) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert tls.recv(65536).startswith(b"HTTP/1.1 200")
            return tls.session, bool(tls.session_reused)

    def stop(self) -> None:
        self.feed.close()
        self.process.terminate()
        self.process.wait(PATIENCE_S)


@pytest.fixture(params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path: Path, certificates: Path, redis_url: str) -> Iterator[list[Proxy]]:
    feed = {"store": redis_url, "keyring": KEY, "farm": secrets.token_hex(8), "period": PERIOD_S}
    proxies: list[Proxy] = []
    try:
        proxies += [Proxy(request.param, tmp_path / name, certificates, **feed) for name in ("one", "other")]
        yield proxies
    finally:
        for proxy in proxies:
            proxy.stop()


def test_a_session_of_one_is_resumed_at_the_other_while_their_keys_change(
    pair: list[Proxy], certificates: Path
) -> None:
    for version in VERSIONS.values():
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        context.minimum_version = context.maximum_version = version
        session, _ = pair[0].visit(context, None)
        until = time.monotonic() + 3 * PERIOD_S
        visits, number = [], 1
        while time.monotonic() < until:
            session, reused = pair[number % 2].visit(context, session)
            visits.append(reused)
            number += 1
            time.sleep(0.2)
        assert all(visits), visits
    stale, _ = pair[0].visit(context, None)
    time.sleep(3.5 * PERIOD_S)
    assert not pair[1].visit(context, stale)[1], "its key is gone"


def key(number: int) -> TicketKey:
    return TicketKey(b"%016d" % number, b"%032d" % number, b"%032d" % (1000 + number))


def test_nothing_is_changed_while_the_key_of_now_is_not_known(tmp_path: Path) -> None:
    tickets = ProxyTickets(ProxyFiles(haproxy=str(tmp_path / "tickets")))
    tickets.write([None, None, key(3)])
    assert not (tmp_path / "tickets").exists()
    tickets.write([None, key(2), None])
    first = (tmp_path / "tickets").read_bytes()
    assert len(first.splitlines()) == 3
    assert (tmp_path / "tickets").stat().st_mode & 0o777 == 0o600
    tickets.write([key(2), None, None])
    assert (tmp_path / "tickets").read_bytes() == first
    assert tickets.changes == 1


def test_a_reload_that_fails_is_tried_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    tickets = ProxyTickets(ProxyFiles(nginx=str(tmp_path), reload=f"test -e {marker}"))
    for _ in range(2):
        tickets.write([key(1), key(2), key(3)])
        assert tickets.changes == 0
    marker.touch()
    tickets.write([key(1), key(2), key(3)])
    tickets.write([key(1), key(2), key(3)])
    assert tickets.changes == 1
    assert (tmp_path / "now.key").read_bytes() == key(2).name + key(2).marking + key(2).sealing


@pytest.mark.parametrize(
    "wrong",
    [{}, {"nginx": "."}, {"haproxy_socket": "s"}, {"haproxy": "/nonexistent/f"}, {"envoy": "/nonexistent/f"}],
)
def test_a_wrong_setting_is_one_clear_line(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="ticket keys"):
        feed_proxies(ProxyFiles(**wrong), store="memory://", keyring=KEY)
