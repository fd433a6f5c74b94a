"""The OpenAPI 3.1 document, made from the table of routes and the types of the bodies."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Final

import msgspec

from coatcheck.pool.service import messages
from coatcheck.pool.service.lease_id import MAX_LEASE_ID_CHARS
from coatcheck.pool.service.problems import PROBLEM_TYPE
from coatcheck.pool.service.routes import BODY_PROBLEMS, COMMON_PROBLEMS, OPERATIONS, ApiOperation

REF: Final = "#/components/schemas/{name}"
PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "user": {"type": "string", "minLength": 1, "maxLength": 1024},
    "lease": {"type": "string", "maxLength": MAX_LEASE_ID_CHARS},
    "token_id": {"type": "integer", "minimum": 1},
}


def openapi_document() -> dict[str, Any]:
    """The whole document."""
    bodies = {operation.body for operation in OPERATIONS if operation.body is not None}
    answers = {answer for operation in OPERATIONS for answer in operation.answers.values() if isinstance(answer, type)}
    types = sorted(bodies | answers | {messages.Problem}, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    references = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "coatcheck pool",
            "version": version("coatcheck"),
            "description": "Session tokens of an upstream, leased to one caller at a time.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(operation: ApiOperation, references: dict[type, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        responses[str(status)] = {"description": operation.words, **_content(answer, references)}
    problems = {503} if operation.open else {*COMMON_PROBLEMS, *operation.problems}
    for status in sorted(problems | set(BODY_PROBLEMS if operation.body else ())):
        problem = {PROBLEM_TYPE: {"schema": references[messages.Problem]}}
        responses[str(status)] = {"description": "A problem.", "content": problem}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.words,
        "responses": responses,
    }
    names = re.findall(r"{(\w+)}", operation.path)
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": PARAMETERS[name]} for name in names
        ]
    if operation.body is not None:
        schema = references[operation.body]
        described["requestBody"] = {
            "required": operation.body is messages.Complete,
            "content": {"application/json": {"schema": schema}},
        }
    if operation.open:
        described["security"] = []
    return described


def _content(answer: Any, references: dict[type, dict[str, Any]]) -> dict[str, Any]:
    if answer is None:
        return {}
    if isinstance(answer, str):
        schema = {"type": "string"} if answer.startswith("text/") else {"type": "object"}
        return {"content": {answer: {"schema": schema}}}
    return {"content": {"application/json": {"schema": references[answer]}}}
