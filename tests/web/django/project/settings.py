"""``SHOP_FOLDER``: where its database is; ``SHOP_SESSIONS``: its session server, else memory; ``SHOP_FORMER``: its
session engine of before, if it had one."""

from __future__ import annotations

import os

SECRET_KEY = "for-tests-only-for-tests-only-for-tests-001"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "web.django.project.urls"
SESSION_ENGINE = "coatcheck.web.django"
COATCHECK = {"session_servers": [os.environ.get("SHOP_SESSIONS", "memory://")]}
if "SHOP_FORMER" in os.environ:
    COATCHECK["moving_in"] = {"engine": os.environ["SHOP_FORMER"], "until": "2999-01-01"}  # type: ignore[assignment]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "coatcheck.web.django",
]
MIDDLEWARE = [
    "coatcheck.web.django.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
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
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{os.environ['SHOP_FOLDER']}/shop.db"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "/static/"
