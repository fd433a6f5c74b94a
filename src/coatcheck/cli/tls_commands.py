"""``coatcheck tls``: how the directors of a farm share TLS sessions, and new ticket keys by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from coatcheck.cli.answering import JSON, json_text
from coatcheck.cli.running_farm import RUN_DIR, ask, seconds_of
from coatcheck.cli.tables import text_table

ANSWER_S = 15.0
"""What the farm may take beside the time for its directors."""
_COUNTS = ("handshakes", "resumed", "made", "opened", "refused", "alone")


@click.group()
def tls() -> None:
    """TLS sessions that the directors share: who shares what, new ticket keys."""


@tls.command("status")
@RUN_DIR
@JSON
def tls_status(run_dir: str | None, as_json: bool) -> None:
    """Show what each director worker resumes, and which ticket keys it has until when."""
    found = ask(run_dir, {"op": "tls.status"})["tls"]
    click.echo(json_text(found) if as_json else tls_table(found))


@tls.command("rotate-ticket-keys")
@RUN_DIR
@click.option("--timeout", default="30s", show_default=True, metavar="TIME", help="For all directors to hear of it.")
def tls_rotate(run_dir: str | None, timeout: str) -> None:
    """Seal with a new key at once, on every director. Tickets of the keys before open for their lifetime."""
    timeout_s = seconds_of("--timeout", timeout)
    late = ask(run_dir, {"op": "tls.rotate", "timeout_s": timeout_s}, timeout_s=timeout_s + ANSWER_S)["late"]
    click.echo("a new ticket key seals; tickets of the ones before open for their lifetime")
    for director in late:
        click.echo(f"{director} could not be told yet: it is told again within a minute", err=True)


def tls_table(found: Mapping[str, Any]) -> str:
    """A line for each director worker, and one for each ticket key that any of them has."""
    directors: Sequence[Mapping[str, Any]] = found["directors"]
    cells = [_row(one["name"], one["state"], one["tls"]) for one in directors]
    parts = [_summary(found), "", text_table(("name", "state", "key of now", *_COUNTS), cells)]
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
            return "TLS sessions are not shared: each director worker resumes only its own"
    return "this farm speaks no TLS"


def _row(name: str, state: str, said: Mapping[str, Any] | None) -> list[object]:
    if said is None:
        return [name, state, "", *("" for _ in _COUNTS)]
    known = "" if "has_the_key" not in said else "known" if said["has_the_key"] else "not known"
    return [name, state, known, *(said.get(count) for count in _COUNTS)]


def _keys(directors: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    rows: dict[tuple[int, str, str], list[str]] = {}
    for one in directors:
        for key in (one["tls"] or {}).get("keys", ()):
            rows.setdefault((key["until_ms"], key["name"], key["state"]), []).append(one["name"])
    return [
        [name, state, f"{datetime.fromtimestamp(until_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z", " ".join(at)]
        for (until_ms, name, state), at in sorted(rows.items())
    ]
