"""The project package as a Django app: it owns the model of the API's clients and nothing else."""

from __future__ import annotations

from django.apps import AppConfig


class HptsConfig(AppConfig):
    name = "hpts"
    verbose_name = "Who may call"

    def ready(self) -> None:
        from hpts import walls  # noqa: F401 (registers the check of the database's role)
