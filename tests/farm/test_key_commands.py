"""``coatcheck keys`` beside others who change the same key file: what was said is so, and nothing is undone."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import FarmKeys, key_name, load, new_key, save

from .farm_process import DEADLINE_S, Command, Farm, environment


def states(path: Path) -> dict[str, str]:
    return {row["key"]: row["state"] for row in load(path).rows()}


def ring(path: Path, count: int) -> list[str]:
    """A file of so many keys, of which the last one seals; their names."""
    keys = tuple(new_key() for _ in range(count))
    save(path, FarmKeys(keys, count - 1, secrets.token_urlsafe(24)))
    return [key_name(key) for key in keys]


@contextmanager
def asked(folder: Path, *arguments: str) -> Iterator[Callable[[str], tuple[int, str]]]:
    """A command that has come as far as its question; what is given answers it, and returns how it ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "coatcheck.cli", "keys", *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        said = b""
        while b"revoke it?" not in said:
            more = os.read(process.stdout.fileno(), 4096)
            assert more, said
            said += more

        def answer(text: str) -> tuple[int, str]:
            rest, _ = process.communicate(text.encode() + b"\n", timeout=DEADLINE_S)
            return process.returncode, rest.decode()

        try:
            yield answer
        finally:
            process.kill()


@pytest.fixture
def places(tmp_path: Path) -> list[Command]:
    """Two directories from which the same file is changed."""
    found = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        found.append(Command(tmp_path / name))
    return found


