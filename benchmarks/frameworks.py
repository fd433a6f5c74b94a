"""What a session costs a Django or Flask app: added CPU per request over the bare app, against the sessions that the
frameworks' users have today, paired.

All variants are up at once, each one gunicorn worker (gthread) on one core; load and session servers are on the other.
Rounds are interleaved, as in :mod:`benchmarks.middleware`. As many connections as threads.

Counted is the CPU time of the worker's process alone, user and system, all of its threads; what its session servers or
its Redis take is a column of its own. All keep the same values (:func:`benchmarks.apps.fresh`), and everything goes
over TCP on loopback. Ours stores each write, encrypted, on two servers (session servers of ours, or two Redis), and
waits for both; the peers store plain text on one Redis, with hiredis as their parser, ``cached_db`` in SQLite besides.
Peers are as they are configured out of the box: Flask-Session reads with every request, and stores with every request
of a session that it has begun, for it takes sessions for permanent ones. Usage::

    python -m benchmarks.frameworks [--quick] [--write-results]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.middleware import PATHS, Key, Running, Sample, Variant, measure, ratios, summarize
from benchmarks.processes import SERVER_CORE, Processes, environment, free_port
from benchmarks.report import table, write_section

VARIANTS = [
    Variant("Django, no session", "django", ""),
    Variant("Django, signed cookies", "django", "signed"),
    Variant("Django, `cached_db` on one Redis and SQLite", "django", "redis", "redis"),
    Variant("Django, **coatcheck**, two session servers", "django", "coatcheck", "session-server"),
    Variant("Django, **coatcheck**, two Redis", "django", "coatcheck", "redis"),
    Variant("Flask, no session", "flask", ""),
    Variant("Flask, its signed cookie", "flask", "signed"),
    Variant("Flask-Session, one Redis", "flask", "redis", "redis"),
    Variant("Flask, **coatcheck**, two session servers", "flask", "coatcheck", "session-server"),
    Variant("Flask, **coatcheck**, two Redis", "flask", "coatcheck", "redis"),
]
COMPARISONS = [("/ro", "signed", "1"), ("/ro", "redis", ""), ("/rw", "signed", ""), ("/rw", "redis", "0.5")]
"""Path, peer, and what is aimed at."""
SCHEMES = {"redis": "redis", "session-server": "coatcheck"}
START_TIMEOUT_S = 30.0


def start_all(processes: Processes, threads: int, directory: Path) -> list[Running]:
    servers: dict[str, list[tuple[int, int]]] = {
        "redis": [processes.start_redis(f"redis-{number} for {threads}") for number in (1, 2)],
        "session-server": [processes.start_session_server(f"session-{number}") for number in (1, 2)],
        "": [],
    }
    running = []
    for number, variant in enumerate(VARIANTS):
        stores = servers[variant.stores]
        place = directory / f"{threads}-{number}"
        place.mkdir()
        env = environment(
            FRAMEWORK=f"{variant.frame}-{variant.peer}",
            STORES=" ".join(f"{SCHEMES[variant.stores]}://127.0.0.1:{port}" for port, _ in stores),
            DIRECTORY=str(place),
        )
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", "benchmarks.framework_apps:app", "--bind", f"127.0.0.1:{port}"]
        command += [
            "--worker-class",
            "gthread",
            "--threads",
            str(threads),
            "--keep-alive",
            "60",
            "--log-level",
            "error",
        ]
        master = processes.start(f"{variant.label} for {threads}", command, port, SERVER_CORE, env)
        running.append(Running(variant, port, _worker_of(master), [pid for _, pid in stores]))
    return running


def _worker_of(master: int) -> int:
    """gunicorn's one worker, which does the work."""
    children = Path(f"/proc/{master}/task/{master}/children")
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (found := children.read_text().split()):
        if time.monotonic() > deadline:
            raise RuntimeError("gunicorn has no worker")
        time.sleep(0.02)
    return int(found[0])


def describe(samples: dict[Key, list[Sample]], counts: list[int]) -> str:
    rows = {(row["variant"], row["path"], row["connections"]): row for row in summarize(samples)}
    parts = []
    for path, title in PATHS.items():
        lines = []
        for variant in VARIANTS:
            for count in counts:
                row = rows[variant.label, path, count]
                added = f"{row['added_us']:.0f}" if variant.peer else ""
                lines.append([
                    variant.label, str(count), f"{row['cpu_us']:.0f}", added,
                    f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", f"{row['set_cookie']:.2f}",
                    f"{row['store_cpu_us']:.0f}", f"{row['not_200']:.0f}", f"{row['wrong_counts']:.0f}",
                ])  # fmt: skip
        heads = [
            title, "threads", "CPU/request (µs)", "added (µs)", "p50 (µs)", "p99 (µs)", "Set-Cookie",
            "stores' CPU (µs)", "not 200", "wrong counts",
        ]  # fmt: skip
        parts.append(table(heads, lines))
    lines = []
    for ours in [variant for variant in VARIANTS if variant.peer == "coatcheck"]:
        for path, peer, aim in COMPARISONS:
            [rival] = [other for other in VARIANTS if other.frame == ours.frame and other.peer == peer]
            cells = [f"{median(ratios(samples, ours.label, rival.label, path, count)):.2f}" for count in counts]
            lines.append([ours.label, rival.label, PATHS[path], *cells, aim])
    heads = ["ours", "peer", "", *(f"{count} threads" for count in counts), "target"]
    parts.append("Added CPU, ours over the peer's (median of the rounds' ratios):\n\n" + table(heads, lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 threads, three short rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--window-s", type=float, default=1.0)
    parser.add_argument("--write-results", action="store_true", help="renew the tables in RESULTS.md")
    options = parser.parse_args()
    if options.quick:
        options.threads, options.rounds, options.window_s = [8], 3, 0.5
    samples: dict[Key, list[Sample]] = {}
    for threads in options.threads:
        with Processes() as processes, tempfile.TemporaryDirectory() as directory:
            running = start_all(processes, threads, Path(directory))
            samples |= measure(running, [threads], options.rounds, options.window_s)
    text = describe(samples, options.threads)
    print(text)
    if options.write_results:
        write_section("frameworks", text)


if __name__ == "__main__":
    main()
