"""Where a farm's secrets are kept: the key ring, and the session servers' password.

From ``COATCHECK_KEYS`` if it is set, else from a file of mode 0600 that the first start generates.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.files.run_directory import replace_private
from coatcheck.farm.files.secret_file import make_secret, read_secret
from coatcheck.tokens.ring_state import KeyState
from coatcheck.tokens.secret import parse_key

SECRET_BYTES: Final = 32
PASSWORD_BYTES: Final = 24
MAX_KEYS: Final = 16
ENV: Final = "COATCHECK_KEYS"


class FarmKeys(msgspec.Struct, frozen=True):
    """The secrets of the key ring, the index of the sealing one, and the session servers' password."""

    keys: tuple[bytes, ...]
    primary: int
    session_server_password: str

    def __repr__(self) -> str:
        return f"FarmKeys({[key_name(key) for key in self.keys]}, primary={self.primary})"

    def index_of(self, name: str) -> int:
        """Which key an operator names by the digits that :func:`key_name` gives it; raises :class:`ConfigError`."""
        names = [key_name(key) for key in self.keys]
        if name not in names:
            raise ConfigError(f"keys: there is no key {name!r}; choose one of {', '.join(names)}")
        return names.index(name)

    def with_new(self) -> FarmKeys:
        """The same with one more key, which only opens so far; raises :class:`ConfigError` if there are too many."""
        if len(self.keys) >= MAX_KEYS:
            raise ConfigError(f"keys: there are {MAX_KEYS} already; revoke an old one first")
        return msgspec.structs.replace(self, keys=(*self.keys, new_key()))

    def announcing(self) -> FarmKeys:
        """The same with an announced key: the one that there is, or a new one. Raises :class:`ConfigError`."""
        return self if self.announced is not None else self.with_new()

    def sealing_with_newest(self) -> FarmKeys:
        return msgspec.structs.replace(self, primary=len(self.keys) - 1)

    def without(self, index: int) -> FarmKeys:
        """The same without a key that only opens; raises :class:`ConfigError` for the one that seals."""
        if index == self.primary:
            raise ConfigError(f"keys: {key_name(self.keys[index])} is the key that seals; rotate first")
        keys = self.keys[:index] + self.keys[index + 1 :]
        return msgspec.structs.replace(self, keys=keys, primary=self.primary - (index < self.primary))

    @property
    def announced(self) -> bytes | None:
        """The key that is to seal next, if there is one: it stands behind the one that seals."""
        return self.keys[-1] if self.primary < len(self.keys) - 1 else None

    def rows(self) -> list[dict[str, str]]:
        """Each key's name and its state, for operators."""
        rows = []
        for at, key in enumerate(self.keys):
            state = KeyState.RETIRING if at < self.primary else KeyState.ANNOUNCED
            rows.append({"key": key_name(key), "state": (KeyState.ACTIVE if at == self.primary else state).value})
        return rows


class _KeysFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[str]
    primary: int
    session_server_password: str


class KeyPlace(msgspec.Struct, frozen=True):
    """Where a farm was given its keys: in ``file``, or, as it is ``None``, in ``COATCHECK_KEYS``: those of these
    ``names``."""

    file: Path | None
    names: frozenset[str]

    def __str__(self) -> str:
        return ENV if self.file is None else str(self.file)

    def is_file(self, path: str) -> bool:
        """Whether this is the file, under whatever name."""
        if self.file is None:
            return False
        if os.path.realpath(path) == os.path.realpath(self.file):
            return True
        try:
            return self.file.samefile(path)
        except OSError:
            return False


def key_name(key: bytes) -> str:
    """A key's name for operators: 8 hex digits of a hash, which opens nothing."""
    return blake2b(key, digest_size=4, person=b"coatcheck-key").hexdigest()


def new_key() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def load_or_create(path: Path, environ: Mapping[str, str]) -> FarmKeys:
    """Read the farm's keys; generate the file if there is none. Of several first starts at once one makes it, and all
    read that one.

    Raises:
        ConfigError: the file or the variable holds no usable keys, or others can read the file.
    """
    if text := environ.get(ENV):
        return _from_environment(text)
    try:
        if not path.exists():
            make_secret(behind_links(path), _encoded(FarmKeys((new_key(),), 0, secrets.token_urlsafe(PASSWORD_BYTES))))
    except OSError as error:
        raise _unwritable(path, error) from None
    return load(path)


def place_of(path: Path, keys: FarmKeys, environ: Mapping[str, str]) -> KeyPlace:
    """Where :func:`load_or_create` has found ``keys``."""
    return KeyPlace(None if environ.get(ENV) else path.absolute(), frozenset(map(key_name, keys.keys)))


def load(path: Path) -> FarmKeys:
    """Read a key ring file.

    Raises:
        ConfigError: it holds no usable keys, is no regular file, or others than the owner can read it.
    """
    try:
        found = msgspec.json.decode(read_secret(path, "keys_file"), type=_KeysFile)
    except msgspec.DecodeError as error:
        raise ConfigError(f"keys_file: {path}: {error}; restore it, or delete it to log everyone out") from None
    keys = tuple(parse_key(text, f"keys_file: {path}") for text in found.keys)
    if not found.session_server_password:
        raise ConfigError(f"keys_file: {path}: session_server_password is empty; give it 24 random characters")
    return FarmKeys(keys, _primary(keys, found.primary, f"keys_file: {path}"), found.session_server_password)


def save(path: Path, keys: FarmKeys) -> None:
    """Write the file, readable by its owner alone; of a symbolic link, what it leads to.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        behind = behind_links(path)
        if behind.is_symlink():
            raise ConfigError(f"keys_file: {path} leads to itself; name a file that can be written")
        replace_private(behind, _encoded(keys))
    except OSError as error:
        raise _unwritable(path, error) from None


def behind_links(path: Path) -> Path:
    """What a link leads to: one that was replaced would leave the file behind it, and whoever else follows that, with
    the old keys."""
    return Path(os.path.realpath(path))


def _encoded(keys: FarmKeys) -> bytes:
    texts = [base64.urlsafe_b64encode(key).decode() for key in keys.keys]
    content = msgspec.json.encode(_KeysFile(texts, keys.primary, keys.session_server_password))
    return msgspec.json.format(content) + b"\n"


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"keys_file: {path}: {error.strerror}; name a file that can be written")


def _from_environment(text: str) -> FarmKeys:
    keys = tuple(parse_key(part, ENV) for part in text.split(",") if part.strip())
    # The embedded session servers end with this start, and nobody else asks them: the password is of this start, and
    # follows no key that may be rotated out.
    return FarmKeys(keys, _primary(keys, 0, ENV), secrets.token_urlsafe(PASSWORD_BYTES))


def _primary(keys: tuple[bytes, ...], primary: int, where: str) -> int:
    if not 1 <= len(keys) <= MAX_KEYS or len(set(keys)) != len(keys):
        raise ConfigError(f"{where}: give 1 to {MAX_KEYS} different keys")
    if not 0 <= primary < len(keys):
        raise ConfigError(f"{where}: primary is the index of a key, from 0 to {len(keys) - 1}")
    return primary