def test_what_others_change_before_the_question_is_answered_stays(places: list[Command], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    a, b, c = ring(path, 3)
    here, elsewhere = places
    options = ("--keys-file", str(path))
    with asked(here.directory, "revoke", a, *options) as answer:
        assert elsewhere.run("keys", "revoke", b, "--yes", *options).returncode == 0
        done = elsewhere.run("keys", "rotate", *options)
        assert done.returncode == 0, done.stderr
        new = done.stdout.split()[0]
        status, said = answer("y")
        assert status == 0, said
        assert f"{a} is revoked" in said
    assert states(path) == {c: "retiring", new: "active"}


def test_a_key_that_was_revoked_or_made_to_seal_meanwhile_is_judged_again(
    places: list[Command], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    a, b = ring(path, 2)
    here, elsewhere = places
    options = ("--keys-file", str(path))
    with asked(here.directory, "revoke", a, *options) as answer:
        assert elsewhere.run("keys", "revoke", a, "--yes", *options).returncode == 0
        status, said = answer("y")
        assert status == 2
        assert f"there is no key '{a}'; choose one of {b}" in said
    announced = elsewhere.run("keys", "rotate", "--announce", *options).stdout.split()[0]
    with asked(here.directory, "revoke", announced, *options) as answer:
        assert elsewhere.run("keys", "rotate", *options).returncode == 0
        status, said = answer("y")
        assert status == 2
        assert f"{announced} is the key that seals; rotate first" in said
    assert states(path) == {b: "retiring", announced: "active"}


def test_the_farm_and_a_command_elsewhere_undo_nothing_of_each_other(farm: Callable[..., Farm], tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    first, second = ring(path, 2)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Command(tmp_path / "elsewhere")
    running = farm("--web", "1", "--keys-file", str(path))
    announced = running.run("keys", "rotate", "--announce").stdout.split()[0]
    with asked(elsewhere.directory, "revoke", announced, "--keys-file", str(path)) as answer:
        assert running.run("keys", "rotate").returncode == 0
        status, said = answer("y")
        assert status == 2
        assert f"{announced} is the key that seals; rotate first" in said
    assert states(path)[announced] == "active"
    # And the other way round: the farm changes what is in the file, not what it has read of it.
    assert elsewhere.run("keys", "revoke", first, "--yes", "--keys-file", str(path)).returncode == 0
    done = running.run("keys", "rotate")
    assert done.returncode == 0, done.stderr
    new = done.stdout.split()[0]
    assert states(path) == {second: "retiring", announced: "retiring", new: "active"}
    rows = json.loads(running.run("keys", "ls", "--json").stdout)
    assert {row["key"]: row["state"] for row in rows} == states(path)


def test_a_change_waits_for_who_changes_the_file_and_not_for_ever(places: list[Command], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    (first,) = ring(path, 1)
    options = ("--keys-file", str(path))
    with path.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = places[0].run("keys", "rotate", *options)
        assert done.returncode == 2
        assert "is being changed by somebody else; try again" in done.stderr
        assert states(path) == {first: "active"}
    done = places[0].run("keys", "rotate", *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("together", [True, False], ids=["one run directory", "several"])
def test_rotations_at_once_are_one_after_the_other(places: list[Command], tmp_path: Path, together: bool) -> None:
    path = tmp_path / ".coatcheck" / "keys.json"
    path.parent.mkdir(mode=0o700)
    (path.parent / "lock").touch(mode=0o600)  # as a farm that ran here has left it
    (first,) = ring(path, 1)
    command = [sys.executable, "-m", "coatcheck.cli", "keys", "rotate"]
    ways = [(tmp_path, [])] * 4 if together else [(each.directory, ["--keys-file", str(path)]) for each in places]
    running = [
        subprocess.Popen(
            [*command, *options],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for folder, options in ways
    ]
    said = [each.communicate(timeout=DEADLINE_S)[0] for each in running]
    assert [each.returncode for each in running] == [0] * len(ways), said
    assert set(states(path)) == {first, *(words.split()[0] for words in said)}


def test_while_one_command_asks_another_one_changes_the_keys_of_the_same_farm(tmp_path: Path) -> None:
    path = tmp_path / ".coatcheck" / "keys.json"
    path.parent.mkdir(mode=0o700)
    a, b = ring(path, 2)
    with asked(tmp_path, "revoke", a) as answer:
        done = Command(tmp_path).run("keys", "rotate")
        assert done.returncode == 0, done.stderr
        assert answer("y")[0] == 0
    assert states(path) == {b: "retiring", done.stdout.split()[0]: "active"}


def test_a_farm_that_starts_while_a_command_asks_is_told(farm: Callable[..., Farm], tmp_path: Path) -> None:
    path = tmp_path / ".coatcheck" / "keys.json"
    path.parent.mkdir(mode=0o700)
    a, b = ring(path, 2)
    with asked(tmp_path, "revoke", a) as answer:
        running = farm("--web", "1")
        status, said = answer("y")
        assert status == 0, said
    assert f"{a} is revoked" in running.log, "by the farm, which has told its processes"
    assert states(path) == {b: "active"}


def test_a_key_file_behind_a_link_is_changed_where_it_is(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    real, link = tmp_path / "secrets" / "ring.json", tmp_path / "keys.json"
    (first,) = ring(real, 1)
    link.symlink_to("secrets/ring.json")
    options = ("--keys-file", str(link))
    done = Command(tmp_path).run("keys", "rotate", *options)
    assert done.returncode == 0, done.stderr
    assert link.is_symlink()
    assert states(real) == {first: "retiring", done.stdout.split()[0]: "active"}
    running = farm("--web", "1", *options)
    assert running.run("keys", "revoke", first, "--yes").returncode == 0
    assert running.run("keys", "rotate").returncode == 0
    assert link.is_symlink()
    assert list(states(real).values()) == ["retiring", "active"] and first not in states(real)
    assert [each.name for each in real.parent.iterdir()] == ["ring.json"], "nothing is left beside it"


def test_links_that_lead_in_a_circle_are_told_in_one_line(tmp_path: Path) -> None:
    link = tmp_path / "keys.json"
    link.symlink_to(link)
    with pytest.raises(ConfigError, match="leads to itself"):
        save(link, FarmKeys((new_key(),), 0, "password"))


def test_a_running_farm_is_not_given_the_file_of_another_one(farm: Callable[..., Farm], tmp_path: Path) -> None:
    own, other, link = tmp_path / "own.json", tmp_path / "other.json", tmp_path / "link.json"
    (first,), (theirs,) = ring(own, 1), ring(other, 1)
    link.symlink_to(own)
    running = farm("--web", "1", "--keys-file", "own.json")
    for command in (("ls",), ("rotate",), ("rotate", "--announce"), ("revoke", theirs, "--yes")):
        for options in ((), ("--run-dir", ".coatcheck")):
            done = running.run("keys", *command, "--keys-file", str(other), *options)
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert f"keys_file: the farm that runs here has its keys in {own}, and not in {other}" in line
    assert (states(own), states(other)) == ({first: "active"}, {theirs: "active"})
    done = running.run("keys", "rotate", "--keys-file", "link.json")
    assert done.returncode == 0, done.stderr
    assert states(own) == {first: "retiring", done.stdout.split()[0]: "active"}
    assert "seals from now on" in running.log, "by the farm, whose file it is"


def test_a_farm_whose_keys_are_in_the_environment_is_given_no_file(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (theirs,) = ring(tmp_path / "other.json", 1)
    running = farm("--web", "1", COATCHECK_KEYS=secrets.token_urlsafe(32))
    done = running.run("keys", "ls", "--keys-file", "other.json")
    assert done.returncode == 1
    assert "has its keys in COATCHECK_KEYS, and not in" in done.stderr
    assert theirs not in done.stdout
