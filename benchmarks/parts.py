"""Where the work of a Flask request goes, part by part: bytecodes that Python runs for it in the thread that serves it,
beyond those of the bare app. A count does not depend on how busy a machine is. Usage::

    python -m benchmarks.parts [--write-results]

The app and its peers are those of :mod:`benchmarks.frameworks`, called as a WSGI server calls them, without one. What C
code does (system calls, encryption, MessagePack, regular expressions) is not counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from io import BytesIO
from types import FrameType
from typing import Any

from benchmarks.processes import Processes, environment
from benchmarks.report import table, write_section

REQUESTS = 30
"""The count in the middle of so many is taken."""
WARM = 30
PARTS = {
    "coatcheck/web/": "the adapter",
    "coatcheck/sessions/": "rules: sessions, cookies, caches",
    "coatcheck/tokens/": "rules: tokens",
    "coatcheck/replication/": "rules: copies",
    "coatcheck/drivers/": "running them in threads",
    "coatcheck/stores/": "links to session servers",
    "asyncio/": "links to session servers",
    "flask_session/": "the adapter",
    "redis/": "the client of Redis",
    "": "Flask, Werkzeug: cookie, headers",
}
"""By what a file's name holds; the first that fits."""
VARIANTS = {"flask-redis": "Flask-Session, one Redis", "flask-coatcheck": "**coatcheck**, two session servers"}
PATHS = {"/ro": "read only", "/rw": "read + write"}


class Browser:
    """Keeps cookies, and calls the app in this thread."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._jar: dict[str, str] = {}

    def get(self, path: str) -> None:
        environ = {
            "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "127.0.0.1",
            "REMOTE_ADDR": "127.0.0.1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": BytesIO(),
            "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
        }  # fmt: skip
        if self._jar:
            environ["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in self._jar.items())
        body = self._app(environ, self._start)
        b"".join(body)
        body.close()

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        if not status.startswith("200"):
            raise RuntimeError(f"the app answered {status}")
        for name, value in headers:
            if name.lower() == "set-cookie":
                name, _, text = value.partition(";")[0].partition("=")
                self._jar[name] = text


class Counting:
    """Counts the bytecodes that this thread runs, by part."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()

    def __enter__(self) -> Counting:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name == __file__:
            return None
        part = next(part for known, part in PARTS.items() if known in name)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                self.parts[part] += 1
            return count

        return count


def counted(browser: Browser, path: str) -> Counter[str]:
    for _ in range(WARM):
        browser.get(path)
    counts = []
    for _ in range(REQUESTS):
        with Counting() as counting:
            browser.get(path)
        counts.append(counting.parts)
    return sorted(counts, key=lambda one: one.total())[REQUESTS // 2]


def count_here() -> None:
    """In a process of its own: one line per path and part."""
    from benchmarks.framework_apps import app
    from coatcheck.drivers import shared_reading

    shared_reading.LOOK_S = 0.2  # a thread that is counted is so slow that another one would help it
    browser = Browser(app)
    browser.get("/start")
    for path in PATHS:
        for part, count in counted(browser, path).items():
            print(path, count, part, sep="\t")


def counts_of(variant: str, stores: str) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {path: Counter() for path in PATHS}
    command = [sys.executable, "-m", "benchmarks.parts", "--count"]
    env = environment(FRAMEWORK=variant, STORES=stores)
    lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines:
        path, count, part = line.split("\t")
        found[path][part] = int(count)
    return found


def describe(bare: dict[str, Counter[str]], found: dict[str, dict[str, Counter[str]]]) -> str:
    lines = []
    parts = list(dict.fromkeys(PARTS.values()))
    columns = [(variant, path) for path in PATHS for variant in VARIANTS]
    for part in [*parts, "all"]:
        cells = []
        for variant, path in columns:
            added = Counter(found[variant][path])
            added.subtract(bare[path])
            cells.append(f"{sum(added.values()) if part == 'all' else added[part]:,}")
        lines.append([part, *cells])
    return table(["bytecodes", *(f"{VARIANTS[variant]}: {PATHS[path]}" for variant, path in columns)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-results", action="store_true", help="renew the table in RESULTS.md")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        count_here()
        return
    with Processes() as processes:
        redis = f"redis://127.0.0.1:{processes.start_redis('redis')[0]}"
        ours = " ".join(f"coatcheck://127.0.0.1:{processes.start_session_server(f's{n}')[0]}" for n in (1, 2))
        bare = counts_of("flask-", "")
        stores = {"flask-redis": redis, "flask-coatcheck": ours}
        text = describe(bare, {variant: counts_of(variant, stores[variant]) for variant in VARIANTS})
    print(text)
    if options.write_results:
        write_section("parts", text)


if __name__ == "__main__":
    main()
