"""The page that Prometheus asks for, without a farm: one path, one method, bounds, and nothing of a stranger's."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coatcheck.events import EventKind
from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.metrics.catalogue import METRICS
from coatcheck.farm.metrics.endpoint import MetricsEndpoint
from coatcheck.farm.metrics.exposition import exposition
from coatcheck.farm.processes.metrics_process import AskedFarm
from coatcheck.service_kit.http_server import serve_on_this_loop
from ports import free_port

WEB = {
    "name": "web-1",
    "healthy": True,
    "uptime_s": 1.0,
    "restarts": 0,
    "sessions": 3,
    "requests": 7,
    "clock": {"correction_ms": -1500, "deviating": {"own": 1}},
    "events": {"session.created": 2},
}
NOBODY: dict[str, Any] = {"name": "shop", "state": "running", "director": [], "web_servers": [], "metrics": []}
STATUS = {**NOBODY, "web_servers": [WEB]}


def samples(status: Mapping[str, Any]) -> dict[str, float]:
    text = exposition(status)[1].decode()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


@contextlib.asynccontextmanager
async def served(
    status: Callable[[], Awaitable[Mapping[str, Any]]], most: int = 64
) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    port, stopping, started = free_port(), asyncio.Event(), asyncio.Event()
    app = MetricsEndpoint(status, "127.0.0.1")
    serving = asyncio.create_task(serve_on_this_loop(app, f"127.0.0.1:{port}", started.set, stopping, most))
    await started.wait()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client, port
    stopping.set()
    await serving


async def quiet() -> Mapping[str, Any]:
    return STATUS


def test_names_are_prometheus_names_and_each_has_one_meaning() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"coatcheck_[a-z_]+|http_server_request_duration_seconds", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not re.search(r"_(ms|millis|kb|mb|minutes)(_|$)", metric.name), "base units"
        assert metric.words.endswith(".") and len(metric.words) < 100
        # None of these is chosen by a stranger, or grows with sessions and users.
        allowed = {"role", "reason", "server", "event", "outcome", "http_response_status_class"}
        assert set(metric.labels) <= allowed, metric.name


def test_what_never_happened_is_0_and_what_is_not_known_is_left_out() -> None:
    found = samples(STATUS)
    assert found['coatcheck_sessions_created_total{process="web-1"}'] == 2
    assert found['coatcheck_sessions_expired_total{process="web-1"}'] == 0
    events = {name for name in found if name.startswith("coatcheck_events_total")}
    assert len(events) == len(EventKind), "each kind is there from the beginning: its first time is an increase"
    assert found['coatcheck_clock_correction_seconds{process="web-1"}'] == -1.5
    assert found['coatcheck_clock_deviating{process="web-1"}'] == 1
    assert not [name for name in found if name.startswith("coatcheck_web_stalls_total")]
    silent = {**WEB, "healthy": False} | dict.fromkeys(("sessions", "requests", "clock", "events"))
    found = samples({**STATUS, "web_servers": [silent]})
    assert found['coatcheck_process_up{process="web-1",role="web_server"}'] == 0
    assert {name.partition("{")[0] for name in found if "web-1" in name} == {
        "coatcheck_process_up",
        "coatcheck_process_uptime_seconds",
        "coatcheck_process_restarts_total",
    }


def test_durations_are_a_histogram_that_prometheus_understands() -> None:
    counts = [0] * 15
    counts[0], counts[5], counts[-1] = 2, 1, 1
    director = {"name": "director-1", "details": {"durations": {"2xx": {"counts": counts, "sum_s": 20.5}}}}
    families = text_string_to_metric_families(exposition({**NOBODY, "director": [director]})[1].decode())
    (family,) = [each for each in families if each.name == "http_server_request_duration_seconds"]
    assert family.type == "histogram"
    buckets = {each.labels["le"]: each.value for each in family.samples if each.name.endswith("_bucket")}
    assert (buckets["0.005"], buckets["0.1"], buckets["10.0"], buckets["+Inf"]) == (2, 3, 3, 4)
    assert [each.value for each in family.samples if each.name.endswith("_sum")] == [20.5]


def test_one_path_one_method_and_no_foreign_host() -> None:
    async def run() -> None:
        async with served(quiet) as (client, port):
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
            assert (await client.get("/metrics", headers=openmetrics)).text.endswith("# EOF\n")
            for path in ("/", "/metrics/", "//metrics", "/metrics/../etc/passwd", "/%2e%2e/metrics", "/-/quit"):
                assert (await client.get(path)).status_code == 404, path
            for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                refused = await client.request(method, "/metrics")
                assert (refused.status_code, refused.headers.get("allow")) == (405, "GET"), method
            for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::1", "a@127.0.0.1", "@"):
                refused = await client.get("/metrics", headers={"host": host})
                assert (refused.status_code, "coatcheck" in refused.text) == (400, False), host
            for host in ("localhost", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "10.1.2.3:1"):
                assert (await client.get("/metrics", headers={"host": host})).status_code == 200, host

    asyncio.run(run())


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"x: " + b"y" * 100_000,
    ],
    ids=["no host", "old and no host", "TLS", "two hosts", "a long head"],
)
def test_what_is_no_request_gets_400(request_bytes: bytes) -> None:
    async def run() -> None:
        async with served(quiet) as (client, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_bytes)
            assert b" 400 " in await reader.readline()
            writer.close()
            assert (await client.get("/metrics")).status_code == 200

    asyncio.run(run())


def test_connections_are_bounded() -> None:
    async def run() -> None:
        async with served(quiet, most=3) as (client, port):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert (await client.get("/metrics")).status_code == 503
            for _, writer in idle:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for _, writer in idle))
            while (await client.get("/metrics")).status_code == 503:
                pass

    asyncio.run(run())


def test_a_farm_that_does_not_answer_is_said() -> None:
    async def run() -> None:
        async def late() -> Mapping[str, Any]:
            raise ControlError("the farm did not answer within 2 s")

        async with served(late) as (client, _):
            answer = await client.get("/metrics")
            assert (answer.status_code, answer.text) == (503, "the farm did not answer within 2 s\n")

    asyncio.run(run())


class Asked:
    """A control channel that notes what it is asked."""

    def __init__(self) -> None:
        self.questions: list[str] = []

    def ask(self, what: str) -> None:
        self.questions.append(what)


def test_many_scrapes_at_once_are_one_question_and_a_silent_farm_is_asked_again() -> None:
    async def run() -> None:
        channel: Any = Asked()
        farm = AskedFarm(channel, 60)
        scrapes = [asyncio.create_task(farm.status()) for _ in range(50)]
        await asyncio.sleep(0)
        assert channel.questions == ["counts"]
        scrapes[0].cancel()  # whoever gives up takes nothing from the others
        await asyncio.sleep(0)
        await farm.hear({"counts": STATUS})
        assert await asyncio.gather(*scrapes[1:]) == [STATUS] * 49
        farm = AskedFarm(channel, 0.01)
        for asked in (2, 3):
            with pytest.raises(ControlError, match="did not answer within"):
                await farm.status()
            assert len(channel.questions) == asked
        await farm.hear({"counts": STATUS})  # too late for both

    asyncio.run(run())
