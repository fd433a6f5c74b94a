"""What is done for sync and async code, written once: a generator yields what it asks for and is sent the answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from asgiref.sync import sync_to_async

from coatcheck.web.django.configuration import sessions

T = TypeVar("T")


class Question(NamedTuple):
    """A method of :class:`coatcheck.drivers.threads.ThreadedSessions` that has a twin with an ``a`` in front."""

    name: str
    arguments: tuple[Any, ...]

    def wait(self) -> Any:
        return getattr(sessions(), self.name)(*self.arguments)

    async def await_(self) -> Any:
        return await getattr(sessions(), f"a{self.name}")(*self.arguments)


class Call(NamedTuple):
    """A function of others that may block, such as one that asks Django's database."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def wait(self) -> Any:
        return self.function(*self.arguments)

    async def await_(self) -> Any:
        return await sync_to_async(self.function, thread_sensitive=True)(*self.arguments)


Steps = Generator[Question | Call, Any, T]


def ask(name: str, *arguments: Any) -> Steps[Any]:
    return (yield Question(name, arguments))


def call(function: Callable[..., Any], *arguments: Any) -> Steps[Any]:
    return (yield Call(function, arguments))


def wait(steps: Steps[T]) -> T:
    """In a thread, which waits for each answer."""
    try:
        asked = next(steps)
        while True:
            try:
                answer = asked.wait()
            except BaseException as error:  # noqa: BLE001 - the steps decide what becomes of it
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found


async def await_(steps: Steps[T]) -> T:
    """On an event loop, which goes on meanwhile."""
    try:
        asked = next(steps)
        while True:
            try:
                answer = await asked.await_()
            except BaseException as error:  # noqa: BLE001 - the steps decide what becomes of it
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found
