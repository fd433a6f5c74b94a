"""Shared tokens among processes, on every store that processes share; some are killed in the middle of a login."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coatcheck.pool import AsyncTokenPool, PoolEvent, SignedIn, StoreUnavailable, TokenPool
from coatcheck.pool.shared import seen
from coatcheck.pool.stores.memory import MemoryTokenStore

from .conftest import running

KEY = b"0123456789abcdef" * 2
LIMIT_S = 120.0

WORKER = textwrap.dedent("""
    import json, os, sys, time
    from coatcheck.pool import SignedIn, TokenPool
    url, folder, name, seconds, hangs, pool_name = sys.argv[1:7]
    def login(user):
        number = len(os.listdir(folder))
        os.close(os.open(os.path.join(folder, f"{time.time_ns()}-{name}"), os.O_CREAT | os.O_EXCL))
        print(json.dumps(["login", number]), flush=True)
        time.sleep(1000 if hangs == "hangs" and number else 0.3)
        return SignedIn(f"token of {name} at {time.time_ns()}", float(os.environ["LIFE_S"]))
    pool = TokenPool(login, store=url, key=b"0123456789abcdef" * 2, login_timeout="2s", wait="60s",
                     refresh_before=float(os.environ["AHEAD_S"]), login_rate=None, name=pool_name)
    shared = pool.shared("svc")
    print(json.dumps(["ready", 0]), flush=True)
    sys.stdin.readline()
    until = time.monotonic() + float(seconds)
    tokens = {}
    while time.monotonic() < until:
        began = time.monotonic()
        token = shared.get().token
        entry = tokens.setdefault(token, [time.time(), 0, 0, 0])
        entry[1], entry[2] = time.time(), entry[2] + 1
        entry[3] = max(entry[3], time.monotonic() - began)
        time.sleep(0.01)
    print(json.dumps(["tokens", tokens]), flush=True)
    os._exit(0)
""")


class Place(NamedTuple):
    """A store, and a pool in it that no other test uses."""

    url: str
    name: str


@pytest.fixture(scope="module", params=["sqlite", "redis", "postgresql"])
def module_url(request: pytest.FixtureRequest) -> Iterator[str]:
    for backend in running(request.param):
        yield backend.url


@pytest.fixture
def place(module_url: str) -> Place:
    return Place(module_url, secrets.token_hex(8))


@contextmanager
def worker(place: Place, folder: Path, name: str, seconds: float, hangs: str = "", **how: float) -> Iterator[Any]:
    """A process that is ready, and begins when it is told to go."""
    environment = {"PATH": "", "PYTHONPATH": str(Path(seen.__file__).parents[3])}
    environment |= {"LIFE_S": str(how.get("life_s", 3.0)), "AHEAD_S": str(how.get("ahead_s", 1.5))}
    command = [sys.executable, "-c", WORKER, place.url, str(folder), name, str(seconds), hangs, place.name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline()) == ["ready", 0]
        yield process
    finally:
        process.kill()
        process.wait(LIMIT_S)
        process.stdout.close()


def go(process: Any) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def tokens_of(process: Any) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in process.communicate(timeout=LIMIT_S)[0].splitlines()]
    assert process.returncode == 0
    found: dict[str, list[float]] = next(what for kind, what in lines if kind == "tokens")
    return found


def test_one_login_for_each_end_among_all_processes(place: Place, tmp_path: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(place, tmp_path, f"w{number}", 6.0)) for number in range(3)]
        began = time.time()
        for each in workers:
            go(each)
        found = [tokens_of(each) for each in workers]
        lasted_s = time.time() - began
    every = set().union(*found)
    logins = len(list(tmp_path.iterdir()))
    assert len(every) <= logins <= len(every) + 1, "no login that nobody uses, but perhaps the last"
    assert 2 <= logins <= lasted_s / 1.5 + 2, "one for each token's end, whoever asks"
    assert max(sum(token in each for each in found) for token in every) >= 2, "they use the same ones"


def test_who_is_killed_in_a_login_holds_nobody_up(place: Place, tmp_path: Path) -> None:
    """The first one's token is due at once; who renews it hangs, and is killed; another one takes its place in time."""
    due_at_once = {"life_s": 120.0, "ahead_s": 120.0}  # that is, at half of its life
    with worker(place, tmp_path, "first", 0.2, life_s=4.0, ahead_s=4.0) as process:
        go(process)
        tokens_of(process)
    with (
        worker(place, tmp_path, "doomed", 60.0, "hangs", **due_at_once) as doomed,
        worker(place, tmp_path, "heir", 8.0, **due_at_once) as heir,
    ):
        go(doomed)
        assert json.loads(doomed.stdout.readline())[0] == "login"
        doomed.kill()
        doomed.wait(LIMIT_S)
        go(heir)
        found = tokens_of(heir)
    (token, (_, _, uses, waited_s)) = list(found.items())[-1]
    assert token.split()[2] == "heir"
    assert uses > 1
    assert waited_s < 15.0, "login_timeout is two seconds, and its own login takes a third of one"
    assert len(list(tmp_path.iterdir())) == 3


