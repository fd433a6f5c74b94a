"""Tables in Markdown, and the sections of RESULTS.md that the benchmarks renew."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def write_section(name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``. Raises ``ValueError`` without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = RESULTS.read_text()
    head, found, rest = whole.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"RESULTS.md has no section {name}")
    RESULTS.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
