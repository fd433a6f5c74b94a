"""The audit of the service: the caller is whoever showed the bearer token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from coatcheck.service_kit.bearer import bearer_name
from forked import run_coatcheck

from .conftest import StartService
from .service_process import BEARER

OTHER = "another-bearer-token-that-is-accepted"


def borrow(http: httpx.Client, user: str) -> Any:
    asked = http.post(f"/v1/users/{user}/checkout", json={}).json()
    if asked.get("login"):
        asked = http.post(f"/v1/leases/{asked['lease']}/complete", json={"token": f"secret of {user}"}).json()
    return asked


def test_each_lease_is_told_with_its_caller(tmp_path: Path, start: StartService) -> None:
    file = tmp_path / "audit" / "one.jsonl"
    service = start("--audit-file", str(file), "--anomaly", "users_per_caller=2/1m", "--anomaly", "lost_per_user=none")
    first, other = service.http, httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {OTHER}"})
    lease = borrow(first, "ANN")["lease"]
    assert first.post(f"/v1/leases/{lease}/checkin", json={"token": "another secret"}).status_code == 204
    lease = borrow(other, "ANN")["lease"]
    assert other.post(f"/v1/leases/{lease}/drop", json={}).status_code == 204
    for user in ("BOB", "CLEO", "DAN"):
        borrow(other, user)
    assert first.delete("/v1/users/BOB").json()["removed"] == 1
    assert 'coatcheck_pool_anomalies_total{count="users_per_caller",pool="default"} 1.0' in first.get("/metrics").text
    other.close()
    assert service.end() == 0
    text = file.read_text()
    assert "secret" not in text
    assert BEARER not in text
    records = [json.loads(line) for line in text.splitlines()]
    one, two = bearer_name(BEARER), bearer_name(OTHER)
    of_ann = [(each["event"], each["caller"]) for each in records if each["user"] == "ANN"]
    assert of_ann == [
        ("pool.login", one),
        ("pool.borrowed", one),
        ("pool.renewed", one),
        ("pool.returned", one),
        ("pool.borrowed", two),
        ("pool.dropped", two),
    ]
    assert len({each["token"] for each in records if each["user"] == "ANN"}) == 1
    assert [each["caller"] for each in records if each["event"] == "pool.removed"] == [one]
    (stands_out,) = [each for each in records if each["event"] == "pool.anomaly"]
    assert stands_out["caller"] == two
    assert "pool.anomaly" in service.log.read_text()

    shown = run_coatcheck("pool", "audit", "--audit-dir", str(file.parent), "--user", "ANN", "--caller", two)
    assert [line.split()[2] for line in shown.stdout.splitlines()] == ["pool.borrowed", "pool.dropped"]
    as_json = run_coatcheck("pool", "audit", "--audit-dir", str(file.parent), "--json")
    assert as_json.stdout == text


def test_what_cannot_be_audited_is_not_served(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(BEARER)
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (("--audit-file", str(tmp_path / "file" / "one.jsonl")), "audit_file"),
        (("--anomaly", "users_per_caller"), "anomaly"),
        (("--anomaly", "users_per_caler=5/1m"), "anomalies"),
    ):
        done = run_coatcheck("pool", "serve", "--listen", "127.0.0.1:0", "--token-file", str(token), *arguments)
        assert done.returncode == 2
        assert words in done.stderr
