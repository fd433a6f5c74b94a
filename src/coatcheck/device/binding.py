"""What a session's record holds of the browser that it is bound to (formats, section 4)."""

from __future__ import annotations

import msgspec

from coatcheck.device.challenges import MAX_SERIAL
from coatcheck.device.keys import DeviceKey
from coatcheck.tokens.chain import Chain


class Binding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``since``: when the key was registered; ``proved_at``: when it last signed (Unix ms). ``serial``: how many proofs
    were counted, so that the next challenge names that number, and none is good twice.

    ``first``: the session ID of the link that the answer to the registration told. Until that link is shown, nobody
    knows whether the browser got that answer: if it was lost, the browser knows nothing of a binding, and the session
    goes on as one that has none. Empty: the binding is in force.
    """

    key: DeviceKey
    since: int
    proved_at: int
    serial: int = 0
    first: bytes = b""

    @property
    def is_in_force(self) -> bool:
        """Whether the session's token moves on by proofs alone."""
        return not self.first

    def is_pending(self, chain: Chain) -> bool:
        """Whether the answer to the registration may still arrive, or be shown to have arrived."""
        return bool(self.first) and chain.next is not None and chain.next.session_id == self.first

    def seen_with(self, chain: Chain) -> Binding:
        """After a request: in force once the link of the registration's answer was shown."""
        if self.first and chain.current.session_id == self.first:
            return msgspec.structs.replace(self, first=b"")
        return self

    def proved(self, now: int) -> Binding:
        """After a proof: whoever signs has got the answer to the registration."""
        serial = (self.serial + 1) & MAX_SERIAL
        return Binding(self.key, self.since, max(now, self.proved_at), serial)
