"""A service that nobody asks anything follows its key file, too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.types import Receive, Scope, Send

from coatcheck.farm.files.key_file import KeyFile
from coatcheck.farm.files.keys import FarmKeys, save
from coatcheck.service.followed_keys import FollowedKeys

A, B = os.urandom(32), os.urandom(32)


async def nothing_comes() -> dict[str, object]:
    return {}


async def nobody_listens(message: object) -> None:
    raise AssertionError("nothing is answered here")


def test_it_looks_in_rounds_and_no_longer_than_its_app_runs(tmp_path: Path) -> None:
    path, first = tmp_path / "keys.json", FarmKeys((A,), 0, "ours")
    save(path, first)

    async def run() -> None:
        used: list[tuple[Sequence[bytes], int]] = []
        told, over = asyncio.Event(), asyncio.Event()

        def use(keys: Sequence[bytes], primary: int) -> None:
            used.append((keys, primary))
            told.set()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await over.wait()

        followed = FollowedKeys(KeyFile(path, first, print, led=True), round_s=0.01)
        running = asyncio.ensure_future(
            followed.around(app, use)({"type": "lifespan"}, nothing_comes, nobody_listens)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0)
        assert not used, "the keys are those that it was started with"
        save(path, FarmKeys((A, B), 1, "ours"))
        async with asyncio.timeout(60):
            await told.wait()
        assert used == [((A, B), 1)]
        over.set()
        await running
        rounds = [task for task in asyncio.all_tasks() if task.get_name() == "key rounds"]
        await asyncio.gather(*rounds, return_exceptions=True)
        assert all(task.cancelled() for task in rounds)

    asyncio.run(run())
