"""``coatcheck tls``: how a farm shares TLS sessions, and new ticket keys by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from coatcheck.cli.answering import JSON, json_text
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.running_farm import RUN_DIR, ask, seconds_of
from coatcheck.cli.tables import text_table

ANSWER_S = 15.0
"""What the farm may take beside the time for its directors."""
_HANDSHAKES = ("handshakes", "resumed")
_COUNTS = {
    "ticket-keys": (*_HANDSHAKES, "made", "opened", "refused", "alone"),
    "take-once": (*_HANDSHAKES, "made", "offered", "gone", "refused", "unavailable", "dropped"),
}


@click.group(cls=CommandGroup)
def tls() -> None:
    """TLS sessions that the farm shares: who shares what, new ticket keys."""


@tls.command("status")
@RUN_DIR
@JSON
def tls_status(run_dir: str | None, as_json: bool) -> None:
    """Show what each process that ends TLS resumes, and which ticket keys it has until when."""
    found = ask(run_dir, {"op": "tls.status"})["tls"]
    click.echo(json_text(found) if as_json else tls_table(found))


@tls.command("rotate-ticket-keys")
@RUN_DIR
@click.option("--timeout", default="30s", show_default=True, metavar="TIME", help="For all directors to hear of it.")
@JSON
def tls_rotate(run_dir: str | None, timeout: str, as_json: bool) -> None:
    """Seal with a new key at once, everywhere. Tickets of the keys before open for their lifetime."""
    timeout_s = seconds_of("--timeout", timeout)
    late = ask(run_dir, {"op": "tls.rotate", "timeout_s": timeout_s}, timeout_s=timeout_s + ANSWER_S)["late"]
    words = "a new ticket key seals; tickets of the ones before open for their lifetime"
    click.echo(json_text({"late": late}) if as_json else words)
    for director in late:
        click.echo(f"{director} could not be told yet: it is told again within a minute", err=True)


def tls_table(found: Mapping[str, Any]) -> str:
    """A line for each process that ends TLS, and one for each ticket key that any of them has."""
    directors: Sequence[Mapping[str, Any]] = found["directors"]
    counts = _COUNTS.get(found["sharing"], _HANDSHAKES)
    cells = [
        [one["name"], one["state"], _ready(one["tls"]), *(_count(one["tls"], count) for count in counts)]
        for one in directors
    ]
    parts = [_summary(found), "", text_table(("name", "state", "shares", *counts), cells)]
    if keys := _keys(directors):
        parts += ["", text_table(("key", "state", "until", "at"), keys)]
    wrong = [f"{one['name']}: {one['tls']['why_off']}" for one in directors if one["tls"] and one["tls"]["why_off"]]
    return "\n".join([*parts, *wrong])


def _summary(found: Mapping[str, Any]) -> str:
    match found["sharing"]:
        case "ticket-keys":
            stores = [f"{name} {'answers' if well else 'does not answer'}" for name, well in found["stores"].items()]
            where = f"agreed on at session servers: {', '.join(stores)}" if stores else "of this farm alone"
            return f"TLS sessions are shared by ticket keys, a new one every {found['period_s']:g} s, {where}"
        case "take-once":
            return "TLS sessions are stored, and each is resumed once"
        case "off":
            return "TLS sessions are not shared: each process resumes only its own"
    return "this farm speaks no TLS"


def _ready(said: Mapping[str, Any] | None) -> str:
    """Whether what a director makes now can be resumed elsewhere."""
    if said is None:
        return "no answer"
    if not said["active"]:
        return "no"
    if not said.get("has_the_key", True):
        return "no key of now"
    away = [name for name, answers in said.get("stores", {}).items() if not answers]
    return f"no, {away[0]} is away" if away else "yes"


def _count(said: Mapping[str, Any] | None, count: str) -> object:
    return "" if said is None else said.get(count)


def _keys(directors: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    rows: dict[tuple[int, str, str], list[str]] = {}
    for one in directors:
        for key in (one["tls"] or {}).get("keys", ()):
            rows.setdefault((key["until_ms"], key["name"], key["state"]), []).append(one["name"])
    return [
        [name, state, f"{datetime.fromtimestamp(until_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z", " ".join(at)]
        for (until_ms, name, state), at in sorted(rows.items())
    ]
