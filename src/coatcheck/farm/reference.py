"""The table of options in docs/operations.md, made from the settings: ``python -m coatcheck.farm.reference``."""

from __future__ import annotations

import sys
from typing import Final

from coatcheck.farm.configuration import SETTINGS, Setting

BEGIN: Final = "<!-- options: made by `python -m coatcheck.farm.reference` -->"
END: Final = "<!-- end of options -->"


def options_table() -> str:
    """Every option as Markdown: a table for each TOML table."""
    parts: list[str] = []
    for table in dict.fromkeys(setting.option.table for setting in SETTINGS):
        rows = [_row(setting) for setting in SETTINGS if setting.option.table == table]
        head = ["| in the file | flag | environment | default | |", "| --- | --- | --- | --- | --- |"]
        parts += ["", f"### `[{table}]`", "", *head, *rows]
    return "\n".join([BEGIN, *parts, "", END])


def _row(setting: Setting) -> str:
    flag = "the argument" if setting.field == "app" else f"`{setting.flag}`"
    if setting.is_bool:
        flag += f", `--no-{setting.key.replace('_', '-')}`"
    default = f"`{setting.default_text}`" if setting.default_text else ""
    words = setting.option.words
    if setting.choices:
        words += " " + ", ".join(f"`{choice}`" for choice in setting.choices) + "."
    return f"| `{setting.key}` | {flag} | `{setting.env}` | {default} | {words.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    sys.stdout.write(options_table() + "\n")
