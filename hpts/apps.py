"""The project package as a Django app: it owns the models of who may come in and nothing else."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.cache import close_caches
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connections, reset_queries
from django.utils.module_loading import autodiscover_modules


class HptsConfig(AppConfig):
    name = "hpts"
    verbose_name = "Who may call"

    def ready(self) -> None:
        from hpts import walls  # noqa: F401 (registers the check of the database's role)

        # What may be done in the admin, of every app that has it; before the site's routes are made.
        autodiscover_modules("actions")

        request_started.disconnect(reset_queries)
        request_started.disconnect(close_old_connections)
        request_finished.disconnect(close_old_connections)
        request_finished.disconnect(close_caches)
        request_finished.connect(close_broken)


def close_broken(**_: object) -> None:
    """What is left to do after a request: close this thread's connection if an error has broken it.

    Connections are kept for ever, queries are not recorded and there is no cache, so that Django's own receivers would look
    at every connection four times and do nothing.
    """
    connection = connections["default"]
    if connection.errors_occurred:
        connection.close_if_unusable_or_obsolete()
