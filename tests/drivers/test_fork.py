"""A process that forks while its sessions are open: the child is a web server of its own, and closes nothing of the
parent's."""

from __future__ import annotations

import asyncio
import os
import traceback
from pathlib import Path

import in_hand
from coatcheck import Sessions, connect
from coatcheck.sessions.mapping import Session
from coatcheck.tokens.sealed import SealedToken

KEY = "AbcdEfgh0123_-AbcdEfgh0123_-AbcdEfgh0123_-A"


async def begin(sessions: Sessions) -> SealedToken:
    here = await sessions.on_this_loop()
    session = Session()
    session["pid"] = os.getpid()
    await in_hand.saved(here, session)
    assert session._request.shown is not None
    return session._request.shown


async def read(sessions: Sessions, token: SealedToken) -> dict[str, int]:
    here = await sessions.on_this_loop()
    session = await in_hand.opened(here, token)
    assert session is not None
    return dict(session)


def test_a_fork_of_open_sessions(tmp_path: Path) -> None:
    sessions = connect(f"sqlite:///{tmp_path}/sessions.db", key=KEY)
    loop = asyncio.new_event_loop()
    try:
        token = loop.run_until_complete(begin(sessions))
        parents = sessions.server_id
        child = os.fork()
        if not child:
            status = 1
            try:
                assert not sessions.is_open
                assert asyncio.run(read(sessions, token)) == {"pid": os.getppid()}
                assert sessions.server_id != parents
                status = 0
            except BaseException:  # noqa: BLE001 - the child must not go on with the parent's tests
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert sessions.is_open
        assert sessions.server_id == parents
        later = loop.run_until_complete(begin(sessions))  # the child's end took nothing from under the parent
        other = connect(f"sqlite:///{tmp_path}/sessions.db", key=KEY)
        assert asyncio.run(read(other, later)) == {"pid": os.getpid()}
        loop.run_until_complete(sessions.aclose())
    finally:
        loop.close()