class Meddling:
    """A pool of this process and one of "another", on the same store."""

    def __init__(self, place: Place) -> None:
        self.logins = 0
        self.events: list[PoolEvent] = []
        options: dict[str, Any] = {
            "store": place.url,
            "name": place.name,
            "key": KEY,
            "on_event": self.events.append,
            "wait": "30s",
        }
        self.mine = TokenPool(self.login, **options)
        self.theirs = TokenPool(self.login, **options)

    def login(self, user: str) -> SignedIn:
        self.logins += 1
        return SignedIn(f"token {self.logins}", 500.0, {"number": self.logins})

    def close(self) -> None:
        self.mine.close()
        self.theirs.close()


@pytest.fixture
def both(place: Place) -> Iterator[Meddling]:
    made = Meddling(place)
    yield made
    made.close()


def test_a_refusal_asks_first_whether_another_process_has_a_newer_one(both: Meddling) -> None:
    mine, theirs = both.mine.shared("svc"), both.theirs.shared("svc")
    assert mine.get().token == theirs.get().token == "token 1"
    assert mine.get().payload == {"number": 1}
    assert theirs.invalidate("token 1")
    assert theirs.get().token == "token 2"
    assert mine.get().token == "token 1", "this process has not looked yet"
    assert mine.invalidate("token 1")
    assert mine.get().token == "token 2", "and no login"
    assert both.logins == 2


def test_what_another_process_takes_back_is_seen_in_time(both: Meddling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "LOOK_S", 0.5)
    monkeypatch.setattr(seen, "LOOK_AHEAD_S", 0.4)
    mine, theirs = both.mine.shared("svc"), both.theirs.shared("svc")
    mine.get()
    theirs.get()
    assert theirs.invalidate("token 1")
    theirs.get()
    until = time.monotonic() + 30
    while mine.get().token == "token 1":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert mine.get().token == "token 2"
    # Nobody asks for a while: then the first who does looks, and is not given what is too old.
    until = time.monotonic() + 30
    while not theirs.invalidate("token 2"):  # it replaced a refused one only just
        assert time.monotonic() < until
        time.sleep(0.05)
    theirs.get()
    time.sleep(0.6)
    assert mine.get().token == "token 3"


def test_while_the_store_is_away_what_was_seen_is_good_to_its_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(seen, "LOOK_S", 0.2)
    monkeypatch.setattr(seen, "LOOK_AHEAD_S", 0.1)
    both = Meddling(Place(f"sqlite:///{tmp_path}/tokens.db", "default"))
    shared = both.mine.shared("svc")
    assert shared.get().token == "token 1"

    def away(*arguments: Any) -> Any:
        raise StoreUnavailable("on purpose")

    store = both.mine._store
    reading = store.read_shared
    monkeypatch.setattr(store, "read_shared", away)
    time.sleep(0.3)
    for _ in range(50):
        assert shared.get().token == "token 1"
        time.sleep(0.01)
    assert {event.kind.value for event in both.events} == {"pool.store_unavailable"}
    assert len(both.events) <= 3, "once a second"
    with pytest.raises(StoreUnavailable):
        both.mine.shared("another").get()
    monkeypatch.setattr(store, "read_shared", reading)
    assert both.mine.shared("another").get().token == "token 2"
    both.close()


def test_all_of_it_is_sealed_and_masked(both: Meddling, place: Place) -> None:
    both.mine.shared("svc").get()
    (row,) = both.theirs.list("svc")
    assert row.state == "shared"
    assert "token 1" not in repr(row)
    thief = TokenPool(
        lambda user: "t", store=place.url, name=place.name, key=secrets.token_bytes(32), on_event=lambda event: None
    )
    with pytest.raises(StoreUnavailable, match="cannot be opened: unknown_key"):
        thief.shared("svc").get()
    thief.close()
    rotated = TokenPool(lambda user: "t", store=place.url, name=place.name, key=[secrets.token_bytes(32), KEY])
    assert rotated.shared("svc").get().token == "token 1", "a rotated key costs no login"
    rotated.close()


def test_asyncio_and_threads_share_one(place: Place) -> None:
    logins = []

    def login(user: str, password: str) -> SignedIn:
        logins.append(password)
        time.sleep(0.2)
        return SignedIn(f"token {len(logins)}", 500.0)

    async def main() -> set[str]:
        async with AsyncTokenPool(login, store=place.url, name=place.name, key=KEY) as pool:
            return {each.token for each in await asyncio.gather(*[pool.shared("svc", "p").get() for _ in range(10)])}

    with TokenPool(login, store=place.url, name=place.name, key=KEY) as pool:
        tokens: set[str] = set()
        threads = [threading.Thread(target=lambda: tokens.add(pool.shared("svc", "p").get().token)) for _ in range(5)]
        for thread in threads:
            thread.start()
        tokens |= asyncio.run(main())
        for thread in threads:
            thread.join(LIMIT_S)
    assert tokens == {"token 1"}
    assert logins == ["p"]


def test_users_that_ended_make_room_in_memory() -> None:
    now = [0.0]
    store = MemoryTokenStore(TokenPool().settings.policy, lambda: now[0], 2)
    assert store.swap_shared("a", None, b"1", 10.0)
    assert store.swap_shared("b", None, b"2", 20.0)
    with pytest.raises(Exception, match="2 users already"):
        store.swap_shared("c", None, b"3", 10.0)
    now[0] = 11.0
    assert store.swap_shared("c", None, b"3", 10.0)
    assert sorted(store.shared_users()) == ["b", "c"]
