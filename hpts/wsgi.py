"""The WSGI application that the web server loads."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from hpts import walls

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")

application = get_wsgi_application()
walls.watch_role()
