"""What Django's documentation says of sessions in requests, line by line: cookies, saving, errors, logins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory, override_settings
from django.utils import timezone

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.web.django import SessionMiddleware, SessionStore
from coatcheck.web.django.configuration import sessions

from .project.urls import todo

COOKIE = "sessionid"


@pytest.fixture
def client() -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def do(client: Client) -> Iterator[Callable[[Callable[[HttpRequest], Any]], Any]]:
    def ask(what: Callable[[HttpRequest], Any]) -> Any:
        todo["do"] = what
        return client.get("/do")

    yield ask
    todo.clear()


Do = Callable[[Callable[[HttpRequest], Any]], Any]


def put(**data: Any) -> Callable[[HttpRequest], Any]:
    return lambda request: request.session.update(data)


def look(request: HttpRequest) -> dict[str, Any]:
    return dict(request.session.items())


# -- saving and cookies ----------------------------------------------------------------------------


def test_nothing_is_stored_and_no_cookie_set_before_something_is_put_in(client: Client, do: Do) -> None:
    answer = do(look)
    assert answer.content == b"{}"
    assert COOKIE not in client.cookies
    assert answer["Vary"] == "Cookie", "the session was looked at"
    assert "Vary" not in client.get("/plain")


def test_what_one_request_stores_the_next_one_finds(client: Client, do: Do) -> None:
    assert client.get("/add").json() == ["tea"]
    assert client.get("/add?item=cup").json() == ["tea", "cup"]
    assert client.session["cart"] == ["tea", "cup"]


def test_the_cookie_is_as_the_settings_say(do: Do) -> None:
    with override_settings(
        SESSION_COOKIE_NAME="shop",
        SESSION_COOKIE_AGE=3600,
        SESSION_COOKIE_DOMAIN="example.org",
        SESSION_COOKIE_PATH="/do",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_HTTPONLY=False,
        SESSION_COOKIE_SAMESITE="Strict",
    ):
        cookie = do(put(a=1)).cookies["shop"]
    assert (cookie["domain"], cookie["path"], cookie["secure"]) == ("example.org", "/do", True)
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == ("", "Strict", 3600)
    cookie = do(put(a=1)).cookies[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Lax", 14 * 86400)


@pytest.mark.parametrize("expiry", [300, timedelta(seconds=300), "date"])
def test_the_cookie_lives_as_long_as_the_session(do: Do, expiry: Any) -> None:
    def limit(request: HttpRequest) -> None:
        request.session.set_expiry(timezone.now() + timedelta(seconds=300) if expiry == "date" else expiry)

    assert do(limit).cookies[COOKIE]["max-age"] == pytest.approx(300, abs=2)


def test_zero_and_the_setting_end_the_cookie_with_the_browser(do: Do) -> None:
    assert do(lambda request: request.session.set_expiry(0)).cookies[COOKIE]["max-age"] == ""
    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=True):
        do(lambda request: request.session.set_expiry(None))
        assert do(put(a=1)).cookies[COOKIE]["max-age"] == ""


def test_a_session_that_was_only_read_sets_no_cookie(client: Client, do: Do) -> None:
    do(put(a=1))
    answer = do(look)
    assert answer.content == b"{'a': 1}"
    assert not answer.cookies
    assert answer["Vary"] == "Cookie"


def test_saving_every_request_renews_cookie_and_expiry(client: Client, do: Do) -> None:
    do(put(a=1))
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        for _ in range(2):
            assert client.get("/plain").cookies[COOKIE]["max-age"] == 14 * 86400


def test_a_nested_change_is_stored_only_if_the_app_says_so(client: Client, do: Do) -> None:
    do(put(cart={"tea": 1}))
    do(lambda request: request.session["cart"].update(tea=2))
    assert client.session["cart"] == {"tea": 1}

    def change(request: HttpRequest) -> None:
        request.session["cart"]["tea"] = 3
        request.session.modified = True

    do(change)
    assert client.session["cart"] == {"tea": 3}


def test_an_emptied_session_goes_on_and_a_flushed_one_does_not(client: Client, do: Do) -> None:
    do(put(a=1))
    do(lambda request: request.session.clear())
    assert client.session.exists(client.cookies[COOKIE].value)
    key = client.cookies[COOKIE].value
    gone = do(lambda request: request.session.flush()).cookies[COOKIE]
    assert (gone.value, gone["max-age"]) == ("", 0)
    assert not SessionStore().exists(key)


def test_what_is_put_in_after_a_flush_is_a_new_session(client: Client, do: Do) -> None:
    do(put(a=1))
    key = client.cookies[COOKIE].value

    def begin(request: HttpRequest) -> None:
        request.session.flush()
        request.session["b"] = 2

    do(begin)
    assert client.cookies[COOKIE].value != key
    assert dict(client.session.items()) == {"b": 2}
    assert not SessionStore().exists(key)


def test_what_a_view_saves_is_stored_before_its_response(client: Client, do: Do) -> None:
    def save(request: HttpRequest) -> str:
        request.session["a"] = 1
        assert request.session.session_key is None
        request.session.save()
        assert SessionStore(request.session.session_key)["a"] == 1
        request.session["a"] = 2
        return "saved"

    assert do(save).content == b"saved"
    assert client.session["a"] == 2


def test_cycle_key_in_a_view(client: Client, do: Do) -> None:
    do(put(a=1))
    key = client.cookies[COOKIE].value

    def cycle(request: HttpRequest) -> None:
        request.session.cycle_key()
        assert not request.session.exists(key)

    do(cycle)
    assert client.cookies[COOKIE].value != key
    assert client.session["a"] == 1


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_page_stores_nothing(client: Client, do: Do, status: int) -> None:
    def fail(request: HttpRequest) -> HttpResponse:
        request.session["a"] = 1
        return HttpResponse(status=status)

    assert not do(fail).cookies
    do(put(a=2))
    do(fail)
    assert client.session["a"] == 2


def test_a_view_that_raises_stores_nothing(client: Client, do: Do) -> None:
    def fail(request: HttpRequest) -> None:
        request.session["a"] = 1
        raise LookupError("a mistake of the app")

    assert do(fail).status_code == 500
    assert COOKIE not in client.cookies


def test_a_session_that_was_deleted_meanwhile_is_interrupted(client: Client, do: Do) -> None:
    do(put(a=1))

    def slow(request: HttpRequest) -> None:
        request.session["a"] = 2
        SessionStore(request.session.session_key).delete()

    answer = do(slow)
    assert answer.status_code == 400
    assert not client.session.exists(client.cookies[COOKIE].value)


def test_a_foreign_cookie_is_no_session(client: Client, do: Do) -> None:
    client.cookies[COOKIE] = "A" * 116
    assert do(look).content == b"{}"
    do(put(a=1))
    assert client.cookies[COOKIE].value != "A" * 116


def test_a_streamed_response(client: Client, do: Do) -> None:
    def stream(request: HttpRequest) -> StreamingHttpResponse:
        request.session["a"] = 1
        return StreamingHttpResponse([b"one ", b"two"])

    assert b"".join(do(stream).streaming_content) == b"one two"
    assert client.session["a"] == 1


def test_two_tabs_keep_what_the_other_has_changed(client: Client, do: Do) -> None:
    do(put(a=1, b=1))
    key = client.cookies[COOKIE].value

    def other_tab(request: HttpRequest) -> None:
        tab = Client()
        tab.cookies[COOKIE] = key
        request.session["a"] = 2
        todo["do"] = put(b=2)
        tab.get("/do")

    do(other_tab)
    assert dict(client.session.items()) == {"a": 2, "b": 2}


def test_the_middleware_in_two_halves(do: Do) -> None:
    """As tests give a session to a request of their own."""
    request = RequestFactory().get("/")
    middleware = SessionMiddleware(lambda request: HttpResponse())
    assert middleware.process_request(request) is None
    request.session["a"] = 1
    request.session.save()
    assert SessionStore(request.session.session_key)["a"] == 1
    request.session["a"] = 2
    answer = middleware.process_response(request, HttpResponse())
    assert SessionStore(answer.cookies[COOKIE].value)["a"] == 2
    request.session["a"] = 3
    middleware.process_response(request, HttpResponse())
    assert SessionStore(answer.cookies[COOKIE].value)["a"] == 3


# -- caches ----------------------------------------------------------------------------------------


def test_caches_keep_no_page_of_a_session(do: Do) -> None:
    assert do(put(a=1))["Cache-Control"] == "no-store"
    assert do(look)["Cache-Control"] == "no-store"


def test_a_view_may_say_more_unless_a_key_leaves(do: Do) -> None:
    def say(request: HttpRequest) -> HttpResponse:
        request.session.get("a")
        return HttpResponse(headers={"Cache-Control": "private", "Vary": "Accept"})

    answer = do(say)
    assert (answer["Cache-Control"], answer["Vary"]) == ("private", "Accept, Cookie")

    def give(request: HttpRequest) -> HttpResponse:
        request.session["a"] = 1
        return HttpResponse(headers={"Cache-Control": "public, max-age=60"})

    assert do(give)["Cache-Control"] == "no-store"


# -- trouble ---------------------------------------------------------------------------------------


def test_while_no_session_server_answers_it_fails_closed(client: Client, do: Do, monkeypatch: Any) -> None:
    do(put(a=1))

    def away(*arguments: Any) -> Any:
        raise SessionUnavailable(UnavailableReason.STOPPING)

    with monkeypatch.context() as broken:
        broken.setattr(sessions(), "open", away)
        answer = client.get("/who")
        assert (answer.status_code, answer["Retry-After"], answer["Cache-Control"]) == (503, "1", "no-store")
    with monkeypatch.context() as broken:
        broken.setattr(sessions(), "store_now", away)
        assert do(lambda request: request.session.save()).status_code == 503
    assert client.session["a"] == 1


# -- logins ----------------------------------------------------------------------------------------


def sign_in(client: Client, user: str) -> None:
    assert client.get(f"/in?user={user}").content == b"in"


def test_a_login_takes_a_new_key_and_keeps_the_cart(client: Client) -> None:
    client.get("/add")
    key = client.cookies[COOKIE].value
    sign_in(client, "ada")
    assert client.cookies[COOKIE].value != key
    assert not SessionStore().exists(key)
    assert client.get("/who").json() == {"user": "ada", "cart": ["tea"], "said": ["welcome ada"]}
    assert client.get("/who").json()["said"] == []


def test_a_logout_ends_it_and_the_old_cookie_opens_nothing(client: Client) -> None:
    sign_in(client, "ada")
    key = client.cookies[COOKIE].value
    assert client.get("/out").cookies[COOKIE]["max-age"] == 0
    client.cookies[COOKIE] = key
    assert client.get("/who").json()["user"] == ""


def test_signing_in_as_another_user_empties_what_the_former_one_left(client: Client) -> None:
    sign_in(client, "ada")
    client.get("/add")
    sign_in(client, "bob")
    assert client.get("/who").json() == {"user": "bob", "cart": None, "said": ["welcome bob"]}


def test_a_former_user_leaves_nothing_even_if_django_does_not_know(client: Client, do: Do) -> None:
    """The app has taken the user out of the session by hand; coatcheck remembers whose it was."""
    sign_in(client, "ada")
    client.get("/add")
    do(lambda request: request.session.pop("_auth_user_id"))
    sign_in(client, "bob")
    found = client.get("/who").json()
    assert (found["user"], found["cart"]) == ("bob", None)


def test_operators_find_the_sessions_of_a_user(client: Client) -> None:
    sign_in(client, "ada")
    ada = str(User.objects.get(username="ada").pk)
    known = {one.id for one in sessions().sessions_of(ada)}
    held = client.session
    held.load()
    assert held.public_id in known
    client.get("/out")
    assert held.public_id not in {one.id for one in sessions().sessions_of(ada)}
    sign_in(client, "ada")
    sessions().close_user(ada)
    assert client.get("/who").json()["user"] == ""


def test_the_same_user_again_keeps_the_key_as_with_django(client: Client) -> None:
    sign_in(client, "ada")
    known = client.session
    known.load()
    sign_in(client, "ada")
    again = client.session
    again.load()
    assert again.public_id == known.public_id


def test_the_test_clients_own_login(client: Client) -> None:
    client.force_login(User.objects.get(username="ada"))
    assert client.get("/who").json()["user"] == "ada"
    session = client.session
    session["cart"] = ["cup"]
    session.save()
    assert client.get("/who").json()["cart"] == ["cup"]
    key = client.cookies[COOKIE].value
    client.logout()
    assert not SessionStore().exists(key)


def test_a_login_whose_key_was_closed_meanwhile_brings_nothing_back(client: Client, do: Do) -> None:
    do(put(a=1))

    def late(request: HttpRequest) -> None:
        request.session["a"] = 2
        SessionStore(request.session.session_key).delete()
        request.session.cycle_key()

    assert do(late).status_code == 400


def test_djangos_admin(client: Client) -> None:
    page = client.get("/admin/")
    assert page.status_code == 302
    answer = client.post("/admin/login/?next=/admin/", {"username": "ada", "password": "ada"})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
    page = client.get("/admin/auth/user/")
    assert b"bob" in page.content
    changed = client.post(
        "/admin/auth/user/add/", {"username": "eve", "password1": "x7-Tea-cup", "password2": "x7-Tea-cup"}
    )
    assert changed.status_code == 302
    assert b"was added successfully" in client.get(changed["Location"]).content
    User.objects.filter(username="eve").delete()


# -- rotation and theft ----------------------------------------------------------------------------


@pytest.fixture
def quick(client: Client) -> Iterator[None]:
    """Keys are replaced with each response, and honest for a second."""
    with override_settings(
        COATCHECK={
            "session_servers": "memory://",
            "farm": "quick",
            "rotate_after_s": 0,
            "grace_s": 1,
            "new_session_life_s": 0,
        }
    ):
        yield


@pytest.mark.usefixtures("quick")
def test_keys_are_replaced_and_the_last_expiry_holds(client: Client, do: Do) -> None:
    do(lambda request: request.session.set_expiry(300))
    keys = [client.cookies[COOKIE].value]
    for _ in range(3):
        cookie = do(look).cookies[COOKIE]
        assert cookie["max-age"] == pytest.approx(300, abs=5), "reading puts no expiry off"
        keys.append(cookie.value)
    assert len(set(keys)) == 4


@pytest.mark.usefixtures("quick")
def test_a_stolen_key_ends_the_session(client: Client, do: Do) -> None:
    sign_in(client, "ada")
    stolen = client.cookies[COOKIE].value
    deadline = time.monotonic() + 30
    before = sessions().status()["events"].get("session.theft", 0)
    thief = Client()
    while client.get("/who").json()["user"] == "ada":
        assert time.monotonic() < deadline
        time.sleep(0.3)
        thief.cookies[COOKIE] = stolen
        thief_sees = thief.get("/who").json()["user"]
    assert sessions().status()["events"]["session.theft"] == before + 1
    assert thief_sees == ""


@pytest.mark.usefixtures("quick")
def test_programs_that_show_old_keys_accuse_nobody(client: Client, do: Do) -> None:
    """A key that an app has written down may end the session; more it cannot, once it was replaced."""
    sign_in(client, "ada")
    kept = client.cookies[COOKIE].value
    before = sessions().status()["events"].get("session.theft", 0)
    deadline = time.monotonic() + 30
    while SessionStore().exists(kept):
        assert client.get("/who").json()["user"] == "ada"
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert client.get("/who").json()["user"] == "ada"
    assert sessions().status()["events"].get("session.theft", 0) == before
    SessionStore(kept).delete()
    assert client.get("/who").json()["user"] == ""
