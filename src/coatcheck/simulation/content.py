"""Whether a state of a session holds exactly the changes that its history says it holds (invariant 1)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from coatcheck.replication.version import History
from coatcheck.simulation.application import Operation
from coatcheck.simulation.log import SessionLog, forgotten, holds


def check_content(
    log: SessionLog, history: History, data: dict[str, Any], conflict: str, counts: Counter[str]
) -> str | None:
    """What is wrong with ``data``, or ``None``.

    A change is *inside* if the history holds a version in which it was offered. Then: keys set are there,
    keys deleted are gone, a value that was replaced does not come back, and under ``reject`` no two
    changes of one key come from the same state.
    """
    inside: list[Operation] = []
    for operation in log.operations:
        if any(holds(history, version) for version in operation.versions):
            inside.append(operation)
        elif operation.versions and forgotten(history, operation.versions[-1]):
            counts["16 epochs: forgotten"] += 1
            return None
    deleted = {operation.name for operation in inside if operation.kind == "delete"}
    for operation in inside:
        if operation.kind == "write" and (operation.name in data) == (operation.name in deleted):
            what = "has the deleted" if operation.name in deleted else "lacks"
            return f"{what} {operation.name}"
    return _check_registers(inside, data) or _check_counter(inside, data, conflict)


def _check_registers(inside: list[Operation], data: dict[str, Any]) -> str | None:
    for name in ("r", "n"):
        writes = [operation for operation in inside if operation.name == name and operation.kind == "register"]
        if not writes:
            continue
        value = data.get(name)
        value = value["of"] if name == "n" and value is not None else value
        if all(operation.value != value for operation in writes):
            return f"has {name} = {value}, which none of its writes set"
        if any(operation.base == value for operation in writes):
            return f"has {name} = {value} again, which was replaced"
    return None


def _check_counter(inside: list[Operation], data: dict[str, Any], conflict: str) -> str | None:
    counted = [operation for operation in inside if operation.kind == "count"]
    if counted and conflict == "reject" and data.get("c", 0) != len(counted):
        return f"counts {data.get('c')} of {len(counted)} under the policy reject"
    return None
