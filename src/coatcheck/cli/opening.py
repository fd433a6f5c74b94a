"""``--open``: the browser of whoever started something, asked for its page."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable
from urllib.parse import urlsplit

import click

OPEN = click.option("--open", "open_page", is_flag=True, help="Open it in your browser once it serves.")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Addresses that a server listens on, and where a browser of this machine finds it."""


def open_in_browser(url: str, say: Callable[[str], None]) -> None:
    """Ask the browser for ``url``, and return at once: one of a terminal runs until it is closed.

    ``say``: is told if there is none.
    """
    threading.Thread(target=_open, args=(reachable(url), say), name="browser", daemon=True).start()


def reachable(url: str) -> str:
    """``url``, as a browser of this machine can ask for it."""
    parts = urlsplit(url)
    host = _EVERYWHERE.get(parts.hostname or "")
    return url if host is None else parts._replace(netloc=f"{host}:{parts.port}").geturl()


def _open(url: str, say: Callable[[str], None]) -> None:
    try:
        opened = webbrowser.open(url)
    except (OSError, webbrowser.Error):
        opened = False
    if not opened:
        say(f"no browser could be opened; open {url} yourself")
