"""TLS sessions between the director workers of a farm: resumed at every worker, whatever dies, also after new keys."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tls.farm import TLS_1_3, VERSIONS

from .farm_process import Farm
from .tls_farm import Browser, TlsFarm, s_client

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@both_versions
def test_with_ticket_keys_every_worker_resumes_also_after_a_death_and_after_new_keys(
    farm: Callable[..., Farm], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    shop = TlsFarm(farm, tmp_path, workers=3)
    browser = Browser(shop, version)
    assert not browser.visit("director-1")
    early = browser.session
    for worker in shop.workers:
        assert browser.visit(worker), worker
    kept = str(tmp_path / "session.pem")
    with shop.only("director-2"):
        assert "New, TLSv1" in s_client(shop, version, "-sess_out", kept)
    with shop.only("director-3"):
        assert "Reused, TLSv1" in s_client(shop, version, "-sess_in", kept)

    shop.kill("director-1")
    assert browser.visit("director-1"), "its successor has the keys from its start"

    before = {key["name"] for key in shop.of("director-1")["keys"] if key["state"] == "seals"}
    done = shop.running.run("tls", "rotate-ticket-keys")
    assert (done.returncode, done.stderr) == (0, "")
    found = shop.tls()
    sealing = {key["name"] for row in found["directors"] for key in row["tls"]["keys"] if key["state"] == "seals"}
    assert len(sealing) == 1
    assert not sealing & before
    for worker in shop.workers:
        assert browser.visit(worker, session=early), "the key before opens"
    assert browser.visit("director-2"), "and so does the new one"
    shop.kill("director-3")
    assert browser.visit("director-3")
    assert {key["name"] for key in shop.of("director-3")["keys"] if key["state"] == "seals"} == sealing
