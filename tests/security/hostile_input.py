"""Inputs that are damaged or made up, and the run that gives a million of them to a reader."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from coatcheck.tokens.sealed import TOKEN_CHARS

MAX_INPUT_BYTES = 4096
MAX_CPU_S_PER_INPUT = 0.5
"""Of this process; a thousand times what the slowest input takes."""
MAX_MEAN_CPU_S = 0.001
MAX_GROWTH_BYTES = 24 * 1024 * 1024
"""Of the peak, after the first tenth: what is remembered is bounded, and room for the allocator."""

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
NASTY = [
    b"", b"\x00", b"\r\n", b"\n", b";", b"; ", b"=", b'"', b",", b" ", b"\t", b"\xff\xfe", b"\xed\xa0\x80", b"%00",
    b"\\", b"-1", b"0", b"99999999999999999999", b"A" * 116, b"=" * 300, b"*", b"$", b":", b"{{}}",
    b"__Host-coatcheck=", b"\r\n\r\n", b"\xe2\x80\xae",
]  # fmt: skip
Input = TypeVar("Input")
Check = Callable[[Input], bool]
"""Whether the input was understood: damage does not always hurt."""


class Report(NamedTuple):
    """What a run saw. Times are CPU seconds of this process."""

    kind: str
    inputs: int
    understood: int
    mean_us: float
    slowest_ms: float
    growth_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.inputs} inputs, {self.understood} understood, {self.mean_us:.1f} us each, "
            f"slowest {self.slowest_ms:.1f} ms, grew {self.growth_bytes / 1024:.0f} KiB"
        )


def damaged(genuine: bytes, dice: random.Random) -> bytes:
    """``genuine`` with one to four things done to it."""
    raw = bytearray(genuine)
    for _ in range(dice.randint(1, 4)):
        at = dice.randint(0, len(raw))
        act = dice.randrange(7)
        if act == 0 and at < len(raw):
            raw[at] ^= 1 << dice.randrange(8)
        elif act == 1 and at < len(raw):
            raw[at] = dice.randrange(256)
        elif act == 2:
            raw[at:at] = dice.choice(NASTY)
        elif act == 3:
            del raw[at : at + dice.randint(1, 20)]
        elif act == 4:
            raw[at:] = b""
        elif act == 5:
            raw[at:at] = raw[max(0, at - dice.randint(1, 60)) : at]
        elif act == 6 and at < len(raw):
            raw[at] = dice.choice(ALPHABET)
    return bytes(raw[:MAX_INPUT_BYTES])


def scrambled(dice: random.Random) -> bytes:
    """Bytes of no meaning, or of the right length and letters and no meaning."""
    act = dice.randrange(4)
    if act == 0:
        return dice.randbytes(dice.randint(0, 200))
    if act == 1:
        return bytes(dice.choices(ALPHABET, k=TOKEN_CHARS))
    if act == 2:
        return b"".join(dice.choices(NASTY, k=dice.randint(0, 8)))
    return dice.randbytes(dice.randint(0, MAX_INPUT_BYTES)) if dice.random() < 0.05 else dice.randbytes(TOKEN_CHARS)


def inputs(genuine: list[bytes], dice: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield damaged(dice.choice(genuine), dice) if dice.random() < 0.75 else scrambled(dice)


def run(kind: str, genuine: list[bytes], check: Check[bytes], count: int, seed: int) -> Report:
    """Give ``count`` inputs to ``check``; raises AssertionError with the seed and the input."""
    return run_with(kind, inputs(genuine, random.Random(f"{kind} {seed}"), count), check, count, seed)


def run_with(kind: str, given: Iterable[Input], check: Check[Input], count: int, seed: int) -> Report:
    """The same with ``count`` inputs of any form, made one at a time; what that takes does not count."""
    slowest = total = 0.0
    understood = warm = 0
    for number, raw in enumerate(given):
        if number == count // 10:
            warm = _peak_bytes()
        started = time.thread_time()
        try:
            understood += check(raw)
        except Exception as failure:
            raise AssertionError(f"{kind}, seed {seed}, input {number}: {failure!r} from {raw!r}") from failure
        took = time.thread_time() - started
        total += took
        slowest = max(slowest, took)
        assert took < MAX_CPU_S_PER_INPUT, f"{kind}, seed {seed}, input {number}: {took:.2f} s for {raw!r}"
    growth = _peak_bytes() - warm
    assert total / count < MAX_MEAN_CPU_S, f"{kind}: {total / count:.6f} s for each input"
    assert growth < MAX_GROWTH_BYTES, f"{kind}: the process grew by {growth} bytes"
    return Report(kind, count, understood, total / count * 1e6, slowest * 1e3, growth)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
