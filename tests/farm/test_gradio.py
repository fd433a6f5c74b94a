"""Gradio, unmodified, in a farm of three: its queue goes on with another web server, and its user stays logged in."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from hand_off.chromium import Chromium, Tab

from . import test_framework_apps
from .farm_process import SOURCE, Farm, eventually

TESTS = Path(__file__).parents[1]
START_S = 300.0
"""An import of Gradio takes 8 s of a processor, in each web server."""
PATIENCE_S = 3.0
WORDS = "#words textarea"
SAID = "document.querySelector('#said textarea')?.value ?? ''"

pytestmark = [pytest.mark.serial]
chromium = test_framework_apps.chromium


def say(tab: Tab, words: str, *, insists: bool = False) -> list[str]:
    """Click, and wait for what the queue answers: the user, the words, how many were heard in this page, and where.

    ``insists``: as people do who see that the page has lost its connection, and click again. Gradio's page sends
    nothing for some seconds after that.
    """
    typed = f"const into = document.querySelector({json.dumps(WORDS)}); into.value = {json.dumps(words)}; "
    tab.run(f"(() => {{ {typed} into.dispatchEvent(new Event('input')); }})()")
    tab.run("document.querySelector('#go').click()")

    clicked = time.monotonic()

    def answered() -> list[str]:
        nonlocal clicked
        said = str(tab.run(SAID)).split()
        if words not in said and insists and time.monotonic() - clicked > PATIENCE_S:
            clicked = time.monotonic()
            tab.run("document.querySelector('#go').click()")
        return said if words in said else []

    found: list[str] = eventually(answered, f"the answer to {words}")
    return found


def test_a_page_goes_on_with_another_web_server(farm: Callable[..., Farm], chromium: Chromium) -> None:
    named = {"PYTHONPATH": f"{SOURCE}:{TESTS}", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    patient = ("--start-timeout", f"{START_S:g}s", *test_framework_apps.PATIENT)
    running = farm("--web", "3", *patient, app="farm.gradio_app:app", wait=False, **named)
    running.wait_running(START_S)
    tab = chromium.tab()
    tab.open(f"{running.base}/")
    tab.click("#enter")
    eventually(lambda: tab.texts("#go"), "the page")
    *said, name = say(tab, "one")
    assert said == ["ada", "one", "1"]
    assert say(tab, "two") == ["ada", "two", "2", name]

    os.kill(running.pid(name), signal.SIGKILL)
    user, _, count, other = say(tab, "three", insists=True)
    assert (user, int(count) < 3) == ("ada", True), "gr.State went with its web server, the login stays"

    assert running.run("drain", other).returncode == 0
    tab.open(f"{running.base}/page/")
    eventually(lambda: tab.texts("#go"), "the page")
    *said, last = say(tab, "four")
    assert (said, last != other) == (["ada", "four", "1"], True)

    stolen = tab.cookies(running.base)
    assert httpx.get(f"{running.base}/page/config", cookies=stolen, timeout=60).status_code == 200
    httpx.post(f"{running.base}/logout", cookies=stolen, timeout=60)
    assert httpx.get(f"{running.base}/page/config", cookies=stolen, timeout=60).status_code == 401
    assert "Traceback" not in running.log, running.log
