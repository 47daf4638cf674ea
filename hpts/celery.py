"""The Celery application and its beat schedule. Tasks live in each app's `tasks.py`; the broker carries no truth."""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import beat_init, worker_init
from django.conf import settings
from kombu.entity import Queue

from hpts import walls

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")

SEALS = "seals"
BEAT_SCHEDULE: dict[str, dict[str, object]] = {
    # Often, because it is also what finds a run that its workers left.
    "accrue_due": {"task": "ledger.accrue_due", "schedule": 15.0},
    # A queue of its own: what fills the other one does not keep history from being sealed.
    "seal_journals": {"task": "ledger.seal_journals", "schedule": 5.0, "options": {"queue": SEALS, "expires": 10.0}},
    # Each tenant's night comes at its own midnight; the table of runs says which one is due.
    "reconciliation": {"task": "reconciliation.look_around", "schedule": 300.0, "options": {"expires": 300.0}},
    "alerts": {"task": "reconciliation.mail_alerts", "schedule": 30.0, "options": {"expires": 30.0}},
    "purge webhook deliveries": {"task": "webhooks.purge_deliveries", "schedule": 3_600.0},
}

app = Celery("hpts")
app.conf.update(
    broker_url=settings.REDIS_URL,
    # Results live in the database, written by the task's own transaction.
    task_ignore_result=True,
    # A task is acknowledged when it has ended, so that a killed worker loses none; each task may therefore run twice.
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    # Who sends a message does not wait for a broker that is away: what has to be done stands in the database.
    broker_transport_options={
        "socket_connect_timeout": 2,
        "socket_timeout": 10,
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.1,
        "interval_max": 0.1,
    },
    # A worker takes from both in turn, unless it is told otherwise.
    task_queues=(Queue("celery"), Queue(SEALS)),  # type: ignore[no-untyped-call]
    timezone="UTC",
    beat_schedule=BEAT_SCHEDULE,
)
app.autodiscover_tasks()
worker_init.connect(walls.watch_role)
beat_init.connect(walls.watch_role)
