"""The settings of a pool, read once and judged at once."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypedDict

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.event_log import log_event
from coatcheck.pool.anomalies import DEFAULTS, MAX_DIFFERENT, Counted, Threshold
from coatcheck.pool.duration import MAX_S, Duration, rate, seconds
from coatcheck.pool.events import PoolObserver
from coatcheck.pool.flows import Fresh
from coatcheck.pool.masking import check_caller, check_state, check_token
from coatcheck.pool.payload import Payload, check_payload, pack
from coatcheck.pool.state import FAR, MAX_USERS, NO_LIMIT, Policy
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import parse_key

BY_NAME: Final = ("refresh_token", "upstream_state")
"""Parameters of ``login`` that are given by name; they are no place for the password."""

READY_EVERY_S: Final = 1.0
"""How often a pool with ``min_idle`` looks whether a user has too few tokens ready."""


class SignedIn(msgspec.Struct, frozen=True):
    """What ``login`` may return instead of a string. ``expires_in_s``: when the upstream ends it in any case.

    ``payload``: what belongs to the token beside its string, a small dict of JSON types. ``refresh_token``: for the
    next login of a shared token (``login(user, refresh_token=...)``). ``upstream_state``: by what the upstream finds
    its own state of this user again, for the next login (``login(user, upstream_state=...)``); ``None``: the one of
    before stays; ``""``: there is none any more.
    """

    token: str
    expires_in_s: float | None = None
    payload: Payload | None = None
    refresh_token: str | None = None
    upstream_state: str | None = None

    def __repr__(self) -> str:
        return f"<SignedIn for {self.expires_in_s} s>"


LoginResult = str | SignedIn
Login = Callable[..., LoginResult | Awaitable[LoginResult]]
Key = str | bytes | Sequence[str | bytes] | KeyRing


class PoolOptions(TypedDict, total=False):
    """The keyword arguments of ``TokenPool`` and ``AsyncTokenPool``; every duration is a string, seconds or timedelta.

    ``login``: ``login(user)`` or ``login(user, password)`` returns a token (:class:`SignedIn` if its end is known); if
    it has a parameter ``refresh_token``, it is given what the login of a shared token left, and by a parameter
    ``upstream_state`` what the last login of the same user and password left (or ``None``), for ``keep_upstream_state``
    after it ("30d"). ``refresh_before``: so long before its end a shared token is renewed, at most half of its life
    ("1m").
    ``logout(user, token)``, ``probe(user, token) -> bool``, ``keepalive(user, token) -> str | None``.
    ``per_user``: sessions at the upstream at most (4). ``max_uses``: leases of one token (500). ``ttl``: life after
    each use ("15m"). ``lease``: how long a borrower may keep it ("60s"). ``wait``: for a free token ("10s").
    ``min_remaining``: life that a token must still have ("0s"). ``jitter``: part of ``ttl`` that is taken off at random
    (0.1). ``validity``: "both" or "expiry" (``max_uses`` does not count). ``on_error``: what becomes of the token when
    the ``with`` block fails. ``max_waiting``: callers per user (1000). ``login_rate``: "60/1m", or ``None``.
    ``max_stream``: so long adapters go on extending the lease of a response that streams ("1h").
    ``login_backoff``: first and longest pause after failed logins. ``keepalive_every``: touch tokens idle that long.
    ``check_after``: a token that nobody used for so long is asked for by ``probe`` before it is lent; ``None``: never.
    ``leak_after``: a lease that is out for so long is told, with where it was borrowed; ``None``: never.
    ``min_idle``: of a user who has tokens, so many are kept ready, by logins ahead (0); without a password alone.
    ``max_users``: of a pool without a ``store`` (10,000).
    ``on_audit``: is told of each login, loan, return and loss (``PoolAuditRecord``), in a thread of its own;
    ``caller``: who borrows where ``calling_as`` names nobody. ``anomalies``: thresholds of what stands out, by name,
    such as ``{"users_per_caller": "50/1m"}``; ``{}``: the defaults (:mod:`.anomalies`); ``None``: nothing is counted.
    ``store``: "sqlite:///file", "redis://...", "postgresql://..."; then ``key`` seals, and ``name`` tells pools apart.
    """

    logout: Callable[[str, str], Any] | None
    probe: Callable[[str, str], Any] | None
    keepalive: Callable[[str, str], Any] | None
    keepalive_every: Duration
    per_user: int
    max_uses: int
    ttl: Duration
    lease: Duration
    wait: Duration
    min_remaining: Duration
    jitter: float
    validity: Literal["both", "expiry"]
    on_error: Literal["drop", "return", "probe"]
    max_waiting: int
    login_rate: str | tuple[int, Duration] | None
    login_backoff: tuple[Duration, Duration]
    login_timeout: Duration
    logout_timeout: Duration
    store: str | None
    key: Key | None
    name: str
    on_event: PoolObserver
    on_audit: Callable[[Any], Any] | None
    caller: str
    anomalies: Mapping[str, str | tuple[int, Duration] | None] | None
    clock: Callable[[], float]
    refresh_before: Duration
    keep_upstream_state: Duration
    max_stream: Duration
    check_after: Duration | None
    max_users: int
    leak_after: Duration | None
    min_idle: int


class Settings:
    """:class:`PoolOptions`, judged. Raises ``ConfigError``, which names the setting."""

    def __init__(self, login: Login | None, options: PoolOptions) -> None:
        unknown = set(options) - set(PoolOptions.__annotations__)
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))}: no such setting of a pool")
        self.login = login
        self.login_takes_password = login is not None and _takes_two(login)
        self.login_takes_refresh_token = login is not None and _takes(login, "refresh_token")
        self.login_takes_upstream_state = login is not None and _takes(login, "upstream_state")
        self.logout = options.get("logout")
        self.probe = options.get("probe")
        self.keepalive = options.get("keepalive")
        for name in ("login", "logout", "probe", "keepalive"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(f"{name}: must be a function")
        self.on_event = _function("on_event", options.get("on_event", log_event))
        self.on_audit = options.get("on_audit")
        if self.on_audit is not None and is_coroutine_function(_function("on_audit", self.on_audit)):
            raise ConfigError("on_audit: must be a plain function; it runs in a thread of its own")
        self.caller = _caller_name(options.get("caller", ""))
        self.thresholds = _thresholds(options.get("anomalies"))
        self.clock = _function("clock", options.get("clock", time.monotonic))
        self.keepalive_every_s = seconds("keepalive_every", options.get("keepalive_every", "5m"), least=0.01)
        self.ttl_s = seconds("ttl", options.get("ttl", "15m"), least=0.001)
        self.wait_s = seconds("wait", options.get("wait", "10s"))
        self.refresh_before_s = seconds("refresh_before", options.get("refresh_before", "1m"))
        keep_upstream_state = options.get("keep_upstream_state", "30d")
        self.keep_upstream_state_s = seconds("keep_upstream_state", keep_upstream_state, least=0.001)
        if "keep_upstream_state" in options and login is not None and not self.login_takes_upstream_state:
            raise ConfigError("keep_upstream_state: needs a login function with a parameter upstream_state")
        self.max_stream_s = seconds("max_stream", options.get("max_stream", "1h"))
        self.jitter = options.get("jitter", 0.1)
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter < 1:
            raise ConfigError("jitter: must be a part of ttl, from 0 to below 1")
        self.on_error = _one_of("on_error", options.get("on_error", "drop"), ("drop", "return", "probe"))
        if self.on_error == "probe" and self.probe is None:
            raise ConfigError('probe: on_error="probe" needs a function that tells whether a token is alive')
        leak_after = options.get("leak_after")
        self.leak_after_s = FAR if leak_after is None else seconds("leak_after", leak_after, least=0.001)
        check_after = options.get("check_after")
        self.check_after_s = FAR if check_after is None else seconds("check_after", check_after, least=0.001)
        if check_after is not None and self.probe is None:
            raise ConfigError("probe: check_after needs a function that tells whether a token is alive")
        self.policy = _policy(options, audited=self.is_audited())
        if self.policy.min_remaining_s >= self.ttl_s * (1 - self.jitter):
            raise ConfigError("min_remaining: must be shorter than ttl less its jitter, or no token could ever be used")
        self.min_idle = options.get("min_idle", 0)
        if self.min_idle != 0:
            _count("min_idle", self.min_idle, self.policy.per_user)
            if login is None:
                raise ConfigError("min_idle: needs a login function")
        self.ticks_every_s = min(
            self.keepalive_every_s / 2 if self.keepalive is not None else FAR, READY_EVERY_S if self.min_idle else FAR
        )
        self.store = options.get("store")
        self.max_users = _count("max_users", options.get("max_users", MAX_USERS), 10_000_000)
        if self.store is not None and "max_users" in options:
            raise ConfigError("max_users: a pool with a store has no bound of users")
        self.key = options.get("key")
        self.name = options.get("name", "default")
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 200 or not self.name.isprintable():
            raise ConfigError("name: must be a string of 1 to 200 printable characters")

    def is_audited(self) -> bool:
        return self.on_audit is not None or self.thresholds is not None

    def ring(self) -> KeyRing:
        """The keys that seal what a shared store keeps. Raises ``ConfigError`` without any."""
        key = self.key
        if isinstance(key, KeyRing):
            return key
        if key is None:
            raise ConfigError("key: a store outside the process needs a key of 32 random bytes or more, to seal tokens")
        keys: list[Any] = list(key) if isinstance(key, (list, tuple)) else [key]
        if not all(isinstance(secret, (str, bytes)) for secret in keys):
            raise ConfigError("key: must be bytes, a string, or a list of them; the first one seals")
        return KeyRing([parse_key(secret, "key") for secret in keys])

    def refuse_coroutines(self) -> None:
        """Raises ``ConfigError`` for callbacks that only a loop could run: called in a thread they would do nothing."""
        for name in ("login", "logout", "probe", "keepalive"):
            if is_coroutine_function(getattr(self, name)):
                raise ConfigError(f"{name}: a coroutine function needs an AsyncTokenPool")

    def life_s(self, dice: float) -> float:
        """A token's life after each use; ``dice``: uniform in 0..1."""
        return self.ttl_s * (1 - self.jitter * dice)

    def fresh(self, result: object, dice: float) -> Fresh:
        """Judge what ``login`` returned. Raises ``ValueError``, which never shows it."""
        if isinstance(result, str):
            return Fresh(pack(result, None), self.life_s(dice))
        token, span = getattr(result, "token", None), getattr(result, "expires_in_s", None)
        if token is None:
            raise ValueError(f"login returned {type(result).__name__}, not a token")
        value = pack(token, check_payload(getattr(result, "payload", None)))
        refresh_token = getattr(result, "refresh_token", None)
        if refresh_token is not None:
            check_token(refresh_token)
        upstream_state = getattr(result, "upstream_state", None)
        check_state(upstream_state)
        if upstream_state is not None and not self.login_takes_upstream_state:
            raise ValueError("login returned an upstream_state, but has no parameter of that name to be given it again")
        return Fresh(value, self.life_s(dice), span_of(span), refresh_token, upstream_state)


