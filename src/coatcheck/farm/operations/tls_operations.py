"""``coatcheck tls``: how a running farm shares TLS sessions, and new ticket keys by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from coatcheck.farm.control.lines import ControlError, Message
from coatcheck.farm.supervision.keeper import Keeper
from coatcheck.farm.supervision.supervisor import Supervisor

ASK_TIMEOUT_S: Final = 2.0
TELL_TIMEOUT_S: Final = 30.0
"""How long directors that are busy, or are being started, may take to be told of a new key."""

Progress = Callable[[Message], None]


class TlsOperations:
    """``tls status`` and ``tls rotate-ticket-keys`` of a farm that runs."""

    def __init__(self, farm: Supervisor) -> None:
        self._farm = farm

    async def status(self, message: Message, progress: Progress) -> Message:
        """How sessions are shared, and what each process says of it that ends TLS; ``None``: it does not answer."""
        farm = self._farm
        answers = await asyncio.gather(*(self._ask(keeper) for keeper in farm.tls_ends))
        directors = [
            {"name": keeper.name, "state": keeper.state, "tls": answer}
            for keeper, answer in zip(farm.tls_ends, answers, strict=True)
        ]
        shared = farm.tickets.status() if farm.tickets is not None else {}
        return {"tls": {"sharing": self._sharing, **shared, "directors": directors}}

    async def rotate(self, message: Message, progress: Progress) -> Message:
        """A new key seals at once; answers who could not be told, and seals with the old one until the next round."""
        if self._farm.tickets is None:
            raise ControlError(f"tls: there are no ticket keys to rotate: {_WHY_NONE[self._sharing]}")
        given = message.get("timeout_s")
        late = await self._farm.tickets.rotate(float(given) if isinstance(given, int | float) else TELL_TIMEOUT_S)
        self._farm.console.say("tls: a new ticket key seals; tickets of the ones before open for their lifetime")
        return {"late": late}

    @property
    def _sharing(self) -> str:
        settings = self._farm.settings
        return settings.tls_sharing if settings.tls_certificate else "no tls"

    async def _ask(self, keeper: Keeper) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] | None = (await keeper.call("status", ASK_TIMEOUT_S))["status"].get("tls")
        except ControlError:
            return None
        return answer


_WHY_NONE: Final = {
    "no tls": "this farm speaks no TLS (tls_certificate)",
    "off": "tls_sharing is off, and each process has OpenSSL's own until it is restarted",
    "take-once": 'with tls_sharing = "take-once" sessions are stored, and no ticket carries one',
}
