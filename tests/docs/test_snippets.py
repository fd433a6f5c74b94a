"""Docs are true: Python snippets run, links lead somewhere, documented commands exist."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from commands.tree import leaves

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PYTHON = re.compile(r"```python\n(.*?)```", re.S)
CONSOLE = re.compile(r"```(?:console)?\n(.*?)```", re.S)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


WITH_TESTS_OF_THEIR_OWN = (
    "testing.md",
    "adapters.md",
    "django.md",
    "tls.md",
    "service.md",
    "servers.md",
    "frameworks.md",
)


def snippets(page: Path) -> str:
    return "\n".join(PYTHON.findall(page.read_text()))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if snippets(page) and page.name not in WITH_TESTS_OF_THEIR_OWN],
    ids=lambda page: page.name,
)
def test_python_snippets_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SESSION_KEY", "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    namespace: dict[str, object] = {"__name__": "snippet"}
    exec(compile(snippets(page), str(page), "exec"), namespace)
    assert len(namespace) > 2


def test_the_readme_example_counts_visits_across_two_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SESSION_KEY", "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    source = snippets(ROOT / "README.md")
    assert len([line for line in source.splitlines() if line.strip()]) <= 12

    async def visit() -> list[str]:
        words, jar = [], httpx.Cookies()
        servers = []
        for _ in range(2):
            namespace: dict[str, object] = {}
            exec(source, namespace)
            servers.append(namespace["app"])
        for server in (*servers, *servers):
            transport = httpx.ASGITransport(server)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="https://shop.test", cookies=jar) as client:
                words.append((await client.get("/")).text)
                jar = client.cookies
        for server in servers:
            await server.sessions.aclose()  # type: ignore[attr-defined]
        return words

    assert asyncio.run(visit()) == ["visit 1", "visit 2", "visit 3", "visit 4"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            heads = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings(found)}
            assert anchor in heads, f"{page.name}: {target} has no heading {anchor}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.M)


def test_documented_commands_and_their_flags_exist() -> None:
    commands, checked = dict(leaves()), 0
    for page in PAGES:
        for block in CONSOLE.findall(page.read_text()):
            for line in re.findall(r"^\$? ?coatcheck (.*)$", block, re.M):
                words = line.split("#")[0].split()
                found = [name for name in commands if words[: len(name.split())] == name.split()]
                assert found, f"{page.name}: coatcheck {line}"
                options = {
                    each for option in commands[found[0]].params for each in [*option.opts, *option.secondary_opts]
                }
                for flag in [word.split("=")[0] for word in words if word.startswith("--")]:
                    assert flag in options or found[0] == "simulate", f"{page.name}: coatcheck {line}: no {flag}"
                checked += 1
    assert checked >= 50
