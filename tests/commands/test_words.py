"""The same words and flags for the same thing in all commands, and JSON wherever a table or a status is printed."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import click
import pytest

from coatcheck.cli.meant import did_you_mean, meant
from coatcheck.cli.opening import reachable
from forked import run_coatcheck

from .tree import leaves

COMMANDS: Final = dict(leaves())
FLAGS: Final[dict[str, dict[str, click.Option]]] = defaultdict(dict)
for words, command in COMMANDS.items():
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for flag in parameter.opts:
                FLAGS[flag][words] = parameter

ANOTHER_THING: Final = {("soap serve", "--user"), ("soap serve", "--server")}
"""Flags that say something else there: who is let in, and not whose sessions; a name, and not a kind of server."""
NO_JSON: Final = {
    "serve": "it serves",
    "pool serve": "it serves",
    "pool soap-gateway": "it serves",
    "service serve": "it serves",
    "soap serve": "it serves",
    "certs init": "it says what to type next",
    "completion": "a shell reads it",
    "keys new": "one word, which is a secret",
    "metrics": "Prometheus reads it",
    "service credential": "one word, which is a secret",
    "sessions show": "it is JSON as it is",
    "simulate": "its arguments are read by something else than click",
}
"""Why a command has none."""
SAME_THING: Final = (
    ("--farm", "--name"),
    ("--days", "--lifetime"),
    ("--directory", "--audit-dir"),
    ("--format", "--json"),
    ("--browser", "--open"),
    ("--force", "--yes"),
    ("--tail", "--follow"),
)
"""A word that somebody might take for the other, which all commands have."""


def value(option: click.Option) -> str:
    """The word that the help has for it; of a switch none."""
    return "" if option.is_flag else option.metavar or option.type.name


@pytest.mark.parametrize("flag", sorted(flag for flag, found in FLAGS.items() if len(found) > 1))
def test_a_flag_has_one_word_for_its_value(flag: str) -> None:
    found = {value(option): words for words, option in FLAGS[flag].items() if (words, flag) not in ANOTHER_THING}
    assert len(found) == 1, found


def test_lengths_of_time_are_written_in_one_way() -> None:
    words = {value(option) for found in FLAGS.values() for option in found.values()}
    assert "TIME" in words
    assert words & {"S", "MS", "SECONDS", "DAYS", "float", "integer", "integer range", "text"} == set()


@pytest.mark.parametrize(("other", "ours"), SAME_THING)
def test_the_same_thing_has_one_flag(other: str, ours: str) -> None:
    assert other not in FLAGS
    assert ours in FLAGS


def test_what_a_command_prints_can_be_had_as_json() -> None:
    assert set(COMMANDS) - set(FLAGS["--json"]) == set(NO_JSON)


def test_every_flag_says_what_it_does() -> None:
    silent = {(words, flag) for flag, found in FLAGS.items() for words, option in found.items() if not option.help}
    assert silent == set()


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("sesions ls", "'sessions'"),  # a command that another module has
        ("keys rotat", "'rotate'"),
        ("pool lst", "'ls'"),
        ("rotate", "'keys rotate'"),  # one that is in a group
        ("revoke", "'certs revoke' or 'keys revoke'"),
        ("sessions ls --usr ada", "'--user'"),
        ("simulate --sed 3", "'--seed'"),
        ("serve app:app --session-sever redis://127.0.0.1", "'--session-server'"),
    ],
)
def test_what_was_probably_meant_is_said(typed: str, right: str) -> None:
    told = run_coatcheck(*typed.split())
    assert told.returncode == 2
    assert right in told.stderr
    assert "Did you mean" in told.stderr


def test_nothing_is_guessed_where_nothing_is_like_it() -> None:
    told = run_coatcheck("xyzzy")
    assert (told.returncode, "No such command 'xyzzy'.\n" in told.stderr) == (2, True)
    assert meant("xyzzy", ["serve", "status"]) == []
    assert did_you_mean([]) == ""


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("https://[::]:8443", "https://[::1]:8443"),
        ("https://shop.example:8443", "https://shop.example:8443"),
    ],
)
def test_a_browser_is_asked_for_an_address_that_it_can_reach(url: str, asked: str) -> None:
    assert reachable(url) == asked
