"""docs/monitoring.md: its settings are settings, its line of the log is one, and its metrics are there.

What it says of Prometheus is held by tests/farm/test_prometheus.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from coatcheck.farm.control.log_lines import LogRecord
from coatcheck.farm.metrics.catalogue import METRICS
from coatcheck.farm.settings.configuration import load_settings

PAGE = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return str(found)


def test_the_settings_are_settings(tmp_path: Path) -> None:
    (tmp_path / "farm.toml").write_text(block("toml"))
    settings = load_settings(tmp_path / "farm.toml")
    assert (settings.metrics, settings.metrics_timeout_s) == ("127.0.0.1:9100", 1.0)
    assert (settings.log_format, settings.log_level) == ("json", "info")


def test_the_line_of_the_log_is_one_and_its_fields_are_told() -> None:
    record = msgspec.json.decode(block("json"), type=LogRecord)
    assert msgspec.json.encode(record) + b"\n" == block("json").encode()
    section = PAGE[PAGE.index("## The log") :]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == set(LogRecord.__struct_fields__)


def test_every_metric_that_is_named_exists() -> None:
    known = {metric.name for metric in METRICS} | {"coatcheck_farm_info", "coatcheck_farm_running"}
    assert set(re.findall(r"\b(?:coatcheck|http_server)_\w+", PAGE)) <= known
