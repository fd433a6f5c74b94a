"""The story of one history, readable, and its fingerprint."""

from __future__ import annotations

from hashlib import blake2b

from coatcheck.replication.version import Version


class Trace:
    """Lines of what happened. Off by default: a campaign cannot afford to format them."""

    MAX_LINES = 200_000

    def __init__(self, on: bool) -> None:
        self.on = on
        self.lines: list[str] = []
        self._names: dict[bytes, str] = {}
        self._keys: dict[bytes, str] = {}

    def add(self, now: float, text: str) -> None:
        if len(self.lines) < self.MAX_LINES:
            self.lines.append(f"{now:9.4f}  {text}")

    def digest(self) -> str:
        """The same seed gives the same digest, in any process."""
        state = blake2b(digest_size=16)
        for line in self.lines:
            state.update(line.encode())
        return state.hexdigest()

    # -- short names -----------------------------------------------------------------------------

    def name_server(self, server_id: bytes, name: str) -> None:
        self._names[server_id] = name

    def key(self, key: bytes) -> str:
        """Sessions are S1, S2 ... in the order in which they appear."""
        name = self._keys.get(key)
        if name is None:
            name = self._keys[key] = f"S{len(self._keys) + 1}"
        return name

    def version(self, version: Version | None) -> str:
        """``epoch.owner.seq``, the owner as its web server and two digits of its claim."""
        if version is None:
            return "nothing"
        name = self._names.get(version.server_id, version.server_id.hex())
        return f"{version.epoch}.{name}'{version.owner[-1:].hex()}.{version.seq}"

    def packed(self, packed: bytes) -> str:
        return self.version(Version.unpack(packed)) if any(packed) else "nothing"
