"""How every command answers: an error in one line, and JSON that steers no terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def listen_option(default: str) -> Callable[[Any], Any]:
    """Where a service listens."""
    return click.option(
        "--listen", default=default, show_default=True, metavar="HOST:PORT", help="The address to serve at."
    )


def fail(error: Exception, code: int = 1) -> NoReturn:
    """One line on stderr, no traceback."""
    click.echo(f"coatcheck: {error}", err=True)
    raise SystemExit(code)


def json_text(value: Any) -> str:
    """Indented JSON, without what could steer a terminal (JSON itself escapes the other control characters)."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value)).decode()
    return re.sub("[\x7f-\x9f]", lambda control: f"\\u{ord(control[0]):04x}", text)
