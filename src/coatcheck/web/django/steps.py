"""What is done for sync and async code, written once: a generator yields what it asks for and is sent the answer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from coatcheck.web.django.configuration import sessions

T = TypeVar("T")


class Question(NamedTuple):
    """A method of :class:`coatcheck.drivers.threads.ThreadedSessions` that has a twin with an ``a`` in front."""

    name: str
    arguments: tuple[Any, ...]


Steps = Generator[Question, Any, T]


def ask(name: str, *arguments: Any) -> Steps[Any]:
    return (yield Question(name, arguments))


def wait(steps: Steps[T]) -> T:
    """In a thread, which waits for each answer."""
    try:
        asked = next(steps)
        while True:
            try:
                answer = getattr(sessions(), asked.name)(*asked.arguments)
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
                answer = await getattr(sessions(), f"a{asked.name}")(*asked.arguments)
            except BaseException as error:  # noqa: BLE001 - the steps decide what becomes of it
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found
