"""Copies that stood in for a session server while it was away (mission B4)."""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.replication.repair import Repaired
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import Farm, SessionServer, WebServer


def went(farm: Farm, server: SessionServer, *, down: bool) -> None:
    """A session server goes away or comes back, empty; the web servers notice."""
    server.down = down
    server.stored.clear()
    farm.wait(0.01)
    for web in farm.webs:
        web.repairs.lost_server(server.name)
    farm.wait(0.01)


def repair(web: WebServer, token: SealedToken) -> Repaired:
    return web.exclusively(token.key, web.repairs.repair(token.key))


def held_by(farm: Farm, token: SealedToken) -> list[str]:
    farm.wait(0.01)
    return [server.name for server in farm.ranked(token.key) if server.entry(token.key) is not None]


def stood_in(farm: Farm, web: WebServer) -> tuple[SealedToken, list[str]]:
    """A session whose first server was away and is back; returns the ranking too."""
    token = web.create(n=1)
    ranking = [server.name for server in farm.ranked(token.key)]
    went(farm, farm.servers[ranking[0]], down=True)
    assert repair(web, token) is Repaired.MENDED
    assert held_by(farm, token) == ranking[1 : 1 + farm.placement.wanted]
    went(farm, farm.servers[ranking[0]], down=False)
    return token, ranking


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("hosted", [True, False])
def test_they_go_when_the_server_is_back_and_has_the_session_again(copies: int, hosted: bool) -> None:
    farm = Farm(servers=3, copies=copies)
    web, other = farm.two_webs()
    token, ranking = stood_in(farm, web)
    if hosted:
        assert web.needing_repair() == [token.key]
    assert repair(web if hosted else other, token) is Repaired.MENDED
    assert held_by(farm, token) == ranking[:copies]
    if hosted:
        assert web.needing_repair() == []
    assert web.read(token) == other.read(token) == {"n": 1}
    assert other.write(token, n=2)
    assert held_by(farm, token) == ranking[:copies]


def test_not_while_a_server_of_the_list_does_not_answer() -> None:
    farm = Farm(servers=3, copies=1)
    web = farm.web()
    token, ranking = stood_in(farm, web)
    farm.servers[ranking[2]].down = True
    assert repair(web, token) is Repaired.MENDED
    assert held_by(farm, token) == ranking[:2]


def test_not_by_a_web_server_that_saw_nobody_leave_and_come_back() -> None:
    """It may know a newer list of session servers than the others, who still look where the session was before."""
    farm = Farm(servers=3, copies=1)
    web = farm.web()
    token, ranking = stood_in(farm, web)
    newcomer = farm.web()
    assert repair(newcomer, token) is Repaired.MENDED
    assert held_by(farm, token) == ranking[:2]
    assert repair(web, token) is Repaired.MENDED
    assert held_by(farm, token) == ranking[:1]


def test_what_withdraws_a_copy_late_takes_nothing_that_was_put_since() -> None:
    farm = Farm(servers=3, copies=1)
    web = farm.web()
    token, ranking = stood_in(farm, web)
    stand_in = farm.servers[ranking[1]]
    late: list[Any] = []
    put = stand_in.put

    def delayed(*arguments: Any) -> Any:
        if arguments[2].expires_in_ms <= 1:
            late.append(arguments)
            stand_in.silent = True
        return put(*arguments)

    stand_in.put = delayed  # type: ignore[method-assign]
    repair(web, token)
    assert len(late) == 1
    stand_in.silent = False
    # Its own server restarts empty; the cache brings the session back to both before the late one arrives.
    went(farm, farm.servers[ranking[0]], down=True)
    went(farm, farm.servers[ranking[0]], down=False)
    web.exclusively(token.key, web.copies.load(token.key, token.version))
    assert held_by(farm, token) == ranking[:2]
    put(*late[0])
    assert held_by(farm, token) == ranking[:2]
    assert farm.web().read(token) == {"n": 1}


def test_a_tombstone_stays_where_it_is() -> None:
    farm = Farm(servers=3, copies=1)
    web = farm.web()
    token, _ = stood_in(farm, web)
    closed = web.exclusively(token.key, web.copies.close(token.key))
    assert closed.complete
    repair(web, token)
    assert len(held_by(farm, token)) == 3
