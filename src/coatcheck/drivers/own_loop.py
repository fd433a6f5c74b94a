"""What an event loop's sessions are asked on another one: they answer on their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class HasLoop(Protocol):
    """Sessions, open or not."""

    loop: asyncio.AbstractEventLoop | None


Home = TypeVar("Home", bound=HasLoop)


def on_own_loop(
    method: Callable[Concatenate[Home, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Home, P], Coroutine[Any, Any, T]]:
    """For a method that waits for session servers: a coroutine of an app that runs in threads (an async view of Flask
    or of Django under WSGI, which has an event loop for itself) may await it too."""

    @wraps(method)
    async def asked(self: Home, /, *arguments: P.args, **named: P.kwargs) -> T:
        loop = self.loop
        if loop is None or loop is asyncio.get_running_loop():
            return await method(self, *arguments, **named)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(method(self, *arguments, **named), loop))

    return asked
