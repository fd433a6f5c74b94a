"""Random bytes are never handed out twice, not even by two processes that were one."""

from __future__ import annotations

import os

from coatcheck.drivers.asyncio_driver import RandomPool


def test_no_byte_is_handed_out_twice() -> None:
    pool = RandomPool()
    drawn = [pool(16) for _ in range(2000)]
    assert {len(each) for each in drawn} == {16}
    assert len(set(drawn)) == 2000
    assert len(pool(RandomPool.SIZE + 1)) == RandomPool.SIZE + 1


def test_a_forked_process_draws_other_bytes() -> None:
    pool = RandomPool()
    pool(16)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writable, pool(16))
        os._exit(0)
    os.close(writable)
    theirs = os.read(readable, 16)
    os.close(readable)
    assert os.waitpid(child, 0)[1] == 0
    assert len(theirs) == 16
    assert theirs != pool(16)
