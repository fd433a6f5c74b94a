"""Users who log in at web servers of a tiny farm: without sockets, on a clock that only tests move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coatcheck.errors import CoatcheckError
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.user_index import UserIndex, decode_index
from coatcheck.sessions.users import UserClosed, UserIndexes, UserSession
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import Farm, WebServer

HOUR_S = 3600.0
IPHONE = b"Mozilla/5.0 (iPhone)"


class UserFarm(Farm):
    """A farm whose web servers keep indexes of users; ``limit`` and ``at_limit`` as the settings have them."""

    def __init__(
        self,
        servers: int = 3,
        copies: int = 2,
        limit: int = 0,
        at_limit: Any = "close-oldest",
        policy: SessionPolicy | None = None,
        **replication: Any,
    ) -> None:
        policy = policy or SessionPolicy(sessions_per_user=limit, at_session_limit=at_limit)
        super().__init__(servers, copies, policy, **replication)
        self.index_ring = KeyRing([b"A" * 32])

    def web(self) -> WebServer:
        web = super().web()
        mac = self.index_ring.mac("user-index", "farm")
        web.lifecycle.users = UserIndexes(web.copies, self.policy, lambda user: mac.marks(user.encode(), 16))
        return web

    def index(self, web: WebServer, user: str = "ada") -> UserIndex:
        """What is stored of a user, as one web server opens it."""
        view = web.run(web.copies.viewer.look(users(web).keys_of(user)[0]))
        return UserIndex() if view.newest is None else decode_index(view.body)


def users(web: WebServer) -> UserIndexes:
    assert web.lifecycle.users is not None
    return web.lifecycle.users


def log_in(web: WebServer, user: str = "ada", device: bytes = IPHONE, session: Session | None = None) -> SealedToken:
    """A login, and the token that its answer tells."""
    session = Session({"n": 1}) if session is None else session
    session._request.headers, session._request.client = [(b"user-agent", device)], "192.0.2.7"
    session.regenerate(user)
    saved = web.save(session)
    assert saved.issue is not None
    return saved.issue.token


def refused(web: WebServer, user: str = "ada") -> CoatcheckError:
    """The error of a login that is not told."""
    try:
        log_in(web, user)
    except CoatcheckError as error:
        return error
    raise AssertionError("the login was told")


def sessions_of(web: WebServer, user: str = "ada") -> list[UserSession]:
    return web.run(users(web).sessions_of(user))


def keys_of(web: WebServer, user: str = "ada") -> list[bytes]:
    return [bytes.fromhex(one.key) for one in sessions_of(web, user)]


def close(web: WebServer, user: str = "ada", but: bytes | None = None) -> UserClosed:
    return web.run(users(web).close_user(user, but))


def use(web: WebServer, token: SealedToken) -> SealedToken | None:
    """A request that writes; ``None`` if the token opens nothing."""
    session = web.open(token, login=True)
    if session is None:
        return None
    session["n"] = session.get("n", 0) + 1
    saved = web.save(session)
    return saved.issue.token if saved.issue is not None else token


def work(web: WebServer) -> int:
    """Do what the background is asked for."""
    done = 0
    while (flow := users(web).next_work()) is not None:
        web.run(flow)
        done += 1
    return done


def alive(web: WebServer, tokens: Sequence[SealedToken]) -> list[bool]:
    return [web.read(token, login=True) is not None for token in tokens]
