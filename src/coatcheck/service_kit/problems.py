"""Every error as a JSON problem (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

from coatcheck.service_kit.messages import PROBLEM_TYPE, TYPE_PREFIX, Problem


class RequestRefused(Exception):
    """A request that is answered with a problem. ``name``: the end of its type; ``detail``: what people read."""

    def __init__(self, status: int, name: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.headers = dict(headers or {})


TITLES: Final[Mapping[str, str]] = {
    "bad-request": "The request is wrong",
    "no-such-page": "There is nothing here",
    "wrong-method": "This method is not for this address",
    "too-large": "The request is too large",
    "too-slow": "The request took too long",
    "wrong-content-type": "The request is not JSON",
    "internal": "The service failed",
}
"""Of the problems that any service has; each adds its own."""


def problem_response(refusal: RequestRefused, titles: Mapping[str, str]) -> Response:
    """The answer to a request that was refused. ``titles``: by name, of the service's own problems."""
    title = titles.get(refusal.name) or TITLES[refusal.name]
    problem = Problem(TYPE_PREFIX + refusal.name, title, refusal.status, refusal.detail)
    return Response(msgspec.json.encode(problem), refusal.status, refusal.headers, PROBLEM_TYPE)
