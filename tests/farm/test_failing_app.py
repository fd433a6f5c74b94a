"""An app whose handlers fail: its own request gets the error, and nobody else's does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from .farm_process import Farm

ROUNDS = 60
APP = """
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

async def breaks(request):
    raise RuntimeError("the handler fails")

async def fails_behind(request):
    raise RuntimeError("the background task fails")

async def answers(request):
    return PlainTextResponse("answered", background=BackgroundTask(fails_behind, request))

async def half(request):
    async def pieces():
        yield b"half"
        raise RuntimeError("the stream fails")
    return StreamingResponse(pieces(), headers={} if request.query_params else {"Content-Length": "8"})

async def buy(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return PlainTextResponse(str(request.session["n"]))

app = Starlette(routes=[
    Route("/breaks", breaks), Route("/answers", answers), Route("/half", half), Route("/buy", buy, methods=["POST"]),
])
"""


@pytest.fixture(params=["uvicorn", "granian"])
def failing(request: pytest.FixtureRequest, tmp_path: Path, farm: Callable[..., Farm]) -> Farm:
    (tmp_path / "failing.py").write_text(APP)
    return farm("--web", "1", "--server", request.param, app="failing:app")


@pytest.mark.parametrize(("path", "status"), [("/breaks", 500), ("/answers", 200)])
def test_a_failure_behind_an_answer_fails_nobody_elses_post(failing: Farm, path: str, status: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    with (
        httpx.Client(base_url=failing.base, trust_env=False, timeout=60) as unlucky,
        httpx.Client(base_url=failing.base, trust_env=False, timeout=60) as customer,
    ):
        for _ in range(ROUNDS):
            failed = unlucky.get(path)
            seen[failed.status_code, customer.post("/buy").status_code] += 1
        assert seen == {(status, 200): ROUNDS}
        assert customer.post("/buy").text == str(ROUNDS + 1)
    assert "fails" in failing.log, "its operator is told"


def test_an_answer_that_breaks_off_is_seen_to_break_off(failing: Farm) -> None:
    with httpx.Client(base_url=failing.base, trust_env=False, timeout=60) as browser:
        assert browser.get("/half").status_code == 502, "nothing of it had left"
        with pytest.raises(httpx.RemoteProtocolError):
            browser.get("/half?length=unknown")
        assert browser.post("/buy").status_code == 200
