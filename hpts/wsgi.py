"""The WSGI application that the web server loads."""

from __future__ import annotations

import gc
import os

from django.core.wsgi import get_wsgi_application

from hpts import walls

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")

application = get_wsgi_application()
walls.watch_role()

# What is loaded by now lives as long as the process: the collector need not walk through it again and again.
gc.collect()
gc.freeze()
# Requests leave almost no cycles behind: looking for them rarely costs a few megabytes at most.
gc.set_threshold(50_000, 20, 20)
