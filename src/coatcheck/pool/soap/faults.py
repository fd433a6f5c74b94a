"""Why the provider refuses a request: SOAP 1.1 faults (section 4.4), with a reason that programs can read."""

from __future__ import annotations

from enum import Enum
from typing import Final

from coatcheck.errors import CoatcheckError


class FaultReason(Enum):
    """The reason in a fault's detail; the value is what stands there."""

    MALFORMED = "Malformed"
    WRONG_METHOD = "WrongMethod"
    WRONG_CONTENT_TYPE = "WrongContentType"
    WRONG_ENCODING = "WrongEncoding"
    TOO_LARGE = "TooLarge"
    TOO_SLOW = "TooSlow"
    DOCTYPE_REFUSED = "DoctypeRefused"
    TOO_DEEP = "TooDeep"
    TOO_MANY_ELEMENTS = "TooManyElements"
    TOO_MANY_HEADERS = "TooManyHeaders"
    VERSION_MISMATCH = "VersionMismatch"
    NOT_UNDERSTOOD = "NotUnderstood"
    BAD_HEADER = "BadHeader"
    BAD_SESSION_TYPE = "BadSessionType"
    UNKNOWN_OPERATION = "UnknownOperation"
    BAD_ARGUMENT = "BadArgument"
    NOT_FOUND = "NotFound"
    LOGIN_REQUIRED = "LoginRequired"
    LOGIN_FAILED = "LoginFailed"
    TOKEN_INVALID = "TokenInvalid"
    TOKEN_EXPIRED = "TokenExpired"
    SESSION_EXPIRED = "SessionExpired"
    WRONG_SERVER = "WrongServer"
    SESSION_BUSY = "SessionBusy"
    TOO_MANY_SESSIONS = "TooManySessions"
    SERVER_BUSY = "ServerBusy"
    OUT_OF_ORDER = "OutOfOrder"
    INTERNAL = "Internal"

    @property
    def code(self) -> str:
        """The SOAP fault code: who is to blame."""
        return _CODES.get(self, "Client")

    @property
    def status(self) -> int:
        """The HTTP status. SOAP 1.1 (section 6.2) asks for 500 with a fault; a body that is not even read as SOAP
        gets the status that says so to any HTTP client, and the fault as well.
        """
        return _STATUS.get(self, 500)


_CODES: Final = {
    FaultReason.VERSION_MISMATCH: "VersionMismatch",
    FaultReason.NOT_UNDERSTOOD: "MustUnderstand",
    FaultReason.SESSION_BUSY: "Server",
    FaultReason.TOO_MANY_SESSIONS: "Server",
    FaultReason.SERVER_BUSY: "Server",
    FaultReason.OUT_OF_ORDER: "Server",
    FaultReason.INTERNAL: "Server",
}
_STATUS: Final = {
    FaultReason.WRONG_METHOD: 405,
    FaultReason.WRONG_CONTENT_TYPE: 415,
    FaultReason.TOO_LARGE: 413,
    FaultReason.TOO_SLOW: 408,
}

LOG_IN_REASONS: Final = frozenset(
    {
        FaultReason.TOKEN_INVALID.value,
        FaultReason.TOKEN_EXPIRED.value,
        FaultReason.SESSION_EXPIRED.value,
        FaultReason.WRONG_SERVER.value,
    }
)
"""The reasons that tell a client: this token is of no use any more, log in (mission D7)."""


class SoapFault(CoatcheckError):
    """A request is refused; ``reason`` for programs, the message for people. It never holds a secret."""

    def __init__(self, reason: FaultReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
