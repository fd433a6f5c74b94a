"""``INSTALLED_APPS = [..., "coatcheck.web.django"]``: then ``manage.py check`` looks at the settings of sessions."""

from __future__ import annotations

from django.apps import AppConfig


class CoatcheckConfig(AppConfig):
    name = "coatcheck.web.django"
    label = "coatcheck"
    verbose_name = "Sessions of coatcheck"
