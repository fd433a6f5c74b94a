"""The documentation as a site, made by Sphinx of the same Markdown that is read in the repository: ``make docs``.

The source folder is the repository, so that links between pages are the same in both. What stands in the navigation,
and in which order, is what ``docs/index.md`` links to: a page that it leaves out fails the build.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

project = "coatcheck"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/spec/*.md", "benchmarks/RESULTS.md"]
exclude_patterns = [".*", "build", "deploy", "examples", "src", "tests"]  # where no page is, and much else
highlight_language = "none"
myst_heading_anchors = 4  # as many levels as pages link to

html_theme = "furo"
html_title = f"coatcheck {release}"
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # would be fetched, which browsers refuse in files
html_additional_pages = {"index": "start.html"}
templates_path = ["templates"]

SECTION = re.compile(r"^## (.+)\n((?:(?!^#).*\n?)*)", re.M)
LINK = re.compile(r"\]\(([^)#\s]+)\.md\)")
FOLDER = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)\)")


def navigation(index: str) -> str:
    """A table of contents for each section of the index that links to pages, each page where it comes first."""
    seen = {root_doc}
    parts = []
    for caption, text in SECTION.findall(index):
        pages = []
        for target in LINK.findall(text):
            page = _name(ROOT / "docs" / f"{target}.md")
            if page not in seen:
                seen.add(page)
                pages.append(f"/{page}")
        if pages:
            options = [":hidden:", f":caption: {caption}", ":titlesonly:"]
            parts.append("\n".join(["```{toctree}", *options, "", *pages, "```"]))
    return "\n\n".join(parts)


def _name(path: Path) -> str:
    return path.resolve().relative_to(ROOT).with_suffix("").as_posix()


def prepare(_: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation to the index; a link to a folder, which a site does not show, becomes its text."""
    here = (ROOT / page).parent
    source[0] = FOLDER.sub(lambda link: link[1] if (here / link[2]).is_dir() else link[0], source[0])
    if page == root_doc:
        source[0] += "\n\n" + navigation(source[0]) + "\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.add_lexer("haproxy", TextLexer)  # Pygments knows no such language
    return {"parallel_read_safe": True, "parallel_write_safe": True}
