"""Why a request was not served: the names under which a director counts it."""

from __future__ import annotations

from enum import Enum
from typing import Final

from coatcheck.director.rules.admission import Refusal
from coatcheck.director.rules.delivery import Failure


class Fault(Enum):
    """Why a request was not served; the keys of ``status()["errors"]``."""

    BAD_REQUEST = "bad_request"
    CLIENT_TIMEOUT = "client_timeout"
    CLIENT_GONE = "client_gone"
    CLIENT_TOO_SLOW = "client_too_slow"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    TOO_MANY_FROM_ADDRESS = "too_many_from_address"
    TOO_MANY_WEBSOCKETS = "too_many_websockets"
    TOO_MANY_HANDSHAKES = "too_many_handshakes"
    HANDSHAKE_FAILED = "handshake_failed"
    NO_SERVER = "no_server"
    UPSTREAM_LOST = "upstream_lost"
    UPSTREAM_BUSY = "upstream_busy"
    UPSTREAM_SILENT = "upstream_silent"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    BAD_RESPONSE = "bad_response"


FAULT_OF_FAILURE: Final = {
    Failure.REFUSED: Fault.UPSTREAM_LOST,
    Failure.STALLED: Fault.UPSTREAM_BUSY,
    Failure.LOST: Fault.UPSTREAM_LOST,
    Failure.SILENT: Fault.UPSTREAM_SILENT,
    Failure.LATE: Fault.UPSTREAM_TIMEOUT,
    Failure.NONSENSE: Fault.BAD_RESPONSE,
}
FAULT_OF_REFUSAL: Final = {
    Refusal.CONNECTIONS: Fault.TOO_MANY_CONNECTIONS,
    Refusal.ADDRESS: Fault.TOO_MANY_FROM_ADDRESS,
    Refusal.WEBSOCKETS: Fault.TOO_MANY_WEBSOCKETS,
}
