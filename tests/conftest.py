"""What tests of several rooms need."""

from __future__ import annotations

import functools
import gc
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from certificate import make_certificate

# A busy machine is slow to draw, and some draws are large or of no use; that says nothing about the code.
_NO_FAULTS = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]
# The same examples with every run: what stops a change is the change. Others: pytest --hypothesis-profile=fresh
settings.register_profile("coatcheck", deadline=None, suppress_health_check=_NO_FAULTS, derandomize=True)
settings.register_profile("fresh", deadline=None, suppress_health_check=_NO_FAULTS)
settings.load_profile("coatcheck")


def _drawn_from_sources() -> Constants:
    """Hypothesis also draws the constants of all modules that are loaded by then: other examples in another order."""
    return Constants() if settings().derandomize else _constants_of_all_modules()


_constants_of_all_modules = providers._get_local_constants
pytest.MonkeyPatch().setattr(providers, "_get_local_constants", _drawn_from_sources)

# What a shell puts into the background ignores SIGINT, and so does every process that it starts: those that the tests
# interrupt would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, they would run on while the other processes have no test left."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    # Each client of httpx reads the authorities of the whole world, for 40 ms, and then asks in the clear.
    for library in ("httpx", "httpx2"):
        if transports := sys.modules.get(f"{library}._transports.default"):
            pytest.MonkeyPatch().setattr(transports, "create_ssl_context", _read_once(transports.create_ssl_context))
    # What was imported for the tests lives to the end: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()


def _read_once(create: Any) -> Any:
    """The context that is everybody's; who trusts others, or shows a certificate, has one of its own."""

    @functools.cache
    def everybodys(trust_env: bool, *_: str | None) -> ssl.SSLContext:
        context: ssl.SSLContext = create(verify=True, cert=None, trust_env=trust_env)
        return context

    def create_ssl_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        if verify is True and cert is None:
            return everybodys(trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        return create(verify=verify, cert=cert, trust_env=trust_env)

    return create_ssl_context


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))
