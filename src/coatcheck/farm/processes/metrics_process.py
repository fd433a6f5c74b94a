"""The process that Prometheus asks: it has no key and no session, and asks the supervisor for the counts of all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from coatcheck.errors import ConfigError
from coatcheck.farm.control.lines import ControlError, Message
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.roles import MetricsRole

MAX_CONNECTIONS: Final = 64
"""Who else comes is answered 503."""
MARGIN_S: Final = 1.0
"""What the supervisor may take beyond the time that it gives each process."""
MISSING: Final = "metrics: {name} is missing; pip install 'coatcheck[metrics]'"


async def run(role: MetricsRole, control: ProcessControl) -> None:
    """Serve until told to stop."""
    try:
        from coatcheck.farm.metrics.endpoint import MetricsEndpoint
        from coatcheck.service_kit.http_server import serve_on_this_loop
    except ModuleNotFoundError as error:
        raise ConfigError(MISSING.format(name=error.name)) from None
    farm = AskedFarm(control, role.timeout_s + MARGIN_S)

    async def status(message: Message) -> dict[str, Any]:
        return {"status": {}}

    control.on({"status": status, "counts": farm.hear})
    app = MetricsEndpoint(farm.status, role.address.host)
    await serve_on_this_loop(app, str(role.address), control.ready, control.stopping, MAX_CONNECTIONS)


class AskedFarm:
    """Asks the supervisor for the farm's status. However many wish to know at once, it is asked once."""

    def __init__(self, control: ProcessControl, timeout_s: float) -> None:
        self._control = control
        self._timeout_s = timeout_s
        self._asked: asyncio.Future[Mapping[str, Any]] | None = None

    async def status(self) -> Mapping[str, Any]:
        """The farm's status, asked for after this call or while another one waits for it.

        Raises:
            ControlError: there was no answer in time.
        """
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._control.ask("counts")
        asked = self._asked
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await asyncio.shield(asked)
        except TimeoutError:
            if self._asked is asked:
                self._asked = None  # the next one asks again
            raise ControlError(f"the farm did not answer within {self._timeout_s:g} s") from None
        return status

    async def hear(self, message: Message) -> dict[str, Any]:
        """The supervisor's answer."""
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(message["counts"])
        return {}
