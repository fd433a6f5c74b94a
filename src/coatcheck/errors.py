"""Every error that coatcheck raises: one root, reasons as enums.

Operators see the reason; clients never do. "Not found" is a value, not an error.
"""

from __future__ import annotations

from enum import Enum


class CoatcheckError(Exception):
    """The root of all errors that coatcheck raises."""


class ConfigError(CoatcheckError):
    """A setting is wrong; the message is one line that names the setting and the mend."""


class ForeignPeer(CoatcheckError, ConnectionError):
    """Another user is at the other end of an internal connection, or one who does not know the farm's credential.

    Also a ``ConnectionError``: whoever tries to connect fails as if nobody were there.
    """


class TokenReason(Enum):
    """Why a sealed token was refused before any session was looked at."""

    MALFORMED = "malformed"
    UNKNOWN_FORMAT = "unknown_format"
    UNKNOWN_KEY = "unknown_key"
    FORGED = "forged"


class TokenRejected(CoatcheckError):
    """A sealed token cannot be opened with our key ring (mission A6, ASVS 9.1)."""

    def __init__(self, reason: TokenReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class UnavailableReason(Enum):
    """Why a session could neither be served nor declared absent."""

    NO_SERVER = "no_session_server_answers"
    FULL = "session_servers_are_full"
    TOO_FEW_SERVERS = "too_few_session_servers_answer"
    BELOW_TARGET = "fewer_copies_than_asked_for"
    UNHEARD = "a_session_server_that_may_hold_the_session_is_away"
    CONTENDED = "too_many_rival_claims"
    STOPPING = "this_web_server_is_stopping"
    TIMED_OUT = "the_background_thread_does_not_answer"
    KEYS = "sealed_with_a_key_that_this_web_server_cannot_ask_about_now"
    TOO_MANY_NEW = "too_many_new_sessions_from_this_address"
    UNPROVED = "its_browser_could_not_sign_now"
    FORMER = "the_store_of_former_sessions_does_not_answer"


class SessionUnavailable(CoatcheckError):
    """The copies cannot be reached, so we fail closed: no session is invented (protocol section 9)."""

    def __init__(self, reason: UnavailableReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class ConflictError(CoatcheckError):
    """Two writers changed the same keys (protocol section 5)."""


class TooManySessions(ConflictError):
    """The user has as many sessions as the farm allows at once, so this login is refused (ASVS 7.1.2)."""


class SessionClosed(CoatcheckError):
    """A write reached a session that is closed: a slow request does not undo a logout (protocol section 6)."""


class SessionDataError(CoatcheckError):
    """The session holds a value that cannot be stored; the message names what and where."""


class CorruptEntry(CoatcheckError):
    """Bytes from a session server are no entry of ours: wrong format, or not sealed by our key ring."""
