"""The OpenAPI 3.1 document, made from the table of operations and the types of the bodies."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Final

import msgspec

from coatcheck.service_kit.messages import PROBLEM_TYPE, Problem
from coatcheck.service_kit.operations import BODY_PROBLEMS, Api, ApiOperation

REF: Final = "#/components/schemas/{name}"


def openapi_document(api: Api) -> dict[str, Any]:
    """The whole document."""
    bodies = {operation.body for operation in api.operations if operation.body is not None}
    answers = {each for operation in api.operations for each in operation.answers.values() if isinstance(each, type)}
    types = sorted(bodies | answers | {Problem}, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    references = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in api.operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(api, operation, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": api.title, "version": version("coatcheck"), "description": api.words},
        "security": [{name: []} for name in api.security],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": dict(api.security)},
    }


def _operation(api: Api, operation: ApiOperation, references: dict[type, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        responses[str(status)] = {"description": operation.words, **_content(answer, references)}
    problems = {503} if operation.open else {*api.common_problems, *operation.problems}
    for status in sorted(problems | set(BODY_PROBLEMS if operation.body else ())):
        problem = {PROBLEM_TYPE: {"schema": references[Problem]}}
        responses[str(status)] = {"description": "A problem.", "content": problem}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.words,
        "responses": responses,
    }
    names = re.findall(r"{(\w+)}", operation.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": api.parameters[name]} for name in names]
    parameters += [
        {"name": name, "in": "header", "required": False, "description": words, "schema": {"type": "string"}}
        for name, words in operation.headers.items()
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": words, "schema": {"type": "boolean"}}
        for name, words in operation.flags.items()
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_needed,
            "content": {"application/json": {"schema": references[operation.body]}},
        }
    if operation.open:
        described["security"] = []
    elif operation.scope:
        described["description"] = f"Needs the scope `{operation.scope}`."
    return described


def _content(answer: Any, references: dict[type, dict[str, Any]]) -> dict[str, Any]:
    if answer is None:
        return {}
    if isinstance(answer, str):
        schema = {"type": "string"} if answer.startswith("text/") else {"type": "object"}
        return {"content": {answer: {"schema": schema}}}
    return {"content": {"application/json": {"schema": references[answer]}}}
