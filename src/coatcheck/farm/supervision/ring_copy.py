"""This machine's copy of the key ring that machines share: sealed, in the run directory.

What seals it is derived from the keys of the key file (or ``COATCHECK_KEYS``), and so is what seals the ring on the
session servers: who has those keys, this file and the farm's name has the ring as this machine knew it last.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from coatcheck.errors import ConfigError, CorruptEntry, TokenRejected
from coatcheck.farm.files.keys import FarmKeys
from coatcheck.farm.files.run_directory import RING_FILE, replace_private
from coatcheck.farm.files.secret_file import read_secret
from coatcheck.take_once.rule import KEY_BYTES
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.ring_state import RingState, decode_ring, encode_ring


class RingCopy:
    """``root``: the keys that all machines of the farm were given. ``place``: where the ring is on session servers."""

    def __init__(self, farm: str, root: FarmKeys, run_directory: Path) -> None:
        secrets, primary = KeyRing(root.keys, root.primary).derived("key ring of machines")
        self._box = KeyRing(secrets, primary).box("key-ring", farm, os.urandom)
        self.place = blake2b(f"{farm}\x00key ring".encode(), digest_size=KEY_BYTES, person=b"coatcheck-ring").digest()
        self.path = run_directory / RING_FILE

    def seal(self, state: RingState) -> bytes:
        return self._box.seal(encode_ring(state), self.place)

    def open(self, sealed: bytes) -> RingState:
        """Raises :class:`TokenRejected` or :class:`CorruptEntry` for what is not sealed so."""
        return decode_ring(self._box.open(sealed, self.place))

    def read(self) -> RingState | None:
        """The ring as it was written last; ``None``: there is no copy.

        Raises:
            ConfigError: it cannot be read, or is another farm's.
        """
        if not os.path.lexists(self.path):
            return None
        try:
            return self.open(read_secret(self.path, "key_ring", is_sealed=True))
        except (TokenRejected, CorruptEntry) as foreign:
            raise ConfigError(
                f"key_ring: {self.path} is not sealed by the keys of keys_file for a farm of this name ({foreign}); "
                "put those back, name another run_dir, or delete it to take the ring of the session servers"
            ) from None

    def write(self, state: RingState) -> None:
        """Raises :class:`OSError`."""
        replace_private(self.path, self.seal(state))


def keys_of(state: RingState, root: FarmKeys) -> FarmKeys:
    """What the processes of a machine are told of the ring."""
    usable = state.usable
    secrets = tuple(key.secret for key in usable)
    return FarmKeys(secrets, usable.index(state.active), root.session_server_password)
