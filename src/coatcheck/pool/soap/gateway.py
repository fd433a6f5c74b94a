"""Session headers for SOAP clients that know nothing of sessions: each call gets a token of the pool, and leaves the
refreshed one there.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from lxml import etree

from coatcheck.pool import AsyncTokenPool, PoolError
from coatcheck.pool.adapters.exchange import MAX_ATTEMPTS, refresh, refuse_async, report
from coatcheck.pool.aio import AsyncTokenLease
from coatcheck.pool.soap.envelope import Envelope, EnvelopeLimits, open_envelope, serialised
from coatcheck.pool.soap.faults import EXPIRED_FAULTS, FaultReason, SoapFault, fault_of, fault_words, refuses_token
from coatcheck.pool.soap.session_headers import SessionHeaders
from coatcheck.pool.soap.upstream import SoapUpstream, UpstreamAnswer
from coatcheck.pool.soap.versions import SoapVersion

CALL_LIMITS: Final = EnvelopeLimits(body_bytes=1024 * 1024, depth=128, elements=50_000, headers=32)
GATEWAY_NS: Final = "urn:coatcheck:gateway"

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SoapCall:
    """What a client asks. ``action``: of the operation, without quotes."""

    envelope: Envelope
    action: str


class SoapGateway:
    """Calls of ``user`` at one upstream, with tokens that this ``password`` opened.

    ``expired``: what its faults say (:func:`fault_words`) of a token that is of no use any more; it says so before it
    does what was asked.
    """

    def __init__(
        self,
        pool: AsyncTokenPool,
        user: str,
        password: str | None,
        upstream: SoapUpstream,
        placing: SessionHeaders,
        expired: Collection[str] = EXPIRED_FAULTS,
    ) -> None:
        self._pool = pool
        self._user = user
        self._password = password
        self._upstream = upstream
        self._placing = placing
        self._expired = expired

    async def call(self, asked: SoapCall) -> UpstreamAnswer:
        """The upstream's answer, without session headers; its faults as well.

        A call whose token was refused was not carried out, and is made again with another token; what may have been
        carried out is never repeated.

        Raises:
            SoapFault: there is no token, or no answer.
        """
        if self._placing.take_out(copy.deepcopy(asked.envelope.root)):
            raise SoapFault(FaultReason.BAD_HEADER, "session headers are the gateway's to put in; send none")
        attempt = 0
        while True:
            attempt += 1
            try:
                held = await self._pool.lease(self._user, self._password).acquire()
            except PoolError as error:
                raise SoapFault(FaultReason.NO_SESSION, f"{error}; nothing was sent") from error
            answer, better = await self._call_with(held, asked)
            if not better or attempt >= MAX_ATTEMPTS:
                return answer

    async def _call_with(self, held: AsyncTokenLease, asked: SoapCall) -> tuple[UpstreamAnswer, bool]:
        """The answer, and whether it refused the token so that another one may do."""
        failed = True
        try:
            envelope = copy.deepcopy(asked.envelope.root)
            self._placing.apply(envelope, held.token)
            answer = await self._upstream.post(asked.envelope.version, serialised(envelope), asked.action)
            refused, failed = self._judge(held, answer)
            return answer, refused and await refuse_async(held)
        except SoapFault as fault:
            # The token was not even shown.
            failed = fault.reason is not FaultReason.UPSTREAM_UNREACHABLE
            raise
        finally:
            try:
                await held.release(failed=failed)
            except PoolError as error:
                report(self._user, error)

    def _judge(self, held: AsyncTokenLease, answer: UpstreamAnswer) -> tuple[bool, bool]:
        """Take the session headers out of an answer. Whether it refuses the token; whether that's state is unknown."""
        if answer.envelope is None:
            return False, False
        root = answer.envelope.root
        token = self._placing.extract(root)
        self._placing.take_out(root)
        fault = fault_of(root)
        if token:
            # Whatever it says else: the session is alive, and the call may have been carried out.
            try:
                refresh(held, token)
            except ValueError as error:
                log.warning("the upstream's fresh token of %r is none: %s", self._user, error)
                return False, True
            return False, False
        if fault is None:
            return False, False
        if refuses_token(fault, self._expired):
            return True, False
        return False, True


@dataclass(frozen=True, slots=True)
class LoginOperations:
    """How to log in and out at an upstream: operations without arguments, called with credentials or a token.

    ``login``, ``logout``: their elements, as ``{NAMESPACE}NAME``; any harmless operation serves for the login.
    """

    upstream: SoapUpstream
    placing: SessionHeaders
    version: SoapVersion
    login: str
    logout: str

    async def log_in(self, user: str, password: str | None) -> str:
        """The session token of the answer. Raises :class:`SoapFault`."""
        envelope = self._calling(self.login)
        self.placing.sign_in(envelope, user, password or "")
        with _reported("login", user):
            answer = await self._sent(envelope, self.login)
            token = None if answer is None else self.placing.extract(answer)
            if not token:
                said = "the upstream answered the login without a session token; are operation and session type right?"
                raise SoapFault(FaultReason.BAD_ANSWER, said)
            return token

    async def log_out(self, user: str, token: str) -> None:
        """End the token's session. Raises :class:`SoapFault`."""
        envelope = self._calling(self.logout)
        self.placing.apply(envelope, token)
        with _reported("logout", user):
            await self._sent(envelope, self.logout)

    def _calling(self, operation: str) -> etree._Element:
        envelope, body = open_envelope(self.version)
        etree.SubElement(body, operation)
        return envelope

    async def _sent(self, envelope: etree._Element, operation: str) -> etree._Element | None:
        name = etree.QName(operation)
        action = f"{(name.namespace or '').removesuffix('/')}/{name.localname}" if name.namespace else name.localname
        answer = await self.upstream.post(self.version, serialised(envelope), action)
        if answer.envelope is None:
            return None
        fault = fault_of(answer.envelope.root)
        if fault is not None:
            said = ", ".join(sorted(word for word in fault_words(fault) if word.startswith(_TOLD)))
            raise SoapFault(FaultReason.LOGIN_FAILED, f"the upstream refused {name.localname}: {said}")
        return answer.envelope.root


@contextlib.contextmanager
def _reported(what: str, user: str) -> Iterator[None]:
    """The pool tells callers only that a login failed; why is for the operator."""
    try:
        yield
    except SoapFault as fault:
        log.warning("%s of %r failed: %s", what, user, fault)
        raise


_TOLD: Final = ("faultcode=", "Value=", "Reason=")
"""Of a fault, what is for programs; its text might repeat what was sent."""
