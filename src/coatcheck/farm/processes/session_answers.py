"""What a web server, or a command that speaks to the session servers itself, answers to an operator about sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from coatcheck.drivers.sessions import Sessions
from coatcheck.events import PUBLIC_ID_BYTES
from coatcheck.farm.control.lines import ControlError, Message
from coatcheck.replication.entry import KEY_BYTES

MAX_USER_SHOWN: Final = 128
"""Characters of a user's name in a list of sessions."""

Answers = dict[str, Callable[[Message], Awaitable[dict[str, Any]]]]


async def _key(message: Message, sessions: Sessions) -> bytes | None:
    """The key that an operator means, who may write it or the ID of logs and audit records; ``None``: not stored."""
    text = str(message["key"]).lower()
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) == PUBLIC_ID_BYTES:
        return await sessions.find(text)
    if len(raw) != KEY_BYTES:
        raise ControlError(
            f"a session's ID has {2 * PUBLIC_ID_BYTES} hex digits, as logs show it, and its key {2 * KEY_BYTES}, "
            "as `coatcheck sessions ls` shows both"
        )
    return raw


def session_answers(sessions: Sessions) -> Answers:
    """By the operation that is asked for."""

    async def list_sessions(message: Message) -> dict[str, Any]:
        if (user := message.get("user")) is not None:
            return {"sessions": msgspec.to_builtins(await sessions.sessions_of(str(user))), "more": False}
        limit = int(message["limit"])
        # One more than asked for: whoever sees a part must be told that it is one.
        rows = msgspec.to_builtins(await sessions.list_sessions(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        for row in rows:
            # A user's name may be as long as a session's data; `sessions show` has all of it.
            row["user"] = row["user"] and row["user"][:MAX_USER_SHOWN]
        return {"sessions": rows, "more": more}

    async def show(message: Message) -> dict[str, Any]:
        key = await _key(message, sessions)
        return {"session": None if key is None else msgspec.to_builtins(await sessions.show(key))}

    async def close(message: Message) -> dict[str, Any]:
        if message.get("all"):
            await sessions.close_all()
            return {"all": True}
        if (user := message.get("user")) is not None:
            return {"closed": msgspec.to_builtins(await sessions.close_user(str(user)))}
        key = await _key(message, sessions)
        if key is None:
            raise ControlError(f"there is no session {message['key']}")
        return {"closed": msgspec.to_builtins(await sessions.close_key(key))}

    return {"sessions.ls": list_sessions, "sessions.show": show, "sessions.close": close}
