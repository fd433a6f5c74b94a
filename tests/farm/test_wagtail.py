"""Wagtail's admin, unmodified, in a farm of three: a web server dies and one drains while a browser works in it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hand_off.chromium import Tab

from . import test_framework_apps
from .farm_process import SOURCE, Farm, environment, eventually

TESTS = Path(__file__).parents[1]
MAKE = "from farm.wagtail_app import make; make()"
LEAVE = 'form[action="/admin/logout/"] button'

pytestmark = [pytest.mark.serial]
chromium = test_framework_apps.chromium


class WagtailPages:
    """As somebody uses them who adds collections."""

    home = "/admin/"
    refused_at = "/admin/login/"

    def enter(self, tab: Tab, base: str) -> None:
        tab.open(f"{base}/admin/")
        tab.fill("#id_username", "ada")
        tab.fill("#id_password", "ada")
        tab.click(".login-form [type=submit]")

    def who(self, tab: Tab) -> list[str]:
        """What the menu at the side is told."""
        return re.findall(r'\{"name": "(\w+)", "avatarUrl"', "".join(tab.texts("#wagtail-sidebar-props")))

    def look(self, tab: Tab, base: str) -> None:
        tab.open(f"{base}/admin/collections/")

    def add(self, tab: Tab, base: str, what: str) -> None:
        tab.open(f"{base}/admin/collections/add/")
        tab.fill("#id_name", what)
        tab.fill("#id_parent", "1")  # the root
        tab.click("#w-editor-form [type=submit]")

    def said(self, tab: Tab) -> list[str]:
        return [text.strip().splitlines()[0] for text in tab.texts(".messages li")]

    def message(self, what: str) -> str:
        return f"Collection '{what}' created."

    def added(self, tab: Tab) -> int:
        return len(tab.texts("td.title"))

    def leave(self, tab: Tab) -> None:
        eventually(lambda: tab.texts(LEAVE), "the menu at the side")
        tab.click(LEAVE)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Farm]:
    env = {"PYTHONPATH": f"{SOURCE}:{TESTS}", "SHOP_FOLDER": str(tmp_path)}
    subprocess.run([sys.executable, "-c", MAKE], env=environment(**env), check=True)
    standard = ("farm.wagtail_app:app", "--port", "0", "--insecure-localhost", "--stop-grace", "5", "--web", "3")
    farm = Farm(tmp_path, (*standard, "--threads", "4", *test_framework_apps.PATIENT), env)
    try:
        farm.wait_running()
        yield farm
        assert "Traceback" not in farm.log, farm.log
    finally:
        farm.end()


def test_a_browser_notices_neither_a_kill_nor_a_drain(running: Farm, chromium: test_framework_apps.Chromium) -> None:
    test_framework_apps.click_on(running, WagtailPages(), chromium.tab())
