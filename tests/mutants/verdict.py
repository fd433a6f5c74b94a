"""A pytest plugin: writes down of which kind each failure was, and sees that the right copy of the source is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coatcheck

OUT = "COATCHECK_MUTANTS_VERDICT"
SOURCE = "COATCHECK_MUTANTS_SOURCE"

_reports: list[dict[str, Any]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.outcome == "failed" or report.when == "call":
        kinds, words = _described(call.excinfo.value) if call.excinfo is not None else ([], [])
        _reports.append(
            {"test": item.nodeid, "when": report.when, "outcome": report.outcome, "kinds": kinds, "words": words}
        )
    return report


def _described(error: BaseException) -> tuple[list[str], list[str]]:
    """Its kinds and its first line; of several at once, those of the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return [kind.__name__ for kind in type(error).__mro__], str(error).splitlines()[:1]


def pytest_sessionstart() -> None:
    file, wanted = Path(coatcheck.__file__).resolve(), Path(os.environ[SOURCE]).resolve()
    if wanted not in file.parents:
        pytest.exit(f"the tests ran {file} and not the copy in {wanted}", returncode=4)


def pytest_sessionfinish() -> None:
    Path(os.environ[OUT]).write_text(json.dumps(_reports))
