"""Links through which a test cuts a farm in two: TCP proxies that stop carrying bytes, and carry them on again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

from ports import LOOPBACK, free_port

CHUNK = 65_536


class Link:
    """From a port of its own to ``target``. While it is cut, connections are taken and nothing comes out of them, as
    where a firewall drops packets."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.target = target
        self.whole = asyncio.Event()
        self.whole.set()

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._carry, LOOPBACK, self.port)

    async def _carry(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        await self.whole.wait()
        try:
            far_in, far_out = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            near_out.close()
            return
        await asyncio.gather(self._pump(near_in, far_out), self._pump(far_in, near_out))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(CHUNK):
                await self.whole.wait()
                sink.write(chunk)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


class Network:
    """All links of a test, in a thread of their own. Use it as a context."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def link(self, target: int) -> Link:
        async def begin() -> Link:
            link = Link(target)
            self._servers.append(await link.serve())
            return link

        return asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    def cut(self, links: Iterable[Link]) -> None:
        self._each([link.whole.clear for link in links])

    def heal(self, links: Iterable[Link]) -> None:
        self._each([link.whole.set for link in links])

    def _each(self, acts: list[object]) -> None:
        async def do() -> None:
            for act in acts:
                act()  # type: ignore[operator]

        asyncio.run_coroutine_threadsafe(do(), self._loop).result()
