"""Apps whose users come along from another store of sessions: as they were before (``OWN``), and under ``serve``.

``FOLDER``: where the Django project's database is.
"""

from __future__ import annotations

import os
from typing import Any

APP_SECRET = "the app's own secret key, which is no key of ours"
OWN = bool(os.environ.get("OWN"))


def server() -> str:
    return os.environ.get("COATCHECK_SERVER", "")


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def enter(request: Request) -> Response:
        request.session.update(user="ada", cart=["tea"])
        return Response()

    async def leave(request: Request) -> Response:
        request.session.clear()
        return Response()

    async def look(request: Request) -> Response:
        session = request.session
        named = getattr(session, "user", None)
        return JSONResponse({"user": session.get("user"), "cart": session.get("cart"), "named": named, "at": server()})

    routes = [Route("/enter", enter), Route("/look", look), Route("/leave", leave)]
    return Starlette(routes=routes)


def flask_app() -> Any:
    import flask
    import flask_login
    from markupsafe import Markup

    app = flask.Flask("members")
    app.secret_key = APP_SECRET
    logins = flask_login.LoginManager(app)

    class User(flask_login.UserMixin):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.id = name

    logins.user_loader(User)
    if not OWN:
        from coatcheck.web.flask import SessionInterface

        app.session_interface = SessionInterface()

    @app.get("/enter")
    def enter() -> str:
        flask.session["cart"] = ["tea"]
        if isinstance(app.session_interface, flask.sessions.SecureCookieSessionInterface):
            flask.session["bold"] = Markup("<b>")
        flask_login.login_user(User("ada"))
        return ""

    @app.get("/leave")
    def leave() -> str:
        flask_login.logout_user()
        return ""

    @app.get("/look")
    def look() -> dict[str, Any]:
        session = flask.session
        named = getattr(session, "user", None)
        kind = type(session.get("bold")).__name__
        user = flask_login.current_user.get_id()
        return {"user": user, "cart": session.get("cart"), "named": named, "at": server(), "bold": kind}

    return app


def django_app() -> Any:
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse, JsonResponse
    from django.urls import path

    settings.configure(
        SECRET_KEY=APP_SECRET,
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        SESSION_ENGINE=f"django.contrib.sessions.backends.{os.environ['OWN']}" if OWN else "coatcheck.web.django",
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware" if OWN else "coatcheck.web.django.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": f"{os.environ['FOLDER']}/shop.db",
                "OPTIONS": {"timeout": 60, "transaction_mode": "IMMEDIATE"},
            }
        },
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    from django.contrib.auth import login, logout
    from django.contrib.auth.models import User

    if OWN:
        call_command("migrate", verbosity=0)
        User.objects.create_user("ada", password="ada")

    def enter(request: HttpRequest) -> HttpResponse:
        request.session["cart"] = ["tea"]
        login(request, User.objects.get(username="ada"), "django.contrib.auth.backends.ModelBackend")
        return HttpResponse()

    def leave(request: HttpRequest) -> HttpResponse:
        logout(request)
        return HttpResponse()

    def look(request: HttpRequest) -> JsonResponse:
        user = request.user.get_username() or None
        named = getattr(getattr(request.session, "outer", None), "user", None)
        return JsonResponse({"user": user, "cart": request.session.get("cart"), "named": named, "at": server()})

    globals()["urlpatterns"] = [path("enter", enter), path("leave", leave), path("look", look)]
    return get_wsgi_application()


def old_cookie_of_django() -> str:
    """Who logs in there gets this one."""
    from django.test import Client

    client = Client(SERVER_NAME="127.0.0.1")
    client.get("/enter")
    return str(client.cookies["sessionid"].value)
