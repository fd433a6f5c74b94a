"""Metrics: all processes of a farm through one address, and once from its run directory."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ports import free_port

from .farm_process import Farm, eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    """Name and labels, and the value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all with this name and at least these labels."""
    return sum(value for (each, its), value in samples.items() if each == name and labels.items() <= set(its))


def scrape(port: int, path: str = "/metrics", **more: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60, **({"headers": more} if more else {}))


def metered(farm: Callable[..., Farm], *arguments: str) -> tuple[Farm, int]:
    port = free_port()
    return farm("--metrics", f"127.0.0.1:{port}", *arguments), port


def test_one_address_has_the_counts_of_all_processes(farm: Callable[..., Farm]) -> None:
    running, port = metered(farm, "--web", "2", "--director-workers", "2")
    running.healthy_status()
    with httpx.Client(base_url=running.base) as browser:
        for _ in range(5):
            assert browser.get("/").status_code == 200
    answer = scrape(port)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = samples_of(answer.text)
    names = {"director-1", "director-2", "web-1", "web-2", "session-1", "session-2", "metrics"}
    up = {dict(labels)["process"]: value for (name, labels), value in samples.items() if name == "coatcheck_process_up"}
    assert up == dict.fromkeys(names, 1.0)
    assert total(samples, "coatcheck_director_requests_total") == 5
    assert total(samples, "coatcheck_web_requests_total") == 5
    assert total(samples, "coatcheck_sessions_created_total") == 1
    assert total(samples, "coatcheck_sessions_active") == 1
    assert total(samples, "coatcheck_session_server_entries") == 2
    assert total(samples, "coatcheck_events_total", event="session.theft") == 0
    once = running.run("metrics")
    assert once.returncode == 0, once.stderr
    assert {name for name, _ in samples_of(once.stdout)} == {name for name, _ in samples}


def test_a_silent_process_is_left_out_and_the_others_are_not(farm: Callable[..., Farm]) -> None:
    running, port = metered(farm, "--web", "2", "--unresponsive-after", "600", "--metrics-timeout", "3s")
    running.healthy_status()
    assert httpx.get(running.base, timeout=60).status_code == 200
    os.kill(running.pid("web-1"), signal.SIGSTOP)
    samples = samples_of(scrape(port).text)
    assert total(samples, "coatcheck_process_up", process="web-1") == 0
    assert total(samples, "coatcheck_process_up", process="web-2") == 1
    # Its counts are not known, which is not the same as 0: that would look like a restart.
    known = {dict(labels)["process"] for name, labels in samples if name == "coatcheck_web_requests_total"}
    assert known == {"web-2"}
    os.kill(running.pid("web-1"), signal.SIGCONT)


def test_counters_begin_anew_with_their_process_and_with_no_other(farm: Callable[..., Farm]) -> None:
    """Prometheus takes a counter that shrinks for one that began anew: ``rate()`` is right if it is one process's."""
    running, port = metered(farm, "--web", "2")
    running.healthy_status()
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        server = browser.get("/").json()["server"]
        killed = running.pid(server)
        os.kill(killed, signal.SIGKILL)
        running.wait_replaced(server, killed)

        def counted() -> Samples:
            samples = samples_of(scrape(port).text)
            return samples if total(samples, "coatcheck_process_up") == 6 else {}

        samples = eventually(counted, "all processes")
    assert total(samples, "coatcheck_process_restarts_total", process=server) == 1
    assert total(samples, "coatcheck_process_restarts_total") == 1
    assert total(samples, "coatcheck_web_requests_total", process=server) == 0
    assert total(samples, "coatcheck_director_requests_total") == 1


def test_without_the_setting_nobody_listens_and_the_command_works(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    assert "metrics" not in {row["name"] for row in running.note()["processes"]}
    assert "coatcheck_process_up" in running.run("metrics").stdout


def test_a_taken_address_is_said_at_the_start(farm: Callable[..., Farm]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        running = farm("--metrics", f"127.0.0.1:{port}", wait=False)
        assert running.process.wait(60) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in running.log
