"""A11: "The common session database holds the session data." """

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from coatcheck import connect
from service.service_process import FARM, KEY, ServiceProcess


def test_what_one_process_was_given_stands_in_the_database_for_every_other_one(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'common.db'}"
    first = ServiceProcess(tmp_path, store=store)
    cookie = first.login("ada", cart=["tea", "a word that must stay in the farm"])
    first.process.kill()
    first.process.wait()
    second = ServiceProcess(tmp_path, store=store)
    try:
        seen = second.ask("/verify", cookie=cookie).json()["session"]
        assert (seen["user"], seen["data"]["cart"][0]) == ("ada", "tea")

        async def open_as_an_app() -> str:
            sessions = connect(store, key=KEY, farm=FARM)
            opened = await sessions.open(cookie.encode())
            opened.session["cart"] = ["coffee"]
            await sessions.finish(opened)
            await sessions.aclose()
            return str(opened.session.user)

        assert asyncio.run(open_as_an_app()) == "ada", "an app of the farm shares it"
        assert second.ask("/verify", cookie=cookie).json()["session"]["data"] == {"cart": ["coffee"]}
    finally:
        second.end()
        first.end()
    rows = sqlite3.connect(tmp_path / "common.db").iterdump()
    assert all("a word that must stay" not in row and "636f66666565" not in row.lower() for row in rows), "sealed"
