"""C7: "The running state is updated by each message and checkpointed outside the server."

Web servers are processes, and are killed at random moments: what the director has is enough for the next one, at every
message. That a connection survives fifty kills in a row is in ``tests/farm/test_takeover.py``.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farm.farm_process import Farm, eventually
from farm.live_crowd import LIVE_APP, client
from takeover_pair import Pair


def test_behind_every_message_another_server_goes_on(certificate: tuple[Path, Path]) -> None:
    pair = Pair(certificate)
    pair.shake_hands()
    for number in range(20):
        said = b"message %d" % number
        assert pair.ask(said) == said
        before = pair.carried.received
        pair.lose_server()
        assert pair.carried.received == before
        assert pair.ask(said * 2) == said * 2


@pytest.fixture
def live(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Farm]:
    (tmp_path / "live.py").write_text(LIVE_APP)
    tls = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--tls", "end-to-end")
    farm = Farm(tmp_path, ("live:app", "--port", "0", "--web", "2", "--takeover", *tls), {})
    farm.wait_running()
    yield farm
    farm.end()


def test_a_connection_goes_on_after_each_of_five_deaths(live: Farm, certificate: tuple[Path, Path]) -> None:
    one = client(live, certificate)
    servers = []
    for count in range(1, 6):
        status, said = one.ask("POST", "/count")
        assert (status, json.loads(said)["count"]) == (200, count)
        servers.append(one.see()["server"])
        os.kill(live.pid(servers[-1]), signal.SIGKILL)
        ready: Callable[[], bool] = lambda: all(live.state(f"web-{n}") == "ready" for n in (1, 2))  # noqa: E731
        eventually(ready, "both web servers")
    assert one.see()["path"] == "/hello"
    assert one.is_the_first
    assert len(set(servers)) == 2
