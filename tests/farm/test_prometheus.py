"""A real Prometheus asks a real farm; promtool judges the rules; the dashboard names nothing that is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificate import make_certificate
from coatcheck.farm.metrics.catalogue import METRICS
from coatcheck.farm.metrics.reference import metrics_table
from ports import free_port

from .farm_process import Farm, eventually

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus/coatcheck-alerts.yml"
DASHBOARD = DEPLOY / "grafana/coatcheck.json"
PAGE = ROOT / "docs/monitoring.md"
NAME = re.compile(r"\b(?:coatcheck|http_server)_[a-z0-9_]+\b")


def program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: `make test` installs it"
    return found


def promtool(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run([program("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[str]:
    """Of the dashboard, with what Grafana puts in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$__rate_interval", "1m").replace("$instance", ".*") for text in found]


def named() -> set[str]:
    """The metrics in rules and dashboard."""
    return set(NAME.findall(ALERTS.read_text() + "\n".join(expressions())))


def test_the_files_are_what_prometheus_and_grafana_take(tmp_path: Path) -> None:
    for file in (DEPLOY / "prometheus").iterdir():
        shutil.copy(file, tmp_path)
    assert "1 rule files found" in promtool("check", "config", "prometheus.yml", cwd=tmp_path)
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"${datasource}"}


def test_the_page_has_every_metric_and_every_alert() -> None:
    page = PAGE.read_text()
    assert metrics_table() in page, "python -m coatcheck.farm.metrics.reference docs/monitoring.md"
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert len(alerts) == len(set(alerts)) > 10
    told = page[page.index("## Alerts") : page.index("## The log")]
    assert set(re.findall(r"`(Coatcheck\w+)`", told)) == set(alerts)


RULES = """
rule_files: [coatcheck-alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'coatcheck_events_total{job="coatcheck", instance="a", process="web-1", event="session.not_found"}'
        values: '5 5 5 0 0 0 0 0'   # its web server was killed, and began anew
      - series: 'coatcheck_events_total{job="coatcheck", instance="a", process="web-2", event="session.theft"}'
        values: '0 0 0 0 1 1 1 1'   # the first time ever
      - series: 'coatcheck_process_up{job="coatcheck", instance="a", process="web-1", role="web_server"}'
        values: '1 1 0 0 1 1 0 0 0 0'
      - series: 'coatcheck_director_requests_total{job="coatcheck", instance="a", process="director-1"}'
        values: '0+6000x9'
      - series: >-
          coatcheck_director_errors_total{job="coatcheck", instance="a", process="director-1", reason="upstream_lost"}
        values: '0 0 0 0 0 0 0 0 0 0'
    alert_rule_test:
      - {eval_time: 5m, alertname: CoatcheckSessionsLost, exp_alerts: []}
      - {eval_time: 3m, alertname: CoatcheckTokenTheft, exp_alerts: []}
      - {eval_time: 5m, alertname: CoatcheckProcessDown, exp_alerts: []}
      - {eval_time: 9m, alertname: CoatcheckRequestsFail, exp_alerts: []}
      - eval_time: 5m
        alertname: CoatcheckTokenTheft
        exp_alerts:
          - exp_labels:
              {severity: warning, job: coatcheck, instance: a, process: web-2, event: session.theft}
            exp_annotations: {summary: "a: a stolen token was shown to web-2"}
      - eval_time: 9m
        alertname: CoatcheckProcessDown
        exp_alerts:
          - exp_labels:
              {severity: warning, job: coatcheck, instance: a, process: web-1, role: web_server}
            exp_annotations: {summary: "a: web-1 does not work, or does not answer"}
  - interval: 1m
    input_series:
      - series: 'coatcheck_director_requests_total{job="coatcheck", instance="a", process="director-1"}'
        values: '0+1000x5 0+1000x15'   # a restart of the director in the middle
      - series: >-
          coatcheck_director_errors_total{job="coatcheck", instance="a", process="director-1", reason="client_gone"}
        values: '0+500x5 0+500x15'
      - series: >-
          coatcheck_director_errors_total{job="coatcheck", instance="a", process="director-1", reason="no_server"}
        values: '0+20x5 0+20x15'
    alert_rule_test:
      - eval_time: 19m
        alertname: CoatcheckRequestsFail
        exp_alerts:
          - exp_labels: {severity: critical, instance: a}
            exp_annotations: {summary: "a: one request in a hundred is not served"}
"""


