"""Django is set up once in a process; each test has its own users and tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DJANGO_SETTINGS_MODULE", "web.django.project.settings")
        environment.setenv("SHOP_FOLDER", str(tmp_path_factory.mktemp("shop")))
        import django
        from django.core.management import call_command
        from django.db import connections
        from django.test.utils import setup_test_environment, teardown_test_environment

        django.setup()
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
