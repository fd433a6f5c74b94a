"""Django is set up when these tests are collected, for their modules import its models; its database is made once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import django
import pytest

FOLDER = tempfile.TemporaryDirectory(prefix="coatcheck-django-", ignore_cleanup_errors=True)

with pytest.MonkeyPatch.context() as environment:
    environment.setenv("SHOP_FOLDER", FOLDER.name)
    environment.setenv("DJANGO_SETTINGS_MODULE", "web.django.project.settings")
    environment.setenv("TZ", os.environ.get("TZ", "UTC"))
    django.setup()


@pytest.fixture(scope="session", autouse=True)
def project() -> Iterator[None]:
    from django.core.management import call_command
    from django.db import connections
    from django.test.utils import setup_test_environment, teardown_test_environment

    setup_test_environment()
    call_command("migrate", run_syncdb=True, verbosity=0)
    make_users()
    yield
    connections.close_all()
    teardown_test_environment()


def make_users() -> None:
    from django.contrib.auth.models import User

    for name in ("ada", "bob"):
        User.objects.create_superuser(name, f"{name}@example.org", name)
