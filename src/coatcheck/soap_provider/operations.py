"""What the provider does for its callers: a few operations, some of which keep state in the session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.soap_provider.sessions import MAX_CHANGES, ProviderSession

MAX_TEXT_CHARS: Final = 10_000
MAX_NAME_CHARS: Final = 100
MAX_ACCOUNTS: Final = 1000
MAX_DELAY_MS: Final = 10_000
LOG_OUT: Final = "Logout"
ANONYMOUS: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class OperationResult:
    """The results, in the order of the WSDL, and how long to take before giving them (seconds)."""

    results: dict[str, str]
    delay_s: float = 0.0


class Accounts:
    """The notes of each user's accounts, as committed."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], str] = {}

    def get(self, username: str, name: str) -> str | None:
        return self._notes.get((username, name))

    def commit(self, username: str, changes: dict[str, str]) -> None:
        """All or nothing. Raises :class:`SoapFault` when there is no room."""
        added = {(username, name): note for name, note in changes.items()}
        if len(self._notes.keys() | added.keys()) > MAX_ACCOUNTS:
            raise SoapFault(FaultReason.SERVER_BUSY, f"there is room for {MAX_ACCOUNTS} accounts")
        self._notes.update(added)


def perform(
    operation: str, arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str
) -> OperationResult:
    """Perform an operation in its session.

    Raises:
        SoapFault: there is no such operation, or it cannot do what it is asked.
    """
    known = OPERATIONS.get(operation)
    if known is None:
        raise SoapFault(FaultReason.UNKNOWN_OPERATION, f"there is no operation {operation[:MAX_NAME_CHARS]!r} here")
    accepted, work = known
    for name in arguments:
        if name not in accepted:
            raise SoapFault(FaultReason.BAD_ARGUMENT, f"{operation} has no argument {name[:MAX_NAME_CHARS]!r}")
    return work(arguments, session, accounts, server)


def _echo(arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str) -> OperationResult:
    return OperationResult({"text": _text(arguments, "text", MAX_TEXT_CHARS)})


def _slow_echo(arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str) -> OperationResult:
    text = arguments.get("delayMs", "").strip()
    if not text.isdecimal() or not text.isascii() or len(text) > 6 or int(text) > MAX_DELAY_MS:
        raise SoapFault(FaultReason.BAD_ARGUMENT, f"delayMs: a number from 0 to {MAX_DELAY_MS}")
    return OperationResult({"text": _text(arguments, "text", MAX_TEXT_CHARS)}, int(text) / 1000)


def _who_am_i(arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str) -> OperationResult:
    return OperationResult(
        {
            "username": session.username or ANONYMOUS,
            # The whole ID is a secret of the provider's; this much tells sessions apart.
            "session": session.id.hex()[:8],
            "requests": str(session.requests),
            "server": server,
        }
    )


def _query_account(
    arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str
) -> OperationResult:
    user, name = _user(session), _text(arguments, "name", MAX_NAME_CHARS)
    uncommitted = session.changes.get(name)
    note = accounts.get(user, name) if uncommitted is None else uncommitted
    if note is None:
        raise SoapFault(FaultReason.NOT_FOUND, f"there is no account {name!r}")
    return OperationResult({"name": name, "note": note, "committed": _boolean(uncommitted is None)})


def _update_account(
    arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str
) -> OperationResult:
    user, name = _user(session), _text(arguments, "name", MAX_NAME_CHARS)
    note = _text(arguments, "note", MAX_TEXT_CHARS)
    if not name:
        raise SoapFault(FaultReason.BAD_ARGUMENT, "name: an account needs one")
    commit = arguments.get("commit", "true").strip()
    if commit not in ("true", "false", "1", "0"):
        raise SoapFault(FaultReason.BAD_ARGUMENT, "commit: true or false")
    if commit in ("true", "1"):
        accounts.commit(user, {**session.changes, name: note})
        session.changes.clear()
        return OperationResult({"uncommitted": "0"})
    if name not in session.changes and len(session.changes) >= MAX_CHANGES:
        raise SoapFault(FaultReason.BAD_ARGUMENT, f"a session holds at most {MAX_CHANGES} uncommitted changes")
    session.changes[name] = note
    return OperationResult({"uncommitted": str(len(session.changes))})


def _log_out(arguments: dict[str, str], session: ProviderSession, accounts: Accounts, server: str) -> OperationResult:
    return OperationResult({})


def _user(session: ProviderSession) -> str:
    if session.username is None:
        raise SoapFault(FaultReason.LOGIN_REQUIRED, "accounts need a user; log in")
    return session.username


def _text(arguments: dict[str, str], name: str, limit: int) -> str:
    text = arguments.get(name, "")
    if len(text) > limit:
        raise SoapFault(FaultReason.BAD_ARGUMENT, f"{name}: longer than {limit} characters")
    return text


def _boolean(value: bool) -> str:
    return "true" if value else "false"


Work = Callable[[dict[str, str], ProviderSession, Accounts, str], OperationResult]
OPERATIONS: Final[dict[str, tuple[frozenset[str], Work]]] = {
    "Echo": (frozenset({"text"}), _echo),
    "SlowEcho": (frozenset({"text", "delayMs"}), _slow_echo),
    "WhoAmI": (frozenset(), _who_am_i),
    "QueryAccount": (frozenset({"name"}), _query_account),
    "UpdateAccount": (frozenset({"name", "note", "commit"}), _update_account),
    LOG_OUT: (frozenset(), _log_out),
}
"""Operation to the arguments that it knows, and its work."""
