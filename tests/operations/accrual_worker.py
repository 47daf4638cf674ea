"""A worker of an accrual run as a process of its own, ready to be killed: what a forked server of processes has loaded."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")
django.setup()


def work(tenant_id: str, run_id: str) -> None:
    from ledger import runs

    runs.work(tenant_id, run_id)
