"""The project as a WSGI app."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "web.django.project.settings")
application = get_wsgi_application()
