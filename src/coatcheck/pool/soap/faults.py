"""Why a request is refused: faults of SOAP 1.1 (section 4.4) and 1.2 (part 1, section 5.4), with a reason that programs
can read."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

from lxml import etree

from coatcheck.errors import CoatcheckError
from coatcheck.pool.soap.versions import SOAP_11, SoapVersion, version_of


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
    INTERNAL = "Internal"
    # Of the provider.
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
    # Of the gateway.
    UNAUTHORIZED = "Unauthorized"
    NO_SESSION = "NoSession"
    UPSTREAM_UNREACHABLE = "UpstreamUnreachable"
    UPSTREAM_LOST = "UpstreamLost"
    BAD_ANSWER = "BadAnswer"

    def code(self, version: SoapVersion) -> str:
        """The SOAP fault code: who is to blame."""
        if self in _SERVERS:
            return version.receiver
        return _CODES.get(self, version.sender)

    def status(self, version: SoapVersion) -> int:
        """The HTTP status. SOAP 1.1 (section 6.2) asks for 500 with a fault, SOAP 1.2 (part 2, table 20) for 400 if it
        is the sender's; a body that is not even read as SOAP gets the status that says so to any HTTP client, and the
        fault as well.
        """
        own = version.sender_status if self.code(version) == version.sender else 500
        return _STATUS.get(self, own)


_SERVERS: Final = frozenset(
    {
        FaultReason.SESSION_BUSY,
        FaultReason.TOO_MANY_SESSIONS,
        FaultReason.SERVER_BUSY,
        FaultReason.OUT_OF_ORDER,
        FaultReason.INTERNAL,
        FaultReason.NO_SESSION,
        FaultReason.UPSTREAM_UNREACHABLE,
        FaultReason.UPSTREAM_LOST,
        FaultReason.BAD_ANSWER,
    }
)
_CODES: Final = {FaultReason.VERSION_MISMATCH: "VersionMismatch", FaultReason.NOT_UNDERSTOOD: "MustUnderstand"}
_STATUS: Final = {
    FaultReason.UNAUTHORIZED: 401,
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
"""The reasons that tell a client: this token is of no use any more, log in (mission D7). The request that they answer
was not carried out."""

EXPIRED_FAULTS: Final = frozenset(f"Reason={reason}" for reason in LOG_IN_REASONS)
"""The same as :func:`fault_words` has them."""

_CODE_NAMES: Final = ("faultcode", "Value")


class SoapFault(CoatcheckError):
    """A request is refused; ``reason`` for programs, the message for people. It never holds a secret.

    ``block``: the name of the header block that was not understood, as lxml writes it.
    """

    def __init__(self, reason: FaultReason, message: str, block: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.block = block


def fault_of(envelope: etree._Element) -> etree._Element | None:
    """The fault in an envelope, if it is an answer with one."""
    version = version_of(etree.QName(envelope).namespace) or SOAP_11
    return envelope.find(f"{version.tag('Body')}/{version.tag('Fault')}")


def fault_words(element: etree._Element) -> set[str]:
    """What a fault, or its detail, says for programs: ``NAME=TEXT`` of each element that has no parts, a code without
    its prefix."""
    leaves = (each for each in element.iter() if isinstance(each.tag, str) and not len(each))
    words = ((etree.QName(each).localname, (each.text or "").strip()) for each in leaves)
    return {f"{name}={text.rpartition(':')[2] if name in _CODE_NAMES else text}" for name, text in words}


def refuses_token(element: etree._Element, expired: Collection[str] = EXPIRED_FAULTS) -> bool:
    """Whether a fault, or its detail, says that its token is of no use any more, and so was not carried out."""
    return not fault_words(element).isdisjoint(expired)
