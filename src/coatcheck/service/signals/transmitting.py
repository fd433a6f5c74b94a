"""Sessions end here, and receivers are told: a bounded queue for each, tries with pauses, and an event at the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
import time
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coatcheck.events import Event, EventKind, Observer
from coatcheck.service.signals.event_tokens import Signal, payload_of, type_of
from coatcheck.service.signals.settings import Algorithm, Receiver, SignalSettings, Transmitter, bearer_of
from coatcheck.tokens.keyring import KeyRing

SSF_PATH: Final = "/.well-known/ssf-configuration"
JWKS_PATH: Final = "/v1/signals/jwks"
PUSH: Final = "urn:ietf:rfc:8935"
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
JTI_BYTES: Final = 16


def signal_of(event: Event, now_s: int) -> Signal | None:
    """What others are to be told of an event; ``None``: nothing. Who never logged in is known to nobody else."""
    if event.kind is EventKind.ALL_CLOSED:
        return Signal(at_s=now_s)
    if not event.user:
        return None
    if event.kind is EventKind.SESSION_CLOSED:
        return Signal(event.user, event.session, now_s)
    if event.kind is EventKind.SESSION_THEFT and event.detail.startswith("close"):
        return Signal(event.user, event.session, now_s, stolen=True)
    return Signal(event.user, at_s=now_s) if event.kind is EventKind.USER_CLOSED else None


class SignalSigner:
    """Signs with keys that are derived from the farm's key ring: every process signs alike, and nothing is stored."""

    def __init__(self, ring: KeyRing, farm: str, algorithm: Algorithm) -> None:
        self._farm = farm
        self._algorithm = algorithm
        self.use(ring)

    def use(self, ring: KeyRing) -> None:
        """Sign with what this ring seals with, from now on."""
        derived, primary = ring.derived(f"logout signals {self._algorithm}\x00{self._farm}")
        keys = [_private_key(secret, self._algorithm) for secret in derived]
        self._key = keys[primary]
        self.jwks = [_jwk(key, self._algorithm) for key in keys]
        """The public keys of all keys of the ring, so that the one that signs next is known before it does."""
        self._key_id = self.jwks[primary]["kid"]

    def sign(self, payload: Mapping[str, Any], kind: str) -> str:
        headers = {"kid": self._key_id, "typ": kind}
        return jwt.encode(dict(payload), self._key, algorithm=self._algorithm, headers=headers)


def configuration_of(transmitter: Transmitter) -> dict[str, Any]:
    """What describes us (OpenID Shared Signals Framework 1.0, section 7.1); streams are set up by our operator."""
    return {
        "spec_version": "1_0",
        "issuer": transmitter.issuer,
        "jwks_uri": transmitter.issuer + JWKS_PATH,
        "delivery_methods_supported": [PUSH],
        "default_subjects": "ALL",
    }


class Outgoing(msgspec.Struct):
    """One signal on its way to one receiver; ``jti`` stays the same over its tries."""

    signal: Signal
    jti: str
    since: float


class _ReceiverLine:
    """One receiver and what waits for it."""

    def __init__(self, name: str, receiver: Receiver, bearer: str) -> None:
        self.name = name
        self.receiver = receiver
        self.headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
        self.waiting: deque[Outgoing] = deque()
        self.is_work = asyncio.Event()


