"""What the simulated wire does to a connection: it may break or stand still, but it never shows a hole."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator

import pytest

from coatcheck.simulation.world.machine import Machine
from coatcheck.simulation.world.world import SimulatedWorld

Got = list[bytes]


class Reader(asyncio.Protocol):
    def __init__(self, got: Got) -> None:
        self.got = got
        self.ended: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)


class Pair:
    """A client that is connected to a server, on two hosts."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.got: Got = []
        self.server, self.client = world.machine("server"), world.machine("client")
        self.readers: list[Reader] = []
        self._done(self.server, self._listen())
        self.writer: asyncio.Transport = self._done(self.client, self._connect())

    def _done(self, machine: Machine, main: object) -> object:
        task = machine.start(main)  # type: ignore[arg-type]
        self.world.run(5, task.done)
        return task.result()

    async def _listen(self) -> None:
        def reader() -> Reader:
            self.readers.append(Reader(self.got))
            return self.readers[-1]

        await asyncio.get_running_loop().create_server(reader, self.server.address, 700)

    async def _connect(self) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        self.mine = Reader([])
        transport, _ = await loop.create_connection(lambda: self.mine, self.server.address, 700)
        return transport

    def write(self, data: bytes) -> None:
        self.client.call(self.writer.write, data)

    @property
    def read(self) -> bytes:
        return b"".join(self.got)


@pytest.fixture
def pair() -> Iterator[Pair]:
    world = SimulatedWorld(5, lambda text, error: pytest.fail(f"{text} {error!r}"))
    with world.running():
        yield Pair(world)


def counted(pair: Pair, messages: int) -> bytes:
    sent = b""
    for number in range(messages):
        pair.write(b"%d " % number)
        sent += b"%d " % number
        pair.world.run(0.0005)
    return sent


def test_order_is_kept_whatever_is_late_or_split(pair: Pair) -> None:
    pair.world.wire.lateness, pair.world.wire.fragmentation = 0.05, 0.3
    sent = counted(pair, 200)
    assert pair.read != sent
    pair.world.run(60)
    assert pair.read == sent
    assert any(piece.startswith(b" ") for piece in pair.got), "one was split"
    assert max(len(piece) for piece in pair.got) > 20, "what was held up came at once"


@pytest.mark.parametrize("seed", range(20))
def test_a_lost_segment_is_sent_again_or_breaks_the_connection(seed: int) -> None:
    world = SimulatedWorld(seed, lambda text, error: pytest.fail(f"{text} {error!r}"))
    with world.running():
        pair = Pair(world)
        world.wire.loss = 0.02
        sent = counted(pair, 100)
        world.wire.loss = 0.0
        world.run(10)
        assert sent.startswith(pair.read)
        broken = [type(one) for one in pair.readers[0].ended + pair.mine.ended]
        assert (pair.read == sent) == (not broken)
        assert broken in ([], [ConnectionResetError] * 2)


def test_a_cut_holds_back_one_way_until_it_heals(pair: Pair) -> None:
    pair.world.wire.sever([("client", "server")])
    pair.write(b"there")
    pair.server.call(pair.readers[0].transport.write, b"back")  # type: ignore[attr-defined]
    pair.world.run(30)
    assert (pair.read, pair.mine.got) == (b"", [b"back"])
    pair.world.wire.mend([("client", "server")])
    pair.world.run(pair.world.wire.RESEND_S)
    assert pair.read == b"there"
    assert not pair.world.wire.cut


def test_a_frozen_process_reads_later_and_its_kernel_takes_what_comes(pair: Pair) -> None:
    pair.server.freeze()
    sent = counted(pair, 10)
    pair.world.run(30)
    assert pair.read == b""
    pair.server.thaw()
    pair.world.run(0.001)
    assert pair.read == sent


def test_who_is_killed_ends_its_connections_and_who_loses_power_tells_nobody(pair: Pair) -> None:
    pair.server.kill(silently=True)
    pair.world.hosts.without_power.add("server")
    pair.write(b"hello?")
    pair.world.run(60)
    assert pair.mine.ended == []
    pair.world.machine("server")
    pair.write(b"hello?")
    pair.world.run(1)
    assert [type(one) for one in pair.mine.ended] == [ConnectionResetError]


def test_a_kill_is_noticed_at_the_other_end(pair: Pair) -> None:
    pair.client.kill()
    pair.world.run(1)
    assert pair.readers[0].ended == [None]
    pair.client.call(pytest.fail, "the dead do nothing")


def test_a_slow_link_takes_its_time(pair: Pair) -> None:
    pair.world.wire.bytes_per_s[("client", "server")] = 1000.0
    pair.write(b"x" * 2000)
    pair.world.run(1.9)
    assert pair.read == b""
    pair.world.run(0.2)
    assert len(pair.read) == 2000


def test_two_hosts_never_have_one_clock(pair: Pair) -> None:
    clocks = {machine.monotonic() for machine in (pair.server, pair.client)}
    assert len(clocks) == 2


def test_what_the_dead_begin_never_runs_and_says_nothing() -> None:
    """A process is killed before its first task runs, in the middle of one, and as one is tidied up."""
    world = SimulatedWorld(3, lambda text, error: pytest.fail(f"{text} {error!r}"))
    ran: list[str] = []

    async def late(name: str) -> None:
        ran.append(name)

    async def suicide() -> None:
        world._machines[-1].kill()
        asyncio.get_running_loop().create_task(late("begun after the end"))

    async def tidy() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            asyncio.get_running_loop().create_task(late("begun while it is tidied up"))

    gc.collect()  # what earlier tests have left says what it has to say before
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with world.running():
            machine = world.machine("one")
            machine.start(late("not begun yet"))
            machine.kill()
            machine.start(late("of the dead"))
            for main in (suicide, tidy):
                machine = world.machine(main.__name__)
                machine.start(main())
                world.run(1)
                machine.kill()
        world._machines.clear()
        del machine
        gc.collect()
    assert (ran, [str(one.message) for one in said]) == ([], [])
