"""``django.contrib.auth.login()`` names the user to coatcheck: operators and limits know whose session it is."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.signals import user_logged_in

from coatcheck.web.django.store import SessionStore


def connect() -> None:
    user_logged_in.connect(name_user, dispatch_uid="coatcheck.web.django.login")


def name_user(sender: Any, user: Any, request: Any = None, **_: Any) -> None:
    session = getattr(request, "session", None)
    if isinstance(session, SessionStore):
        session.name_user(str(user.pk))
