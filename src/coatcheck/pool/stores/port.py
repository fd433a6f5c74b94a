"""The port of token stores, and what each must promise. One contract suite proves it: ``tests/contracts``.

* **Atomic per user.** A command (:mod:`coatcheck.pool.commands`) is applied to a user's state by
  :func:`coatcheck.pool.rules.apply`, wholly or not at all, and as if no other ran at the same time, in any process.
* **Fenced.** Every lease has a number that is larger than all before it for that user, also after the store lost
  everything. A command with a number that is no longer current changes nothing and is answered ``Lost``.
* **Time is the store's.** Deadlines are judged by one clock that all users of the store share. Callers get
  remaining seconds, never moments.
* **It may lose.** A store that loses its state forgets sessions and leases; borrowers then get ``LeaseLost``. It must
  never answer with an older state than one that it showed before, other than by such a loss.
* **Errors.** Whatever goes wrong is ``StoreUnavailable``: the command may have been applied or not. A lease that was
  granted unknown to the caller ends at its deadline. A cancelled call has either not begun or runs to its end.
* **Tokens are sealed** in everything that leaves the process, bound to their pool and user.
* **Waking is a hint.** What ``watch`` registers may be called for nothing, and may be missed: whoever waits asks again
  after ``Waiting.again_s``. Callers of the same process are woken at once; where nobody tells of the others, whoever
  waits looks for itself (``is_turn``), as often as ``pauses`` says.
* **Shared tokens** are sealed values of their own, one per user, apart from the states: read, and swapped by comparison
  in one step. They may be lost as states may; an older one must never come back.
* **Forks share nothing.** After a fork the pool opens the store anew in the child, and never touches what it inherited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from coatcheck.pool.commands import Command, CommandOutcome
from coatcheck.pool.state import UserState


class TokenStore(Protocol):
    """Keeps the state of users; called from any thread."""

    def apply(self, user: str, command: Command) -> CommandOutcome:
        """Apply ``command``. Raises ``StoreUnavailable``."""
        ...

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        """From now on call ``wake``, from any thread, when it may be the turn of ``ticket``. Never blocks."""
        ...

    def unwatch(self, user: str, ticket: int) -> None:
        """No longer."""
        ...

    def pauses(self) -> tuple[float, float]:
        """The first and the longest pause in seconds between two looks; ``FAR``: whoever waits is told."""
        ...

    def is_turn(self, user: str, ticket: int) -> bool:
        """Whether ``ticket`` should ask again. Writes nothing. Raises ``StoreUnavailable``."""
        ...

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        """The states of all users (or one), each with the store's time; for showing. A copy, or never to be changed.

        It creates nothing, and neither waits for a borrower nor lets one wait.
        """
        ...

    def forget(self) -> None:
        """Delete the states of users that are idle (no token, lease or waiting caller); for clean-up."""
        ...

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        """What is stored of the user's shared tokens (``None``: nothing), and the store's time in seconds."""
        ...

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        """Store ``new`` (``None``: delete) if ``old`` is what is stored; whether ``new`` is stored now.

        No two values are ever alike, so a repeated call is known by its ``new``. ``keep_s``: it may be forgotten then.
        """
        ...

    def shared_users(self) -> list[str]:
        """The users who have shared tokens stored; for cleaning up, and for showing."""
        ...

    def close(self) -> None:
        """Let connections and files go. What is stored stays."""
        ...


class AsyncTokenStore(Protocol):
    """The same promises as :class:`TokenStore`, awaited on one event loop."""

    async def apply(self, user: str, command: Command) -> CommandOutcome: ...

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None: ...

    def unwatch(self, user: str, ticket: int) -> None: ...

    def pauses(self) -> tuple[float, float]: ...

    async def is_turn(self, user: str, ticket: int) -> bool: ...

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]: ...

    async def forget(self) -> None: ...

    async def read_shared(self, user: str) -> tuple[bytes | None, float]: ...

    async def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool: ...

    async def shared_users(self) -> list[str]: ...

    async def close(self) -> None: ...
