"""How a token or a user name may be shown, and which strings are accepted at all."""

from __future__ import annotations

from hashlib import blake2b

MAX_TOKEN_CHARS = 65_536
MAX_USER_CHARS = 1_024  # and bytes of UTF-8: what an index of PostgreSQL holds beside the pool's name
MAX_PASSWORD_CHARS = 65_536
MAX_CALLER_CHARS = 200
MAX_STATE_CHARS = 16_384


UNREADABLE = ""
"""In place of a token whose key this process does not have; no token is empty."""


def masked(token: str) -> str:
    """A name for a token that opens nothing: 8 hex digits of a keyless hash; equal tokens look equal."""
    if token == UNREADABLE:
        return "token-unreadable"
    return (
        f"token-{blake2b(token.encode('utf-8', 'surrogatepass'), digest_size=4, person=b'coatcheck-pool').hexdigest()}"
    )


def check_user(user: object) -> str:
    """Return ``user``; raises ``ValueError`` unless it is a string of 1 to 1024 bytes without control codes."""
    if not isinstance(user, str) or not 0 < len(user) <= MAX_USER_CHARS:
        raise ValueError(f"a user is a string of 1 to {MAX_USER_CHARS} characters")
    if not user.isprintable():
        raise ValueError("a user is a string of printable characters")
    if len(user.encode()) > MAX_USER_CHARS:
        raise ValueError(f"a user is a string of at most {MAX_USER_CHARS} bytes in UTF-8")
    return user


def check_caller(caller: object) -> str:
    """Return ``caller``; raises ``ValueError`` unless it is a string of 1 to 200 printable characters."""
    if not isinstance(caller, str) or not 0 < len(caller) <= MAX_CALLER_CHARS or not caller.isprintable():
        raise ValueError(f"a caller is a string of 1 to {MAX_CALLER_CHARS} printable characters")
    return caller


def check_token(token: object) -> str:
    """Return ``token``; raises ``ValueError`` unless it is a string of 1 to 65,536 characters. Never shows it."""
    if not isinstance(token, str):
        raise ValueError(f"a token is a string, not {type(token).__name__}")
    if not 0 < len(token) <= MAX_TOKEN_CHARS:
        raise ValueError(f"a token is a string of 1 to {MAX_TOKEN_CHARS} characters, not {len(token)}")
    try:
        token.encode()
    except UnicodeEncodeError:
        raise ValueError("a token is valid Unicode, without lone surrogates") from None
    return token


def check_state(state: object) -> None:
    """Raises ``ValueError`` unless ``state`` is ``None`` or a string of at most 16,384 characters. Never shows it."""
    if state is None:
        return
    if not isinstance(state, str) or len(state) > MAX_STATE_CHARS:
        raise ValueError(f"an upstream_state is a string of at most {MAX_STATE_CHARS} characters")
    try:
        state.encode()
    except UnicodeEncodeError:
        raise ValueError("an upstream_state is valid Unicode, without lone surrogates") from None


def check_password(password: object) -> str | None:
    """Return ``password``; raises ``ValueError`` unless it is ``None`` or a string of at most 65,536 characters."""
    if password is not None and (not isinstance(password, str) or len(password) > MAX_PASSWORD_CHARS):
        raise ValueError(f"a password is a string of at most {MAX_PASSWORD_CHARS} characters")
    return password
