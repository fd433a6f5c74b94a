"""Whether the answer to a logout has the browser forget every cookie of the domain: once, for all adapters."""

from __future__ import annotations

import asyncio

import pytest

from coatcheck import CookiePolicy, connect
from coatcheck.drivers.sessions import Sessions

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"


async def values(
    sessions: Sessions, headers: list[tuple[bytes, bytes]], logout: str, login: bool = True
) -> list[bytes]:
    """Of the header, in the answer to a logout (``close``, ``clear``), or to something else."""
    opened = await sessions.open(b"")
    opened.session.regenerate("ada")
    made = await sessions.finish(opened, 200)
    cookie = b"; ".join(value.partition(b";")[0] for _, value in made.cookies) if login else b""
    opened = await sessions.open(cookie)
    if logout == "close":
        opened.session.close()
    elif logout == "clear":
        opened.session.clear()
    elif logout == "anew":
        opened.session.close()
        opened.session.regenerate("bob")
    else:
        opened.session["n"] = 1
    answer = await sessions.finish(opened, 200, headers)
    return [bytes(value) for name, value in answer.headers if name.lower() == b"clear-site-data"]


@pytest.mark.parametrize("wanted", [False, True])
def test_only_a_logout_clears_and_only_where_that_is_wanted(wanted: bool) -> None:
    async def story() -> None:
        cookies = CookiePolicy(insecure_localhost=True, clear_site_data=wanted)
        sessions = connect("memory://", key=KEY, cookies=cookies)
        await sessions.start()
        for logout in ("close", "clear"):
            assert await values(sessions, [], logout) == ([b'"cookies"'] if wanted else [])
            own = [(b"Clear-Site-Data", b'"cache"')]
            assert await values(sessions, own, logout) == [b'"cache"'], "what the app says stands"
        for other in ("anew", "write"):
            assert await values(sessions, [], other) == []
        assert await values(sessions, [], "close", login=False) == [], "there was nothing to end"
        await sessions.aclose()

    asyncio.run(story())
