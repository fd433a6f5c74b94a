"""The OpenAPI document is valid, and true: every answer is one that it describes."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate

from .service_process import ServiceProcess


@pytest.fixture(scope="module")
def document(service: ServiceProcess) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.url}/openapi.json").json()
    return found


def check(document: dict[str, Any], path: str, answer: httpx.Response) -> None:
    """The answer's status and body are in the document."""
    operation = document["paths"][path][answer.request.method.lower()]
    described = operation["responses"].get(str(answer.status_code))
    assert described is not None, f"{path} answered {answer.status_code}, which is not in the document"
    if "content" not in described:
        assert answer.content == b""
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in described["content"], f"{path}: {media_type}"
    if media_type.endswith("json"):
        schema = {**described["content"][media_type]["schema"], "components": document["components"]}
        jsonschema.validate(answer.json(), schema, jsonschema.Draft202012Validator)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"] == "3.1.0"


def test_every_operation_answers_as_it_is_described(document: dict[str, Any], service: ServiceProcess) -> None:
    http, checked = service.http, set()

    def ask(method: str, path: str, **named: Any) -> httpx.Response:
        query = {"json": named.pop("body")} if "body" in named else {}
        answer = http.request(method, path.format(**named), **query)
        check(document, path, answer)
        checked.add((method.lower(), path, answer.status_code))
        return answer

    out, end = "/v1/users/{user}/checkout", "/v1/leases/{lease}/"
    login = ask("POST", out, user="OPEN", body={"wait_s": 0}).json()
    completed = {"token": "T", "expires_in_s": 99, "payload": {"route": "w1"}}
    lease = ask("POST", end + "complete", lease=login["lease"], body=completed).json()
    ask("POST", end + "renew", lease=lease["lease"])
    ask("GET", "/v1/users")
    ask("GET", "/v1/users/{user}", user="OPEN")
    ask("POST", end + "checkin", lease=lease["lease"], body={"token": "U"})
    lease = ask("POST", out, user="OPEN").json()
    assert ask("POST", end + "refuse", lease=lease["lease"]).json() == {"again": True}
    login = ask("POST", out, user="OPEN").json()
    lease = ask("POST", end + "complete", lease=login["lease"], body={"token": "T"}).json()
    ask("POST", end + "drop", lease=lease["lease"], body={"sign_out": True})
    login = ask("POST", out, user="OPEN").json()
    ask("POST", end + "fail", lease=login["lease"])
    for how in ("complete", "renew", "checkin", "drop", "refuse", "fail"):
        body = {"token": "T"} if how == "complete" else {}
        ask("POST", end + how, lease=lease["lease"], body={**body, "x": 1})
        ask("POST", end + how, lease="none", body=body)
        ask("POST", end + how, lease=f"1{lease['lease']}", body=body)
    # Each failed login doubles the time for which the next one is refused, beginning with a second, which may be over.
    for _ in range(8):
        answer = ask("POST", out, user="OPEN", body={"wait_s": 0})
        if answer.status_code == 429:
            break
        ask("POST", end + "fail", lease=answer.json()["lease"])
    ask("POST", "/v1/users/{user}/shared", user="OPEN")
    ask("POST", "/v1/users/{user}/shared/refuse", user="OPEN", body={"token": "T"})
    ask("DELETE", "/v1/users/{user}", user="OPEN")
    ask("DELETE", "/v1/users/{user}/tokens/{token_id}", user="OPEN", token_id="1")
    for path in ("/v1/stats", "/metrics", "/healthz", "/openapi.json"):
        ask("GET", path)
    ask("POST", "/v1/clean-up")
    http.headers["Authorization"], kept = "Bearer wrong", http.headers["Authorization"]
    try:
        ask("GET", "/v1/stats")
        ask("POST", out, user="OPEN")
    finally:
        http.headers["Authorization"] = kept
    every = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert {(method, path) for method, path, _ in checked} == every
    assert {status for *_, status in checked} >= {200, 201, 204, 400, 401, 404, 409, 429}


def test_metrics_are_prometheus_text(service: ServiceProcess) -> None:
    service.end_lease(service.signed_in(user="METRICS")["lease"])
    answer = service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in answer.text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
            assert any(name.startswith(known) for known in types)
    assert values['coatcheck_pool_token_count{pool="default",state="idle"}'] >= 1
    assert values['coatcheck_pool_token_logins_total{pool="default"}'] >= 1
    assert values['coatcheck_pool_token_wait_time_seconds_count{pool="default"}'] >= 1
    assert types["coatcheck_pool_token_wait_time_seconds"] == "histogram"
    assert "METRICS" not in answer.text
