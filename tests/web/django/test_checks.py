"""``manage.py check``, wrong settings in one line, and what holds without any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.http import HttpResponse
from django.test import Client, override_settings

import coatcheck.errors
from coatcheck.web.django import SessionMiddleware
from coatcheck.web.django.configuration import sessions

from .project import settings as project

SOURCE = Path(coatcheck.errors.__file__).parents[1]
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"


def said(**more: Any) -> list[str]:
    return [one.id for one in run_checks(**more) if one.id.startswith("coatcheck")]


def test_nothing_is_said_of_a_project_that_is_right() -> None:
    call_command("check", fail_level="WARNING")


def test_djangos_middleware_is_named() -> None:
    with override_settings(MIDDLEWARE=[DJANGOS, *project.MIDDLEWARE[1:]]):
        assert said() == ["coatcheck.W001"]
        with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.db"):
            assert said() == []


def test_sessions_in_memory_are_named_before_they_are_deployed() -> None:
    with override_settings():
        from django.conf import settings

        del settings.COATCHECK
        assert said() == []
        assert said(include_deployment_checks=True) == ["coatcheck.W002"]


WRONG = [
    ("valkey://10.0.0.5", "a dict"),
    ({"key": "x" * 40}, "session_servers: a URL"),
    ({"session_servers": []}, "session_servers: a URL"),
    ({"session_servers": ["http://x"]}, "the URL begins with"),
    ({"session_servers": "memory://", "idle_timeout": 3}, "idle_timeout"),
    ({"session_servers": "memory://", "copies": 2}, "copies"),
    ({"session_servers": "memory://", "key": "short"}, "key"),
    ({"session_servers": "memory://", "driver": "asyncio"}, "driver"),
    ({"session_servers": "memory://", "idle_timeout_s": "yes"}, "idle_timeout_s"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_wrong_settings_are_one_clear_line(wrong: Any, words: str) -> None:
    with override_settings(COATCHECK=wrong):
        assert said() == ["coatcheck.E001"]
        with pytest.raises(ImproperlyConfigured, match=words) as refused:
            SessionMiddleware(lambda request: HttpResponse())
        assert str(refused.value).startswith("COATCHECK")
        assert "\n" not in str(refused.value)


def test_durations_are_as_everywhere() -> None:
    given = {"session_servers": ["memory://"], "idle_timeout_s": "30m", "absolute_timeout_s": "12h"}
    with override_settings(COATCHECK=given):
        assert sessions()._sessions._policy.idle_timeout_ms == 1_800_000


def test_another_engine_has_djangos_rules() -> None:
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        client = Client()
        assert client.get("/add").json() == ["tea"]
        assert client.get("/add").json() == ["tea", "tea"]
        assert len(client.cookies["sessionid"].value) == 32


def test_the_keys_of_django_open_what_they_sealed_until_they_are_dropped() -> None:
    client = Client()
    client.get("/add")
    with override_settings(SECRET_KEY="another-secret-key-of-the-project", SECRET_KEY_FALLBACKS=[project.SECRET_KEY]):
        assert client.get("/add").json() == ["tea", "tea"]
    assert client.get("/who").status_code == 200


def test_the_engine_alone_needs_no_other_setting(tmp_path: Path) -> None:
    """One line of settings, Django's own middleware, one process."""
    program = """
from django.conf import settings
settings.configure(SECRET_KEY="for-tests-only", SESSION_ENGINE="coatcheck.web.django")
import django; django.setup()
from coatcheck.web.django import SessionStore
store = SessionStore(); store["a"] = 1; store.save()
assert SessionStore(store.session_key)["a"] == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "COATCHECK is not set" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_store_of_the_projects_own() -> None:
    """Django's way to change a session store is to inherit from it."""
    with override_settings(SESSION_ENGINE="web.django.project.short_engine"):
        answer = Client().get("/add")
    assert answer.cookies["sessionid"]["max-age"] == 60
