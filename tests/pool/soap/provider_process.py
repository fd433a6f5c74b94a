"""A provider in a process of its own, as an operator starts it."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from forked import CoatcheckProcess

START_TIMEOUT_S = 30


class ProviderProcess:
    """``coatcheck soap serve`` on a free port; ``url`` is its SOAP endpoint."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = CoatcheckProcess("soap", "serve", "--listen", "127.0.0.1:0", *arguments, stderr=errors)
        line = self.process.stdout.readline()
        if "SOAP provider at" not in line:
            self.process.wait(START_TIMEOUT_S)
            raise AssertionError(f"the provider did not start: {line} {log.read_text()}")
        self.wsdl = line.split()[-1]
        self.url = self.wsdl.removesuffix("?wsdl")
        self.base = self.url.removesuffix("/soap")

    def admin(self, path: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
        """Turn a switch (POST), or read the statistics (GET ``stats``)."""
        data = None if path == "stats" else json.dumps(changes or {}).encode()
        with urllib.request.urlopen(f"{self.base}/admin/{path}", data, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def counter(self, name: str) -> int:
        return int(self.admin("stats")["counters"].get(name, 0))

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
        self.process.stdout.close()
