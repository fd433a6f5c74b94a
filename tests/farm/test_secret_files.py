"""What stands under the name of a key file: no pipe and no device, and of several first starts the key of one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import FarmKeys, key_name, load, load_or_create, new_key, save
from coatcheck.farm.files.secret_file import MAX_FILE_BYTES, make_secret, read_secret

from .farm_process import Command

ROUNDS = 100
STARTERS = 3
SERVICE = ("service", "serve", "--callers", "callers.toml", "--session-server", "sqlite:///sessions.db")
COMMANDS = {
    "keys ls": ("keys", "ls"),
    "keys rotate": ("keys", "rotate"),
    "serve": ("serve", "counter:app", "--port", "0", "--insecure-localhost"),
    "service serve": SERVICE,
    "service credential": ("service", "credential", "shop"),
}


@pytest.fixture(params=["a named pipe", "a directory", "a socket", "a device"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Something of mode 0600 that is no file, and what it is called."""
    path, kind = tmp_path / "odd.json", str(request.param)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a named pipe":
            os.mkfifo(path, 0o600)
        elif kind == "a directory":
            path.mkdir(0o700)
        elif kind == "a socket":
            listener.bind(str(path))
            path.chmod(0o600)
        else:
            path.symlink_to("/dev/zero")
        yield path, kind


def test_what_is_no_regular_file_is_told(odd: tuple[Path, str]) -> None:
    path, kind = odd
    with pytest.raises(ConfigError, match=f"keys_file: {path} is {kind}; name a regular file"):
        load_or_create(path, {})


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_waits_for_a_pipe(command: Command, name: str) -> None:
    os.mkfifo(command.directory / "keys.fifo", 0o600)
    (command.directory / "callers.toml").write_text('[shop]\nscopes = ["verify"]\n')
    done = command.run(*COMMANDS[name], "--keys-file", "keys.fifo")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("keys_file: keys.fifo is a named pipe; name a regular file")


def test_a_pipe_that_comes_in_place_of_the_file_in_that_moment_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    save(path, FarmKeys((new_key(),), 0, "ours"))
    open_it = os.open

    def late(name: Any, flags: int, *more: Any) -> int:
        if name == path:
            path.unlink()
            os.mkfifo(path, 0o600)
        return open_it(name, flags, *more)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(ConfigError, match="is a named pipe; name a regular file"):
        load(path)


def test_a_file_has_a_bound_and_one_reader(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(0o600)
    os.truncate(path, MAX_FILE_BYTES)
    assert len(read_secret(path, "keys_file")) == MAX_FILE_BYTES
    os.truncate(path, MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="is larger than"):
        read_secret(path, "keys_file")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="run chmod 600 on it"):
        read_secret(path, "keys_file")
    os.truncate(path, 0)
    assert read_secret(path, "key_ring", is_sealed=True) == b"", "others may read what they cannot open"


def first_starts(folder: Path, together: Any, found: Any) -> None:
    """One process that starts in each round, at the same moment as the others."""
    keys = []
    for number in range(ROUNDS):
        together.wait(60)
        keys.append(load_or_create(folder / f"{number}.json", {}))
    found.put([(key_name(each.keys[0]), each.session_server_password) for each in keys])


def test_of_several_first_starts_at_once_one_makes_the_key_that_all_have(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together, found = spawn.Barrier(STARTERS), spawn.Queue()
    starters = [
        spawn.Process(target=first_starts, args=(tmp_path, together, found), daemon=True) for _ in range(STARTERS)
    ]
    for each in starters:
        each.start()
    theirs = [found.get(timeout=120) for _ in starters]
    for each in starters:
        each.join(60)
    differ = [number for number in range(ROUNDS) if len({keys[number] for keys in theirs}) > 1]
    assert not differ, f"in {len(differ)} of {ROUNDS} rounds a start had keys of its own"
    assert [key_name(load(tmp_path / f"{number}.json").keys[0]) for number in range(ROUNDS)] == [
        name for name, _ in theirs[0]
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(f"{number}.json" for number in range(ROUNDS))


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "none"])
def test_a_file_that_came_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "keys.json"
    assert make_secret(path, b"first")
    assert not make_secret(path, b"second")
    assert read_secret(path, "keys_file") == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]


def test_a_first_start_makes_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    link, real = tmp_path / "keys.json", tmp_path / "ring.json"
    link.symlink_to(real)
    made = load_or_create(link, {})
    assert link.is_symlink()
    assert load(real).keys == made.keys
    circle = tmp_path / "circle.json"
    circle.symlink_to(circle)
    with pytest.raises(ConfigError, match="name a readable file"):
        load_or_create(circle, {})
    with pytest.raises(ConfigError, match="name a file that can be written"):
        load_or_create(tmp_path / "nowhere" / "keys.json", {})
