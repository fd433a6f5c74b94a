"""What browsers are answered about their bound sessions, for any front (protocol section 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from coatcheck.device.challenges import Challenge, ChallengeCodec, ChallengeKind
from coatcheck.device.headers import (
    RESPONSE,
    SESSION_ID,
    SKIPPED,
    challenge_for,
    read_item,
    read_skipped,
    the_only,
)
from coatcheck.device.proofs import KeyProof, Registration
from coatcheck.device.refusals import ProofReason, ProofRefused
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import (
    ConflictError,
    SessionClosed,
    SessionUnavailable,
    TokenReason,
    TokenRejected,
    UnavailableReason,
)
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.effects import Flow, FreshKeys
from coatcheck.sessions.answer import Answer, CookieTransport
from coatcheck.sessions.ending import Alive, look
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.proving import NotBound, ProofWanted
from coatcheck.sessions.routes import Header

NO_STORE: Final[Header] = (b"cache-control", b"no-store")
JSON: Final[Header] = (b"content-type", b"application/json")
REFUSED: Final = "the proof is refused"
PROVE_FIRST: Final = "the browser must prove that it is there"
MAX_LOCATION: Final = 8192
"""Characters of an address that a browser is sent to again."""

T = TypeVar("T")
Answered = tuple[Answer, bytes]
"""An answer, and its body, which is the front's own where the answer is a refusal."""


