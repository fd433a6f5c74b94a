"""A session engine of the project's own, as Django's documentation tells to make one: it inherits."""

from __future__ import annotations

from coatcheck.web.django import SessionStore as Base


class SessionStore(Base):
    def get_session_cookie_age(self) -> int:
        return 60
