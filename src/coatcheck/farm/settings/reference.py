"""The table of options in docs/operations.md, made from the settings.

``python -m coatcheck.farm.settings.reference docs/operations.md`` writes it into the file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from coatcheck.farm.settings.configuration import SETTINGS, FarmSetting

BEGIN: Final = "<!-- options: made by `python -m coatcheck.farm.settings.reference docs/operations.md` -->"
END: Final = "<!-- end of options -->"


def options_table() -> str:
    """Every option as Markdown: a table for each TOML table."""
    parts: list[str] = []
    for table in dict.fromkeys(setting.table for setting in SETTINGS):
        rows = [_row(setting) for setting in SETTINGS if setting.table == table]
        head = ["| in the file | flag | environment | default | |", "| --- | --- | --- | --- | --- |"]
        parts += ["", f"### `[{table}]`", "", *head, *rows]
    return "\n".join([BEGIN, *parts, "", END])


def _row(setting: FarmSetting) -> str:
    flag = "the argument" if setting.field == "app" else f"`{setting.flag}`"
    if setting.is_bool:
        flag += f", `--no-{setting.flag.removeprefix('--')}`"
    default = f"`{setting.default_text}`" if setting.default_text else ""
    words = setting.option.words
    if setting.choices:
        words += " " + ", ".join(f"`{choice}`" for choice in setting.choices) + "."
    return f"| `{setting.key}` | {flag} | `{setting.env}` | {default} | {words.replace('|', chr(92) + '|')} |"


def replace_table(page: Path) -> None:
    """Write the table anew into a page that has one."""
    text = page.read_text()
    page.write_text(text[: text.index(BEGIN)] + options_table() + text[text.index(END) + len(END) :])


if __name__ == "__main__":
    replace_table(Path(sys.argv[1]))
