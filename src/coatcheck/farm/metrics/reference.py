"""The table of metrics in docs/monitoring.md, made from the catalogue.

``python -m coatcheck.farm.metrics.reference docs/monitoring.md`` writes it into the file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from coatcheck.farm.metrics.catalogue import METRICS, ROLES

BEGIN: Final = "<!-- metrics: made by `python -m coatcheck.farm.metrics.reference docs/monitoring.md` -->"
END: Final = "<!-- end of metrics -->"


def metrics_table() -> str:
    """Every metric as Markdown."""
    rows = []
    for metric in METRICS:
        labels = " ".join(f"`{label}`" for label in metric.labels)
        roles = "all" if len(metric.groups) == len(ROLES) else ", ".join(f"`{ROLES[each]}`" for each in metric.groups)
        rows.append(f"| `{metric.name}` | {metric.kind} | {roles} | {labels} | {metric.words} |")
    head = ["| metric | | of | labels besides `process` | |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([BEGIN, "", *head, *rows, "", END])


def replace_table(page: Path) -> None:
    """Write the table anew into a page that has one."""
    text = page.read_text()
    page.write_text(text[: text.index(BEGIN)] + metrics_table() + text[text.index(END) + len(END) :])


if __name__ == "__main__":
    replace_table(Path(sys.argv[1]))
