"""Bearer tokens (RFC 6750): what a request shows, and the tokens that open a service, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.service_kit.problems import RequestRefused
from coatcheck.service_kit.secret_file import secret_lines

MIN_TOKEN_CHARS: Final = 20
MAX_TOKENS: Final = 100
SCHEME: Final = "bearer "


class BearerTokens:
    """The tokens that open the service; several, so that they can be changed without a gap."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Raises :class:`ConfigError` for none, too many, or one that is easily guessed."""
        found = list(tokens)
        if not 1 <= len(found) <= MAX_TOKENS:
            raise ConfigError(f"token-file: 1 to {MAX_TOKENS} tokens are needed, not {len(found)}")
        if any(len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable() for token in found):
            raise ConfigError(f"token-file: each token needs at least {MIN_TOKEN_CHARS} printable ASCII characters")
        self._digests = [_digest(token) for token in found]

    def __repr__(self) -> str:
        return f"<BearerTokens, {len(self._digests)}>"

    def accept(self, shown: str | None) -> bool:
        """Whether this is one of them. Takes the same time for each."""
        digest = _digest(shown or "")
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        return shown is not None and any(matches)


def shown_bearer(authorization: str) -> str | None:
    """What stands behind ``Bearer`` in an ``Authorization`` header; ``None``: nothing is shown."""
    scheme, found = authorization[: len(SCHEME)].lower(), authorization[len(SCHEME) :].strip()
    return found if scheme == SCHEME else None


def unauthorized(detail: str) -> RequestRefused:
    """Who shows nothing, or something wrong, is asked for a bearer token."""
    return RequestRefused(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})


def _digest(token: str) -> bytes:
    # Of the same length whatever is shown, so that not even the length is told.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def bearer_name(token: str) -> str:
    """How whoever shows this token is called where it must not be seen: 8 hex digits of a hash."""
    digest = hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=4, person=b"coatcheck-log")
    return f"bearer-{digest.hexdigest()}"


def read_bearer_tokens(file: Path) -> BearerTokens:
    """The tokens of a file, one a line; ``#`` starts a comment line. Raises :class:`ConfigError`."""
    return BearerTokens(secret_lines(file, "token-file"))