class DeviceDesk:
    """``transport``: as this front keeps its sessions in browsers; it has a :attr:`CookieTransport.device_path`."""

    def __init__(self, transport: CookieTransport, path: str) -> None:
        self._transport = transport
        self.register_path = path + "register"
        self.refresh_path = path + "refresh"

    async def register(self, sessions: Sessions, opened: Opened, headers: Sequence[Header]) -> Answered:
        """A browser has made a key for the login that it was just answered with."""
        token, challenges = opened.session._request.shown, _challenges_of(sessions)
        if token is None or not opened.session._request.login:
            return self._refused(sessions, b"", ProofReason.FOREIGN), b""
        proof = read_item(the_only(headers, RESPONSE))
        try:
            read = await self._read(sessions, opened, proof, lambda text: Registration(text, challenges))
            key = read.key_for(token.key, sessions.requests.now_ms())
            issue = await sessions.run_for(opened, sessions.lifecycle.bind(token, key))
        except ProofRefused as refused:
            return self._refused(sessions, token.key, refused.reason), b""
        except (SessionUnavailable, ConflictError, SessionClosed) as error:
            return Answer.refusal(error), b""
        return self._bound(sessions, token.key, challenges.name(token.key), issue, 0)

    async def refresh(self, sessions: Sessions, opened: Opened, headers: Sequence[Header]) -> Answered:
        """A browser wants the next cookie of a session that it calls by the name that we gave it."""
        challenges, text = _challenges_of(sessions), read_item(the_only(headers, RESPONSE))
        name = read_item(the_only(headers, SESSION_ID)) or ""
        key = b""
        try:
            key = await self._read(sessions, opened, name, challenges.session)
            proof, why = None, ProofReason.MISSING
            if text is not None:
                try:
                    proof = await self._read(sessions, opened, text, lambda one: KeyProof(one, challenges))
                except ProofRefused as refused:
                    why = refused.reason
            shown = opened.session._request.shown
            issue, serial = await sessions.run_for(opened, sessions.lifecycle.prove(key, name, proof, shown))
        except ProofWanted as wanted:
            reason = why if proof is None else wanted.reason
            if reason is not ProofReason.MISSING:
                self._report(sessions, key, reason)
            asked = self._challenge(sessions, key, name, wanted.serial)
            return Answer(403, [NO_STORE, asked], refused=REFUSED), b""
        except (SessionClosed, NotBound):
            return _ended(name)
        except ProofRefused as refused:
            return self._refused(sessions, key, refused.reason, status=400), b""
        except (SessionUnavailable, ConflictError) as error:
            return Answer.refusal(error), b""
        return self._bound(sessions, key, name, issue, serial)

    async def waits(self, sessions: Sessions, opened: Opened, headers: Sequence[Header]) -> Answer | None:
        """What a request is refused with whose browser says that it could not sign now, while its session lives; else
        ``None``. It is not sent to sign again: it would come back like this."""
        said = the_only(headers, SKIPPED)
        if said is None or opened.session._request.login:
            return None
        challenges = _challenges_of(sessions)
        for skipped in read_skipped(said):
            try:
                key = await self._read(sessions, opened, skipped.session, challenges.session)
                closed_before = sessions.everyone.closed_before
                found = await sessions.run_for(opened, look(sessions.copies, key, closed_before))
            except ProofRefused:
                continue
            except SessionUnavailable as unavailable:
                return Answer.refusal(unavailable)
            if isinstance(found, Alive):
                return Answer.refusal(SessionUnavailable(UnavailableReason.UNPROVED))
        return None

    def prove_first(self, method: str, target: str) -> Answer:
        """For who shows a token of a bound session that is too old: its cookie is taken away, so that its browser
        signs; then it comes again. ``target``: path and query as they were sent.

        What may not be sent twice is refused: the page's next request signs.
        """
        headers: list[Header] = [NO_STORE, self._transport.login.delete_cookie()]
        # A path that begins with two slashes would be another host's.
        if method in ("GET", "HEAD") and not target.startswith("//") and len(target) <= MAX_LOCATION:
            headers += [(b"location", target.encode("latin-1")), (b"content-length", b"0")]
            return Answer(307, headers)
        return Answer(403, headers, refused=PROVE_FIRST)

    async def _read(self, sessions: Sessions, opened: Opened, text: str | None, reader: Callable[[str], T]) -> T:
        """What a text says that may be sealed with a key that is not known here yet."""
        if text is None:
            raise ProofRefused(ProofReason.MISSING)
        try:
            return reader(text)
        except TokenRejected:
            if sessions.asks_for_keys:
                await sessions.run_for(opened, _fresh_keys())
        try:
            return reader(text)
        except TokenRejected as rejected:
            unknown = rejected.reason is TokenReason.UNKNOWN_KEY
            raise ProofRefused(ProofReason.CHALLENGE if unknown else ProofReason.FOREIGN) from None

    def _bound(self, sessions: Sessions, key: bytes, name: str, issue: Issue, serial: int) -> Answered:
        jar = self._transport.login
        body = msgspec.json.encode(
            {
                "session_identifier": name,
                "refresh_url": self.refresh_path,
                "scope": {"include_site": False},
                "credentials": [{"type": "cookie", "name": jar.name.decode(), "attributes": jar.fixed_attributes}],
                # A link at another site leads to a page with the session, too.
                "allowed_refresh_initiators": ["*"],
            }
        )
        assert issue.life_s is not None
        cookie = jar.set_short_cookie(sessions.seal(issue), issue.life_s)
        headers = [JSON, (b"content-length", b"%d" % len(body)), NO_STORE, cookie]
        return Answer(200, [*headers, self._challenge(sessions, key, name, serial)], [cookie]), body

    def _challenge(self, sessions: Sessions, key: bytes, name: str, serial: int) -> Header:
        challenge = Challenge(ChallengeKind.PROVE, key, sessions.requests.now_ms(), serial)
        return challenge_for(_challenges_of(sessions).seal(challenge), name)

    def _refused(self, sessions: Sessions, key: bytes, reason: ProofReason, status: int = 403) -> Answer:
        self._report(sessions, key, reason)
        return Answer(status, [NO_STORE], refused=REFUSED)

    def _report(self, sessions: Sessions, key: bytes, reason: ProofReason) -> None:
        sessions.report(Event(EventKind.PROOF_REFUSED, public_id(key) if key else "", reason.value))


def _ended(name: str) -> Answered:
    """There is nothing to refresh any more: the browser forgets the key."""
    body = msgspec.json.encode({"session_identifier": name, "continue": False})
    return Answer(200, [JSON, (b"content-length", b"%d" % len(body)), NO_STORE]), body


def _challenges_of(sessions: Sessions) -> ChallengeCodec:
    assert sessions.challenges is not None
    return sessions.challenges


def _fresh_keys() -> Flow[None]:
    is_fresh: bool = yield FreshKeys()
    if not is_fresh:
        raise SessionUnavailable(UnavailableReason.KEYS)
