"""The public keys of an identity provider: fetched seldom, kept, and asked for anew when it signs with another one."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final

import httpx
import jwt

from coatcheck.seldom import Seldom
from coatcheck.service.signals.event_tokens import EventTokenRefused, KeysUnavailable, usable_keys

_log: Final = logging.getLogger("coatcheck.service")
_seldom: Final = Seldom(_log, time.monotonic)


class ProviderKeys:
    """``source``: the address of a JWK set, or a file."""

    KEEP_S: ClassVar = 3600.0
    """Keys are asked for again after so long: one that was withdrawn is believed no longer than that."""
    STALE_S: ClassVar = 24 * 3600.0
    """While the provider does not answer, what it said last is believed for so long."""
    PAUSE_S: ClassVar = 10.0
    """Between two fetches, whatever made-up key IDs are shown."""
    FETCH_TIMEOUT_S: ClassVar = 5.0
    MAX_SET_BYTES: ClassVar = 256 * 1024
    MAX_KEYS: ClassVar = 100

    def __init__(
        self, source: str | Path, algorithms: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._algorithms = algorithms
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None) -> jwt.PyJWK:
        """The key of this ID; without one, the only key that there is.

        Raises :class:`EventTokenRefused` where there is no such key, and :class:`KeysUnavailable`.
        """
        if self._clock() - self._fetched_at >= self.KEEP_S:
            await self._refresh()
        found = self._find(key_id)
        if found is None:
            await self._refresh()
            found = self._find(key_id)
        if self._clock() - self._fetched_at >= self.STALE_S:
            raise KeysUnavailable("the provider's keys cannot be fetched")
        if found is None:
            raise EventTokenRefused("invalid_key", "the provider has published no such key")
        return found

    def _find(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    async def _refresh(self) -> None:
        """One fetch for all who wait; none if there was one a moment ago."""
        if self._fetching is None:
            if self._clock() - self._tried_at < self.PAUSE_S:
                return
            self._tried_at = self._clock()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(self.FETCH_TIMEOUT_S):
                raw = await self._read()
            documents = json.loads(raw)["keys"]
            keys = usable_keys(documents[: self.MAX_KEYS], self._algorithms)
            if not keys:
                raise ValueError("no key in it verifies an allowed algorithm")
            self._keys, self._fetched_at = keys, self._clock()
        except (OSError, httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError, RecursionError) as failure:
            _seldom.warning("the keys at %s cannot be had: %s", self._source, failure or type(failure).__name__)
        finally:
            self._fetching = None

    async def _read(self) -> bytes:
        if isinstance(self._source, Path):
            with self._source.open("rb") as file:
                raw = file.read(self.MAX_SET_BYTES + 1)
            self._check_size(raw)
            return raw
        # The system's authorities, as SSL_CERT_FILE may name others; neither proxies nor redirects.
        context = ssl.create_default_context()
        async with (
            httpx.AsyncClient(verify=context, trust_env=False, timeout=self.FETCH_TIMEOUT_S) as http,
            http.stream("GET", self._source, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            body = bytearray()
            async for chunk in answer.aiter_bytes(16 * 1024):
                body += chunk
                self._check_size(body)
            return bytes(body)

    def _check_size(self, raw: bytes | bytearray) -> None:
        if len(raw) > self.MAX_SET_BYTES:
            raise ValueError(f"more than {self.MAX_SET_BYTES} bytes")
