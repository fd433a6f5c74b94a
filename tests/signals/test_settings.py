"""The file of logout signals: what cannot be is said in one line, and what is weak by ``coatcheck check``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.errors import ConfigError
from coatcheck.service.signals.settings import bearer_of, read_signals, weak_signals
from farm.farm_process import COUNTER_APP, Command
from service.service_process import FARM, environment

IDP = '[providers.idp]\nissuer = "https://idp.example"\naudience = "shop"\nkeys = "https://idp.example/certs"\n'
TOLD = '[transmitter]\nissuer = "https://shop.example"\n[receivers.a]\nurl = "https://a.example/in"\naudience = "a"\n'

WRONG = {
    "nothing": ("", "name a provider"),
    "no TOML": ("[providers", "not valid TOML"),
    "an unknown table": (IDP + "[provider.x]\n", "unknown field"),
    "an unknown key": (IDP + 'secret = "x"\n', "unknown field"),
    "no audience": (IDP.replace('audience = "shop"\n', ""), "missing required field `audience`"),
    "an empty audience": (IDP.replace('"shop"', '""'), "client ID"),
    "alg none": (IDP + 'algorithms = ["none"]\n', "choose of RS256"),
    "a shared secret": (IDP + 'algorithms = ["RS256", "HS256"]\n', "choose of RS256"),
    "no algorithm": (IDP + "algorithms = []\n", "length >= 1"),
    "keys in the clear": (IDP.replace('"https://idp.example/certs"', '"http://idp.example/certs"'), "https is needed"),
    "keys from anywhere": (IDP.replace('"https://idp.example/certs"', '"ftp://idp.example/certs"'), "an address"),
    "keys with a password": (IDP.replace("//idp.example/certs", "//a:b@idp.example/certs"), "an address"),
    "no keys": (IDP.replace('"https://idp.example/certs"', '""'), "keys: the address"),
    "a file of keys that is not there": (IDP.replace('"https://idp.example/certs"', '"keys.json"'), "there is no file"),
    "an issuer that is none": (IDP.replace('issuer = "https://idp.example"', 'issuer = "idp"'), "an address"),
    "an unknown user claim": (IDP + 'user = "upn"\n', "Invalid enum value"),
    "a name that is no path": (IDP.replace("[providers.idp]", '[providers."a/b"]'), "providers"),
    "two of the same": (IDP + IDP.replace("providers.idp", "providers.other"), "the same issuer and audience"),
    "receivers of nobody": (TOLD.partition("[receivers")[2].join(["[receivers", ""]), "go together"),
    "a transmitter for nobody": (IDP + '[transmitter]\nissuer = "https://shop.example"\n', "go together"),
    "an origin with a path": (TOLD.replace("//shop.example", "//shop.example/a"), "an origin such as"),
    "a receiver in the clear": (TOLD.replace("https://a.example/in", "http://a.example/in"), "https is needed"),
    "a form that there is not": (TOLD + 'form = "saml"\n', "Invalid enum value"),
    "a shared secret of ours": (TOLD.replace("[receivers", 'algorithm = "HS256"\n[receivers'), "Invalid enum value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    text, words = WRONG[name]
    file = tmp_path / "signals.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="signals") as wrong:
        read_signals(file)
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_service_does_not_start_with_a_file_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "callers.toml").write_text('[shop]\nscopes = ["verify"]\n')
    command = [sys.executable, "-m", "coatcheck.cli", "service", "serve", "--callers", "callers.toml"]
    command += ["--session-server", "sqlite:///s.db", "--name", FARM, "--signals", "signals.toml"]
    for text, words in ((None, "cannot be read"), WRONG["alg none"]):  # the others are read by the same function
        if text is not None:
            (tmp_path / "signals.toml").write_text(text)
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr


@pytest.mark.parametrize(("mode", "content"), [(0o644, "x"), (0o600, ""), (0o600, "a\nb\n"), (0o600, "a b\n")])
def test_a_bearer_token_is_one_line_for_its_owner_alone(tmp_path: Path, mode: int, content: str) -> None:
    file, bearer = tmp_path / "signals.toml", tmp_path / "bearer"
    file.write_text(TOLD + 'bearer_file = "bearer"\n')
    bearer.write_text(content)
    bearer.chmod(mode)
    receiver = read_signals(file).receivers["a"]
    with pytest.raises(ConfigError, match="bearer_file"):
        bearer_of(receiver, file)
    bearer.write_text("sesame\n")
    bearer.chmod(0o600)
    assert bearer_of(receiver, file) == "sesame"


def test_check_says_what_is_wrong_and_what_is_weak(tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER_APP)
    (tmp_path / "callers.toml").write_text('[shop]\nscopes = ["verify"]\n')
    file, command = tmp_path / "signals.toml", Command(tmp_path)

    def check(text: str) -> str:
        file.write_text(text)
        service = ("--service", "127.0.0.1:8100", "--service-callers", "callers.toml", "--signals", "signals.toml")
        return command.run("check", "counter:app", *service).stdout

    assert "signals" not in check(IDP + TOLD)
    (tmp_path / "keys.json").write_text('{"keys": []}')
    idp = IDP.replace("https://idp.example/certs", "keys.json").replace("https://idp", "http://idp")
    told = TOLD.replace("https://a.example", "http://127.0.0.1:9")
    weak = check(f'{idp}user = "email"\nuntyped = true\n{told}')
    for words in (
        "keys in a file",
        "given to somebody else",
        "an issuer without TLS",
        "its event alone",
        "reads who is logged out",
    ):
        assert f"weak: signals: {'providers.idp' if 'reads' not in words else 'receivers.a'}" in weak
        assert words in weak
    file.chmod(0o666)
    assert "signals.toml: others can change it, and so who may log anybody out" in check(IDP)
    assert "wrong: signals: " in check(IDP + "x = 1\n")
    alone = command.run("check", "counter:app", "--signals", "signals.toml")
    assert alone.returncode == 2
    assert "signals: needs service" in alone.stdout


def test_nothing_is_weak_about_the_documented_way(tmp_path: Path) -> None:
    file = tmp_path / "signals.toml"
    file.write_text(IDP + TOLD)
    assert list(weak_signals(read_signals(file))) == []
