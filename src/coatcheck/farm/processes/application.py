"""Finding the user's app: ``module:attribute``, imported from the current directory."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from coatcheck.errors import ConfigError

App = Callable[..., Awaitable[None]]
Scope = MutableMapping[str, Any]

MAX_WRAPPERS = 20


def load_application(path: str, factory: bool = False) -> App:
    """Import the app; with ``factory``, call what was found and take what it returns.

    Raises:
        ConfigError: one line that says which step failed. An error inside the app's own module keeps its
            traceback as the cause.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"app: write MODULE:ATTRIBUTE, such as app:app (got {path!r})")
    if "/" in module_name or module_name.endswith(".py") or module_name.startswith("."):
        meant = module_name.removesuffix(".py").strip("./").replace("/", ".") or "app"
        raise ConfigError(f"app: {module_name!r} is no module's name; did you mean {meant}:{attribute}?")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
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
    if factory:
        found = _call_factory(found, path)
    if not callable(found):
        raise ConfigError(f"app: {path!r} is a {type(found).__name__}, not an ASGI app; name a callable")
    _check_call(found, path)
    app: App = found
    return app


def _check_call(found: Callable[..., Any], path: str) -> None:
    """A WSGI app or a factory is callable too, and would fail at every request; better once, at the start."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # built in C: its first request will tell
    if _takes(signature, 3):
        return
    if _takes(signature, 0):
        raise ConfigError(f"app: {path!r} takes no arguments, so it is no ASGI app; if it makes one, add --factory")
    if _takes(signature, 2):
        raise ConfigError(f"app: {path!r} takes two arguments: a WSGI app? wrap it in an adapter such as a2wsgi")
    raise ConfigError(f"app: {path!r} is no ASGI app; one is called with scope, receive and send")


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
