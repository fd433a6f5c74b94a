"""The upstream's own state, found again at a user's next login (mission: the fourth document, "governance")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import LoginFailed, PoolEvent, SignedIn, StoreUnavailable
from coatcheck.pool.masking import MAX_STATE_CHARS
from coatcheck.pool.shared import rules
from coatcheck.pool.shared.rules import (
    MAX_ENTRIES,
    Begin,
    DropShared,
    EndShared,
    KeepUpstream,
    ResetShared,
    new_shared,
    upstream_of,
)
from coatcheck.pool.state import Policy
from pool.both_pools import BOTH, Threads

KEY = b"0123456789abcdef" * 2
NOW = 1_000_000.0
RIGHT, OTHER, NEW_KEY = (b"r" * 16,), (b"w" * 16,), b"n" * 16


class Shop:
    """An upstream with a cart for each session, which whoever logs in may have again, by its name."""

    def __init__(self) -> None:
        self.carts: dict[str, list[str]] = {}
        self.sessions: dict[str, str] = {}
        self.given: list[str | None] = []
        self.life_s: float | None = None
        self.tells: Callable[[str], str | None] = lambda cart: cart

    def login(self, user: str, password: str | None, *, upstream_state: str | None = None) -> SignedIn:
        self.given.append(upstream_state)
        cart = upstream_state if upstream_state in self.carts else f"secret cart {len(self.carts) + 1}"
        assert cart is not None
        self.carts.setdefault(cart, [])
        token = f"token {len(self.sessions) + 1}"
        self.sessions[token] = cart
        return SignedIn(token, self.life_s, upstream_state=self.tells(cart))

    def add(self, token: str, item: str) -> list[str]:
        cart = self.carts[self.sessions[token]]
        cart.append(item)
        return cart


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=list(BOTH))
def made(request: pytest.FixtureRequest) -> Iterator[Callable[..., Threads]]:
    pools: list[Threads] = []

    def make(login: Any, **options: Any) -> Threads:
        pools.append(BOTH[request.param](login, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def bought(pool: Threads, shop: Shop, item: str, password: str | None = None, *, drop: bool = True) -> list[str]:
    """One call, after which the upstream ends its session."""
    held = pool.pool.lease("ada", password)
    pool.call(held.acquire)
    cart = list(shop.add(held.token, item))
    if drop:
        held.drop()
    pool.call(held.release)
    return cart


def test_the_next_login_finds_the_same_cart(made: Callable[..., Threads], shop: Shop) -> None:
    pool = made(shop.login)
    assert bought(pool, shop, "tea") == ["tea"]
    assert bought(pool, shop, "milk") == ["tea", "milk"]
    assert shop.given == [None, "secret cart 1"]


def test_another_pool_of_the_store_finds_it(made: Callable[..., Threads], shop: Shop, store_url: str) -> None:
    one, other = (made(shop.login, store=store_url, key=KEY) for _ in range(2))
    bought(one, shop, "tea")
    assert bought(other, shop, "milk") == ["tea", "milk"]
    assert "cart" not in repr(other.call(other.pool.list))


def test_it_is_for_the_same_password_alone(made: Callable[..., Threads], shop: Shop) -> None:
    pool = made(shop.login)
    assert bought(pool, shop, "tea", "one") == ["tea"]
    assert bought(pool, shop, "rope", "two") == ["rope"]
    assert bought(pool, shop, "nail") == ["nail"]
    assert bought(pool, shop, "milk", "one") == ["tea", "milk"]
    assert bought(pool, shop, "knot", "two") == ["rope", "knot"]


def test_shared_tokens_find_it_too(made: Callable[..., Threads], shop: Shop) -> None:
    pool = made(shop.login)
    bought(pool, shop, "tea")
    shop.life_s = 3_600.0
    shared = pool.pool.shared("ada")
    assert shop.add(pool.call(shared.get).token, "milk") == ["tea", "milk"]
    assert pool.call(pool.pool.remove_token, "ada") == 1
    assert shop.add(pool.call(shared.get).token, "rice") == ["tea", "milk", "rice"]
    assert shop.given == [None, "secret cart 1", "secret cart 1"]


def test_a_login_that_tells_nothing_leaves_the_one_of_before_and_an_empty_one_ends_it(
    made: Callable[..., Threads], shop: Shop
) -> None:
    pool = made(shop.login)
    bought(pool, shop, "tea")
    shop.tells = lambda cart: None
    bought(pool, shop, "milk")
    shop.tells = lambda cart: ""
    bought(pool, shop, "rice")
    bought(pool, shop, "salt")
    assert shop.given == [None, "secret cart 1", "secret cart 1", None]


def test_it_is_kept_for_its_time_after_the_last_login(made: Callable[..., Threads], shop: Shop) -> None:
    now = [1_000.0]
    pool = made(shop.login, keep_upstream_state="10m", clock=lambda: now[0])
    for pause_s in (0, 599, 599, 601):
        now[0] += pause_s
        bought(pool, shop, "tea")
    assert shop.given == [None, "secret cart 1", "secret cart 1", None]


def test_an_operator_forgets_it_by_a_reset(made: Callable[..., Threads], shop: Shop) -> None:
    pool = made(shop.login)
    bought(pool, shop, "tea", drop=False)
    assert pool.call(pool.pool.remove_token, "ada") == 1
    assert bought(pool, shop, "milk") == ["tea", "milk"]
    pool.call(pool.pool.reset, "ada")
    assert bought(pool, shop, "rice") == ["rice"]


def test_it_is_sealed(made: Callable[..., Threads], shop: Shop, tmp_path: Path) -> None:
    pool = made(shop.login, store=f"sqlite:///{tmp_path}/tokens.db", key=KEY)
    bought(pool, shop, "tea")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada" in stored
    assert b"secret cart" not in stored


def test_a_setting_that_could_do_nothing_is_refused(made: Callable[..., Threads]) -> None:
    with pytest.raises(ConfigError, match="keep_upstream_state: needs a login function with a parameter"):
        made(lambda user: "token", keep_upstream_state="1h")
    with pytest.raises(ConfigError, match="keep_upstream_state"):
        made(lambda user, *, upstream_state: "token", keep_upstream_state="0s")


@pytest.mark.parametrize("state", [7, b"bytes", "x" * (MAX_STATE_CHARS + 1), "\ud800"])
def test_what_is_no_state_fails_the_login(made: Callable[..., Threads], state: Any) -> None:
    told: list[PoolEvent] = []
    pool = made(lambda user, *, upstream_state: SignedIn("t", upstream_state=state), on_event=told.append)
    with pytest.raises(LoginFailed, match="an upstream_state is") as failure:
        pool.call(pool.pool.lease("ada").acquire)
    assert "xxx" not in str(failure.value)


def test_a_state_that_no_login_would_be_given_is_not_lost_in_silence(made: Callable[..., Threads]) -> None:
    pool = made(lambda user: SignedIn("t", upstream_state="cart"), on_event=lambda event: None)
    with pytest.raises(LoginFailed, match="no parameter of that name"):
        pool.call(pool.pool.lease("ada").acquire)


@pytest.mark.parametrize("step", ["read", "swap"])
def test_a_store_that_fails(
    made: Callable[..., Threads], shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nobody begins another cart because one could not be read; a token is as good although its cart was not kept."""
    told: list[PoolEvent] = []
    pool = made(shop.login, store=f"sqlite:///{tmp_path}/tokens.db", key=KEY, on_event=told.append)
    bought(pool, shop, "tea")

    def fails(*_: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as away:
        away.setattr(pool.pool._store, f"{step}_shared", fails)
        if step == "read":
            with pytest.raises(StoreUnavailable, match="away"):
                bought(pool, shop, "milk")
            assert shop.given == [None]
        else:
            assert bought(pool, shop, "milk") == ["tea", "milk"]
            assert [event.detail for event in told] == ["the upstream's state was not kept: StoreUnavailable"]
    assert bought(pool, shop, "rice")[0] == "tea"


# -- the rules by themselves


def test_a_state_is_known_by_the_keys_of_before_and_bounded() -> None:
    state, policy = new_shared(0), Policy()

    def ask(command: rules.Command, now: float = NOW) -> None:
        rules.apply(state, policy, now, command)

    ask(KeepUpstream("mine", 100.0, RIGHT))
    assert upstream_of(state, NOW + 99, RIGHT) == "mine"
    assert upstream_of(state, NOW + 99, (NEW_KEY, *RIGHT)) == "mine"
    assert upstream_of(state, NOW + 100, RIGHT) is None
    assert upstream_of(state, NOW, OTHER) is None
    assert upstream_of(state, NOW, ()) is None
    ask(KeepUpstream("newer", 100.0, (NEW_KEY, *RIGHT)))
    assert [kept.value for kept in state.upstream] == ["newer"]
    ask(DropShared())
    ask(Begin())
    assert upstream_of(state, NOW, (NEW_KEY,)) == "newer"
    for count in range(MAX_ENTRIES):
        ask(KeepUpstream(f"{count}", 100.0, (b"%016d" % count,)), NOW + 1 + count)
    assert len(state.upstream) == MAX_ENTRIES
    assert upstream_of(state, NOW, (NEW_KEY,)) is None, "the one whose end came first made room"
    ask(ResetShared(), NOW + 50)
    assert state.upstream == []


def test_a_state_is_not_idle_while_it_has_one_and_ends_with_it() -> None:
    state, policy = new_shared(0), Policy()
    rules.apply(state, policy, NOW, KeepUpstream("mine", 100.0, RIGHT))
    assert not state.is_idle(NOW)
    assert state.ends_at() >= NOW + 100
    rules.apply(state, policy, NOW + 99, EndShared())
    assert not state.is_idle(NOW + 99)
    rules.apply(state, policy, NOW + 100, EndShared())
    assert state.is_idle(NOW + 100)


def test_what_was_written_under_a_clock_ahead_lasts_no_longer_than_its_time() -> None:
    state, policy = new_shared(0), Policy()
    rules.apply(state, policy, NOW + 1_000_000, KeepUpstream("mine", 100.0, RIGHT))
    assert upstream_of(state, NOW, RIGHT) == "mine"
    rules.apply(state, policy, NOW, EndShared())
    assert upstream_of(state, NOW + 99, RIGHT) == "mine"
    assert upstream_of(state, NOW + 100, RIGHT) is None
