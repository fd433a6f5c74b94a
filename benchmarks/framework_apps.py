"""The apps of :mod:`benchmarks.frameworks`: Django and Flask, each with sessions of its own and with coatcheck's.

``FRAMEWORK`` chooses one, such as ``django-coatcheck``; ``STORES`` has the URLs of its session servers, ``DIRECTORY`` a
directory for what is kept in files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.apps import SECRET, freeze, touch

PATHS = ("/start", "/ro", "/rw", "/count")
ENGINES = {
    "signed": "django.contrib.sessions.backends.signed_cookies",
    "redis": "django.contrib.sessions.backends.cached_db",
    "coatcheck": "coatcheck.web.django",
}
COMMON = "django.middleware.common.CommonMiddleware"
"""Says how long an answer is."""
OURS = "coatcheck.web.django.SessionMiddleware"
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"


def urls() -> list[str]:
    return os.environ["STORES"].split()


def django_app(peer: str) -> Any:
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    options: dict[str, Any] = {"MIDDLEWARE": [COMMON]}
    if peer:
        layers = [OURS if peer == "coatcheck" else DJANGOS, COMMON]
        options = {"SESSION_ENGINE": ENGINES[peer], "MIDDLEWARE": layers}
    if peer == "coatcheck":
        options |= {"COATCHECK": {"session_servers": urls()}, "INSTALLED_APPS": ["coatcheck.web.django"]}
    if peer == "redis":
        options["INSTALLED_APPS"] = ["django.contrib.sessions"]
        options["CACHES"] = {
            "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": urls()[0]}
        }
        name = Path(os.environ["DIRECTORY"]) / "django.db"
        options["DATABASES"] = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "CONN_MAX_AGE": None}}
    settings.configure(SECRET_KEY=SECRET, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, LOGGING_CONFIG=None, **options)
    django.setup()
    if peer == "redis":
        call_command("migrate", verbosity=0)

    def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(touch(request.path, request.session) if peer else "ok")

    urlpatterns.extend(path(each[1:], answer) for each in PATHS)
    return get_wsgi_application()


urlpatterns: list[Any] = []
"""Django's, filled by :func:`django_app`."""


def flask_app(peer: str) -> Any:
    import flask

    made = flask.Flask(__name__)
    made.secret_key = SECRET
    if peer == "redis":
        from flask_session import Session
        from redis import Redis

        made.config |= {"SESSION_TYPE": "redis", "SESSION_REDIS": Redis.from_url(urls()[0])}
        Session(made)
    elif peer == "coatcheck":
        from coatcheck import connect
        from coatcheck.web.flask import SessionInterface

        made.session_interface = SessionInterface(connect(*urls(), key=SECRET.encode(), driver="threads"))

    def answer() -> str:
        return touch(flask.request.path, flask.session) if peer else "ok"

    for each in PATHS:
        made.add_url_rule(each, each, answer)
    return made


def make(variant: str) -> Any:
    frame, _, peer = variant.partition("-")
    app = django_app(peer) if frame == "django" else flask_app(peer)
    freeze()
    return app


if "FRAMEWORK" in os.environ:
    app = make(os.environ["FRAMEWORK"])
