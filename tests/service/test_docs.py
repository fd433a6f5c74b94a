"""docs/service.md and docs/forward-auth.md are true: what they show is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from coatcheck.service.app import TITLES
from coatcheck.service.callers import Caller, Callers
from coatcheck.service.routes import OPERATIONS

from .service_process import KEY, RING, ServiceProcess, credential_of

DOCS = Path(__file__).parents[2] / "docs"
SERVICE, FORWARD_AUTH = (DOCS / "service.md").read_text(), (DOCS / "forward-auth.md").read_text()
LINES = sorted({line.split(" | ")[0] for line in re.findall(r"^coatcheck (service .*)$", SERVICE, re.M)})


@pytest.mark.parametrize("line", LINES)
def test_documented_commands_and_their_flags_exist(line: str) -> None:
    words = line.split("#")[0].split()
    command = [sys.executable, "-m", "coatcheck.cli", *words[:2], "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    for flag in (word for word in words if word.startswith("--")):
        assert flag in shown, f"coatcheck {line}: no {flag}"


def test_the_python_of_the_page_runs(service: ServiceProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"SERVICE": service.url, "CREDENTIAL": credential_of("shop"), "SESSION_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", SERVICE, re.S | re.M))
    exec(compile(code, "service.md", "exec"), {"__name__": "snippet"})


def test_the_call_of_the_page_is_answered_as_it_says(service: ServiceProcess) -> None:
    block = re.findall(r"^```sh\n(.*?)^```", SERVICE, re.S | re.M)[1]
    called = block.replace("$(coatcheck service credential shop --name farm --keys-file keys.json)", "$CREDENTIAL")
    called = called.replace("http://127.0.0.1:8100", service.url).replace("curl", "curl --silent --noproxy '*'")
    env = {**os.environ, "CREDENTIAL": credential_of("shop")}
    done = subprocess.run(["sh", "-e", "-c", called], env=env, capture_output=True, text=True, timeout=90, check=True)
    assert '"data":{"cart":1}' in done.stdout


def test_the_callers_of_the_pages_are_taken() -> None:
    for page in (SERVICE, FORWARD_AUTH):
        found = tomllib.loads(re.findall(r"^```toml\n(.*?)^```", page, re.S | re.M)[0])
        Callers({name: msgspec.convert(table, Caller) for name, table in found.items()}, RING, "farm")


def test_every_address_and_every_problem_is_documented() -> None:
    for operation in OPERATIONS:
        assert operation.path in SERVICE, operation.path
        if operation.scope:
            assert f"`{operation.scope}`" in SERVICE, operation.scope
    for name in TITLES:
        assert name in SERVICE + FORWARD_AUTH or name in ("not-logged-in", "claims-too-large", "busy"), name
