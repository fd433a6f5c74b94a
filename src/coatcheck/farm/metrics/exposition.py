"""A farm's status as Prometheus reads it; the text is ``prometheus_client``'s."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from coatcheck import __version__
from coatcheck.director.rules.durations import BOUNDS_S
from coatcheck.farm.metrics.catalogue import METRICS, ROLES, Metric


def exposition(status: Mapping[str, Any], accept: str = "") -> tuple[str, bytes]:
    """Content type and text of all metrics. ``status``: what ``coatcheck status --json`` prints; ``accept``: the
    formats that the reader takes, as the header of HTTP."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FarmCollector(status))
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(registry)


class _FarmCollector(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterable[Family]:
        status = self._status
        yield InfoMetricFamily(
            "coatcheck_farm", "The farm and its version.", value={"farm": status["name"], "version": __version__}
        )
        yield GaugeMetricFamily(
            "coatcheck_farm_running", "0 while it starts or stops.", value=float(status["state"] == "running")
        )
        for metric in METRICS:
            yield _family(metric, status)


def _family(metric: Metric, status: Mapping[str, Any]) -> Family:
    if metric.kind == "histogram":
        return _histogram(metric, status)
    with_role = metric.labels == ("role",)
    labels_of_it = ("process", *metric.labels)
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(metric.name, metric.words, labels=labels_of_it)
    else:
        family = GaugeMetricFamily(metric.name, metric.words, labels=labels_of_it)
    for group in metric.groups:
        for row in status.get(group, ()):
            for labels, value in _values(metric, row):
                family.add_metric([row["name"], *([ROLES[group]] if with_role else labels)], value)
    return family


def _histogram(metric: Metric, status: Mapping[str, Any]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.words, labels=("process", *metric.labels))
    for group in metric.groups:
        for row in status.get(group, ()):
            for labels, (counts, sum_s) in metric.values(row):
                so_far = zip([*map(str, BOUNDS_S), "+Inf"], accumulate(counts), strict=True)
                family.add_metric([row["name"], *labels], list(so_far), sum_s)
    return family


def _values(metric: Metric, row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    for labels, value in metric.values(row):
        if value is not None:
            yield labels, float(value)
