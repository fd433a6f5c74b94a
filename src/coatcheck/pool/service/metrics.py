"""The pool's numbers in Prometheus text; names after OpenTelemetry's conventions for connection pools.

``db.client.connection.count`` is ``coatcheck_pool_token_count`` here, and so on: a pooled thing is a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from coatcheck.pool.inspection import UserStats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
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

    def lines(self, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip([*map(str, WAIT_BUCKETS_S), "+Inf"], self._counts, strict=True):
            total += count
            yield f'coatcheck_pool_token_wait_time_seconds_bucket{{{labels},le="{bound}"}} {total}'
        yield f"coatcheck_pool_token_wait_time_seconds_sum{{{labels}}} {self._sum_s:.6f}"
        yield f"coatcheck_pool_token_wait_time_seconds_count{{{labels}}} {total}"


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


def metrics_text(
    pool: str, stats: Mapping[str, UserStats], totals: Totals, waits: WaitTimes, answers: Mapping[int, int]
) -> str:
    """All metrics, summed over users: user names are nobody's business who only watches.

    ``totals``: the counters up to ``stats``. ``answers``: how many, by HTTP status.
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
    for name, words in COUNTERS.items():
        metric(f"coatcheck_pool_token_{name}_total", "counter", words, [("", totals[name])])
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
