"""A task is found from the README in two clicks at most, and opens with what it does and the lines to type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASKS = {
    "first farm": ("first-farm.md", "Your first farm"),
    "your framework": ("frameworks.md", "Your framework"),
    "several machines": ("several-machines.md", "Several machines"),
    "keys": ("operations.md", "Keys"),
    "who is logged in": ("users.md", "Who is logged in"),
    "sign out everywhere": ("users.md", "Sign out everywhere"),
    "deploy": ("deploy.md", "Deploying"),
    "monitoring": ("monitoring.md", "Monitoring"),
    "testing your app": ("testing.md", "Testing your app"),
    "without serve": ("servers.md", "Without `coatcheck serve`: gunicorn, uvicorn, hypercorn, granian"),
    "behind a proxy": ("behind-a-proxy.md", "Behind nginx, HAProxy, Caddy, Traefik or Envoy"),
    "moving in": ("operations.md", "Moving in"),
    "when something is wrong": ("trouble.md", "When something is wrong"),
}
"""What somebody wants, and the page and the heading where it stands."""
CLICKS = 2
OPENING_LINES = 34
"""Of a page or a section, on a screen: what it does and the lines to type are among them."""
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
Place = tuple[Path, str]


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


def headings(page: Path) -> dict[str, str]:
    """By anchor; the first one, the page's own, by the empty one too."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {"": found[0], **{slug(each): each for each in found}}


def links(page: Path) -> set[Place]:
    """Where a click leads: pages, and headings in them."""
    found = set()
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        path = (page.parent / target).resolve() if target else page
        if path.suffix == ".md" and path.is_file():
            found.add((path, anchor))
    return found


def reached(clicks: int) -> set[Place]:
    """Every place that so many clicks lead to from the README."""
    places = found = {(ROOT / "README.md", "")}
    for _ in range(clicks):
        places = {place for page in {page for page, _ in places} for place in links(page)} - found
        found = found | places
    return found


FOUND = reached(CLICKS)


@pytest.mark.parametrize(("page", "heading"), TASKS.values(), ids=TASKS)
def test_a_task_is_found_in_two_clicks(page: str, heading: str) -> None:
    path = ROOT / "docs" / page
    assert heading in {headings(path)[anchor] for found, anchor in FOUND if found == path}


def test_every_page_is_found_in_two_clicks() -> None:
    pages = {*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")}
    assert len(pages) > 40
    assert sorted(str(page.relative_to(ROOT)) for page in pages - {page for page, _ in FOUND}) == []


@pytest.mark.parametrize(("page", "heading"), TASKS.values(), ids=TASKS)
def test_it_opens_with_what_it_does_and_the_lines_to_type(page: str, heading: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    after = text.split(f"# {heading}\n", 1)[1].strip().splitlines()[:OPENING_LINES]
    assert re.match(r"[A-Z*`].{20}", after[0]), "a sentence"
    assert any(line.startswith(("```", "| `")) for line in after), "lines to type"
