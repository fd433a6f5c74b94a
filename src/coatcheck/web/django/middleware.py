"""The middleware in place of Django's ``SessionMiddleware``, for sync and async projects.

One driver serves both: requests run in threads and on event loops of one process, and a session is hosted once in it.
What an async view awaits is done by the background thread, so no loop is blocked and no thread of a pool is held.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangosMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers
from django.utils.http import http_date

from coatcheck.errors import SessionUnavailable
from coatcheck.sessions import mapping
from coatcheck.sessions.answer import Answer, OneCookie
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened, Phase
from coatcheck.tokens.chain import Shown
from coatcheck.web.django import configuration
from coatcheck.web.django.steps import Steps, ask, await_, wait
from coatcheck.web.django.store import OVER, BorrowedStore, SessionStore
from coatcheck.web.moving_in import FormerSession
from coatcheck.web.wsgi import KEY as ENVIRON_KEY

SERVER_ERROR: Final = 500
_VISIT: Final = "_coatcheck_visit"
_COOKIE: Final = OneCookie()
"""Where a request keeps what is to be done when its response leaves."""
_NEWEST: Final = (Shown.CURRENT, Shown.NEXT)


class SessionMiddleware(DjangosMiddleware):
    """``MIDDLEWARE = [..., "coatcheck.web.django.SessionMiddleware", ...]``, where Django's own stood.

    The session is the one that a layer outside has opened (``coatcheck serve``, or a middleware of coatcheck around the
    project); else it is opened here, as ``COATCHECK`` says. Raises :class:`ImproperlyConfigured` for wrong settings.
    """

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        configuration.check()
        super().__init__(get_response)
        self._is_async = iscoroutinefunction(get_response)
        self._is_ours = issubclass(self.SessionStore, SessionStore)
        """Another engine has Django's rules, and no more."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async or not self._is_ours:
            return super().__call__(request)
        outer = _outer(request)
        if outer is not None:
            refused = wait(_borrowing(request, outer))
            return refused or _leave_borrowed(request, outer, self.get_response(request))
        refused = self.process_request(request)
        return refused if refused is not None else self.process_response(request, self.get_response(request))

    def process_request(self, request: HttpRequest) -> HttpResponseBase | None:
        """Open the request's session; what comes back instead of ``None`` is the answer: it cannot be had now."""
        if not self._is_ours:
            super().process_request(request)
            return None
        return wait(_Visit(request, self.SessionStore).opening())

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Store what the request did to its session; the response leaves when that is acknowledged."""
        visit = _visit_of(request)
        return self._as_django(request, response) if visit is None else wait(visit.leaving(response))

    def _as_django(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Where the app has put another session object in the place of ours, or has asked a second time."""
        found: HttpResponseBase = super().process_response(request, response)
        return found

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        if not self._is_ours:
            return await super().__acall__(request)
        outer = _outer(request)
        if outer is not None:
            refused = await await_(_borrowing(request, outer))
            return refused or _leave_borrowed(request, outer, await self.get_response(request))
        refused = await await_(_Visit(request, self.SessionStore).opening())
        if refused is not None:
            return refused
        response: HttpResponseBase = await self.get_response(request)
        visit = _visit_of(request)
        if visit is None:
            return await sync_to_async(self._as_django, thread_sensitive=True)(request, response)
        return await await_(visit.leaving(response))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """What a view stores while no session server answers is refused as what the middleware stores."""
        return _refusal(Answer.refusal(exception)) if isinstance(exception, SessionUnavailable) else None


