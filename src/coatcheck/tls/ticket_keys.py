"""Which key seals a TLS ticket, and which ones still open it: keys of periods, the same on all servers of the farm.

Time is cut into periods; each has one key, random, that all servers agree on by asking a store (the first one that asks
decides). The key of the next period is fetched a whole period ahead, so that every server knows it before any server
seals with it. Tickets of earlier periods open as long as a ticket may live; then their keys are forgotten everywhere,
and recorded connections of TLS 1.2 stay closed for ever (RFC 5077 section 5.5; RFC 9325 section 4.3). Pure: the time
is given.

A ticket opens only for the host that it was sealed for, or for its siblings: OpenSSL by itself would resume it for any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from coatcheck.tls.hosts import Siblings

SECRET_BYTES: Final = 32
NAME_BYTES: Final = 16
MAX_SECRETS: Final = 8
"""Keys of one period: after so many rotations within one, its first tickets cost a full handshake."""
MAX_HOSTS: Final = 1024
"""Hosts whose keys are kept worked out; of more, the oldest are worked out again."""


class TicketKey(NamedTuple):
    """A key for one host: its name in clear on the ticket, and what seals and marks it (RFC 5077 section 4)."""

    name: bytes
    sealing: bytes
    marking: bytes


class OpeningKey(NamedTuple):
    """The key that opens a ticket; ``is_old``: the client is to get a new one."""

    key: TicketKey
    is_old: bool


class KeyNote(NamedTuple):
    """A key as operators see it: a name that opens nothing, what it does now, and until when it opens."""

    name: str
    state: str
    """``seals`` and opens, ``opens`` alone, or is for the ``next`` period."""
    until_ms: int


class TicketKeys:
    """What one server knows. Times are Unix milliseconds.

    ``period_ms``: how long a key seals; ``lifetime_ms``: how long a ticket may live after that.
    """

    def __init__(self, period_ms: int, lifetime_ms: int, siblings: Siblings) -> None:
        self.period_ms = period_ms
        self.lifetime_ms = lifetime_ms
        self._siblings = siblings
        self._secrets: dict[int, list[bytes]] = {}
        """By period; the first one seals. More than one if the keys were rotated by hand, if a store was empty, or if
        two could not be reached alike."""
        self._retired: set[bytes] = set()
        """Those that were rotated out: they open, and seal never again, whatever a store says."""
        self._worked_out: dict[tuple[int, bytes, str], TicketKey] = {}

    def period(self, now_ms: int) -> int:
        """The number of the period at this moment."""
        return now_ms // self.period_ms

    def wanted(self, now_ms: int) -> list[int]:
        """The periods whose keys should be known now and are not: the present one first, then the next, then those of
        tickets that are still about."""
        now = self.period(now_ms)
        periods = [now, now + 1]
        periods += range(now - 1, (now_ms - self.lifetime_ms) // self.period_ms - 1, -1)
        return [period for period in periods if period not in self._secrets]

    def life_ms(self, period: int, now_ms: int) -> int:
        """How long a store must keep the key of a period, from now on: until its last ticket has ended."""
        return (period + 1) * self.period_ms + self.lifetime_ms - now_ms

    def secret(self, period: int) -> bytes | None:
        """What seals in this period, if it is known."""
        found = self._secrets.get(period)
        return found[0] if found else None

    def learn(self, period: int, secret: bytes) -> None:
        """The farm has agreed on the key of a period. Another one than is known opens, and seals nothing here."""
        known = self._secrets.setdefault(period, [])
        if secret not in known and len(known) < MAX_SECRETS:
            known.append(secret)

    def prefer(self, period: int, secret: bytes) -> None:
        """The farm has agreed on this key of a period: it seals, and what sealed before it opens."""
        if secret in self._retired:
            self.learn(period, secret)
        else:
            self._put_first(period, secret)

    def rotate(self, now_ms: int, new_secret: Callable[[], bytes]) -> None:
        """Seal with new keys from now on, in this period and in the next; what was sealed before opens as long as it
        would have."""
        now = self.period(now_ms)
        for period in (now, now + 1):
            self._retired.update(self._secrets.get(period, ()))
            self._put_first(period, new_secret())

    def is_retired(self, secret: bytes) -> bool:
        """Whether it was rotated out."""
        return secret in self._retired

    def _put_first(self, period: int, secret: bytes) -> None:
        others = [one for one in self._secrets.get(period, ()) if one != secret]
        self._secrets[period] = [secret, *others][:MAX_SECRETS]

    def told(self) -> dict[int, tuple[bytes, ...]]:
        """All secrets by period, the sealing one first: what another process needs to seal and open alike."""
        return {period: tuple(secrets) for period, secrets in self._secrets.items()}

    def replace(self, told: Mapping[int, Sequence[bytes]]) -> None:
        """Know what :meth:`told` said elsewhere, and nothing else."""
        self._secrets = {period: list(secrets) for period, secrets in told.items()}
        for worked_out in [one for one in self._worked_out if one[1] not in self._secrets.get(one[0], ())]:
            del self._worked_out[worked_out]

    def notes(self, now_ms: int) -> list[KeyNote]:
        """Every key that opens now or seals next, for operators; the oldest first."""
        now, found = self.period(now_ms), []
        for period in sorted(self._secrets):
            until_ms = now_ms + self.life_ms(period, now_ms)
            for at, secret in enumerate(self._secrets[period] if until_ms > now_ms else ()):
                state = "opens" if at or period < now else "seals" if period == now else "next"
                found.append(KeyNote(key_name(secret), state, until_ms))
        return found

    def forget_old(self, now_ms: int) -> None:
        """Drop the keys that open nothing any more."""
        for period in [one for one in self._secrets if self.life_ms(one, now_ms) <= 0]:
            del self._secrets[period]
            for worked_out in [one for one in self._worked_out if one[0] == period]:
                del self._worked_out[worked_out]
        self._retired &= {secret for secrets in self._secrets.values() for secret in secrets}

    def sealing(self, host: str, now_ms: int) -> TicketKey | None:
        """The key for a new ticket: that of the present period, or the last one before it that is known and that
        others still open; ``None`` if there is none."""
        now = self.period(now_ms)
        known = [one for one in self._secrets if one <= now and self.life_ms(one, now_ms) > 0]
        return self._key(self._secrets[max(known)][0], max(known), self._siblings.first_of(host)) if known else None

    def opening(self, name: bytes, host: str, now_ms: int) -> OpeningKey | None:
        """The key of that name, if it is known, not too old, and was for this host or a sibling of it."""
        now, first = self.period(now_ms), self._siblings.first_of(host)
        for period in sorted(self._secrets, reverse=True):
            for secret in self._secrets[period] if self.life_ms(period, now_ms) > 0 else ():
                key = self._key(secret, period, first)
                if key.name == name:
                    return OpeningKey(key, period < now or secret in self._retired)
        return None

    def of_period(self, period: int, host: str) -> TicketKey | None:
        """The key that seals in a period, if it is known."""
        secret = self.secret(period)
        return self._key(secret, period, self._siblings.first_of(host)) if secret is not None else None

    def _key(self, secret: bytes, period: int, host: str) -> TicketKey:
        kept = self._worked_out.get((period, secret, host))
        if kept is not None:
            return kept
        while len(self._worked_out) >= MAX_HOSTS:
            del self._worked_out[next(iter(self._worked_out))]
        about = host.encode()
        key = TicketKey(
            name=blake2b(about, digest_size=NAME_BYTES, key=secret, person=b"ticket name").digest(),
            sealing=blake2b(about, digest_size=SECRET_BYTES, key=secret, person=b"ticket seal").digest(),
            marking=blake2b(about, digest_size=SECRET_BYTES, key=secret, person=b"ticket mark").digest(),
        )
        self._worked_out[period, secret, host] = key
        return key


def key_name(secret: bytes) -> str:
    """A key's name for operators: 8 hex digits of a hash, which opens nothing."""
    return blake2b(secret, digest_size=4, person=b"ticket shown").hexdigest()
