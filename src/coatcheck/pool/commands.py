"""What may be asked of one user's state, and what is answered; :mod:`coatcheck.pool.rules` says how."""

from __future__ import annotations

import msgspec

from coatcheck.pool.state import FAR


class Acquire(msgspec.Struct, frozen=True, tag=True):
    """A lease, please. ``ticket``: 0 for a new caller, else the place in the queue from an earlier :class:`Waiting`.

    ``credentials``: the caller's, as keyed hashes by each key of the pool, the one that is stored first; empty: none.
    ``more``: so many others of its process wait for the same; when it is served, the ticket stays for them, at the end
    of the queue. ``ahead``: it is served before all who wait, and the ticket keeps its place (:class:`Then`).
    """

    ticket: int = 0
    may_wait: bool = True
    may_login: bool = True
    credentials: tuple[bytes, ...] = ()
    more: int = 0
    ahead: bool = False

    def __repr__(self) -> str:
        return f"<Acquire {self.ticket}, {'may' if self.may_wait else 'does not'} wait>"


class Leave(msgspec.Struct, frozen=True, tag=True):
    """A waiting caller goes away. ``timed_out``: how many did so because their time was over."""

    ticket: int
    timed_out: int = 0


class LoginDone(msgspec.Struct, frozen=True, tag=True):
    """The login that holds slot ``fence`` succeeded; it becomes a lease."""

    fence: int
    value: str
    life_s: float
    span_s: float = FAR

    def __repr__(self) -> str:
        return f"<LoginDone {self.fence}>"


class LoginEnded(msgspec.Struct, frozen=True, tag=True):
    """The login that holds slot ``fence`` failed, or (``failed=False``) was given up by its caller.

    ``refused``: for good. ``credentials``: as in :class:`Acquire`, for a login whose slot is somebody else's by now.
    Of one that failed, the ``count`` of :class:`Done` says how many tokens there are that these credentials opened.
    """

    fence: int
    failed: bool = True
    refused: bool = False
    credentials: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<LoginEnded {self.fence}, {'failed' if self.failed else 'given up'}>"


class Release(msgspec.Struct, frozen=True, tag=True):
    """Give a lease back: ``value`` is the refreshed token if there is one; ``keep=False`` drops the token.

    ``sign_out=False``: the upstream itself said that the session is dead, so there is nothing to log out. ``unused``:
    the token was only logged in. Answered with :class:`Done`, of 1 token if it lives on.
    """

    fence: int
    value: str | None = None
    span_s: float | None = None
    keep: bool = True
    sign_out: bool = True
    unused: bool = False

    def __repr__(self) -> str:
        return f"<Release {self.fence}, {'keep' if self.keep else 'drop'}>"


class Extend(msgspec.Struct, frozen=True, tag=True):
    """Look at a lease; with ``renew``, give it a new deadline."""

    fence: int
    renew: bool = True


class RefuseToken(msgspec.Struct, frozen=True, tag=True):
    """The upstream refused the token of a lease. Answered with :class:`Done`, of 1 token if that is believed: then
    :class:`Release` drops it; 0: it is fresh from a login, and another one would be no better."""

    fence: int


class LogoutEnded(msgspec.Struct, frozen=True, tag=True):
    """The logout that holds slot ``fence`` is done, or was given up."""

    fence: int


class Add(msgspec.Struct, frozen=True, tag=True):
    """A token that somebody else got by logging in; it is free at once (mission D6). ``credentials``: as in
    :class:`Acquire`."""

    value: str
    life_s: float
    credentials: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return "<Add>"


class LogInAhead(msgspec.Struct, frozen=True, tag=True):
    """Begin a login that nobody waits for, if these credentials have fewer ``sessions``, with logins under way.

    ``idle``: those in borrowers' hands do not count. Whoever waits comes first. Answered with :class:`MustLogIn`,
    :class:`NotTried`, or :class:`NoToken`: there are enough, there is no room, or not yet.
    """

    sessions: int
    credentials: tuple[bytes, ...] = ()
    idle: bool = False


class TakeIdle(msgspec.Struct, frozen=True, tag=True):
    """Lease a free token that nobody used for ``idle_s``, to keep it alive; does not count as a use."""

    idle_s: float


class Remove(msgspec.Struct, frozen=True, tag=True):
    """An operator drops one token (or all, with ``token_id=None``), wherever it is.

    ``soft``: what is lent may be used on, and is dropped when it is given back.
    """

    token_id: int | None = None
    soft: bool = False


