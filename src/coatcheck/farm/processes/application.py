"""Finding the user's app: ``module:attribute``, imported from the current directory, and whether it is ASGI or WSGI.

Where no app is named, it is the one of the Django project whose settings ``DJANGO_SETTINGS_MODULE`` names.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final, Literal

from coatcheck.errors import ConfigError
from coatcheck.farm.settings.farm_settings import Interface

App = Callable[..., Awaitable[None]]
Scope = MutableMapping[str, Any]

MAX_WRAPPERS = 20
DJANGO_VARIABLE: Final = "DJANGO_SETTINGS_MODULE"
"""The environment variable by which a Django project is known, also where no app is named."""
HAS_ITS_OWN: Final = (
    "is wrapped in coatcheck.web.wsgi.SessionMiddleware, which steps back here: sessions are the farm's, and what its "
    "connect(...) says does not count; serve the app without it"
)
"""Said of a WSGI app that brings our own middleware."""
_OF_WSGI: Final = ("environ", "start_response")
"""What the parameters of a WSGI app are called nearly everywhere; only asked where their number says nothing."""


def load_application(path: str, factory: bool = False, interface: Interface = "auto") -> Any:
    """Import the app; with ``factory``, call what was found and take what it returns. Without a ``path`` it is the
    Django project's own.

    Raises:
        ConfigError: one line that says which step failed. An error inside the app's own module keeps its
            traceback as the cause.
    """
    if not path:
        return _of_django(interface)
    found = _imported(path)
    if factory:
        found = _call_factory(found, path)
    interface_of(found, path, interface)
    return found


def _imported(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"app: write MODULE:ATTRIBUTE, such as app:app (got {path!r})")
    if "/" in module_name or module_name.endswith(".py") or module_name.startswith("."):
        meant = module_name.removesuffix(".py").strip("./").replace("/", ".") or "app"
        raise ConfigError(f"app: {module_name!r} is no module's name; did you mean {meant}:{attribute}?")
    here = _import_from_here()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(f"app: there is no module {module_name!r} in {here} or on sys.path") from None
        raise ConfigError(f"app: importing {module_name!r} failed: {_reason(error)}; install it") from error
    except Exception as error:
        raise ConfigError(f"app: importing {module_name!r} failed: {_reason(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"app: module {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, part)
    return found


def _import_from_here() -> str:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return here


def _of_django(interface: Interface) -> Any:
    """What the project's settings name (``WSGI_APPLICATION``, as for ``runserver``; ``ASGI_APPLICATION``), or else what
    Django makes for it."""
    _import_from_here()
    kind = "asgi" if interface == "asgi" else "wsgi"
    project = os.environ.get(DJANGO_VARIABLE)
    if not project:
        raise ConfigError(f"app: name the app to serve, such as app:app, or a Django project by {DJANGO_VARIABLE}")
    try:
        settings = importlib.import_module("django.conf").settings
        named = getattr(settings, f"{kind.upper()}_APPLICATION", None)
        if not named:
            return getattr(importlib.import_module(f"django.core.{kind}"), f"get_{kind}_application")()
    except Exception as error:
        raise ConfigError(f"app: the Django project {project!r} failed: {_reason(error)}") from error
    module_name, _, attribute = named.rpartition(".")
    return load_application(f"{module_name}:{attribute}", interface=kind)  # type: ignore[arg-type]


def interface_of(found: Any, path: str, asked: Interface = "auto") -> Literal["asgi", "wsgi"]:
    """How the app is called: as was ``asked``, or as its parameters say.

    Raises :class:`ConfigError` for what is neither: it would fail at every request; better once, at the start.
    """
    if not callable(found):
        raise ConfigError(f"app: {path!r} is a {type(found).__name__}, not an ASGI or WSGI app; name a callable")
    if asked != "auto":
        return asked
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return "asgi"  # built in C: its first request will tell
    if _takes(signature, 3):
        return "wsgi" if _takes(signature, 2) and set(_OF_WSGI) & set(signature.parameters) else "asgi"
    if _takes(signature, 0):
        raise ConfigError(
            f"app: {path!r} takes no arguments, so it is no ASGI or WSGI app; if it makes one, add --factory"
        )
    if _takes(signature, 2) and not _is_async(found):
        return "wsgi"
    raise ConfigError(
        f"app: {path!r} is no app; one of ASGI is called with scope, receive and send, one of WSGI with environ and "
        "start_response"
    )


def _is_async(found: Any) -> bool:
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None))  # noqa: B004 - asked of the method


def _takes(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*([None] * arguments))
    except TypeError:
        return False
    return True


def _call_factory(found: Any, path: str) -> Any:
    if not callable(found):
        raise ConfigError(f"app: {path!r} is a {type(found).__name__}, not a factory; drop --factory")
    try:
        return found()
    except Exception as error:
        raise ConfigError(f"app: the factory {path!r} failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The error and the last line of the user's own code on the way to it, in one line."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, SyntaxError):
        return reason
    here = str(Path.cwd())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename.startswith(here) and "site-packages" not in frame.filename]
    at = (own or frames)[-1:]
    return f"{reason} ({at[0].filename}, line {at[0].lineno})" if at else reason


def keeps_own_sessions(app: object) -> bool:
    """Whether a WSGI app is wrapped in a ``coatcheck.web.wsgi.SessionMiddleware``, which steps back behind ours."""
    wsgi = sys.modules.get("coatcheck.web.wsgi")
    return wsgi is not None and isinstance(app, wsgi.SessionMiddleware)


def installs_starlette_sessions(app: object) -> bool:
    """Whether the app brings Starlette's own SessionMiddleware, which would replace ours."""
    sessions = sys.modules.get("starlette.middleware.sessions")
    if sessions is None:
        return False
    for _ in range(MAX_WRAPPERS):
        if app is None:
            return False
        if isinstance(app, sessions.SessionMiddleware):
            return True
        if any(getattr(each, "cls", None) is sessions.SessionMiddleware for each in _middleware(app)):
            return True
        app = getattr(app, "app", None)
    return False


def _middleware(app: object) -> list[Any]:
    found = getattr(app, "user_middleware", None)
    return found if isinstance(found, list) else []
