"""What one request knows of its session besides the data; apps do not see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from coatcheck.replication.cache import Copy
from coatcheck.sessions.devices import SessionHome
from coatcheck.sessions.durable import SocketChange
from coatcheck.sessions.provider import ProviderLogin
from coatcheck.sessions.record import EMPTY_DATA
from coatcheck.sessions.values import Kept
from coatcheck.tokens.chain import Shown
from coatcheck.tokens.sealed import SealedToken

MAX_SHARED: Final = 1024
"""Sessions of which decoded data is kept for more than one request; the oldest is forgotten first."""
MAX_SHARED_BYTES: Final = 1024
"""Of encoded data: what is larger is decoded for each request. Decoded, it usually takes seven times as much (2 MB for
all), and 75 times if it was made to: a list of empty dicts (75 MB)."""


class SharedData(msgspec.Struct):
    """The data of a session that a request has only looked at: the next ones that do so have it decoded once, for all
    of them. None is handed any value of it that it could change: then it gets its own."""

    data: bytes
    """As it is stored."""
    mapping: dict[str, Any] | None = None
    """The same, decoded when it is opened again."""
    kept: Kept | None = None
    """As :attr:`RequestState.kept`, of that mapping."""
    pays: bool = True
    """Whether nobody has asked for a value that can be changed; else each request decodes its own at once."""


class RequestState:
    """Class attributes are the defaults: a session that is only read sets a few of them."""

    blob: bytes = EMPTY_DATA
    """The mapping as it was opened, encoded."""
    shared: SharedData | None = None
    """Whose values the mapping has, while the app was handed none of those that can be changed."""
    kept: Kept | None = None
    """Of data with values beyond the plain ones: what of them this process does not know, to be written back. ``None``:
    it was opened with plain values alone."""
    saved_blob: bytes = b""
    """The mapping as it is to be stored; set when the response leaves, if it may have changed."""
    copy_held: Copy | None = None
    """The acknowledged copy that the mapping was opened from; ``None``: it exists nowhere yet."""
    unheard: tuple[bytes, ...] = ()
    """Keys of sessions that this browser shows, and that are neither found nor lost (protocol section 6)."""
    overdue: bytes = b""
    """The key of the bound session whose token this browser has shown too late: it is to prove that it is there."""
    shown: SealedToken | None = None
    verdict: Shown = Shown.CURRENT
    login: bool = False
    accessed: bool = False
    modified: bool = False
    unsettled: bool = False
    """Whether the response must look closer: the mapping was changed, a mutable value was handed out, a verb was
    used, or the browser is to be told something. While it is false, nothing is to be saved or sent."""
    deep: bool = False
    """Whether anything but plain values was set under text, or a mutable value was handed out: only then can a session
    that was opened with plain values alone hold others."""
    rotating: bool = False
    telling: bool = False
    """Whether the browser is told its token again though it has it, so that it keeps the cookie for longer."""
    closing: bool = False
    begins_anew: bool = False
    """Whether the app went on to :meth:`Session.regenerate` after it had closed the session."""
    cleared: bool = False
    new_login: bool = False
    new_user: str | None = None
    new_provider: ProviderLogin | None = None
    """The session of an identity provider that this login came from."""
    begun: bool = False
    """Whether this very request has stored it for the first time, so that nobody was told its key before."""
    named: str | None = None
    """Whom the next write names as the user of a session that this request has begun."""
    ends_at: int | None = None
    """When the app wants the session to end (Unix ms), as the next write stores it; ``None``: as it was."""
    demands_version: bool = False
    """Whether what was done to the data is stored only on top of what it was done to."""
    lost: str | None = None
    moved_in: dict[str, Any] | None = None
    """What the request began with besides, from a session of before that it goes on with."""
    flushed: bool = False
    """Whether another user logged in: then nothing of the former one's is carried over, whoever stored it meanwhile."""
    home: SessionHome | None = None
    """Who knows when a session ends, and which others its user has; set by whoever hands it to the app."""
    method: str = ""
    """The request's method, and below its headers and who sent it; known where the user is, or is just logging in."""
    headers: Iterable[Sequence[bytes]] = ()
    client: str | None = None
    socket: SocketChange | None = None
    """What the next write changes for a durable WebSocket."""
    is_open: bool = False
    """Whether the head of its answer has left, and so no token can be told: then none is made."""

    @property
    def only_closes(self) -> bool:
        """Whether the app closed the session, and began no other one after that."""
        return self.closing and not self.begins_anew

    def drop_new(self) -> None:
        """Nothing begins: of what the request did to its session, only that it closed it is left."""
        self.begins_anew = self.new_login = False
        self.new_user = None
        self.new_provider = None

    @property
    def is_nothing(self) -> bool:
        """Whether the browser has shown no session at all: there is nothing to end."""
        return self.copy_held is None and not self.unheard
