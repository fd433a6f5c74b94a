"""The demo and its tour, and the examples, as a user runs them."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from coatcheck.demo.shopper import Shopper, Tally
from coatcheck.demo.tour import TourReport, TourStep, report
from coatcheck.farm.plan.roles import Address
from ports import free_port

from .farm_process import DEADLINE_S, EXAMPLES, Command, Farm, eventually


def test_tour_loses_nothing_and_takes_a_free_port(command: Command) -> None:
    with socket.socket() as taken:
        port = free_port()  # and so is the next one, and nobody takes it meanwhile
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = command.run("demo", "--tour", "--port", str(port), "--shoppers", "20", timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was lost, no request failed" in done.stdout
    assert done.stdout.count("20 of 20") == 4
    assert "web-" in done.stdout
    assert "session-" in done.stdout
    assert f"127.0.0.1:{port}\n" not in done.stderr
    assert list(command.directory.iterdir()) == [command.directory / "counter.py"]


def test_a_restart_of_the_demo_keeps_the_carts(command: Command) -> None:
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as browser:
        for quantity in (1, 2):
            with command.started("demo", "--port", str(port)) as demo:
                eventually(partial(_add_a_hat, browser, quantity), "the shop")
                demo.send_signal(signal.SIGINT)
                assert demo.wait(DEADLINE_S) == 0


def _add_a_hat(browser: httpx.Client, quantity: int) -> bool:
    try:
        cart = browser.post("/add", data={"item": "hat"}).text
    except httpx.TransportError:
        return False  # not there yet
    assert f"{quantity} × Top hat" in cart
    return True


def test_a_shopper_notices_what_is_missing() -> None:
    shopper = Shopper(1, Address("127.0.0.1", 1), seed=1)
    answers: dict[str, Any] = {"name": "shopper-1", "cart": {"hat-1": 2}, "server": "web-1"}

    async def answer(*_: object) -> tuple[int, Any]:
        return 200, answers

    shopper._browser.request = answer  # type: ignore[method-assign]
    shopper.cart = {"hat-1": 2}
    assert asyncio.run(shopper.check(Tally())) == ""
    shopper.cart = {"hat-1": 3}
    assert asyncio.run(shopper.check(Tally())) == "hat-1: 2 instead of 3"
    shopper.cart = {"hat-1": 2, "coat-1": 1}
    assert asyncio.run(shopper.check(Tally())) == "coat-1: 0 instead of 1"
    answers["name"] = None
    assert "logged out" in asyncio.run(shopper.check(Tally()))


def test_the_report_says_what_was_lost() -> None:
    steps = [
        TourStep(1, "all is well", tally=Tally(100, 0, 0.004), intact=10),
        TourStep(2, "a server dies", "web-1 (pid 7)", Tally(90, 2, 1.5), 9, ["shopper-3: hat-1: 2 instead of 3"]),
    ]
    text = report(TourReport(shoppers=10, seconds=12.4, steps=steps, well=False))
    assert "1 of 10 carts were damaged, 2 requests failed (12 s)" in text
    assert "web-1 (pid 7)" in text
    assert "shopper-3: hat-1: 2 instead of 3" in text


def test_the_shop_by_hand(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--config", str(EXAMPLES / "farm.toml"), app="coatcheck.demo.shop:app")
    with httpx.Client(base_url=running.base, follow_redirects=True) as browser:
        page = browser.get("/").text
        assert "visit number <b>1</b>" in page
        browser.post("/add", data={"item": "hat"})
        page = browser.post("/add", data={"item": "hat"}).text
        assert "2 × Top hat" in page
        page = browser.post("/login", data={"name": "<script>Ann"}).text
        assert "&lt;script&gt;Ann" in page
        assert "<script>" not in page
        assert "2 × Top hat" not in browser.post("/remove", data={"item": "hat"}).text
        assert "Your name" in browser.post("/logout").text
        for body in (b"", b"\xff", b"item=" + b"x" * 10_000):
            assert browser.post("/add", content=body).status_code == 200
        assert browser.put("/api/cart/hat", content=b"{").status_code == 400


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_fastapi_example(farm: Callable[..., Farm], server: str) -> None:
    running = farm("--web", "2", "--server", server, app="fastapi_app:app", PYTHONPATH=pythonpath())
    with httpx.Client(base_url=running.base) as browser:
        assert [browser.get("/").json()["visits"] for _ in range(3)] == [1, 2, 3]
        assert browser.put("/notes/a", params={"text": "one"}).json() == {"notes": {"a": "one"}}
        assert browser.put("/notes/b", params={"text": "two"}).json() == {"notes": {"a": "one", "b": "two"}}
        assert browser.post("/logout").json() == {"visits": 0}
        assert browser.get("/").json()["visits"] == 1


def pythonpath() -> str:
    from .farm_process import SOURCE

    return f"{SOURCE}:{EXAMPLES}"


def test_factory(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1", "--factory", app="counter:make")
    assert httpx.get(running.base).json()["count"] == 1


def test_an_app_with_starlettes_own_sessions_is_warned_about(farm: Callable[..., Farm], command: Command) -> None:
    (command.directory / "doubled.py").write_text(
        "from starlette.applications import Starlette\n"
        "from starlette.middleware import Middleware\n"
        "from starlette.middleware.sessions import SessionMiddleware\n"
        "app = Starlette(middleware=[Middleware(SessionMiddleware, secret_key='x')])\n"
    )
    running = farm("--web", "1", app="doubled:app")
    assert "doubled:app installs Starlette's SessionMiddleware" in running.log
