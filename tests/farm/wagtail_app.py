"""A Wagtail site and its admin, with the scripts and styles of both, as one WSGI app.

``SHOP_FOLDER``: where its database is.
"""

from __future__ import annotations

import os

import django
from django.conf import settings

MIGRATED = (
    *("auth", "coatcheck", "contenttypes", "taggit"),
    *(f"wagtail{what}" for what in ("admin", "core", "docs", "images", "redirects", "search", "sites", "users")),
)

settings.configure(
    SECRET_KEY="for-tests-only-for-tests-only-for-tests-001",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="farm.wagtail_app",
    SESSION_ENGINE="coatcheck.web.django",
    INSTALLED_APPS=[
        "wagtail.contrib.redirects",
        "wagtail.sites",
        "wagtail.users",
        "wagtail.documents",
        "wagtail.images",
        "wagtail.search",
        "wagtail.admin",
        "wagtail",
        "modelcluster",
        "taggit",
        "django_filters",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "coatcheck.web.django",
    ],
    # Two hundred migrations take ten times as long as the tables that they come to.
    MIGRATION_MODULES=dict.fromkeys(MIGRATED),
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "coatcheck.web.django.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
        "wagtail.contrib.redirects.middleware.RedirectMiddleware",
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
    STATIC_URL="/static/",
    USE_TZ=True,
    WAGTAIL_SITE_NAME="shop",
    WAGTAILADMIN_BASE_URL="http://127.0.0.1",
    WAGTAIL_ENABLE_UPDATE_CHECK=False,
    WAGTAIL_GRAVATAR_PROVIDER_URL=None,
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402 - models are there once the project is set up
from django.contrib.staticfiles.handlers import StaticFilesHandler  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import include, path  # noqa: E402
from wagtail.admin import urls as admin_urls  # noqa: E402
from wagtail.models import Collection, Locale, Page  # noqa: E402


def make() -> None:
    """The database, with an administrator ``ada`` whose password is her name."""
    call_command("migrate", run_syncdb=True, verbosity=0)
    Locale.objects.create(language_code="en")
    Collection.add_root(name="Root")
    Page.add_root(title="Root")
    User.objects.create_superuser("ada", "ada@example.org", "ada")


def server(request: HttpRequest) -> HttpResponse:
    return HttpResponse(os.environ["COATCHECK_SERVER"])


urlpatterns = [path("admin/", include(admin_urls)), path("server", server)]
app = StaticFilesHandler(get_wsgi_application())
