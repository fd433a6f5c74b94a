"""The pool's numbers in Prometheus text; names after OpenTelemetry's conventions for connection pools.

``db.client.connection.count`` is ``coatcheck_pool_token_count`` here, and so on: a pooled thing is a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from coatcheck.pool.inspection import UserStats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
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

    def lines(self, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip([*map(str, WAIT_BUCKETS_S), "+Inf"], self._counts, strict=True):
            total += count
            yield f'coatcheck_pool_token_wait_time_seconds_bucket{{{labels},le="{bound}"}} {total}'
        yield f"coatcheck_pool_token_wait_time_seconds_sum{{{labels}}} {self._sum_s:.6f}"
        yield f"coatcheck_pool_token_wait_time_seconds_count{{{labels}}} {total}"


def metrics_text(pool: str, stats: Mapping[str, UserStats], waits: WaitTimes, answers: Mapping[int, int]) -> str:
    """All metrics, summed over users: user names are nobody's business who only watches.

    ``answers``: how many, by HTTP status.
    """
    labels = f'pool="{_escaped(pool)}"'
    rows = list(stats.values())
    lines: list[str] = []

    def metric(name: str, kind: str, words: str, values: Iterable[tuple[str, float]]) -> None:
        lines.append(f"# HELP {name} {words}")
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(f"{name}{{{labels}{more}}} {value}" for more, value in values)

    states = (
        ("idle", sum(row.free for row in rows)),
        ("used", sum(row.leased for row in rows)),
        ("login", sum(row.logins for row in rows)),
        ("closing", sum(row.closing for row in rows)),
    )
    metric("coatcheck_pool_token_count", "gauge", "Tokens by state.", ((f',state="{s}"', n) for s, n in states))
    metric("coatcheck_pool_token_max", "gauge", "Tokens that there may be, all users.", [("", _sum(rows, "per_user"))])
    metric("coatcheck_pool_users", "gauge", "Users known.", [("", len(rows))])
    metric("coatcheck_pool_token_pending_requests", "gauge", "Callers that wait.", [("", _sum(rows, "waiting"))])
    for name, words in (
        ("leases", "Tokens leased."),
        ("logins", "Logins that succeeded."),
        ("login_failures", "Logins that failed."),
        ("drops", "Tokens dropped."),
        ("lost", "Leases past their deadline."),
        ("timeouts", "Callers that waited in vain."),
    ):
        metric(f"coatcheck_pool_token_{name}_total", "counter", words, [("", _sum(rows, f"{name}_total"))])
    lines.append("# HELP coatcheck_pool_token_wait_time_seconds How long check-outs took.")
    lines.append("# TYPE coatcheck_pool_token_wait_time_seconds histogram")
    lines.extend(waits.lines(labels))
    by_status = ((f',status="{status}"', count) for status, count in sorted(answers.items()))
    metric("coatcheck_pool_service_responses_total", "counter", "Answers by HTTP status.", by_status)
    return "\n".join(lines) + "\n"


def _sum(rows: Iterable[UserStats], name: str) -> int:
    return sum(getattr(row, name) for row in rows)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