def test_alerts_fire_for_what_happened_and_not_for_a_restart(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    (tmp_path / "rules.yml").write_text(RULES)
    promtool("test", "rules", "rules.yml", cwd=tmp_path)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[int], httpx.Client]]:
    """Starts Prometheus as deploy/ has it, but asking every second, this farm."""
    started: list[subprocess.Popen[bytes]] = []

    def start(farm_port: int) -> httpx.Client:
        place, port = tmp_path / "prometheus", free_port()
        shutil.copytree(DEPLOY / "prometheus", place)
        config = place / "prometheus.yml"
        text = config.read_text()
        assert text.count(": 15s") == 2 and text.count("127.0.0.1:9100") == 2
        config.write_text(text.replace(": 15s", ": 1s").replace("127.0.0.1:9100", f"127.0.0.1:{farm_port}"))
        data = f"--storage.tsdb.path={place / 'data'}"
        listen = f"--web.listen-address=127.0.0.1:{port}"
        with (place / "log").open("wb") as log:
            command = [program("prometheus"), f"--config.file={config}", data, listen]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60)

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def ask(client: httpx.Client, question: str, **parameters: str) -> Any:
    """What Prometheus answers; ``None`` while it starts."""
    try:
        answer = client.get(question, params=parameters).json()
    except (httpx.TransportError, ValueError):
        return None
    assert answer["status"] == "success", (parameters, answer)
    return answer["data"]


def series(client: httpx.Client, expression: str) -> list[Any]:
    found = ask(client, "/query", query=expression)
    return [] if found is None else list(found["result"])


def test_prometheus_finds_all_that_rules_and_dashboard_name(
    farm: Callable[..., Farm], prometheus: Callable[[int], httpx.Client], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    tls = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    running = farm("--web", "2", "--metrics", f"127.0.0.1:{port}", *tls)
    url = f"https://{running.note()['address']}"
    with httpx.Client(base_url=url, verify=False, timeout=60) as browser:
        for _ in range(3):
            assert browser.get("/").status_code == 200
    client = prometheus(port)
    eventually(lambda: series(client, 'up{job="coatcheck"} == 1'), "a scrape")
    eventually(lambda: series(client, "sum(coatcheck_director_requests_total) == 3"), "the count of requests")
    there = set(ask(client, "/label/__name__/values"))
    assert named() <= there, named() - there
    for expression in [*expressions(), *re.findall(r"```promql\n(.*?)```", PAGE.read_text(), re.S)]:
        assert ask(client, "/query", query=expression) is not None, expression
    # What no farm has without more: threads of WSGI, logout signals, a re-copy.
    seldom = ("coatcheck_web_threads", "coatcheck_signals", "coatcheck_recopy_total")
    names = {metric.name for metric in METRICS if metric.kind != "histogram"}
    assert names - there <= {name for name in names if name.startswith(seldom)}
    judged = lambda: ask(client, "/rules")["groups"][0]["rules"]  # noqa: E731
    rules = eventually(lambda: all(rule["health"] != "unknown" for rule in judged()) and judged(), "the rules")
    assert {rule["name"]: rule["health"] for rule in rules} == {rule["name"]: "ok" for rule in rules}
    # As Prometheus asks for it: every line of it was understood.
    target = ask(client, "/targets")["activeTargets"][0]
    assert (target["health"], target["lastError"]) == ("up", "")
