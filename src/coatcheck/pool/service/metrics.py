"""The pool's numbers for Prometheus; names after OpenTelemetry's conventions for connection pools.

``db.client.connection.count`` is ``coatcheck_pool_token_count`` here, and so on: a pooled thing is a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coatcheck.pool.audit import PoolAudit
from coatcheck.pool.inspection import UserStats

COUNTERS: Final = {
    "leases": "Tokens leased.",
    "logins": "Logins that succeeded.",
    "login_failures": "Logins that failed.",
    "drops": "Tokens dropped.",
    "lost": "Leases past their deadline.",
    "timeouts": "Callers that waited in vain.",
}
WAIT_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)


class WaitTimes:
    """How long check-outs took (``db.client.connection.wait_time``)."""

    def __init__(self) -> None:
        self._counts = [0] * (len(WAIT_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, waited_s: float) -> None:
        self._sum_s += waited_s
        for place, bound_s in enumerate(WAIT_BUCKETS_S):
            if waited_s <= bound_s:
                self._counts[place] += 1
                return
        self._counts[-1] += 1

    @property
    def sum_s(self) -> float:
        """All of them together."""
        return self._sum_s

    def buckets(self) -> list[tuple[str, float]]:
        """How many took at most so long, by the bound."""
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, WAIT_BUCKETS_S), "+Inf"], self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found


class Totals:
    """The users' counters, summed so that a sum never shrinks.

    The pool forgets users that are idle, and their counters with them; to a reader of metrics, a counter that shrinks
    has started again from nothing, and all that is left of it is new. Holds one look at each user that the pool knows.
    """

    def __init__(self) -> None:
        self._last: dict[str, UserStats] = {}
        self._sums = dict.fromkeys(COUNTERS, 0)

    def add(self, stats: Mapping[str, UserStats]) -> None:
        """Take what was counted since the look before."""
        for user, row in stats.items():
            before = self._last.get(user)
            for name in COUNTERS:
                now = getattr(row, f"{name}_total")
                then = 0 if before is None else getattr(before, f"{name}_total")
                self._sums[name] += now - then if now >= then else now
        self._last = dict(stats)

    def __getitem__(self, name: str) -> int:
        return self._sums[name]


class PoolCollector(Collector):
    """All metrics, summed over users: user names are nobody's business who only watches.

    ``totals``: the counters up to ``stats``. ``answers``: how many, by HTTP status.
    """

    def __init__(
        self,
        pool: str,
        stats: Mapping[str, UserStats],
        totals: Totals,
        waits: WaitTimes,
        answers: Mapping[int, int],
        audit: PoolAudit | None = None,
    ) -> None:
        self._pool = pool
        self._rows = list(stats.values())
        self._totals = totals
        self._waits = waits
        self._answers = answers
        self._audit = audit

    def collect(self) -> Iterable[Metric]:
        name, rows = "coatcheck_pool_token", self._rows
        states = {
            "idle": self._sum("free"),
            "used": self._sum("leased"),
            "login": self._sum("logins"),
            "closing": self._sum("closing"),
        }
        count = GaugeMetricFamily(f"{name}_count", "Tokens by state.", labels=("pool", "state"))
        for state, number in states.items():
            count.add_metric([self._pool, state], number)
        yield count
        yield self._gauge(f"{name}_max", "Tokens that there may be, all users.", self._sum("per_user"))
        yield self._gauge("coatcheck_pool_users", "Users known.", len(rows))
        yield self._gauge(f"{name}_pending_requests", "Callers that wait.", self._sum("waiting"))
        for counter, words in COUNTERS.items():
            family = CounterMetricFamily(f"{name}_{counter}", words, labels=("pool",))
            family.add_metric([self._pool], self._totals[counter])
            yield family
        waits = HistogramMetricFamily(f"{name}_wait_time_seconds", "How long check-outs took.", labels=("pool",))
        waits.add_metric([self._pool], self._waits.buckets(), self._waits.sum_s)
        yield waits
        by_status = CounterMetricFamily(
            "coatcheck_pool_service_responses", "Answers by HTTP status.", labels=("pool", "status")
        )
        for status, answered in sorted(self._answers.items()):
            by_status.add_metric([self._pool, str(status)], answered)
        yield by_status
        if self._audit is not None:
            anomalies = CounterMetricFamily(
                "coatcheck_pool_anomalies", "What stood out, by what was counted.", labels=("pool", "count")
            )
            for counted, times in sorted(self._audit.anomalies.items()):
                anomalies.add_metric([self._pool, counted], times)
            yield anomalies
            lost = CounterMetricFamily("coatcheck_pool_audit_lost", "Audit records lost.", labels=("pool",))
            lost.add_metric([self._pool], self._audit.teller.lost)
            yield lost

    def _gauge(self, name: str, words: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, words, labels=("pool",))
        family.add_metric([self._pool], value)
        return family

    def _sum(self, name: str) -> int:
        return sum(getattr(row, name) for row in self._rows)


def metrics_text(collector: PoolCollector) -> tuple[str, bytes]:
    """Content type and text, in the format that every reader takes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    encoder, content_type = choose_encoder("")
    return content_type, encoder(registry)
