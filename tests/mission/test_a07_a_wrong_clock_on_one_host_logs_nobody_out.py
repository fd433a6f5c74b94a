"""A clock that is set wrong on one host logs nobody out, and mints nothing that the others take for old or young."""

from __future__ import annotations

import contextlib
import time

import pytest

from . import mission_farm
from .conftest import StartFarm
from .crowd import crowd_of
from .mission_farm import Browser, MissionFarm

WRONG_S = 5.0
HOUR_S = 3600
USERS = 8
WRONG_CLOCK = """

# A host whose clock is set wrong: a file of the run says by how many seconds.
import time
from pathlib import Path

right = time.time_ns
wrong = Path(f"wrong-{os.environ['COATCHECK_SERVER']}")

def shown():
    try:
        return right() + int(wrong.read_text() or "0") * 1_000_000_000
    except FileNotFoundError:
        return right()

time.time_ns = shown
time.time = lambda: shown() / 1e9
"""


@pytest.fixture
def farm(start: StartFarm, monkeypatch: pytest.MonkeyPatch) -> MissionFarm:
    monkeypatch.setattr(mission_farm, "APP", mission_farm.APP + WRONG_CLOCK)
    return start("--web", "2", "--session-servers", "2")


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S])
def test_a_wrong_clock_on_one_host_for_some_seconds_logs_nobody_out(farm: MissionFarm, shift_s: int) -> None:
    with crowd_of(farm, USERS) as crowd, contextlib.ExitStack() as opened:
        assert {visitor.server for visitor in crowd} == {"web-1", "web-2"}
        wrong = farm.directory / "wrong-web-1"
        wrong.write_text(str(shift_s))
        begun = time.monotonic()
        # Some come while the clock is wrong, to the host whose clock it is.
        newcomers = [opened.enter_context(Browser(farm, "web-1")) for _ in range(4)]
        for number, newcomer in enumerate(newcomers):
            newcomer.put("number", number)
        rounds = 0
        while not rounds or time.monotonic() - begun < WRONG_S:  # the newcomers alone may take as long
            rounds += 1
            for visitor in crowd:
                visitor.put("round", rounds)
            time.sleep(0.1)
        clock = farm.web_status()["web-1"]["clock"]
        assert clock["deviating"]["own"] == pytest.approx(shift_s * 1000, abs=1000)
        assert clock["correction_ms"] == pytest.approx(-shift_s * 1000, abs=1000)
        assert farm.web_status()["web-2"]["clock"] == {"correction_ms": pytest.approx(0, abs=1000), "deviating": {}}
        wrong.unlink()
        for visitor in crowd:
            assert visitor.browser.read()["data"]["round"] == rounds
        for number, newcomer in enumerate(newcomers):
            # The other host takes them for as old as they are.
            newcomer.client.base_url = farm.url_of("web-2")
            assert newcomer.read()["data"] == {"number": number}
            assert abs(newcomer.token.timestamp / 1000 - time.time()) < 60
        events = [row["events"] for row in farm.status()["web_servers"]]
        assert "clock.deviates" in events[0]
        for unwanted in ("session.expired", "session.theft", "session.not_found", "session.rolled_back"):
            assert not any(unwanted in each for each in events)
