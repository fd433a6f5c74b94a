"""Django's sessions: ``SESSION_ENGINE = "coatcheck.web.django"``, and the middleware in place of Django's (mission B1).

Both are described in docs/django.md. The engine alone works with Django's own ``SessionMiddleware``; rotation and theft
detection need ours.
"""

from __future__ import annotations

from coatcheck.web.django import checks, login
from coatcheck.web.django.middleware import SessionMiddleware
from coatcheck.web.django.store import SessionStore

checks.register()
login.connect()

__all__ = ["SessionMiddleware", "SessionStore"]
