"""Webhooks as a Django app: it tells readiness what to ask of the relay."""

from __future__ import annotations

from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    name = "webhooks"
    verbose_name = "Telling others"

    def ready(self) -> None:
        from hpts import health
        from webhooks import queries

        health.CHECKS["webhooks"] = queries.check_relay
