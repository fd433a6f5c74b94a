"""What Django's serializers take and give back; and what other servers read of it."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import override_settings
from django.utils.safestring import mark_safe

from coatcheck.web.django import SessionStore
from coatcheck.web.django.configuration import sessions


class Pickled:
    """As Django's PickleSerializer, which projects keep for themselves since Django 5.0."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


PICKLED = f"{__name__}.Pickled"


def back(data: dict[Any, Any]) -> dict[Any, Any]:
    store = SessionStore()
    store.update(data)
    store.save()
    return dict(SessionStore(store.session_key).items())


def seen_by_others(store: SessionStore) -> dict[str, Any] | None:
    assert store.public_id is not None
    key = sessions().find(store.public_id)
    assert key is not None
    shown = sessions().show(key)
    assert shown is not None
    return shown.data


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ((1, 2), [1, 2]),
        ({"a": {1: "x"}}, {"a": {"1": "x"}}),
        (mark_safe("<b>"), "<b>"),
        (2**70, 2**70),
        ([{"deep": [2**64]}], [{"deep": [2**64]}]),
        ("\ud800", "\ud800"),
        (1.5, 1.5),
        (True, True),
        (None, None),
        ({"$django": "mine"}, {"$django": "mine"}),
    ],
)
def test_json_gives_back_what_django_does(value: Any, found: Any) -> None:
    assert back({"v": value}) == {"v": found}


def test_keys_become_text() -> None:
    assert back({0: "bar"}) == {"0": "bar"}


@pytest.mark.parametrize("value", [datetime.now(UTC), {1, 2}, b"bytes", object()])
def test_what_json_cannot_write_is_a_type_error(value: Any) -> None:
    store = SessionStore()
    store["v"] = value
    with pytest.raises(TypeError):
        store.save()
    assert store.session_key is None


@override_settings(SESSION_SERIALIZER=PICKLED)
def test_another_serializer_gives_back_what_it_knows() -> None:
    moment = datetime.now(UTC)
    data = {"at": moment, "set": {1, 2}, "text": "plain", "pair": (1, 2), "big": 2**70}
    assert back(data) == data


@override_settings(SESSION_SERIALIZER=PICKLED)
def test_what_is_plain_stays_readable_for_others() -> None:
    store = SessionStore()
    store.update({"text": "plain", "set": {1, 2}})
    store.save()
    found = seen_by_others(store)
    assert found is not None
    assert found["text"] == "plain"
    assert set(found["set"]) == {"$django"}


def test_others_read_a_mapping() -> None:
    store = SessionStore()
    store.update({"cart": ["tea", {"n": 2}], "name": "Ada"})
    store.save()
    assert seen_by_others(store) == {"cart": ["tea", {"n": 2}], "name": "Ada"}


def test_what_another_server_has_stored_stays_as_it_is() -> None:
    """A date and bytes, which JSON does not know: Django may change what is beside them."""
    opened = sessions().open()
    moment = datetime.now(UTC)
    opened.session.update({"at": moment, "raw": b"x", "n": 1})
    key = sessions().store_now(opened.session).decode()
    store = SessionStore(key)
    assert (store["at"], store["raw"]) == (moment, b"x")
    store["n"] = 2
    store.save()
    assert seen_by_others(store) == {"at": moment, "raw": b"x", "n": 2}


def test_a_value_that_cannot_be_read_any_more_is_left_out() -> None:
    with override_settings(SESSION_SERIALIZER=PICKLED):
        store = SessionStore()
        store.update({"set": {1}, "text": "plain"})
        store.save()
    assert dict(SessionStore(store.session_key).items()) == {"text": "plain"}
