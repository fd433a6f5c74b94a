"""What a session costs a web server: added CPU per request over the bare app, against named peers, paired.

All variants are up at once, each a uvicorn process (uvloop, httptools) on one core; load and session servers are on
the other. Rounds are interleaved: every variant runs once in each, in changing order, and is compared with the bare
app of its own round. Usage::

    python -m benchmarks.middleware [--quick] [--json FILE] [--write-results]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.processes import OTHER_CORE, SERVER_CORE, Processes, environment, free_port, pinned
from benchmarks.report import table, write_section

LOAD_TIMEOUT_S = 60.0
PATHS = {"/ro": "read only", "/rw": "read + write"}


@dataclass(frozen=True)
class Variant:
    """``frame`` and ``peer`` name the app in :mod:`benchmarks.apps`; ``stores`` what keeps its sessions."""

    label: str
    frame: str
    peer: str
    stores: str = ""

    @property
    def base(self) -> str:
        return f"{self.frame}-"


VARIANTS = [
    Variant("Starlette, no session", "starlette", ""),
    Variant("Starlette signed cookie", "starlette", "signed"),
    Variant("starsessions, Redis", "starlette", "starsessions", "redis"),
    Variant("**coatcheck**, two session servers", "starlette", "coatcheck", "session-server"),
    Variant("**coatcheck**, two Redis", "starlette", "coatcheck", "redis"),
    Variant("raw ASGI, no session", "raw", ""),
    Variant("raw ASGI, Starlette signed cookie", "raw", "signed"),
    Variant("raw ASGI, **coatcheck**, two session servers", "raw", "coatcheck", "session-server"),
]

Sample = dict[str, float]


@dataclass
class Running:
    variant: Variant
    port: int
    pid: int
    store_pids: list[int]


def start_all(processes: Processes, variants: list[Variant], gc_threshold: int = 700) -> list[Running]:
    servers = {
        "redis": [processes.start_redis(f"redis-{number}") for number in (1, 2)],
        "session-server": [processes.start_session_server(f"session-{number}") for number in (1, 2)],
        "": [],
    }
    running = []
    for variant in variants:
        stores = servers[variant.stores]
        env = environment(
            VARIANT=f"{variant.frame}-{variant.peer}",
            STORES=" ".join([variant.stores, *(str(port) for port, _ in stores)]),
            GC_THRESHOLD=str(gc_threshold),
        )
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "benchmarks.apps:app", "--port", str(port)]
        command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        pid = processes.start(variant.label, command, port, SERVER_CORE, env)
        running.append(Running(variant, port, pid, [pid for _, pid in stores]))
    return running


def load(server: Running, path: str, connections: int, window_s: float) -> Sample:
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(server.port), "--pid", str(server.pid)]
    command += ["--path", path, "--connections", str(connections), "--window-s", str(window_s)]
    for pid in server.store_pids:
        command += ["--store-pid", str(pid)]
    if server.variant.peer:
        command.append("--counts")
    done = subprocess.run(
        pinned(command, OTHER_CORE), env=environment(), capture_output=True, timeout=LOAD_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{server.variant.label}: {done.stderr.decode()[-2000:]}")
    sample: Sample = json.loads(done.stdout)
    return sample


Key = tuple[str, str, int]


def measure(running: list[Running], connections: list[int], rounds: int, window_s: float) -> dict[Key, list[Sample]]:
    """Samples by label, path and connections; each round's ``added_us`` is over the bare app of that round."""
    samples: dict[Key, list[Sample]] = {}
    for count in connections:
        for number in range(rounds):
            cases = [(server, path) for server in running for path in PATHS]
            random.Random(number).shuffle(cases)
            taken = {(server.variant.label, path): load(server, path, count, window_s) for server, path in cases}
            bare = {
                (server.variant.frame, path): taken[server.variant.label, path]["cpu_us"]
                for server in running
                for path in PATHS
                if not server.variant.peer
            }
            for server, path in cases:
                sample = taken[server.variant.label, path]
                sample["added_us"] = sample["cpu_us"] - bare[server.variant.frame, path]
                samples.setdefault((server.variant.label, path, count), []).append(sample)
            print(f"{count} connections, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples


def summarize(samples: dict[Key, list[Sample]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (label, path, count), taken in samples.items():
        added = [sample["added_us"] for sample in taken]
        row: dict[str, object] = {"variant": label, "path": path, "connections": count}
        for name in taken[0]:
            values = [sample[name] for sample in taken]
            row[name] = sum(values) if name in ("not_200", "wrong_counts") else round(median(values), 3)
        row["added_low_us"], row["added_high_us"] = round(min(added), 2), round(max(added), 2)
        rows.append(row)
    return rows


def ratios(samples: dict[Key, list[Sample]], ours: str, peer: str, path: str, count: int) -> list[float]:
    """Our added CPU over the peer's, round by round."""
    pairs = zip(samples[ours, path, count], samples[peer, path, count], strict=True)
    return [mine["added_us"] / theirs["added_us"] for mine, theirs in pairs]


def describe(samples: dict[Key, list[Sample]], variants: list[Variant], connections: list[int]) -> str:
    rows = {(row["variant"], row["path"], row["connections"]): row for row in summarize(samples)}
    parts = []
    for path, title in PATHS.items():
        lines = []
        for variant in variants:
            for count in connections:
                row = rows[variant.label, path, count]
                added = "" if not variant.peer else f"{row['added_us']:.1f}"
                spread = "" if not variant.peer else f"{row['added_low_us']:.1f} to {row['added_high_us']:.1f}"
                lines.append([
                    variant.label, str(count), f"{row['cpu_us']:.1f}", added, spread, f"{row['wall_us']:.0f}",
                    f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", f"{row['set_cookie']:.2f}",
                    f"{row['store_cpu_us']:.1f}", f"{row['not_200']:.0f}", f"{row['wrong_counts']:.0f}",
                ])  # fmt: skip
        heads = [
            title, "connections", "CPU/request (µs)", "added (µs)", "range of rounds", "wall/request (µs)", "p50 (µs)",
            "p99 (µs)", "Set-Cookie", "stores' CPU (µs)", "not 200", "wrong counts",
        ]  # fmt: skip
        parts.append(table(heads, lines))
    parts.append(describe_ratios(samples, variants, connections))
    return "\n\n".join(parts)


COMPARISONS = [
    ("/ro", "signed", 0.3),
    ("/rw", "signed", 0.5),
    ("/rw", "starsessions", 0.25),
]


def describe_ratios(samples: dict[Key, list[Sample]], variants: list[Variant], connections: list[int]) -> str:
    lines = []
    for ours in [variant for variant in variants if variant.peer == "coatcheck"]:
        for path, peer, target in COMPARISONS:
            rivals = [other for other in variants if other.frame == ours.frame and other.peer == peer]
            for rival in rivals:
                cells = [f"{median(ratios(samples, ours.label, rival.label, path, n)):.2f}" for n in connections]
                aim = f"{target:g} at 32" if ours.frame == "starlette" else ""
                lines.append([ours.label, rival.label, PATHS[path], *cells, aim])
    heads = ["ours", "peer", "", *(f"{count} connections" for count in connections), "target"]
    return "Added CPU, ours over the peer's (median of the rounds' ratios):\n\n" + table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 connections, three short rounds")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--window-s", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", help="peers: signed, starsessions, coatcheck (the bare app is always in)")
    parser.add_argument("--frame", choices=["starlette", "raw"])
    parser.add_argument("--gc-threshold", type=int, default=700, help="of the youngest generation, for every variant")
    parser.add_argument("--json", type=Path, help="write every sample there")
    parser.add_argument("--write-results", action="store_true", help="renew the tables in RESULTS.md")
    options = parser.parse_args()
    if options.quick:
        options.connections, options.rounds, options.window_s = [32], 3, 0.5
    variants = [
        variant
        for variant in VARIANTS
        if (options.only is None or variant.peer in ("", *options.only))
        and (options.frame is None or variant.frame == options.frame)
    ]
    with Processes() as processes:
        running = start_all(processes, variants, options.gc_threshold)
        samples = measure(running, options.connections, options.rounds, options.window_s)
    text = describe(samples, variants, options.connections)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(summarize(samples), indent=1) + "\n")
    if options.write_results:
        write_section("middleware", text)


if __name__ == "__main__":
    main()
