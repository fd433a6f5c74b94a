"""The ring that machines share, over stores that all reach: who waits for whom, what a store that lost it learns."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError, TokenRejected
from coatcheck.farm.files.keys import ENV, FarmKeys, key_name, load_or_create
from coatcheck.farm.files.run_directory import RING_FILE
from coatcheck.farm.supervision import shared_keys
from coatcheck.farm.supervision.shared_keys import SharedKeys
from coatcheck.stores.take_once.memory import MemoryItemsForThreads
from coatcheck.take_once.port import TakeOncePlace, TakeOnceUnavailable
from coatcheck.tokens.keyring import KeyRing

ROOT = FarmKeys((bytes(range(32)),), 0, "password")


class Lines:
    """What an operator reads."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Store(MemoryItemsForThreads):
    """A session server that may be away."""

    is_away = False

    def agree(self, *arguments: Any) -> bytes:
        if self.is_away:
            raise TakeOnceUnavailable("away")
        return super().agree(*arguments)


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores = [Store(name, lambda: 0.0) for name in ("one", "two")]
        self.lines = Lines()

    def machine(self, name: str, root: FarmKeys = ROOT) -> SharedKeys:
        directory = self.folder / name
        directory.mkdir(exist_ok=True)
        console: Any = self.lines
        return SharedKeys("farm", root, directory, self._places, console)

    def _places(self) -> list[TakeOncePlace]:
        def place(store: Store) -> TakeOncePlace:
            return TakeOncePlace(store.name, lambda: store, lambda: None)  # type: ignore[arg-type, return-value]

        return [place(store) for store in self.stores]

    async def started(self, name: str, root: FarmKeys = ROOT) -> SharedKeys:
        machine = self.machine(name, root)
        await machine.start()
        await machine.accepted(machine.keys)
        return machine


def names(keys: SharedKeys) -> list[tuple[str, str]]:
    return [(row["key"], row["state"]) for row in keys.rows()]


def test_a_key_seals_when_every_machine_has_said_that_it_opens_with_it(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        a, b = await site.started("a"), await site.started("b")
        keys = await a.announce()
        await a.accepted(keys)
        assert keys.primary == 0, "nobody seals with it"
        assert await a.unaware() == [b.machine]
        assert await b.look()
        assert names(b) == names(a) == [(key_name(ROOT.keys[0]), "active"), (key_name(keys.keys[1]), "announced")]
        assert await a.unaware() == [b.machine], "it has read it, and its processes have not heard"
        await b.accepted(b.keys)
        assert await a.unaware() == []
        await a.activate()
        await b.look()
        assert (b.keys.keys, b.keys.primary) == (keys.keys, 1)
        await b.revoke(key_name(ROOT.keys[0]))
        assert await b.holding(key_name(ROOT.keys[0])) == [a.machine]
        await a.look()
        await a.accepted(a.keys)
        assert await b.holding(key_name(ROOT.keys[0])) == []
        assert a.keys == b.keys

    asyncio.run(story(Site(tmp_path)))


def test_who_stopped_or_was_not_heard_for_long_is_not_waited_for(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        a, b, c = await site.started("a"), await site.started("b"), await site.started("c")
        await a.announce()
        assert await a.unaware() == sorted([b.machine, c.machine])
        await b.aclose()
        c_beat, _ = a._heard_at[c.machine]
        a._heard_at[c.machine] = c_beat, a._heard_at[c.machine][1] - shared_keys.GONE_S - 1
        assert await a.unaware() == []
        await c.look()
        assert await a.unaware() == [c.machine], "it is back"

    asyncio.run(story(Site(tmp_path)))


def test_a_store_that_lost_the_ring_is_told_again_and_an_old_copy_brings_no_key_back(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        a = await site.started("a")
        await a.accepted(await a.announce())
        old = (site.folder / "a" / RING_FILE).read_bytes()
        await a.activate()
        await a.revoke(key_name(ROOT.keys[0]))
        wanted = a.keys
        assert len(wanted.keys) == 1
        site.stores[:] = [Store(store.name, lambda: 0.0) for store in site.stores]
        await a.aclose()
        a = await site.started("a")
        assert a.keys == wanted, "it has a copy"
        (site.folder / "b").mkdir()
        (site.folder / "b" / RING_FILE).write_bytes(old)
        b = await site.started("b")
        assert b.keys == a.keys == wanted, "what was revoked stays revoked"

    asyncio.run(story(Site(tmp_path)))


def test_who_has_no_copy_and_hears_nobody_does_not_begin_with_keys_of_its_own(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        for store in site.stores:
            store.is_away = True
        wait_s, shared_keys.FIRST_LOOK_S = shared_keys.FIRST_LOOK_S, 0.1  # type: ignore[misc]
        try:
            with pytest.raises(ConfigError, match="no session server gives the farm's key ring"):
                await site.machine("a").start()
        finally:
            shared_keys.FIRST_LOOK_S = wait_s  # type: ignore[misc]
        site.stores[1].is_away = False
        a = await site.started("a")
        await a.announce()
        site.stores[1].is_away = True
        with pytest.raises(ConfigError, match="nothing was changed"):
            await a.announce()
        assert any("one could not be asked" in line for line in site.lines.said)

    asyncio.run(story(Site(tmp_path)))


def test_a_revoked_key_does_not_open_the_ring_and_keys_of_another_file_are_told_apart(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        a = await site.started("a")
        await a.accepted(await a.announce())
        await a.activate()
        await a.accepted(await a.announce())
        copy = (site.folder / "a" / RING_FILE).read_bytes()
        assert not any(key in copy for key in a.keys.keys)
        for key in a.keys.keys[1:]:
            for ring in (KeyRing([key]), KeyRing(KeyRing([key]).derived("key ring of machines")[0])):
                with pytest.raises(TokenRejected):
                    ring.box("key-ring", "farm", os.urandom).open(copy, a._copy.place)
        stranger = site.machine("b", FarmKeys((os.urandom(32),), 0, "password"))
        wait_s, shared_keys.FIRST_LOOK_S = shared_keys.FIRST_LOOK_S, 0.1  # type: ignore[misc]
        try:
            with pytest.raises(ConfigError, match="keys_file is that of the other machines"):
                await stranger.start()
        finally:
            shared_keys.FIRST_LOOK_S = wait_s  # type: ignore[misc]
        assert any("give all machines the same keys_file" in line for line in site.lines.said)

    asyncio.run(story(Site(tmp_path)))


def test_the_password_with_keys_of_the_environment_follows_no_key(tmp_path: Path) -> None:
    texts = [os.urandom(32).hex() for _ in range(2)]
    found = [load_or_create(tmp_path / "none", {ENV: ",".join(order)}) for order in (texts, texts, texts[::-1])]
    assert len({keys.session_server_password for keys in found}) == 3
    assert found[0].keys == found[2].keys[::-1]
    assert not (tmp_path / "none").exists()
