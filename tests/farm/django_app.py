"""A Django project with its admin, and what the crowd of the kill test asks of it, as one WSGI app.

``SHOP_FOLDER``: where its database is.
"""

from __future__ import annotations

import os

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for-tests-only-for-tests-only-for-tests-001",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="farm.django_app",
    SESSION_ENGINE="coatcheck.web.django",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "coatcheck.web.django",
    ],
    MIDDLEWARE=[
        "coatcheck.web.django.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{os.environ['SHOP_FOLDER']}/shop.db",
            "OPTIONS": {"timeout": 60, "transaction_mode": "IMMEDIATE"},
        }
    },
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage",
    STATIC_URL="/static/",
)
django.setup()

from django.contrib import admin, messages  # noqa: E402 - models are there once the project is set up
from django.contrib.auth import authenticate, login  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402


def make(users: int) -> None:
    """The database, with an administrator ``ada`` and a crowd; everybody's password is their name."""
    call_command("migrate", run_syncdb=True, verbosity=0)
    User.objects.create_superuser("ada", "ada@example.org", "ada")
    for number in range(users):
        User.objects.create_user(f"user{number}", password=f"user{number}")


def sign_in(request: HttpRequest, who: str) -> JsonResponse:
    login(request, authenticate(request, username=who, password=who))
    return JsonResponse({})


def write(request: HttpRequest, mark: str) -> JsonResponse:
    n = request.session.get("n", 0) + 1
    request.session["n"] = n
    request.session["log"] = {**request.session.get("log", {}), mark: n}
    messages.success(request, mark)
    return JsonResponse({"n": n})


def read(request: HttpRequest) -> JsonResponse:
    session = request.session
    return JsonResponse({"who": request.user.get_username(), "n": session.get("n"), "log": session.get("log")})


def said(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"said": [str(message) for message in messages.get_messages(request)]})


def server(request: HttpRequest) -> HttpResponse:
    return HttpResponse(os.environ["COATCHECK_SERVER"])


urlpatterns = [
    path("admin/", admin.site.urls),
    path("login/<who>", csrf_exempt(sign_in)),
    path("write/<mark>", csrf_exempt(write)),
    path("read", read),
    path("said", csrf_exempt(said)),
    path("server", server),
]
app = get_wsgi_application()
