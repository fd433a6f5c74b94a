"""docs/logout-signals.md is true: its files are read, its flags exist, and its numbers are ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.service.signals import endpoint, event_tokens
from coatcheck.service.signals.provider_keys import ProviderKeys
from coatcheck.service.signals.settings import IdentityProvider, Receiver, read_signals, weak_signals
from coatcheck.service.signals.transmitting import SSF_PATH, SignalSender

PAGE = (Path(__file__).parents[2] / "docs" / "logout-signals.md").read_text()
FILES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.S | re.M)


@pytest.mark.parametrize("text", FILES)
def test_the_files_of_the_page_are_good_and_nothing_about_them_is_weak(text: str, tmp_path: Path) -> None:
    file = tmp_path / "signals.toml"
    file.write_text(text)
    assert list(weak_signals(read_signals(file))) == []


def test_the_page_shows_providers_and_receivers() -> None:
    assert len(FILES) == 3
    shown = "\n".join(FILES) + PAGE
    for kind in (IdentityProvider, Receiver):
        for name in kind.__struct_fields__:
            assert re.search(rf"`{name}`|^{name} =", shown, re.M), name


@pytest.mark.parametrize("command", [("service", "serve"), ("serve",)])
def test_the_flags_of_the_page_exist(command: tuple[str, ...]) -> None:
    [line] = re.findall(rf"^coatcheck {' '.join(command)} .*$", PAGE, re.M)
    whole = [sys.executable, "-m", "coatcheck.cli", *command, "--help"]
    shown = subprocess.run(whole, capture_output=True, text=True, timeout=90, check=True).stdout
    for flag in re.findall(r"--[a-z-]+", line):
        assert flag in shown, flag


def test_the_addresses_and_bounds_of_the_page_are_ours() -> None:
    for path in (endpoint.LOGOUT_PATH, endpoint.EVENTS_PATH):
        assert re.search(re.escape(path).replace(r"\{provider\}", "[a-z]+"), PAGE)
    [location] = re.findall(r"location ~ (\S+) ", PAGE)
    for path in ("/v1/signals/keycloak/logout", "/v1/signals/jwks", SSF_PATH):
        assert re.search(location, path)
    assert not re.search(location, "/v1/sessions")
    assert f"{event_tokens.MAX_TOKEN_CHARS:,} characters" in PAGE
    bounds = (event_tokens.MAX_LOGOUT_AGE_S, event_tokens.MAX_EVENT_AGE_S, event_tokens.LEEWAY_S)
    assert bounds == (600, 86400, 60), "10 minutes, a day, a minute"
    assert (ProviderKeys.MAX_SET_BYTES, ProviderKeys.MAX_KEYS, event_tokens.MIN_RSA_BITS) == (256 * 1024, 100, 2048)
    assert (ProviderKeys.KEEP_S, ProviderKeys.STALE_S, ProviderKeys.PAUSE_S, ProviderKeys.FETCH_TIMEOUT_S) == (
        3600, 86400, 10, 5,
    )  # fmt: skip
    assert (SignalSender.MAX_WAITING, SignalSender.AT_ONCE, SignalSender.TIMEOUT_S) == (1000, 4, 5)
    assert (SignalSender.MAX_TRIES, SignalSender.GIVE_UP_S, SignalSender.STOP_GRACE_S) == (10, 300, 2)
    assert (SignalSender.FIRST_PAUSE_S, SignalSender.MAX_PAUSE_S) == (0.5, 60)