def span_of(expires_in_s: object) -> float:
    """Judge a stated end of life, in seconds from now; ``None``: not stated."""
    if expires_in_s is None:
        return FAR
    if isinstance(expires_in_s, bool) or not isinstance(expires_in_s, (int, float)) or not expires_in_s > 0:
        raise ValueError("expires_in_s must be a number of seconds above 0")
    return FAR if expires_in_s > MAX_S else float(expires_in_s)


def is_coroutine_function(function: object) -> bool:
    """Whether calling ``function`` makes a coroutine; also of objects that can be called."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _policy(options: PoolOptions, *, audited: bool) -> Policy:
    uses = _count("max_uses", options.get("max_uses", 500), NO_LIMIT)
    if _one_of("validity", options.get("validity", "both"), ("both", "expiry")) == "expiry":
        uses = NO_LIMIT
    login_rate = options.get("login_rate", "60/1m")
    every_s, burst = (0.0, 1) if login_rate is None else rate("login_rate", login_rate)
    backoff = options.get("login_backoff", ("1s", "60s"))
    if not isinstance(backoff, (tuple, list)) or len(backoff) != 2:
        raise ConfigError('login_backoff: write the first and the longest pause, as ("1s", "60s")')
    first, longest = (seconds("login_backoff", pause) for pause in backoff)
    if first > longest:
        raise ConfigError("login_backoff: the first pause is longer than the longest")
    return Policy(
        per_user=_count("per_user", options.get("per_user", 4), 1_000),
        max_uses=uses,
        lease_s=seconds("lease", options.get("lease", "60s"), least=0.001),
        min_remaining_s=seconds("min_remaining", options.get("min_remaining", 0)),
        signs_out=options.get("logout") is not None,
        login_timeout_s=seconds("login_timeout", options.get("login_timeout", "30s"), least=0.001),
        logout_timeout_s=seconds("logout_timeout", options.get("logout_timeout", "10s"), least=0.001),
        max_waiting=_count("max_waiting", options.get("max_waiting", 1_000), 100_000),
        backoff_first_s=first,
        backoff_max_s=longest,
        login_every_s=every_s,
        login_burst=burst,
        audited=audited,
    )


def _caller_name(value: object) -> str:
    try:
        return "" if value == "" else check_caller(value)
    except ValueError as error:
        raise ConfigError(f"caller: {error}") from None


def _thresholds(value: object) -> dict[Counted, Threshold] | None:
    """Judge ``anomalies``; what is set to ``None`` is not counted."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError('anomalies: write thresholds by name, as {"users_per_caller": "50/1m"}')
    names = {counted.value: counted for counted in Counted}
    found: dict[Counted, Threshold] = {}
    for name, text in {**DEFAULTS, **value}.items():
        if name not in names:
            raise ConfigError(f"anomalies: there is no count of that name; there are {', '.join(names)}")
        if text is None:
            continue
        every_s, most = rate(f"anomalies: {name}", text)
        if names[name] is Counted.USERS_PER_CALLER and most > MAX_DIFFERENT:
            raise ConfigError(f"anomalies: {name}: at most {MAX_DIFFERENT}")
        found[names[name]] = Threshold(most, every_s * most)
    return found


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise ConfigError(f"{name}: must be a function")
    return value


def _count(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"{name}: must be a whole number from 1 to {most}")
    return value


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{name}: must be one of {', '.join(choices)}")
    return str(value)


def _takes_two(login: Login) -> bool:
    """Whether ``login`` takes the password as well; a function that cannot be inspected takes the user alone."""
    try:
        parameters = inspect.signature(login).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in BY_NAME
    ]
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _takes(login: Login, name: str) -> bool:
    """Whether ``login`` has a parameter of that name, for what the login of before left."""
    try:
        parameter = inspect.signature(login).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
