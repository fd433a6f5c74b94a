"""Headless Chromium, led by its DevTools protocol: tabs, links, forms, the back button."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PATIENCE_S = 60.0
LAUNCH = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--no-first-run", "--disable-background-networking", "--no-proxy-server",
)  # fmt: skip


class Chromium:
    """One browser with one cookie jar; closed with :meth:`close`."""

    def __init__(self, profile: Path, *more: str, whole: bool = False) -> None:
        """``more`` arguments; ``whole``: the browser itself, of which the headless shell has only a part."""
        small = None if whole else shutil.which("chromium-headless-shell")
        binary = small or shutil.which("chromium")
        assert binary is not None, f"apt-get install {'chromium' if whole else 'chromium-headless-shell'}"
        command = [binary, *LAUNCH, *more, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        note, until = profile / "DevToolsActivePort", time.monotonic() + PATIENCE_S
        while not (note.exists() and len(lines := note.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "the browser ended"
            assert time.monotonic() < until, "the browser does not start"
            time.sleep(0.05)
        self._ends = ExitStack()
        way = connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None, proxy=None)
        self._socket: ClientConnection = self._ends.enter_context(way)
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def tab(self) -> Tab:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        return Tab(self, session)

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE_S))
        return answer

    def wait_for(self, session: str, method: str, times: int = 1) -> None:
        while True:
            found = [one for one in self.events if one.get("sessionId") == session and one.get("method") == method]
            if len(found) >= times:
                return
            self.events.append(self._next())

    def forget(self, session: str) -> None:
        self.events = [one for one in self.events if one.get("sessionId") != session]

    def close(self) -> None:
        self._ends.close()
        os.killpg(self._process.pid, signal.SIGKILL)  # its own group: the binary may be a script that starts another
        self._process.wait(PATIENCE_S)


class Tab:
    """A tab; each step returns when the page has loaded, an error page of the browser's own included."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def begin(self, url: str) -> None:
        """HandOffAsk for a page, and do not wait."""
        self._browser.forget(self._session)
        self._call("Page.navigate", {"url": url})

    def loaded(self) -> dict[str, Any]:
        """What the page says, once it is there."""
        self._browser.wait_for(self._session, "Page.loadEventFired")
        return self.says()

    def open(self, url: str) -> dict[str, Any]:
        self.begin(url)
        return self.loaded()

    def follow(self, link: str) -> dict[str, Any]:
        """Click a link of this page, or send a form."""
        return self.click(f"#{link}")

    def click(self, selector: str) -> dict[str, Any]:
        """What is clicked leads to another page."""
        self._browser.forget(self._session)
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        return self.loaded()

    def fill(self, selector: str, text: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}")

    def texts(self, selector: str) -> list[str]:
        """What stands in each such element of the page."""
        found: list[str] = self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
        return found

    def reload(self) -> dict[str, Any]:
        self._browser.forget(self._session)
        self._call("Page.reload", {"ignoreCache": True})
        return self.loaded()

    def back(self) -> dict[str, Any]:
        history = self._call("Page.getNavigationHistory")
        self._browser.forget(self._session)
        entry = history["entries"][history["currentIndex"] - 1]["id"]
        self._call("Page.navigateToHistoryEntry", {"entryId": entry})
        return self.loaded()

    def history(self) -> list[str]:
        return [entry["url"] for entry in self._call("Page.getNavigationHistory")["entries"]]

    def says(self) -> dict[str, Any]:
        """The page's JSON, or nothing for the browser's own error page; and where this tab is."""
        text = self.run("document.getElementById('said') ? document.getElementById('said').textContent : '{}'")
        return {**json.loads(text), "url": self.run("location.href"), "referrer": self.run("document.referrer")}

    def run(self, script: str) -> Any:
        return self._call("Runtime.evaluate", {"expression": script, "returnByValue": True})["result"].get("value")

    def cookies(self, url: str) -> dict[str, str]:
        found = self._call("Network.getCookies", {"urls": [url]})["cookies"]
        return {cookie["name"]: cookie["value"] for cookie in found}

    def _call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, parameters, self._session)
