"""Breaks the lines of prose in Markdown at 120 characters, and changes nothing of what is read: ``make wrap``.

Only paragraphs with a longer line are touched. Tables, code, headings and what is HTML already stay as they are.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

WIDTH: Final = 120
ROOT: Final = Path(__file__).parents[1]
_READER: Final = MarkdownIt("commonmark").enable("table")
_ATOM: Final = re.compile(r"(?:(`+)(?:(?!\1).|\1`+)+?\1(?!`)|<[^>\s][^>]*>|\S)+", re.S)
"""What is not broken: a word, with the code spans and the tags in it. Link texts may be."""
_BEGINS_A_BLOCK: Final = re.compile(r"(?:[-+*]|\d{1,9}[.)]|#{1,6})$|[>|]|`{3}|~{3}|[=-]+$|<|\[[^\]]*\]:")
"""A word that means something else at the beginning of a line."""
_FENCE: Final = re.compile(r"^ *(`{3,}|~{3,})")


def pages() -> list[Path]:
    """What people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def wrapped(text: str) -> str:
    """``text`` with no line of prose longer than :data:`WIDTH`, as far as words allow.

    Raises:
        ValueError: it would be read differently; nothing is to be written then.
    """
    lines = text.splitlines()
    for start, end, content in reversed(list(_paragraphs(text))):
        if max(map(len, lines[start:end])) > WIDTH and not re.search(r"(?: {2}|\\)\n", content):
            lines[start:end] = _filled(lines[start], content)
    new = "\n".join(lines) + "\n"
    if read(new) != read(text):
        raise ValueError("broken in another way it would be read differently")
    return new


def read(text: str) -> str:
    """What a browser makes of it: outside of code a line break is a space."""
    parts = re.split(r"(<pre>.*?</pre>)", _READER.render(text), flags=re.S)
    return "".join(part if part.startswith("<pre>") else re.sub(r"\s+", " ", part) for part in parts)


def long_lines(text: str) -> Iterator[int]:
    """The numbers of lines of prose that are too long; a table or code may be as long as it is."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _FENCE.match(line):
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif not fence and len(line) > WIDTH and not line.lstrip().startswith("|"):
            yield number


def _paragraphs(text: str) -> Iterator[tuple[int, int, str]]:
    """First line, line after the last, and what stands there without the marks of lists and quotations."""
    tokens = _READER.parse(text)
    for token, inside in itertools.pairwise(tokens):
        if token.type == "paragraph_open" and token.map is not None:
            yield token.map[0], token.map[1], inside.content


def _filled(first: str, content: str) -> list[str]:
    """The lines of one paragraph. ``first``: as its first line was, with the mark of its list item."""
    at = first.index(content.split("\n", 1)[0])
    before, below = first[:at], re.sub(r"[^>\s]", " ", first[:at])
    rows: list[list[str]] = [[]]
    for atom in (found[0] for found in _ATOM.finditer(content)):
        atom = " ".join(atom.split())
        if rows[-1] and len(below) + len(" ".join([*rows[-1], atom])) > WIDTH:
            rows.append([])
            if _BEGINS_A_BLOCK.match(atom) and len(rows[-2]) > 1:
                rows[-1].append(rows[-2].pop())
        rows[-1].append(atom)
    return [(below if number else before) + " ".join(row) for number, row in enumerate(rows)]


def main(names: Sequence[str]) -> int:
    """Wrap these files, or all pages."""
    for path in [Path(name) for name in names] or pages():
        text = path.read_text()
        try:
            new = wrapped(text)
        except ValueError as error:
            sys.stderr.write(f"{path}: {error}\n")
            return 1
        if new != text:
            path.write_text(new)
        for number in long_lines(new):
            sys.stderr.write(f"{path}:{number}: still longer than {WIDTH}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
