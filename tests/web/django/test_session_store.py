"""What Django's documentation says of a session object, line by line, on the engine alone; sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.core.management import call_command
from django.test import override_settings
from django.utils import timezone

from coatcheck.errors import CoatcheckError
from coatcheck.web.django import SessionStore
from coatcheck.web.django.configuration import sessions

TWO_WEEKS_S = 14 * 86400
Do = Callable[..., Any]


def sync(store: SessionStore, name: str, *arguments: Any) -> Any:
    if name == "set":
        store[arguments[0]] = arguments[1]
        return None
    return getattr(store, name)(*arguments)


def awaited(store: SessionStore, name: str, *arguments: Any) -> Any:
    return asyncio.run(getattr(store, f"a{name}")(*arguments))


@pytest.fixture(params=[sync, awaited])
def do(request: pytest.FixtureRequest) -> Do:
    found: Do = request.param
    return found


def stored(**data: Any) -> SessionStore:
    store = SessionStore()
    store.update(data)
    store.save()
    return store


def test_save_stores_and_the_key_opens_it_elsewhere(do: Do) -> None:
    store = SessionStore()
    do(store, "set", "cart", ["tea"])
    assert store.modified
    do(store, "save")
    other = SessionStore(store.session_key)
    assert do(other, "get", "cart") == ["tea"]
    assert other.accessed
    assert not other.modified


def test_an_empty_session_can_be_saved_and_is_there(do: Do) -> None:
    store = SessionStore()
    do(store, "save")
    assert do(store, "exists", store.session_key) is True
    assert do(SessionStore(store.session_key), "load") == {}


@pytest.mark.parametrize("key", ["1", "someunknownkey", "A" * 116, "ä" * 200, "x" * 5000, "a\x00b;c=d"])
def test_a_key_that_is_not_ours_is_no_session_and_is_never_taken_for_one(do: Do, key: str) -> None:
    store = SessionStore(key)
    assert do(store, "exists", key) is False
    assert do(store, "load") == {}
    assert store.session_key is None
    do(store, "delete", key)
    do(store, "save")
    assert store.session_key not in (None, key)


def test_create_makes_a_new_session_and_leaves_the_other_one(do: Do) -> None:
    store = stored(a=1)
    key = store.session_key
    do(store, "create")
    assert store.session_key != key
    assert store.modified
    assert do(SessionStore(key), "get", "a") == 1


def test_a_key_that_exists_cannot_be_created(do: Do) -> None:
    store = SessionStore(stored().session_key)
    with pytest.raises(CreateError):
        do(store, "save", True)


def test_flush_ends_the_session_at_once(do: Do) -> None:
    store = stored(a=1)
    key = store.session_key
    do(store, "flush")
    assert store.session_key is None
    assert store.modified
    assert do(store, "exists", key) is False
    assert do(SessionStore(key), "load") == {}
    do(store, "set", "b", 2)
    do(store, "save")
    assert do(SessionStore(store.session_key), "items") == {"b": 2}.items()


def test_cycle_key_keeps_the_data_under_a_new_key(do: Do) -> None:
    key = stored(a=1).session_key
    store = SessionStore(key)
    do(store, "cycle_key")
    assert store.session_key != key
    assert do(store, "exists", key) is False
    assert do(SessionStore(store.session_key), "get", "a") == 1


def test_what_was_logged_out_elsewhere_is_not_brought_back(do: Do) -> None:
    store = stored(a=1)
    do(SessionStore(store.session_key), "delete")
    do(store, "set", "a", 2)
    with pytest.raises(UpdateError):
        do(store, "save")
    assert do(store, "load") == {}


def test_two_objects_of_one_session_keep_what_the_other_has_changed(do: Do) -> None:
    key = stored(a=1, b=1).session_key
    one, two = SessionStore(key), SessionStore(key)
    assert do(one, "get", "a") == do(two, "get", "a") == 1
    do(one, "set", "a", 2)
    do(one, "save")
    do(two, "set", "b", 2)
    do(two, "save")
    assert dict(do(SessionStore(key), "items")) == {"a": 2, "b": 2}


def test_looking_changes_nothing_and_accuses_nobody(do: Do) -> None:
    store = stored(a=1)
    first = store.session_key
    for number in range(3):
        store["a"] = number
        store.save()
    before = sessions().status()["events"]
    version = _version(store)
    for _ in range(5):
        assert do(SessionStore(first), "exists", first)
        assert do(SessionStore(first), "get", "a") == 2
        assert do(SessionStore(store.session_key), "get", "a") == 2
    assert sessions().status()["events"] == before
    assert _version(store) == version


def _version(store: SessionStore) -> str:
    assert store.public_id is not None
    key = sessions().find(store.public_id)
    assert key is not None
    seen = sessions().show(key)
    assert seen is not None
    return seen.version


def test_a_past_expiry_ends_it_at_once_and_a_later_one_does_not(do: Do) -> None:
    store = stored(a=1)
    do(store, "set_expiry", -timedelta(seconds=10))
    do(store, "save")
    assert do(SessionStore(store.session_key), "load") == {}
    other = stored(a=1)
    do(other, "set_expiry", timezone.now() + timedelta(days=1))
    do(other, "save")
    assert do(SessionStore(other.session_key), "get", "a") == 1
    assert 86390 < do(other, "get_expiry_age") <= 86400


def test_the_session_servers_forget_it_when_it_expires() -> None:
    for expiry, wanted_s in ((None, TWO_WEEKS_S), (300, 300), (0, TWO_WEEKS_S), (timedelta(days=60), 60 * 86400)):
        store = stored(a=1)
        store.set_expiry(expiry)
        store.save()
        held = store._held
        assert held is not None
        copy = held._request.copy_held
        assert copy is not None
        ends_at = copy.record.expires_at(sessions()._sessions._policy)
        assert ends_at - sessions().now_ms() == pytest.approx(1000 * wanted_s, abs=20_000)


def test_zero_is_until_the_browser_ends(do: Do) -> None:
    store = stored()
    do(store, "set_expiry", 0)
    assert do(store, "get_expire_at_browser_close") is True
    assert do(store, "get_expiry_age") == TWO_WEEKS_S
    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=True):
        do(store, "set_expiry", None)
        assert do(store, "get_expire_at_browser_close") is True


def test_a_nested_change_is_stored_only_if_the_app_says_so() -> None:
    key = stored(cart={"tea": 1}).session_key
    store = SessionStore(key)
    store["cart"]["tea"] = 2
    assert not store.modified
    assert SessionStore(key)["cart"] == {"tea": 1}
    store.save()
    assert SessionStore(key)["cart"] == {"tea": 2}


def test_the_test_cookie() -> None:
    store = stored()
    assert not store.test_cookie_worked()
    store.set_test_cookie()
    store.save()
    other = SessionStore(store.session_key)
    assert other.test_cookie_worked()
    other.delete_test_cookie()
    assert not other.test_cookie_worked()


def test_clearsessions_is_harmless() -> None:
    store = stored(a=1)
    call_command("clearsessions")
    assert SessionStore(store.session_key)["a"] == 1


def test_an_event_loop_is_never_blocked_but_told_so() -> None:
    key = stored(a=1).session_key

    async def look() -> None:
        with pytest.raises(CoatcheckError, match="event loop"):
            SessionStore(key).load()
        assert await SessionStore(key).aget("a") == 1

    asyncio.run(look())


def test_the_key_changes_nothing_for_who_kept_an_older_one() -> None:
    """A test client keeps the key that it was given, whatever is saved afterwards."""
    store = stored(a=1)
    first = store.session_key
    store["a"] = 2
    store.save()
    assert SessionStore(first)["a"] == 2
    SessionStore(first).delete()
    assert not SessionStore().exists(store.session_key)


def test_the_public_id_stays() -> None:
    store = stored(a=1)
    known = store.public_id
    assert known is not None
    other = SessionStore(store.session_key)
    other.load()
    assert other.public_id == known