class _Visit:
    """One request and its response."""

    def __init__(self, request: HttpRequest, kind: type[SessionStore]) -> None:
        self._request = request
        self._kind = kind
        self._shown: str | None = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        self._store: SessionStore | None = None
        self._had_session = False

    def opening(self) -> Steps[HttpResponseBase | None]:
        meta = self._request.META
        agent = meta.get("HTTP_USER_AGENT", "")
        headers = ((b"user-agent", agent.encode("latin-1", "replace")),) if agent else ()
        shown = (self._shown or "").encode("utf-8", "replace")
        client = meta.get("REMOTE_ADDR") or None
        try:
            opened: Opened = yield from ask("open", shown, client, _COOKIE, self._request.method or "", headers)
            self._had_session = not opened.session.is_new
            self._store = store = self._kind.of(opened, self._shown)
            if not self._had_session:
                yield from _moving_in(store, self._shown)
        except SessionUnavailable as unavailable:
            return _refusal(Answer.refusal(unavailable))
        self._request.session = store
        setattr(self._request, _VISIT, self)
        return None

    def is_open(self, request: HttpRequest) -> bool:
        """Whether the request still has the session that was opened for it, and was not answered before."""
        store = self._store
        if store is None or store._opened is None or request.session is not store:
            return False
        return store._opened.phase is Phase.OPEN

    def leaving(self, response: HttpResponseBase) -> Steps[HttpResponseBase]:
        store = self._store
        assert store is not None
        opened = store._opened
        assert opened is not None
        wants = store.modified or settings.SESSION_SAVE_EVERY_REQUEST
        saves = wants and not store.is_empty() and response.status_code < SERVER_ERROR
        if store.accessed:
            opened.session.mark_accessed()
        if saves:
            store.put((yield from store._data()))
        answer: Answer = yield from ask("finish", opened, response.status_code, _headers(response))
        if answer.refused:
            if answer.status == 409 and not (yield from store._existing(store.session_key)):
                raise SessionInterrupted(OVER)
            return _refusal(answer)
        if answer.token:
            store._take_key(answer.token.decode())
            yield from store.leaving_former()
        _tell_caches(response, answer)
        if self._may_tell(response, store, opened, saves):
            self._set_cookie(response, store, opened.session, saves)
        elif store.was_flushed and self._shown is not None and store.session_key is None:
            _forget_cookie(response)
        return response

    def _may_tell(self, response: HttpResponseBase, store: SessionStore, opened: Opened, saved: bool) -> bool:
        """Whether the browser is to be given a cookie: a key that it does not have, or the same for longer.

        A key that was replaced is given to nobody again: the browser has a newer one.
        """
        key = store.session_key
        if key is None or (response.status_code >= SERVER_ERROR and not self._had_session):
            return False
        return key != self._shown or (saved and opened.session._request.verdict in _NEWEST)

    def _set_cookie(self, response: HttpResponseBase, store: SessionStore, session: Session, saved: bool) -> None:
        max_age = expires = None
        if not store.get_expire_at_browser_close():
            now_ms = configuration.sessions().now_ms()
            ends_at = mapping.ends_at(session)
            if saved or ends_at is None:
                max_age = store.get_expiry_age()
            else:
                max_age = max(0, (ends_at - now_ms) // 1000)
            expires = http_date(now_ms / 1000 + max_age)
        response.set_cookie(
            settings.SESSION_COOKIE_NAME,
            store.session_key or "",
            max_age=max_age,
            expires=expires,
            domain=settings.SESSION_COOKIE_DOMAIN,
            path=settings.SESSION_COOKIE_PATH,
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=settings.SESSION_COOKIE_HTTPONLY,
            samesite=settings.SESSION_COOKIE_SAMESITE,
        )
        _keep_from_caches(response)


def _visit_of(request: HttpRequest) -> _Visit | None:
    visit: _Visit | None = getattr(request, _VISIT, None)
    return visit if visit is not None and visit.is_open(request) else None


def _outer(request: HttpRequest) -> Session | None:
    """The session that a layer outside of Django has opened."""
    places = (getattr(request, "scope", None), getattr(request, "environ", None))
    for place, key in zip(places, ("session", ENVIRON_KEY), strict=True):
        found = place.get(key) if place is not None else None
        if isinstance(found, Session):
            return found
    return None


def _moving_in(store: SessionStore, shown: str | None) -> Steps[None]:
    """Where the browser shows no session of ours: go on with the one of before."""
    found = yield from store.finding_former(shown)
    if found is not None:
        store.move_in(found)


def _borrowing(request: HttpRequest, outer: Session) -> Steps[HttpResponseBase | None]:
    """Take the outer layer's session; what comes back instead of ``None`` is the answer."""
    store = request.session = BorrowedStore(outer)
    if outer.is_new:
        try:
            yield from _moving_in(store, request.COOKIES.get(settings.SESSION_COOKIE_NAME))
        except SessionUnavailable as unavailable:
            return _refusal(Answer.refusal(unavailable))
    return None


def _leave_borrowed(request: HttpRequest, outer: Session, response: HttpResponseBase) -> HttpResponseBase:
    store = request.session
    if not isinstance(store, BorrowedStore):
        return response
    if store.accessed:
        outer.mark_accessed()
        patch_vary_headers(response, ("Cookie",))
    wants = store.modified or settings.SESSION_SAVE_EVERY_REQUEST
    if wants and not store.is_empty() and response.status_code < SERVER_ERROR:
        store.put(store._session)
        moved, store._moving = store._moving, None
        if moved is not None:
            _forget_cookie(response)
            response._resource_closers.append(partial(_leave_if_stored, outer, moved))
    return response


def _leave_if_stored(outer: Session, moved: FormerSession) -> None:
    """When the response is closed: the outer layer has stored the session by then, or it never will."""
    if not outer.is_new:
        moved.leave()


def _forget_cookie(response: HttpResponseBase) -> None:
    response.delete_cookie(
        settings.SESSION_COOKIE_NAME,
        path=settings.SESSION_COOKIE_PATH,
        domain=settings.SESSION_COOKIE_DOMAIN,
        samesite=settings.SESSION_COOKIE_SAMESITE,
    )
    _keep_from_caches(response)


def _refusal(answer: Answer) -> HttpResponse:
    response = HttpResponse(f"session: {answer.refused}\n", status=answer.status, content_type="text/plain")
    for name, value in answer.headers:
        response[name.decode()] = value.decode()
    return response


def _headers(response: HttpResponseBase) -> list[tuple[bytes, bytes]]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.items()]
    if not response.streaming:
        headers.append((b"content-length", b""))  # nothing reads the session when this response has left
    return headers


def _tell_caches(response: HttpResponseBase, answer: Answer) -> None:
    if type(answer.headers) is list and (b"vary", b"Cookie") in answer.headers:
        patch_vary_headers(response, ("Cookie",))
    if (b"cache-control", b"no-store") in answer.headers:
        response["Cache-Control"] = "no-store"


def _keep_from_caches(response: HttpResponseBase) -> None:
    patch_vary_headers(response, ("Cookie",))
    response["Cache-Control"] = "no-store"
