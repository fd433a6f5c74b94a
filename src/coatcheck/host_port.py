"""An address to listen on or to connect to, as people write it: ``127.0.0.1:8200``, ``[::1]:8200``."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from coatcheck.errors import ConfigError

_FORM: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
_MAX_SHOWN: Final = 80


def parse_host_port(text: str, what: str) -> tuple[str, int]:
    """The host, without brackets, and the port. ``what`` names the setting.

    Raises:
        ConfigError: not of this form, or a port above 65535.
    """
    found = _FORM.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(
            f"{what}: an address such as 127.0.0.1:8200 or [::1]:8200 is needed, not {text[:_MAX_SHOWN]!r}"
        )
    return found["six"] or found["host"], int(found["port"])


def format_host_port(host: str, port: int) -> str:
    """Write it; an IPv6 host gets brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; of names, ``localhost`` alone counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
