"""The OpenAPI document is valid and true, whatever is sent: schemathesis makes requests of it, good and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import assume, given, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coatcheck.service.routes import OPERATIONS

from .service_process import ServiceProcess, credential_of

CALLERS = """
[shop]
scopes = ["verify", "renew", "create", "update", "close", "hand-off", "list-user", "close-user", "forward-auth"]
audience = "https://shop.example"
requests_per_minute = 10000000
"""
SITES = """
[sites.shop]
origin = "https://shop.example"
[sites.tickets]
origin = "https://tickets.example"
paths = ["/tickets/*"]
"""
NO_HEADER = {"\0", "\v", "\f"}
EXAMPLES = 25
"""Of each operation; derandomized, as all of hypothesis here."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ASKED = [operation for operation in OPERATIONS if operation.name != "events"]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, Any]]:
    folder = tmp_path_factory.mktemp("described")
    (folder / "farm.toml").write_text(SITES)
    # What is tried is what it says, not whether the machine is quick.
    service = ServiceProcess(folder, "--config", "farm.toml", "--store-timeout", "10s", callers=CALLERS)
    try:
        yield service, schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    finally:
        service.end()


def test_the_document_is_valid_and_names_every_operation(service: ServiceProcess) -> None:
    document = service.http.get("/openapi.json").json()
    validate(document)
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert named == {(operation.method, operation.path) for operation in OPERATIONS}


@pytest.mark.slow
@pytest.mark.parametrize("operation", ASKED, ids=lambda operation: operation.name)
def test_whatever_is_sent_is_answered_as_the_document_says(
    described: tuple[ServiceProcess, Any], operation: Any
) -> None:
    service, schema = described
    found = schema[operation.path][operation.method]
    seen: set[int] = set()

    def ask(case: Any) -> None:
        # HTTP forbids these in headers (RFC 9110 section 5.5): its parser answers, in plain text, and not the service.
        assume(not any(NO_HEADER & set(value) for value in (case.headers or {}).values()))
        answer = case.call(headers={"Authorization": f"Bearer {credential_of('shop')}"})
        case.validate_response(answer, checks=CHECKS)
        seen.add(answer.status_code)

    modes = [schemathesis.GenerationMode.POSITIVE]
    if operation.body or operation.headers:  # of what asks for nothing, nothing wrong can be sent
        modes.append(schemathesis.GenerationMode.NEGATIVE)
    for mode in modes:
        strategy = found.as_strategy(generation_mode=mode)
        settings(max_examples=EXAMPLES, deadline=None)(given(strategy)(ask))()
    assert seen
    assert "Traceback" not in service.log.read_text()


def test_what_a_live_session_is_answered_is_described(service: ServiceProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    cookie = service.login("ada", n=1, nested={"a": [None, 1.5, "x"]})
    for path in ("/v1/sessions/verify", "/v1/sessions/renew", "/v1/sessions/update", "/v1/sessions/close"):
        case = schema[path]["POST"].Case(body={"cookie": cookie}, media_type="application/json")
        answer = case.call(headers=service.of("shop"))
        assert answer.status_code == 200
        case.validate_response(answer, checks=CHECKS)
