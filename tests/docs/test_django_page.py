"""docs/django.md is run as a user would: its settings and URLs in a project, served by Django."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import coatcheck.errors
from coatcheck.web.django.former import _moment

ROOT = Path(__file__).parents[2]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
PAGE = ROOT / "docs" / "django.md"
FILE = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.S)

# What every project has.
PROJECT = """
SECRET_KEY = "for-tests-only-for-tests-only"
ROOT_URLCONF = "urls"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
MIDDLEWARE = [*MIDDLEWARE, "django.contrib.auth.middleware.AuthenticationMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
"""
VISITS = """
import asyncio
import django
django.setup()
from django.core.management import call_command
from django.contrib.auth.models import User
from django.test import AsyncClient, Client
call_command("check", deploy=False, fail_level="WARNING")
call_command("migrate", verbosity=0)
User.objects.create_user("ada")
client = Client()
assert client.get("/add").json() == ["tea"]
async def visit():
    other = AsyncClient()
    other.cookies.update(client.cookies)
    assert (await other.get("/aadd")).json() == ["tea", "cup"]
asyncio.run(visit())
name = client.get("/in").content.decode()
assert len(name) == 12
key = client.cookies["sessionid"].value
assert client.get("/add").json() == ["tea", "cup", "tea"]
assert client.get("/out").content == b"good bye"
client.cookies["sessionid"] = key
assert client.get("/add").json() == ["tea"]
print("visited")
"""


def test_the_pages_project_works(tmp_path: Path) -> None:
    files = dict(FILE.findall(PAGE.read_text()))
    assert PAGE.read_text().count("```python") == len(files) + 1 == 3
    (tmp_path / "settings.py").write_text(files["settings.py"] + PROJECT)
    (tmp_path / "urls.py").write_text(files["urls.py"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", VISITS], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": f"{SOURCE}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "visited"


def test_moving_in() -> None:
    (given,) = re.findall(r"```python\n(COATCHECK = .*?)```", PAGE.read_text(), re.S)
    namespace: dict[str, dict[str, object]] = {}
    exec(given, namespace)
    moving_in: object = namespace["COATCHECK"]["moving_in"]
    assert isinstance(moving_in, dict)
    assert moving_in["engine"] == "django.contrib.sessions.backends.db"
    assert _moment(moving_in["until"]) == date(2027, 3, 1)


def test_it_is_five_lines() -> None:
    files = dict(FILE.findall(PAGE.read_text()))
    assert len([line for line in files["settings.py"].splitlines() if line]) <= 5
