"""What the judge excuses as forgotten is the very write that a session server forgot, and no other of its session."""

from __future__ import annotations

import msgspec
import pytest

from coatcheck.events import EventKind
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.simulation.farm import Farm
from coatcheck.simulation.log import Ack, SessionLog
from coatcheck.simulation.scenario import Scenario, draw
from coatcheck.simulation.schedule import EPOCH_MS
from coatcheck.simulation.trace import Trace

KEY = bytes(16)
OWNER = b"W1-owner"
FIRST, SECOND = Version(1, OWNER, 1), Version(1, OWNER, 2)
LIFE_MS = 3_600_000


def scenario() -> Scenario:
    """Three session servers, two copies, quorums, and no fault but those of the test."""
    calm = draw(1, "calm")
    return msgspec.structs.replace(
        calm, session_servers=3, copies=2, durability="all", below_target="quorum", too_few_answers="refuse",
        grace_ms=60_000, idle_timeout_ms=LIFE_MS, absolute_timeout_ms=LIFE_MS, new_session_ms=0, rolled_back="close",
        faults=1,
    )  # fmt: skip


def entry(*history: Version) -> Entry:
    return Entry(history[-1], history, False, LIFE_MS, b"sealed")


@pytest.fixture
def farm() -> Farm:
    return Farm(scenario(), Trace(False))


def written(farm: Farm) -> SessionLog:
    """Two writes, both acknowledged by the first two session servers."""
    log = farm.ledger.log(KEY)
    log.created_ms, log.last_active = EPOCH_MS, farm.schedule.now
    for version in (FIRST, SECOND):
        log.blobs[version] = b""
        for server in list(farm.servers.values())[:2]:
            server.put(KEY, log.on[server.name].version if server.name in log.on else None, entry(version))
        log.acks[version] = Ack(farm.schedule.now, 2, OWNER)
    return log


def excuses(farm: Farm) -> list[str]:
    return [name for name in farm.ledger.counts if name.startswith("promise")]


def test_a_server_that_forgets_one_write_is_no_excuse_for_the_other(farm: Farm) -> None:
    log = written(farm)
    next(iter(farm.servers.values())).forget_some(1)
    assert set(log.forgotten) == {SECOND}
    farm.ledger._judge_fork(log, SECOND)
    assert (farm.ledger.violations, excuses(farm)) == ([], ["promise 1: fork, a server forgot this very write"])
    farm.ledger._judge_fork(log, FIRST)
    assert len(farm.ledger.violations) == 1


def test_a_server_that_is_restarted_with_all_it_had_has_forgotten_nothing(farm: Farm) -> None:
    log = written(farm)
    for server in farm.servers.values():
        farm.ledger.forgot(server)
    assert not log.forgotten
    assert not log.once_lost


def test_an_honest_browser_is_accused_only_after_a_write_was_on_no_server(farm: Farm) -> None:
    log = written(farm)
    servers = list(farm.servers.values())
    servers[0].forget_all()
    farm.ledger._judge_theft(log)
    assert len(farm.ledger.violations) == 1, "the other copy had it all"
    servers[1].forget_some(1)
    assert log.once_lost == {SECOND}
    farm.ledger._judge_theft(log)
    assert (len(farm.ledger.violations), len(excuses(farm))) == (1, 1)


def test_an_early_end_is_excused_only_if_the_newest_write_is_lost(farm: Farm) -> None:
    log = written(farm)
    servers = list(farm.servers.values())
    log.lose([FIRST])
    farm.ledger._judge_expiry(farm.webs[0], log)
    assert len(farm.ledger.violations) == 1, "a server still has the newest"
    servers[0].forget_all()
    servers[1].forget_some(1)
    farm.ledger._judge_expiry(farm.webs[0], log)
    assert len(farm.ledger.violations) == 1
    assert not log.reported(EventKind.SESSION_EXPIRED)
