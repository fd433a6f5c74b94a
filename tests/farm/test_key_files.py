"""A key file that is replaced under a running farm: what is taken, and what is not."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.farm.files.key_file import LOCK_AGAIN_S, KeyFileLock
from coatcheck.farm.files.keys import FarmKeys, load, save
from coatcheck.farm.supervision.key_sources import EnvironmentKeys, FileKeys

A, B, C = (os.urandom(32) for _ in range(3))


class Lines:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def source(path: Path, keys: FarmKeys) -> tuple[FileKeys, Lines]:
    save(path, keys)
    lines: Any = Lines()
    return FileKeys(path, load(path), lines), lines


def test_what_another_machine_announced_and_made_seal_is_taken_and_the_password_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys, _ = source(path, FarmKeys((A,), 0, "ours"))
    for theirs in (FarmKeys((A, B), 0, "theirs"), FarmKeys((A, B), 1, "theirs"), FarmKeys((B,), 0, "theirs")):
        save(path, theirs)
        assert asyncio.run(keys.look())
        assert (keys.keys.keys, keys.keys.primary) == (theirs.keys, theirs.primary)
        assert keys.keys.session_server_password == "ours"


def test_a_file_that_lacks_the_sealing_key_or_is_no_key_file_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys, lines = source(path, FarmKeys((A, B), 1, "ours"))
    for content, words in ((b"{", "keys_file"), (b"", "keys_file")):
        path.write_bytes(content)
        assert asyncio.run(keys.look())
        assert words in lines.said[-1]
    save(path, FarmKeys((A, C), 1, "ours"))
    assert asyncio.run(keys.look())
    assert "which seals; put it back" in lines.said[-1]
    said = len(lines.said)
    assert asyncio.run(keys.look())
    assert len(lines.said) == said, "once for each file"
    path.unlink()
    assert asyncio.run(keys.look())
    assert keys.keys.keys == (A, B)


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    keys, _ = source(folder / "keys.json", FarmKeys((A,), 0, "ours"))
    (folder / "keys.json").unlink()
    folder.rmdir()
    try:
        asyncio.run(keys.announce())
        raise AssertionError("a key was announced that a restart would not know")
    except ConfigError as error:
        assert "name a file that can be written" in str(error)
    assert keys.keys.keys == (A,)


def test_what_others_have_done_to_the_file_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys, _ = source(path, FarmKeys((A, B), 1, "ours"))
    save(path, FarmKeys((B,), 0, "ours"))
    announced = asyncio.run(keys.announce())
    assert announced.keys[:-1] == (B,), "what was revoked there does not come back"
    save(path, FarmKeys((*announced.keys, C), 0, "ours"))
    with pytest.raises(ConfigError, match="somebody else has changed them meanwhile"):
        asyncio.run(keys.activate())
    save(path, FarmKeys(announced.keys, 1, "ours"))
    assert asyncio.run(keys.activate()).primary == 1, "somebody else let the same key seal"
    save(path, FarmKeys((A, C), 1, "ours"))
    with pytest.raises(ConfigError, match="which seals; put it back"):
        asyncio.run(keys.announce())
    assert load(path).keys == (A, C), "what others seal with is not written over"
    path.unlink()
    assert asyncio.run(keys.announce()).keys[:2] == announced.keys
    assert load(path).keys == keys.keys.keys


def test_a_lock_of_a_file_that_is_replaced_in_that_moment_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    save(path, FarmKeys((A,), 0, "ours"))
    lock_it, replacements = fcntl.flock, [FarmKeys((A, B), 1, "ours")]

    def late(file: int, how: int) -> None:
        if replacements:
            save(path, replacements.pop())
        lock_it(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with KeyFileLock(path) as mine:
        assert len(list(mine.pauses())) == 1
        with KeyFileLock(path) as theirs:
            assert next(theirs.pauses()) == LOCK_AGAIN_S, "they wait"
    with KeyFileLock(path) as theirs:
        assert not list(theirs.pauses())


def test_which_keys_of_the_environment_have_sealed_is_not_known() -> None:
    rows = EnvironmentKeys(FarmKeys((A, B), 0, "ours")).rows()
    assert [row["state"] for row in rows] == ["active", "opens"]
