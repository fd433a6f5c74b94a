"""Every setting of sessions, once: for the farm's file, flags and environment, and for ``connect()`` in Python."""

from __future__ import annotations

from typing import Annotated, TypedDict

import msgspec

from coatcheck.duration import Duration
from coatcheck.errors import ConfigError
from coatcheck.options import LONGEST_S, Option, judge
from coatcheck.replication.placement import MAX_LIST_NUMBER, Copies
from coatcheck.replication.policy import BelowTarget, Durability, ReplicationPolicy, TooFewAnswers
from coatcheck.sessions.ending import OpenStreams
from coatcheck.sessions.policy import (
    MAX_SESSIONS_OF_USER,
    AtSessionLimit,
    Conflict,
    DeviceBinding,
    Merge,
    RolledBack,
    SessionPolicy,
    Theft,
)


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decides about sessions; judged where it is built. Durations are seconds.

    A new setting is one field here, and its name in :class:`SessionArguments`.

    Raises:
        ConfigError: a value is wrong, or two contradict each other.
    """

    copies: Annotated[
        Copies,
        Option(
            "Session servers that hold each session: a number, or `all`. Not said, 1 if there is but one.", minimum=1
        ),
    ] = 2
    durability: Annotated[Durability, Option("How many copies a write waits for before the response leaves.")] = "all"
    below_target: Annotated[
        BelowTarget,
        Option(
            "What happens to logins and writes with fewer copies than wanted: go on while they are a quorum (with "
            "three or more session servers: as many as copies, or more than half of them if that is less), go on with "
            "any number, or refuse."
        ),
    ] = "quorum"
    too_few_answers: Annotated[
        TooFewAnswers,
        Option(
            "With three or more session servers: what happens while so few answer that the newest copy may not be "
            "among the answers (with two copies, two of three must answer). With one copy that is as soon as one "
            "server is away."
        ),
    ] = "refuse"
    patience_s: Annotated[
        float,
        Option(
            "How long a request is refused (503) when what its token promises may be on a session server that is away; "
            "after that it is anonymous, and its session is left alone.",
            duration=True,
            maximum=86400,
        ),
    ] = 30.0
    session_server_list: Annotated[
        int,
        Option(
            "The number of this list of session servers: raise it by one with every change of the list, after 63 comes "
            "0. A web server that was started with an older list than a token's never calls its session lost.",
            minimum=0,
            maximum=MAX_LIST_NUMBER,
        ),
    ] = 0
    rolled_back: Annotated[RolledBack, Option("What happens to a session whose newest data was lost.")] = "close"
    conflict: Annotated[Conflict, Option("Two parallel writes of the same key: which one is kept.")] = "last_write"
    open_streams: Annotated[
        OpenStreams,
        Option(
            "What happens to WebSockets and streamed responses whose session ends: `end` closes them (WebSockets with "
            "1008), `tell` leaves that to the app, which awaits `session.ended()`."
        ),
    ] = "end"
    theft: Annotated[Theft, Option("What a replayed old token does.")] = "close"
    rotate_after_s: Annotated[
        float,
        Option(
            "A token older than this is replaced; 0 replaces it at every response.", duration=True, maximum=LONGEST_S
        ),
    ] = 60.0
    grace_s: Annotated[
        float,
        Option("How long a replaced token is still accepted, for parallel requests.", duration=True, maximum=LONGEST_S),
    ] = 60.0
    idle_timeout_s: Annotated[
        float, Option("A session unused for so long is closed.", duration=True, minimum=1, maximum=LONGEST_S)
    ] = 1800.0
    absolute_timeout_s: Annotated[
        float, Option("A session older than this is closed, used or not.", duration=True, minimum=1, maximum=LONGEST_S)
    ] = 43200.0
    new_session_life_s: Annotated[
        float,
        Option(
            "How long a session lives whose cookie has never come back, as those of clients that keep no cookies; "
            "a login, and every later request, gives it its normal life. 0: as long as any other.",
            duration=True,
            maximum=LONGEST_S,
        ),
    ] = 600.0
    new_sessions_per_minute: Annotated[
        int,
        Option(
            "New sessions that each web server lets one client address (IPv6: one /64) begin in a minute; what is more "
            "is answered 429. 0: without a limit.",
            minimum=0,
            maximum=1_000_000,
        ),
    ] = 600
    new_sessions_burst: Annotated[
        int,
        Option("And so many more at once, to begin with.", minimum=1, maximum=1_000_000),
    ] = 2000
    sessions_per_user: Annotated[
        int,
        Option(
            "How many sessions a user may have at once, by the name that the app gives `regenerate`. 0: any number.",
            minimum=0,
            maximum=MAX_SESSIONS_OF_USER,
        ),
    ] = 0
    at_session_limit: Annotated[
        AtSessionLimit,
        Option(
            "What a login does where its user has `sessions_per_user` already: `close-oldest` closes the session that "
            "was begun first, `refuse` answers 409."
        ),
    ] = "close-oldest"
    device_binding: Annotated[
        DeviceBinding,
        Option(
            "Whether logins are bound to a key that never leaves the browser (Device Bound Session Credentials): "
            "`offer` binds them where the browser can, with `require-after-login` those that are not bound end with "
            "their first cookie."
        ),
    ] = "off"
    bound_cookie_life_s: Annotated[
        float,
        Option(
            "How long the cookie of a bound session lives until its browser signs again; a copy of it is refused after "
            "that and the grace.",
            duration=True,
            minimum=5,
            maximum=86400,
        ),
    ] = 600.0
    lease_s: Annotated[
        float,
        Option(
            "How long a web server serves a cached session without asking a session server, after the check and after "
            "it heard from all of them; SQLite and memory, where it costs nothing, are always asked.",
            duration=True,
            maximum=3600,
        ),
    ] = 2.0
    store_timeout_s: Annotated[
        float,
        Option(
            "How long a session server may take to answer; an SQLite file has 5 s, because nobody else could.",
            duration=True,
            minimum=0.01,
            maximum=60,
        ),
    ] = 0.3

    def __post_init__(self) -> None:
        judge(self)
        if self.idle_timeout_s > self.absolute_timeout_s:
            raise ConfigError("idle_timeout: longer than absolute_timeout; shorten it or raise absolute_timeout")
        if self.durability == "async" and self.below_target == "refuse":
            raise ConfigError('below_target: "refuse" needs durability "one" or "all"; "async" waits for no copy')
        self.policy().check()

    def policy(self, merge: Merge | None = None) -> SessionPolicy:
        """The same as the rules of sessions read it; ``merge`` decides conflicts instead of ``conflict``."""
        return SessionPolicy(
            rotate_after_ms=_ms(self.rotate_after_s),
            grace_ms=_ms(self.grace_s),
            theft=self.theft,
            rolled_back=self.rolled_back,
            conflict=merge or self.conflict,
            idle_timeout_ms=_ms(self.idle_timeout_s),
            new_session_ms=_ms(self.new_session_life_s),
            absolute_timeout_ms=_ms(self.absolute_timeout_s),
            sessions_per_user=self.sessions_per_user,
            at_session_limit=self.at_session_limit,
            device_binding=self.device_binding,
            bound_cookie_ms=_ms(self.bound_cookie_life_s),
        )

    def replication(self) -> ReplicationPolicy:
        """The same as the rules of copies read it."""
        return ReplicationPolicy(
            durability=self.durability,
            below_target=self.below_target,
            too_few_answers=self.too_few_answers,
            patience_s=self.patience_s,
            lease_s=self.lease_s,
        )


class SessionArguments(TypedDict, total=False):
    """The same names as keyword arguments; a duration is seconds, text such as ``"30m"``, or a ``timedelta``.

    Names and what is taken under them, no more: of ``**settings`` a type checker reads nothing but a dict that is
    written out (PEP 692), and a setting is taken in more forms than it is held in. A test compares both.
    """

    copies: Copies
    durability: Durability
    below_target: BelowTarget
    too_few_answers: TooFewAnswers
    patience_s: Duration
    session_server_list: int
    rolled_back: RolledBack
    conflict: Conflict | Merge
    open_streams: OpenStreams
    theft: Theft
    rotate_after_s: Duration
    grace_s: Duration
    idle_timeout_s: Duration
    absolute_timeout_s: Duration
    new_session_life_s: Duration
    new_sessions_per_minute: int
    new_sessions_burst: int
    sessions_per_user: int
    at_session_limit: AtSessionLimit
    device_binding: DeviceBinding
    bound_cookie_life_s: Duration
    lease_s: Duration
    store_timeout_s: Duration


def default_copies(session_servers: int) -> int:
    """What ``copies`` is if nobody says: two, or one where there is but one session server."""
    return 1 if session_servers == 1 else 2


def check_copies(copies: Copies, session_servers: int, more: str = "give") -> None:
    """Raises ConfigError for more copies than session servers; ``more`` is how one comes to more of them."""
    if copies != "all" and copies > session_servers:
        fewer = f"set copies to {session_servers}{' or less' if session_servers > 1 else ''}"
        need = f"{copies} copies need as many session servers, not {session_servers}"
        raise ConfigError(f"copies: {need}; {fewer}, or {more} {copies} of them")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