class Reset(msgspec.Struct, frozen=True, tag=True):
    """An operator forgets what holds a user up: every token, lease, closing, back-off and limit of logins."""


class CleanUp(msgspec.Struct, frozen=True, tag=True):
    """Drop what expired and what is overdue (mission D5)."""


class Then(msgspec.Struct, frozen=True, tag=True):
    """Both, one after the other and nothing between; answered with :class:`Both`.

    ``second`` is not ``ahead`` of anybody if ``first`` is answered ``Lost``: what nobody gave back is not passed on.
    """

    first: Release | Leave
    second: Acquire


Command = (
    Acquire
    | Leave
    | LoginDone
    | LoginEnded
    | Release
    | Extend
    | RefuseToken
    | LogoutEnded
    | Add
    | LogInAhead
    | TakeIdle
    | Remove
    | Reset
    | CleanUp
    | Then
)


class SlotTurn(msgspec.Struct, frozen=True):
    """Until when, and to how many more of its own callers, a process may pass a slot on before those of others."""

    until: float
    callers: int


class Granted(msgspec.Struct, frozen=True):
    """A lease. ``remaining_s``: until its deadline. ``deadline``: the same on the caller's clock, set there.

    ``turn``: of the caller's process, set there. ``idle_s``: how long nobody had used the token.
    """

    fence: int
    value: str
    remaining_s: float
    uses: int = 1
    deadline: float = 0.0
    turn: SlotTurn | None = None
    idle_s: float = 0.0
    token_id: int = 0

    def __repr__(self) -> str:
        return f"<Granted {self.fence}, {self.remaining_s:g} s>"


class MustLogIn(msgspec.Struct, frozen=True):
    """There is no token, but a slot: log in, then :class:`LoginDone` or :class:`LoginEnded`."""

    fence: int


class Waiting(msgspec.Struct, frozen=True):
    """Come back with ``ticket`` when woken, or after ``again_s``.

    ``limited_s``: a login would be allowed only then. ``hopeless``: nothing but that login can bring a token.
    """

    ticket: int
    again_s: float
    limited_s: float = 0.0
    hopeless: bool = False


class NoToken(msgspec.Struct, frozen=True):
    """No token now, for a caller who does not wait. ``limited_s``: a login would be allowed only then."""

    limited_s: float = 0.0


class NotTried(msgspec.Struct, frozen=True):
    """The upstream refused these credentials for good; they are not tried again."""


class QueueFull(msgspec.Struct, frozen=True):
    """As many callers wait as may."""


class NoSlot(msgspec.Struct, frozen=True):
    """The user has as many sessions as may be."""


class Lost(msgspec.Struct, frozen=True):
    """There is no such lease (any more)."""


class Done(msgspec.Struct, frozen=True):
    """It is done; ``count``: to how many tokens."""

    count: int = 1


class Both(msgspec.Struct, frozen=True):
    """The replies to the commands of :class:`Then`."""

    first: Lost | Done
    second: Granted | MustLogIn | Waiting | NotTried | QueueFull | NoToken


Reply = Granted | MustLogIn | Waiting | NoToken | NotTried | QueueFull | NoSlot | Lost | Done | Both


class Parting(msgspec.Struct, frozen=True):
    """A dropped token that whoever got this outcome must log out, then say :class:`LogoutEnded`."""

    fence: int
    value: str
    token_id: int = 0

    def __repr__(self) -> str:
        return f"<Parting {self.fence}>"


class TokenNote(msgspec.Struct, frozen=True):
    """What a command did to a token, for the audit. ``lease``: the one that it ended, if it was lent.

    ``what``: ``opened``; ``returned`` by its borrower; ``refused`` or ``kept`` after the upstream's refusal; or why it
    was dropped: ``expired``, ``used_up``, ``room`` (for other credentials), ``dead`` (said the upstream), ``given_up``
    (by its borrower), ``lost`` (with its borrower), ``removed`` or ``reset`` (by an operator).
    """

    what: str
    token_id: int
    lease: int = 0


class CommandOutcome(msgspec.Struct, frozen=True):
    """A reply, the tokens to log out, and what happened to tokens (if the policy is ``audited``)."""

    reply: Reply
    partings: tuple[Parting, ...] = ()
    notes: tuple[TokenNote, ...] = ()
