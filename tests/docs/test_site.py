"""``make docs``: the site is built offline and can be searched; a link to nothing, or a page without a link, fails."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600.0


def recipe() -> list[str]:
    """The command of the Makefile."""
    (line,) = re.findall(r"^\t\$\(BIN\)/python (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.M)
    return str(line).split()


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """``make docs`` without its installation; no proxy answers, if it were to ask for something."""
    words = [{"build/docs": str(site), "build/doctrees": str(site) + "-doctrees"}.get(word, word) for word in recipe()]
    return subprocess.run(
        [sys.executable, *words], cwd=source, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself, and where its links go."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.followed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.followed.append(str(given["href"]))
        elif tag in ("script", "img", "link", "iframe"):
            self.loaded += [str(given[name]) for name in ("src", "href") if given.get(name)]


@pytest.mark.slow
def test_every_page_is_there_and_nothing_comes_from_another_host(site: Path) -> None:
    written = list((ROOT / "docs").rglob("*.md"))
    assert len(written) > 40
    for page in written:
        made = site / page.relative_to(ROOT).with_suffix(".html")
        html = Loaded()
        html.feed(made.read_text())
        assert html.loaded
        assert [each for each in html.loaded if re.match(r"(https?:)?//", each)] == [], made.name
        lost = [each for each in html.followed if ".html" in each and not each.startswith("http")]
        assert [each for each in lost if not (made.parent / each.partition("#")[0]).is_file()] == []
    assert 'url=docs/index.html"' in (site / "index.html").read_text()
    style = "".join(path.read_text() for path in (site / "_static").rglob("*.css"))
    assert re.findall(r"url\((?:[\"']?)(https?:)?//|@import", style) == []


@pytest.mark.slow
def test_the_search_finds_a_page(site: Path) -> None:
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert browser is not None, "chromium-headless-shell is missing: make test installs it"
    address = f"{(site / 'search.html').as_uri()}?q=take-over"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    found = re.findall(r'<li class="kind-\w+"><a href="([^"#]+)', done.stdout)
    assert "docs/takeover.html" in found, done.stdout + done.stderr


@pytest.mark.slow
def test_what_leads_nowhere_fails(tmp_path: Path) -> None:
    well = "[a page](index.md), [a heading](index.md#pages), [one here](#page), [a file](site/conf.py)."
    done = build(small(tmp_path, well, "[it](page.md)"), tmp_path / "html")
    assert (done.returncode, done.stderr) == (0, "")
    gone = {
        "[a page](no-page.md)": "no-page.md",
        "[a heading](index.md#no-heading)": "no-heading",
        "[one here](#none-here)": "none-here",
        "[a file](no-file.py)": "no-file.py",
        "![a picture](no-picture.png)": "no-picture.png",
    }
    done = build(small(tmp_path, "\n\n".join(gone), "Nothing."), tmp_path / "html")
    assert done.returncode != 0
    assert [each for each in (*gone.values(), "toctree") if each not in done.stderr] == [], done.stderr


def small(folder: Path, page: str, index: str) -> Path:
    """A repository with one page, which its index leads to or not."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "site", source / "docs" / "site")
    shutil.copy(ROOT / "pyproject.toml", source)
    (source / "docs" / "index.md").write_text(f"# Index\n\n## Pages\n\n* {index}\n")
    (source / "docs" / "page.md").write_text(f"# Page\n\n{page}\n")
    return source
