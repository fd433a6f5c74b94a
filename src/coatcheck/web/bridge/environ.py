"""What a WSGI app is told of its request (PEP 3333, "environ Variables"), from what ASGI says of it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote_to_bytes

from coatcheck.web.interface import Scope

_NOT_HTTP: Final = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
_LOST: Final = "�"
"""What stands in a path for bytes that are no UTF-8."""
_PORTS: Final = {"http": "80", "https": "443"}


def environ_of(scope: Scope) -> dict[str, Any]:
    """The variables of CGI; bytes are text of latin-1, as PEP 3333 wants it.

    A header whose name has an underscore is left out: in ``environ`` nobody could tell it from the one with a dash,
    which a director or a proxy may have checked.
    """
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": _as_latin1(scope.get("root_path", "")),
        "PATH_INFO": _path_of(scope),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
    }
    host = ""
    for raw_name, raw_value in scope["headers"]:
        if b"_" in raw_name:
            continue
        name = raw_name.decode("latin-1").upper()
        value = raw_value.decode("latin-1")
        key = _NOT_HTTP.get(name) or "HTTP_" + name.replace("-", "_")
        if key in environ:
            value = environ[key] + ("; " if name == "COOKIE" else ",") + value
        elif name == "HOST":
            host = value
        environ[key] = value
    environ["SERVER_NAME"], environ["SERVER_PORT"] = _server_of(scope, host)
    client = scope.get("client")
    if client:
        environ["REMOTE_ADDR"] = client[0]
        if client[1]:
            environ["REMOTE_PORT"] = str(client[1])
    return environ


def _as_latin1(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def _path_of(scope: Scope) -> str:
    path: str = scope["path"]
    raw = scope.get("raw_path")
    if _LOST in path and raw:
        found = unquote_to_bytes(raw.partition(b"?")[0]).decode("latin-1")
    else:
        found = _as_latin1(path)
    prefix = _as_latin1(scope.get("root_path", ""))
    # ASGI's path begins with what the app is mounted under; that of WSGI does not.
    return found[len(prefix) :] if prefix and (found + "/").startswith(prefix + "/") else found


def _server_of(scope: Scope, host: str) -> tuple[str, str]:
    """Where the request went to: what the web server knows; behind a Unix socket, what the client says."""
    server = scope.get("server")
    if server and server[1] is not None:
        return str(server[0]), str(server[1])
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name, port = host, ""
    return name or "localhost", port or _PORTS.get(scope.get("scheme", "http"), "80")