class SignalSender:
    """Tells all receivers of one process; :meth:`observe` takes the events of its sessions.

    What waits is kept in memory: a process that dies tells nobody, and those that it would have told find out when
    they ask.
    """

    MAX_WAITING: ClassVar = 1_000
    """For each receiver; one more takes the place of the oldest."""
    AT_ONCE: ClassVar = 4
    """Requests to each receiver beside each other."""
    TIMEOUT_S: ClassVar = 5.0
    """For each try."""
    MAX_TRIES: ClassVar = 10
    GIVE_UP_S: ClassVar = 300.0
    """After so long nobody need hear of it any more."""
    FIRST_PAUSE_S: ClassVar = 0.5
    MAX_PAUSE_S: ClassVar = 60.0
    STOP_GRACE_S: ClassVar = 2.0
    """At a stop, for what is still on its way."""

    def __init__(
        self,
        settings: SignalSettings,
        beside: Path,
        ring: KeyRing,
        farm: str,
        report: Observer,
        now_s: Callable[[], float],
    ) -> None:
        """``report`` is told what could not be delivered; ``now_s``: Unix seconds, which signals are stamped with.
        Raises :class:`ConfigError` for a wrong bearer file."""
        assert settings.transmitter is not None
        self.transmitter = settings.transmitter
        self.signer = SignalSigner(ring, farm, self.transmitter.algorithm)
        self._report = report
        self._now_s = now_s
        named = settings.receivers.items()
        self._lines = [_ReceiverLine(name, receiver, bearer_of(receiver, beside)) for name, receiver in named]
        self._tasks: list[asyncio.Task[None]] = []
        self._http: httpx.AsyncClient | None = None
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.told = 0
        self.lost = 0

    def start(self) -> None:
        """Begin to tell, on the running event loop."""
        self._http = httpx.AsyncClient(
            verify=ssl.create_default_context(), trust_env=False, timeout=self.TIMEOUT_S, follow_redirects=False
        )
        for line in self._lines:
            self._tasks += [asyncio.create_task(self._work(line)) for _ in range(self.AT_ONCE)]

    async def aclose(self) -> None:
        """Tell what waits, for a moment; what is left is lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.STOP_GRACE_S):
                await self._idle.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines:
            while line.waiting:
                self._lose(line, line.waiting.popleft(), "the process stops")
        if self._http is not None:
            await self._http.aclose()

    @property
    def waiting(self) -> int:
        """Signals that are not told yet."""
        return sum(len(line.waiting) for line in self._lines) + self._under_way

    def observe(self, event: Event) -> None:
        """Have receivers told of an event, if it is one that concerns them; waits for nobody."""
        signal = signal_of(event, int(self._now_s()))
        if signal is None:
            return
        for line in self._lines:
            told = Outgoing(signal, secrets.token_urlsafe(JTI_BYTES), time.monotonic())
            if payload_of(signal, line.receiver.form, "", "", "", 0) is None:
                self._lose(line, told, "a logout token cannot say that everybody was logged out")
                continue
            if len(line.waiting) >= self.MAX_WAITING:
                self._lose(line, line.waiting.popleft(), f"{self.MAX_WAITING} are waiting")
            line.waiting.append(told)
            self._idle.clear()
            line.is_work.set()

    async def _work(self, line: _ReceiverLine) -> None:
        while True:
            while not line.waiting:
                line.is_work.clear()
                await line.is_work.wait()
            told = line.waiting.popleft()
            self._under_way += 1
            try:
                await self._tell(line, told)
            except asyncio.CancelledError:
                self._lose(line, told, "the process stops")
                raise
            finally:
                self._under_way -= 1
                if not self.waiting:
                    self._idle.set()

    async def _tell(self, line: _ReceiverLine, told: Outgoing) -> None:
        why = ""
        for attempt in range(self.MAX_TRIES):
            if attempt:
                pause_s = min(self.MAX_PAUSE_S, self.FIRST_PAUSE_S * 2 ** (attempt - 1))
                await asyncio.sleep(pause_s * (0.5 + random.random()))
            if time.monotonic() - told.since > self.GIVE_UP_S:
                break
            why, is_final = await self._try(line, told)
            if not why:
                self.told += 1
                return
            if is_final:
                break
        self._lose(line, told, why or "it waited too long")

    async def _try(self, line: _ReceiverLine, told: Outgoing) -> tuple[str, bool]:
        """Why it was not taken (empty: it was), and whether trying again would help nobody."""
        assert self._http is not None
        receiver = line.receiver
        payload = payload_of(
            told.signal, receiver.form, self.transmitter.issuer, receiver.audience, told.jti, int(self._now_s())
        )
        token = self.signer.sign(payload or {}, type_of(receiver.form))
        try:
            async with asyncio.timeout(self.TIMEOUT_S):
                status = await self._post(line, token)
        except (httpx.HTTPError, OSError, TimeoutError) as failure:
            return type(failure).__name__, False
        if 200 <= status < 300:
            return "", True
        return f"status {status}", 300 <= status < 500 and status not in (408, 425, 429)

    async def _post(self, line: _ReceiverLine, token: str) -> int:
        """Only the head of the answer is read: nothing that a receiver says can fill our memory."""
        assert self._http is not None
        if line.receiver.form == "logout-token":
            form = {"logout_token": token}
            request = self._http.build_request("POST", line.receiver.url, data=form, headers=line.headers)
        else:
            headers = {**line.headers, "Content-Type": "application/secevent+jwt"}
            request = self._http.build_request("POST", line.receiver.url, content=token, headers=headers)
        answer = await self._http.send(request, stream=True)
        await answer.aclose()
        return answer.status_code

    def _lose(self, line: _ReceiverLine, told: Outgoing, why: str) -> None:
        self.lost += 1
        signal = told.signal
        detail = f"{line.name} was not told: {why}"
        self._report(Event(EventKind.SIGNAL_LOST, signal.session, detail, signal.user))


def _private_key(secret: bytes, algorithm: Algorithm) -> Any:
    if algorithm == "EdDSA":
        return Ed25519PrivateKey.from_private_bytes(secret)
    # A number of twice the length leaves no bias that anybody could see (FIPS 186-5, A.2.1).
    number = int.from_bytes(sha512(secret).digest()) % (P256_ORDER - 1) + 1
    return ec.derive_private_key(number, ec.SECP256R1())


def _jwk(key: Any, algorithm: Algorithm) -> dict[str, str]:
    public = key.public_key()
    if algorithm == "EdDSA":
        members = {"kty": "OKP", "crv": "Ed25519", "x": _text(public.public_bytes_raw())}
    else:
        at = public.public_numbers()
        members = {"kty": "EC", "crv": "P-256", "x": _text(at.x.to_bytes(32)), "y": _text(at.y.to_bytes(32))}
    key_id = sha256(members["x"].encode()).hexdigest()[:16]
    return {**members, "alg": algorithm, "use": "sig", "kid": key_id}


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
