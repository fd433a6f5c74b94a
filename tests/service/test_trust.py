"""Callers by certificate, and what a service refuses to start with."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

import httpx
import pytest

from coatcheck.errors import ConfigError
from coatcheck.service.callers import Caller, Callers, Pace, credential, read_callers
from coatcheck.service.callers_file import CallersFile
from coatcheck.tls.authority import Authority
from coatcheck.tokens.keyring import KeyRing
from forked import run_coatcheck

from .conftest import StartService
from .service_process import FARM, RING, credential_of, environment


def test_a_caller_is_known_by_its_certificate_until_that_is_revoked(start: StartService, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    authority = Authority.make(folder, FARM)
    server = authority.issue("service", ["127.0.0.1"])
    known, stranger = authority.issue("legacy.example".replace(".", "-")), authority.issue("somebody")
    elsewhere = Authority.make(tmp_path / "elsewhere", FARM).issue("legacy-example")
    callers = '[legacy]\nscopes = ["verify"]\ncertificate = "legacy-example"\n[shop]\nscopes = ["create"]\n'
    files = ["--tls-certificate", str(server), "--tls-key", str(server)]
    files += ["--tls-authority", str(folder / "authority.pem"), "--tls-revoked", str(folder / "revoked.pem")]
    service = start(*files, callers=callers)
    assert service.url.startswith("https://")

    def ask(certificate: Path | None, headers: dict[str, str] | None = None, path: str = "/verify") -> int:
        context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
        if certificate is not None:
            context.load_cert_chain(certificate)
        with httpx.Client(verify=context, trust_env=False, timeout=60) as http:
            url = f"{service.url}/v1/sessions{path}"
            return http.post(url, json={"cookie": ""}, headers=headers).status_code

    assert ask(known) == 404, "it may ask; there is no such session"
    assert ask(None) == 401
    assert ask(stranger) == 401, "of the farm, and no caller"
    assert ask(known, path="/close") == 403, "its scopes are its own"
    assert ask(None, {"Authorization": f"Bearer {credential_of('shop')}"}) == 403
    with pytest.raises(httpx.TransportError):
        ask(elsewhere)
    its_credential = {"Authorization": f"Bearer {credential_of('legacy')}"}
    assert ask(None, its_credential) == 401, "who is bound to a certificate opens nothing without it"
    assert ask(stranger, its_credential) == 401
    assert ask(known, its_credential) == 404, "a credential beside it harms nothing, for the time of a change"
    assert ask(known, {"Authorization": f"Bearer {credential_of('shop')}"}) == 403, "of two the credential counts"
    authority.revoke("legacy-example")
    deadline = time.monotonic() + 60
    while ask(known) != 401:
        assert time.monotonic() < deadline, "the file of revocations is looked at every second"
        time.sleep(0.05)
    assert ask(known, its_credential) == 401


def test_a_caller_is_revoked_without_a_restart_and_a_damaged_file_changes_nothing(start: StartService) -> None:
    file = '[shop]\nscopes = ["create", "verify"]\n[reader]\nscopes = ["verify"]\n'
    service = start(callers=file)
    callers = service.folder / "callers.toml"

    def until(caller: str, status: int, text: str) -> None:
        callers.write_text(text)
        deadline = time.monotonic() + 60
        while service.ask("/verify", caller, cookie="").status_code != status:
            assert time.monotonic() < deadline, f"{caller} is not answered {status}"
            time.sleep(0.05)

    assert service.ask("/verify", "reader", cookie="").status_code == 404
    until("reader", 401, file.partition("[reader]")[0])
    assert service.ask("/verify", "shop", cookie="").status_code == 404
    callers.write_text("[shop")
    deadline = time.monotonic() + 60
    while "not valid TOML" not in service.log.read_text():
        assert service.ask("/verify", "shop", cookie="").status_code == 404
        assert service.ask("/verify", "reader", cookie="").status_code == 401
        assert time.monotonic() < deadline
        time.sleep(0.05)
    until("shop", 401, file.replace("[shop]", "[shop]\ngeneration = 2"))
    assert (
        service.http.post("/v1/sessions/verify", json={"cookie": ""}, headers=service.of("shop", 2)).status_code == 404
    )


@pytest.mark.parametrize(
    ("callers", "arguments", "words"),
    [
        ("", (), "1 to 1000"),
        ("[shop", (), "not valid TOML"),
        ("[shop]\n", (), "missing required field `scopes`"),
        ('[shop]\nscopes = ["read"]\n', (), "no scope 'read'"),
        ("[shop]\nscopes = []\n", (), "could do nothing"),
        ('[shop]\nscopes = ["verify"]\naudience = "x"\n', (), "forward-auth"),
        ('[shop]\nscopes = ["forward-auth"]\n', (), "audience"),
        ('[shop]\nscopes = ["verify"]\npassword = "x"\n', (), "unknown field"),
        ('["a b"]\nscopes = ["verify"]\n', (), "callers: name"),
        ('[shop]\nscopes = ["verify"]\ncertificate = "x"\n', (), "--tls-authority"),
        ('[shop]\nscopes = ["verify"]\n', ("--listen", "0.0.0.0:0"), "in the clear"),
        ('[shop]\nscopes = ["verify"]\n', ("--tls-authority", "x"), "tls-authority"),
        ('[shop]\nscopes = ["verify"]\n', ("--copies", "9"), "copies"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    tmp_path: Path, callers: str, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "callers.toml").write_text(callers)
    command = ["service", "serve", "--callers", "callers.toml", "--session-server", "sqlite:///s.db", "--name", FARM]
    done = run_coatcheck(*command, *arguments, cwd=tmp_path, env=environment())
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_ring_that_machines_share_is_in_no_file_that_could_be_followed(tmp_path: Path) -> None:
    (tmp_path / "callers.toml").write_text('[shop]\nscopes = ["verify"]\n')
    command = ["service", "serve", "--callers", "callers.toml", "--session-server", "redis://127.0.0.1:1"]
    done = run_coatcheck(*command, "--name", FARM, cwd=tmp_path, env=environment(COATCHECK_KEY_RING="shared"))
    assert done.returncode == 2
    assert "start the service with coatcheck serve --service" in done.stderr


def test_a_credential_is_of_one_caller_one_generation_one_farm_and_one_ring() -> None:
    callers = Callers({"shop": Caller(scopes=("verify",), generation=3)}, RING, FARM)
    found = callers.of_credential(credential("shop", 3, RING, FARM))
    assert found is not None and found.name == "shop"
    other = KeyRing([os.urandom(32)])
    for wrong in (
        credential("shop", 2, RING, FARM),
        credential("shop", 3, RING, "another"),
        credential("shop", 3, other, FARM),
        credential("shop2", 3, RING, FARM),
        "shop.3.",
        "shop.3." + "A" * 43,
        "shop.3." + "\u00e9" * 43,
        "shop",
        "",
        "." * 10_000,
    ):
        assert callers.of_credential(wrong) is None, wrong
        of_another_ring = wrong == credential("shop", 3, other, FARM) or wrong == credential("shop", 3, RING, "another")
        # 43 times "A" are 32 bytes, too: which key has made them cannot be seen.
        assert callers.may_be_of_another_key(wrong) == (of_another_ring or wrong == "shop.3." + "A" * 43), wrong
    assert not callers.may_be_of_another_key(None)
    text = credential("shop", 3, RING, FARM)
    for at in range(len("shop.3."), len(text)):
        flipped = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        assert callers.of_credential(flipped) is None, at
    for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        opens = callers.of_credential(text[:-1] + last) is not None
        assert opens == (last == text[-1]), "two bits of its last character say nothing, and are zero"
    rotated = KeyRing([os.urandom(32), *RING._secrets.values()])
    assert Callers({"shop": Caller(scopes=("verify",), generation=3)}, rotated, FARM).of_credential(text) is not None


def test_a_pace_has_a_burst_and_comes_back() -> None:
    pace = Pace(600)
    waits = [pace.take(100.0) for _ in range(21)]
    assert waits[:20] == [0.0] * 20
    assert waits[20] == pytest.approx(0.1)
    assert pace.take(100.11) == 0.0
    assert pace.take(100.11) > 0


def test_a_change_of_the_file_gives_nobody_a_new_burst(tmp_path: Path) -> None:
    """Whoever can make the file be read again could ask without a pace."""
    path = tmp_path / "callers.toml"
    slow = '[slow]\nscopes = ["verify"]\nrequests_per_minute = 60\n'
    path.write_text(slow)
    now_s = 100.0
    file = CallersFile(path, RING, FARM, by_certificate=False, clock=lambda: now_s)

    def asked() -> float:
        caller = file.now().of_credential(credential_of("slow"))
        assert caller is not None
        return file.now().wait_s(caller, now_s)

    assert [asked(), asked()] == [0.0, 0.0], "two seconds at once"
    assert asked() == pytest.approx(1.0)
    for number, more in enumerate(("# a word\n", '[other]\nscopes = ["verify"]\n'), 1):
        path.write_text(slow + more)
        now_s = 100.0 + number * 1.01
        assert asked() == 0.0, "what a second brings"
        assert asked() > 0.9, more
    assert file.now().of_credential(credential_of("other")) is not None, "it was read again"
    path.write_text(slow.replace("60", "120"))
    now_s += 1.01
    assert [asked() for _ in range(5)].count(0.0) == 4, "another pace begins anew"


def test_two_callers_with_one_certificate_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.write_text('[a]\nscopes=["verify"]\ncertificate="x"\n[b]\nscopes=["verify"]\ncertificate="x"\n')
    with pytest.raises(ConfigError, match="two of them"):
        Callers(read_callers(file), RING, FARM)
