"""Who borrowed which token when: the records of a pool, and that nobody waits for whoever reads them."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import (
    LeaseLost,
    LoginFailed,
    LoginRefused,
    PoolAuditLog,
    PoolAuditRecord,
    PoolEvent,
    PoolEventKind,
    TokenPool,
    calling_as,
)
from coatcheck.pool.telling import MAX_UNTOLD

from .both_pools import BOTH, Threads, eventually

ENDS = ("pool.dropped", "pool.removed")
KEY = b"0123456789abcdef" * 2


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> type[Threads]:
    return BOTH[request.param]


class Trail(list[PoolAuditRecord]):
    """What a pool tells of."""

    def __init__(self, kind: type[Threads], login: Any = None, **options: Any) -> None:
        super().__init__()
        self.logins = Counter[str]()
        self.events: list[PoolEvent] = []
        self.login = login or self.sign_in
        self.pool = kind(self.login, on_audit=self.append, on_event=self.events.append, **options)

    def sign_in(self, user: str, password: str | None = None) -> str:
        if password == "wrong-secret":
            raise LoginRefused(user)
        if password == "broken-secret":
            raise OSError("secret")
        self.logins[user] += 1
        return f"secret of {user} {self.logins[user]}"

    def borrow(self, user: str, caller: str = "", **named: Any) -> Any:
        async def borrow() -> Any:
            if not caller:
                return await self.pool.pool.lease(user, **named).acquire()
            with calling_as(caller):
                return await self.pool.pool.lease(user, **named).acquire()

        def borrow_here() -> Any:
            if not caller:
                return self.pool.pool.lease(user, **named).acquire()
            with calling_as(caller):
                return self.pool.pool.lease(user, **named).acquire()

        return self.pool.call(borrow_here if isinstance(self.pool.pool, TokenPool) else borrow)

    def close(self) -> list[PoolAuditRecord]:
        self.pool.close()
        assert "secret" not in repr(self)
        return self

    def lines(self) -> list[tuple[str, str, str, str]]:
        return [(record.event.removeprefix("pool."), record.user, record.caller, record.detail) for record in self]


def test_the_life_of_a_token_is_one_story(kind: type[Threads]) -> None:
    trail = Trail(kind, caller="the shop", logout=lambda user, token: None)
    began = datetime.now(UTC)
    held = trail.borrow("ann")
    held.renew("another secret")
    trail.pool.call(held.release)
    held = trail.borrow("ann", "night job")
    trail.pool.call(held.extend)
    trail.pool.call(held.release)
    trail.pool.call(trail.pool.pool.remove_token, "ann")
    eventually(lambda: any(record.event == "pool.logged_out" for record in trail))
    trail.close()
    assert trail.lines() == [
        ("login", "ann", "the shop", ""),
        ("borrowed", "ann", "the shop", ""),
        ("renewed", "ann", "the shop", ""),
        ("returned", "ann", "the shop", ""),
        ("borrowed", "ann", "night job", ""),
        ("extended", "ann", "the shop", ""),
        ("returned", "ann", "the shop", ""),
        ("removed", "ann", "the shop", ""),
        ("logged_out", "ann", "", ""),
    ]
    assert len({record.token for record in trail}) == 1, "one name, whatever its string is"
    assert trail[0].token > 0
    assert len({record.lease for record in trail if record.lease}) == 2
    for record in trail:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.time)
        assert abs((datetime.fromisoformat(record.time) - began).total_seconds()) < 120
        assert record.server.endswith(f":{os.getpid()}")
        assert record.pool == "default"


def test_the_number_of_a_token_is_the_one_that_operators_see(kind: type[Threads]) -> None:
    trail = Trail(kind)
    held = trail.borrow("ann")
    (row,) = trail.pool.call(trail.pool.pool.list)
    trail.pool.call(held.release)
    trail.close()
    assert {record.token for record in trail} == {row.token_id}
    assert [record.lease for record in trail if record.event == "pool.borrowed"] == [row.fencing]


def test_refusals_and_failures_say_whose_they_were(kind: type[Threads]) -> None:
    now = [1_000.0]
    trail = Trail(kind, login_backoff=(0, 0), clock=lambda: now[0])
    tries = (("wrong-secret", LoginRefused), ("wrong-secret", LoginRefused), ("broken-secret", LoginFailed))
    for password, error in tries:
        with pytest.raises(error):
            trail.borrow("ann", "guesser", password=password)
    for _ in range(2):
        held = trail.borrow("bob", "job")
        trail.pool.call(held.refuse)
        trail.pool.call(held.release)
        now[0] += 30
    trail.close()
    assert trail.lines() == [
        ("login_refused", "ann", "guesser", "by the upstream"),
        ("login_refused", "ann", "guesser", "not tried again"),
        ("login_failed", "ann", "guesser", ""),
        ("login", "bob", "job", ""),
        ("borrowed", "bob", "job", ""),
        ("refused", "bob", "", "not believed: fresh from a login"),
        ("returned", "bob", "", ""),
        ("borrowed", "bob", "job", ""),
        ("refused", "bob", "", "believed"),
        ("dropped", "bob", "", "the upstream called it dead"),
    ]


def test_why_a_token_is_dropped_is_told(kind: type[Threads]) -> None:
    now = [1_000.0]
    trail = Trail(kind, max_uses=2, ttl=60, jitter=0, clock=lambda: now[0], per_user=1)
    for _ in range(2):
        trail.pool.call(trail.borrow("used").release)
    trail.pool.call(trail.borrow("old").release)
    now[0] += 70
    trail.pool.call(trail.pool.pool.clean_up)
    held = trail.borrow("dead")
    held.drop()
    trail.pool.call(held.release)
    held = trail.borrow("left")
    held.drop(sign_out=True)
    trail.pool.call(held.release)
    trail.pool.call(trail.borrow("room", password="one").release)
    trail.pool.call(trail.borrow("room", password="two").release)
    trail.pool.call(trail.borrow("anew").release)
    trail.pool.call(trail.pool.pool.reset, "anew")
    held = trail.borrow("soft")
    trail.pool.call(trail.pool.pool.remove_token, "soft", soft=True)
    trail.pool.call(held.release)
    eventually(lambda: [record.user for record in trail if record.event in ENDS][-1:] == ["soft"])
    ends = {record.user: (record.event, record.detail) for record in trail if record.event in ENDS}
    trail.close()
    assert ends == {
        "used": ("pool.dropped", "used up"),
        "old": ("pool.dropped", "expired"),
        "dead": ("pool.dropped", "the upstream called it dead"),
        "left": ("pool.dropped", "by its borrower"),
        "room": ("pool.dropped", "for a login with other credentials"),
        "anew": ("pool.removed", "reset"),
        "soft": ("pool.removed", ""),
    }
    closed = [(record.user, record.event) for record in trail if record.detail == "the pool is closed"]
    assert closed == [("room", "pool.dropped")]


def test_a_lost_lease_is_its_borrowers_whoever_finds_it_out(kind: type[Threads]) -> None:
    now = [1_000.0]
    trail = Trail(kind, lease=5, clock=lambda: now[0])
    lost = trail.borrow("ann", "forgetful")
    now[0] += 6
    held = trail.borrow("ann", "finder")
    trail.pool.call(held.release)
    with pytest.raises(LeaseLost):
        trail.pool.call(lost.release)
    trail.close()
    assert ("lease_lost", "ann", "forgetful", "past its deadline; the token is dropped") in trail.lines()
    assert ("too_late", "ann", "", "to give it back") in trail.lines()
    borrowed, ended = (next(r for r in trail if r.event == f"pool.{name}") for name in ("borrowed", "lease_lost"))
    assert (borrowed.lease, borrowed.token) == (ended.lease, ended.token)


def test_who_is_served_in_line_is_the_borrower_not_who_gave_back(kind: type[Threads]) -> None:
    trail = Trail(kind, per_user=1)
    first = trail.borrow("ann", "first")

    async def wait_in_line(caller: str) -> None:
        with calling_as(caller):
            async with trail.pool.pool.lease("ann"):
                pass

    def wait_here(caller: str) -> None:
        with calling_as(caller), trail.pool.pool.lease("ann"):
            pass

    waiting = wait_here if isinstance(trail.pool.pool, TokenPool) else wait_in_line
    others = [trail.pool.start(waiting, f"caller {number}") for number in range(5)]
    eventually(lambda: trail.pool.stats().waiting == 5)
    trail.pool.call(first.release)
    for other in others:
        other.result(60)
    trail.close()
    borrowed = [record for record in trail if record.event == "pool.borrowed"]
    assert sorted(record.caller for record in borrowed) == [*(f"caller {number}" for number in range(5)), "first"]
    returned = {record.lease: record.caller for record in trail if record.event == "pool.returned"}
    assert all(returned[record.lease] == record.caller for record in borrowed if record.caller != "first")


def test_on_every_store_it_is_the_same_story(kind: type[Threads], store_url: str) -> None:
    trail = Trail(kind, store=store_url, key=KEY, name=f"audit {kind.__name__}", caller="job")
    for _ in range(2):
        held = trail.borrow("ann")
        held.renew("another secret")
        trail.pool.call(held.release)
    held = trail.borrow("ann")
    held.drop()
    trail.pool.call(held.release)
    trail.close()
    assert [event for event, *_ in trail.lines()] == [
        "login",
        *["borrowed", "renewed", "returned"] * 2,
        "borrowed",
        "dropped",
    ]
    assert len({record.token for record in trail}) == 1


def test_the_classic_calls_are_audited(kind: type[Threads]) -> None:
    trail = Trail(kind, caller="job")
    pool = trail.pool
    shown = pool.call(pool.pool.check_out, "ann")
    pool.call(pool.pool.check_in, "ann", shown, "secret 1")
    shown = pool.call(pool.pool.check_out, "ann")
    pool.call(pool.pool.check_in, "ann", shown, "secret 2")
    shown = pool.call(pool.pool.check_out, "ann")
    pool.call(pool.pool.remove, "ann", shown)
    trail.close()
    events = [event for event, *_ in trail.lines()]
    assert events == ["login", "borrowed", "renewed", "returned", "borrowed", "dropped"]


def test_a_shared_token_is_told_once_for_each_caller(kind: type[Threads]) -> None:
    trail = Trail(kind)

    async def use(caller: str) -> str:
        with calling_as(caller):
            return str((await trail.pool.pool.shared("svc").get()).token)

    def use_here(caller: str) -> str:
        with calling_as(caller):
            return str(trail.pool.pool.shared("svc").get().token)

    using = use_here if isinstance(trail.pool.pool, TokenPool) else use
    tokens = {trail.pool.call(using, caller) for caller in ("one", "two", "one", "two", "one")}
    assert len(tokens) == 1
    assert trail.pool.call(trail.pool.pool.remove_token, "svc") == 1
    trail.close()
    assert trail.lines() == [
        ("login", "svc", "one", "shared"),
        ("borrowed", "svc", "one", "shared"),
        ("borrowed", "svc", "two", "shared"),
        ("removed", "svc", "", "shared"),
    ]


# -- whoever reads


class Stuck:
    """A hook that hangs until it is let go."""

    def __init__(self) -> None:
        self.go, self.came = threading.Event(), threading.Event()
        self.told: list[PoolAuditRecord] = []

    def __call__(self, record: PoolAuditRecord) -> None:
        self.came.set()
        if not self.go.wait(30):
            self.go.set()  # so that a test whose borrowers wait for it fails soon
        self.told.append(record)


def test_a_hook_that_hangs_holds_up_no_borrower_and_what_is_lost_is_said(
    kind: type[Threads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatcheck.pool.telling.MAX_UNTOLD", 30)
    hook, events = Stuck(), list[PoolEvent]()
    pool = kind(lambda user: "t", on_audit=hook, on_event=events.append)

    async def use() -> None:
        for _ in range(40):
            async with pool.pool.lease("ann"):
                pass

    def use_here() -> None:
        for _ in range(40):
            with pool.pool.lease("ann"):
                pass

    pool.call(use_here if isinstance(pool.pool, TokenPool) else use)
    assert hook.came.wait(60)
    assert not hook.told, "all were served while it hung"
    lost = pool.pool.audit.teller.lost
    assert lost >= 40
    hook.go.set()
    eventually(lambda: events)
    assert [(event.kind, event.detail) for event in events] == [
        (PoolEventKind.AUDIT_LOST, f"{lost} records: too many wait")
    ]
    pool.close()
    assert [record.detail for record in hook.told if record.event == "pool.audit_lost"] == [events[0].detail]
    # A login, loans and returns, and in the end that the token is dropped; and the record of the loss.
    assert len(hook.told) - 1 + lost == 1 + 2 * 40 + 1, "each was told, or counted"
    assert MAX_UNTOLD == 10_000


def test_closing_waits_for_a_hook_no_longer_than_it_may(kind: type[Threads]) -> None:
    hook, events = Stuck(), list[PoolEvent]()
    pool = kind(lambda user: "t", on_audit=hook, on_event=events.append)
    pool.call(pool.pool.check_in, "ann", pool.call(pool.pool.check_out, "ann"), "t")
    for _ in range(3):
        shown = pool.call(pool.pool.check_out, "ann")
        pool.call(pool.pool.check_in, "ann", shown, "t")
    assert hook.came.wait(60)
    pool.close(timeout=0.05)
    (event,) = events
    assert event.kind is PoolEventKind.AUDIT_LOST
    assert "it takes too long" in event.detail
    hook.go.set()


def test_a_hook_that_fails_is_told_and_changes_nothing(kind: type[Threads]) -> None:
    def fail(record: PoolAuditRecord) -> None:
        raise OSError("disk full")

    events: list[PoolEvent] = []
    pool = kind(lambda user: "t", on_audit=fail, on_event=events.append)
    pool.call(pool.pool.check_in, "ann", pool.call(pool.pool.check_out, "ann"), "t")
    pool.close()
    assert pool.pool.audit.teller.lost >= 1
    assert {event.kind for event in events} == {PoolEventKind.AUDIT_LOST}
    assert events[0].detail.endswith("records: OSError")


def test_what_stands_out_is_an_event_and_a_record(kind: type[Threads]) -> None:
    trail = Trail(kind, anomalies={"users_per_caller": "3/1m", "borrows_per_user": "50/1m"})
    for number in range(9):
        trail.pool.call(trail.borrow(f"user {number}", "curious").release)
        trail.pool.call(trail.borrow("ann", "honest").release)
    trail.close()
    (event,) = trail.events
    assert event.kind is PoolEventKind.ANOMALY
    assert event.user == "user 3"
    assert event.detail == "users_per_caller: more than 3 in 60 s, of 'curious'"
    (record,) = [record for record in trail if record.event == "pool.anomaly"]
    assert (record.caller, record.detail) == ("curious", event.detail)
    assert trail.pool.pool.audit.anomalies == {"users_per_caller": 1}


def test_leases_that_are_held_long_count_for_who_borrowed(kind: type[Threads]) -> None:
    trail = Trail(kind, anomalies={"held_long_per_caller": "1/1m"}, leak_after=0.05)
    held = [trail.borrow(user, "slow") for user in ("ann", "bob")]
    eventually(lambda: any(event.kind is PoolEventKind.ANOMALY for event in trail.events))
    for each in held:
        trail.pool.call(each.release)
    trail.close()
    (event,) = [event for event in trail.events if event.kind is PoolEventKind.ANOMALY]
    assert "held_long_per_caller" in event.detail
    assert "'slow'" in event.detail
    assert {record.caller for record in trail if record.event == "pool.lease_held_long"} == {"slow"}


def test_an_event_is_in_the_log_by_default(caplog: pytest.LogCaptureFixture) -> None:
    pool = TokenPool(lambda user: "t", anomalies={"logins_per_user": "1/1m"}, per_user=2)
    with caplog.at_level(logging.WARNING, "coatcheck.pool"), pool.lease("ann"), pool.lease("ann"):
        pass
    pool.close()
    assert [line for line in caplog.messages if "pool.anomaly" in line and "logins_per_user" in line]


def test_a_file_has_a_line_of_json_for_each(tmp_path: Path) -> None:
    log = PoolAuditLog(tmp_path / "audit" / "one.jsonl")
    with TokenPool(lambda user: "secret", on_audit=log.write) as pool, pool.lease("ann\N{SNOWMAN}"):
        pass
    log.close()
    text = (tmp_path / "audit" / "one.jsonl").read_bytes()
    assert b"secret" not in text
    records = [json.loads(line) for line in text.decode("ascii").splitlines()]
    assert [record["event"] for record in records] == ["pool.login", "pool.borrowed", "pool.returned", "pool.dropped"]
    assert records[0]["user"] == "ann\N{SNOWMAN}"
    assert (tmp_path / "audit" / "one.jsonl").stat().st_mode & 0o77 == 0


def test_a_file_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="audit_file"):
        PoolAuditLog(tmp_path / "file" / "one.jsonl")


@pytest.mark.parametrize("caller", ["", "two\nlines", "x" * 201, 5, None])
def test_a_wrong_caller_is_refused(caller: Any) -> None:
    with pytest.raises(ValueError, match="caller"), calling_as(caller):
        raise AssertionError("it is no name")
    if caller != "":
        with pytest.raises(ConfigError, match="caller"):
            TokenPool(caller=caller)


def test_a_hook_is_a_plain_function() -> None:
    async def hook(record: PoolAuditRecord) -> None: ...

    for wrong in (hook, "print"):
        with pytest.raises(ConfigError, match="on_audit"):
            TokenPool(on_audit=wrong)  # type: ignore[arg-type]


def test_without_an_audit_the_fast_path_is_as_it_was() -> None:
    with TokenPool(lambda user: "t") as pool:
        assert pool.audit is None
        assert pool.quick is pool.memory
        assert not pool.settings.policy.audited


def test_a_forgotten_pool_with_an_audit_is_noticed_and_goes() -> None:
    pool = TokenPool(lambda user: "t", on_audit=lambda record: None)
    with pool.lease("ann"):
        pass
    thread = pool.audit.teller._thread
    gone = weakref.ref(pool)
    with pytest.warns(ResourceWarning, match="never closed"):
        del pool
        gc.collect()
    assert gone() is None
    thread.join(60)
    assert not thread.is_alive()


def test_a_fork_tells_of_its_own(tmp_path: Path) -> None:
    trail = Trail(Threads)
    trail.pool.call(trail.borrow("ann").release)

    def in_child() -> None:
        trail.clear()
        trail.pool.call(trail.borrow("bob").release)
        trail.pool.pool.close()
        found = {(record.user, record.server) for record in trail}
        (tmp_path / "child").write_text(repr(found))

    child = os.fork()
    if child == 0:
        try:
            in_child()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    text = (tmp_path / "child").read_text()
    assert "'bob'" in text
    assert "'ann'" not in text
    assert f":{os.getpid()}'" not in text
    trail.close()
    assert {record.user for record in trail} == {"ann"}


def test_at_the_end_of_the_interpreter_all_is_told(tmp_path: Path) -> None:
    program = (
        "from coatcheck.pool import *\n"
        "import sys, time\n"
        "def slow(record):\n    time.sleep(0.01)\n    print(record.event)\n"
        "pool = TokenPool(lambda user: 't', on_audit=slow, logout=lambda user, token: None)\n"
        "with pool.lease('ann'): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == [
        "pool.login",
        "pool.borrowed",
        "pool.returned",
        "pool.dropped",
        "pool.logged_out",
    ]


def test_time_is_when_it_happened_not_when_it_was_told() -> None:
    hook = Stuck()
    pool = TokenPool(lambda user: "t", on_audit=hook)
    with pool.lease("ann"):
        pass
    assert hook.came.wait(60)
    until = datetime.now(UTC)
    time.sleep(0.01)
    hook.go.set()
    pool.close()
    borrowed = next(record for record in hook.told if record.event == "pool.borrowed")
    assert datetime.fromisoformat(borrowed.time) <= until
