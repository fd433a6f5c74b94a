"""The provider: one request after the other, from envelope to envelope (mission D8).

The rules are in `rules.py`; here are the sessions, the waiting and the failing on purpose.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.versions import SoapVersion
from coatcheck.soap_provider.messages import SoapRequest, write_fault, write_reply
from coatcheck.soap_provider.misbehaviour import Dice, Misbehaviour
from coatcheck.soap_provider.operations import LOG_OUT, Accounts, OperationResult, perform
from coatcheck.soap_provider.options import ANY_USER, MAX_CREDENTIAL_CHARS, ProviderOptions
from coatcheck.soap_provider.rules import Presented, TokenLimits, WayIn, enter, leave
from coatcheck.soap_provider.session_types import SessionType, parse_session_type
from coatcheck.soap_provider.sessions import ProviderSession, SessionTable
from coatcheck.soap_provider.token import SessionToken, SessionTokenCodec
from coatcheck.tokens.keyring import KeyRing

MAX_EXPIRED_USERS = 1000
"""Users whose tokens the operator has expired one by one; beyond, all are."""


@dataclass(slots=True)
class ProviderWorld:
    """Time, randomness and waiting: Unix ms, random bytes, numbers from 0 to 1, sleeping for seconds."""

    now: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    uniform: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Provider:
    """One server. All its methods run in one event loop; between two waits nothing else does."""

    def __init__(self, options: ProviderOptions, world: ProviderWorld) -> None:
        self.options = options
        self.misbehaviour: Misbehaviour = options.misbehaviour
        # After the token's time nobody can come back to the session.
        self.sessions = SessionTable(min(options.idle_s, options.token_timeout_s), world.random_bytes)
        self.counters: Counter[str] = Counter()
        self._world = world
        self._dice = Dice(world.uniform)
        self._codec = SessionTokenCodec(
            KeyRing([options.key or world.random_bytes(32)]), "provider", world.random_bytes
        )
        self._accounts = Accounts()
        self._not_before: dict[str, int] = {}
        self._all_not_before = 0

    async def answer(self, request: SoapRequest) -> tuple[bytes, int]:
        """The reply's envelope and HTTP status. Whatever goes wrong is a fault."""
        self.counters["requests"] += 1
        headers: dict[str, str] = {}
        try:
            if self.misbehaviour.latency_s:
                await self._world.sleep(self.misbehaviour.latency_s)
            answer = await self._serve(request, headers)
        except SoapFault as fault:
            return self.fault(fault, request.version, headers)
        return write_reply(request.version, request.operation, answer.results, headers), 200

    def fault(self, fault: SoapFault, version: SoapVersion, headers: dict[str, str] | None = None) -> tuple[bytes, int]:
        """A fault's envelope and HTTP status, counted."""
        self.counters[f"fault.{fault.reason.value}"] += 1
        return write_fault(version, fault, headers or {}), fault.reason.status(version)

    async def _serve(self, request: SoapRequest, headers: dict[str, str]) -> OperationResult:
        presented = self._presented(request.headers)
        if presented.token is not None:
            self._misbehave(presented.token)
        if request.operation == LOG_OUT:
            return self._log_out(presented)
        session = await self._enter(presented)
        asked = presented.session_type
        try:
            session.requests += 1
            if self._dice.happens(self.misbehaviour.fault_rate):
                raise SoapFault(FaultReason.OUT_OF_ORDER, "the provider fails on purpose")
            answer = perform(request.operation, request.arguments, session, self._accounts, self.options.server)
            if answer.delay_s:
                await self._world.sleep(answer.delay_s)
            return answer
        finally:
            headers.update(self._leave(session, asked, presented))

    def _presented(self, headers: dict[str, str]) -> Presented:
        username = headers.get("UsernameToken") or None
        password = headers.get("PasswordText")
        if max(len(username or ""), len(password or "")) > MAX_CREDENTIAL_CHARS:
            raise SoapFault(FaultReason.BAD_HEADER, f"credentials have at most {MAX_CREDENTIAL_CHARS} characters")
        token = headers.get("SessionToken")
        return Presented(
            parse_session_type(headers.get("SessionType")),
            username,
            password,
            self._codec.open(token) if token else None,
        )

    def _misbehave(self, token: SessionToken) -> None:
        if self._dice.happens(self.misbehaviour.expire_rate):
            session = self.sessions.get(token.session_id, self._world.now())
            if session is None or not session.busy:
                self.counters["expired"] += 1
                self._close_if_idle(session)
                raise SoapFault(FaultReason.TOKEN_EXPIRED, "the session token has expired; log in")
        if self._dice.happens(self.misbehaviour.kill_rate):
            idle = [session for session in self.sessions.of(None) if not session.busy]
            if idle:
                self.counters["killed"] += 1
                self.sessions.close(idle[self._dice.below(len(idle))])

    async def _enter(self, presented: Presented) -> ProviderSession:
        now = self._world.now()
        token = presented.token
        session = self.sessions.get(token.session_id, now) if token is not None else None
        limits = self._limits(token)
        entry = enter(presented, session.state if session else None, self.options.server, limits, now)
        self.counters[f"entry.{entry.value}"] += 1
        if entry is WayIn.RESUME:
            assert session is not None
            session.busy = True
            return session
        if entry is WayIn.ANONYMOUS:
            return self.sessions.open(None, 1, now)
        if token is not None:
            return await self._log_in(token.username, token.password)
        return await self._log_in(presented.username or "", presented.password or "")

    def _limits(self, token: SessionToken | None) -> TokenLimits:
        not_before = self._all_not_before
        if token is not None:
            not_before = max(not_before, self._not_before.get(token.username, 0))
        return TokenLimits(self.options.token_timeout_s, not_before, self.options.single_use)

    async def _log_in(self, username: str, password: str) -> ProviderSession:
        """A session that is open only if the login succeeds; it counts against the limit meanwhile."""
        session = self.sessions.open(username, self.misbehaviour.max_sessions_per_user, self._world.now())
        try:
            if self.misbehaviour.slow_login_s:
                await self._world.sleep(self.misbehaviour.slow_login_s)
            expected = self.options.users.get(username, self.options.users.get(ANY_USER))
            # Unknown users take as long as known ones.
            right = hmac.compare_digest((expected or "").encode(), password.encode()) and expected is not None
            if not right or self._dice.happens(self.misbehaviour.fail_login_rate):
                raise SoapFault(FaultReason.LOGIN_FAILED, "wrong user or password")
        except BaseException:
            self.counters["login_failures"] += 1
            self.sessions.close(session)
            raise
        self.counters["logins"] += 1
        return session

    def _leave(self, session: ProviderSession, asked: SessionType, presented: Presented) -> dict[str, str]:
        """Close the session or keep it, and the headers of the response."""
        session.busy = False
        session.session_type = leave(asked, bool(session.changes))
        now = session.seen_at = self._world.now()
        if session.session_type is SessionType.NONE or session.username is None:
            self.sessions.close(session)
            return {}
        if self.sessions.get(session.id, now) is None:
            # It was killed meanwhile: this response is its last word.
            return {}
        session.newest += 1
        # The credentials that opened the session; a token of ours has been opened, or they were in the headers.
        known = presented.token
        password = known.password if known is not None else presented.password or ""
        token = SessionToken(
            session.id, session.username, password, now, session.newest, self.options.server, session.session_type
        )
        return {"SessionType": session.session_type.value, "SessionToken": self._codec.seal(token)}

    def _log_out(self, presented: Presented) -> OperationResult:
        """Close the token's session. One that is closed already is fine; nobody is logged in for that."""
        if presented.token is None:
            raise SoapFault(FaultReason.LOGIN_REQUIRED, "Logout needs the SessionToken of the session to close")
        session = self.sessions.get(presented.token.session_id, self._world.now())
        if session is not None:
            if session.busy:
                raise SoapFault(FaultReason.SESSION_BUSY, "the session is in use by another request")
            self.sessions.close(session)
        self.counters["logouts"] += 1
        return OperationResult({})

    def expire_tokens(self, username: str | None = None) -> None:
        """All tokens issued until now are refused, of one user or of all; sessions that only they open are closed."""
        now = self._world.now() + 1
        for session in self.sessions.of(username):
            self._close_if_idle(session)
        if username is None or len(self._not_before) >= MAX_EXPIRED_USERS:
            self._all_not_before = now
            self._not_before.clear()
        else:
            self._not_before[username] = now

    def _close_if_idle(self, session: ProviderSession | None) -> None:
        """Nobody can come back to a session whose tokens have expired; one in use gets a fresh token afterwards."""
        if session is not None and not session.busy:
            self.sessions.close(session)

    def kill_sessions(self, username: str | None = None) -> int:
        """Close all sessions of one user or of all, also those in use; how many."""
        closed = self.sessions.of(username)
        for session in closed:
            self.sessions.close(session)
        self.counters["killed"] += len(closed)
        return len(closed)

    def stats(self) -> dict[str, object]:
        """Counters and open sessions by user; no secrets."""
        return {
            "server": self.options.server,
            "open_sessions": len(self.sessions),
            "sessions_by_user": self.sessions.counts(),
            "peak_sessions_per_user": self.sessions.peak_per_user,
            "counters": dict(sorted(self.counters.items())),
        }
