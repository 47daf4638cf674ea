"""The Celery application and its beat schedule. Tasks live in each app's `tasks.py`; the broker carries no truth."""

from __future__ import annotations

import logging
import logging.config
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from celery import Celery, Task
from celery.signals import beat_init, setup_logging, task_postrun, task_prerun, worker_init
from django.conf import settings
from kombu.entity import Queue

from hpts import logs, metrics, walls

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")

SEALS = "seals"
BEAT_SCHEDULE: dict[str, dict[str, object]] = {
    # Often, because it is also what finds a run that its workers left.
    "accruals": {"task": "ledger.accrue_due", "schedule": 15.0},
    # A queue of its own: what fills the other one does not keep history from being sealed.
    "seals": {"task": "ledger.seal_journals", "schedule": 5.0, "options": {"queue": SEALS, "expires": 10.0}},
    # What is not rolled up yet is read line by line: seldom more than this long's postings.
    "roll-up": {"task": "ledger.roll_up_accounts", "schedule": 2.0},
    # Each tenant's night comes at its own midnight; the table of runs says which one is due.
    "reconciliation": {"task": "reconciliation.look_around", "schedule": 300.0, "options": {"expires": 300.0}},
    "proof": {"task": "reconciliation.prove_books", "schedule": 600.0},
    "alerts": {"task": "reconciliation.mail_alerts", "schedule": 30.0, "options": {"expires": 30.0}},
    "purge of deliveries": {"task": "webhooks.purge_deliveries", "schedule": 3_600.0},
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

logger = logging.getLogger("hpts.task")
# The tasks that run now, in this process: when they began, and the members of their lines.
_running: dict[str, tuple[float, AbstractContextManager[None]]] = {}
# Their spans, where there are traces; what is not asked for is not loaded.
_spans: dict[str, Any] = {}


def each(tenants: Iterable[str], what: str, do: Callable[[str], object]) -> int:
    """Do it for each tenant; gives for how many there was something to do. One tenant's fault is not another's."""
    busy = 0
    for tenant_id in tenants:
        try:
            busy += bool(do(tenant_id))
        except Exception:
            logger.exception("%s of tenant %s failed", what, tenant_id)
    return busy


def configure_logs(**_: Any) -> None:
    """The settings' logs, and not Celery's own."""
    logging.config.dictConfig(settings.LOGGING)


def begin(task_id: str, task: Task, args: Any = (), **_: Any) -> None:
    # By convention of all tasks the tenant comes first.
    tenant = {"tenant_id": args[0]} if args else {}
    members = logs.about(task=task.name, task_id=task_id, correlation_id=task_id, **tenant)
    members.__enter__()
    _running[task_id] = (time.monotonic(), members)
    if settings.OTLP_ENDPOINT:
        from hpts import tracing

        _spans[task_id] = tracing.begin_task(task.name, task_id)


def end(task_id: str, task: Task, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """The line and the figures of a task; its error, when there is one, has been logged by Celery.

    A sweep gives the number of what it found to do. Of one that found nothing there is no line: beat sends it every few seconds.
    """
    began, members = _running.pop(task_id)
    seconds = time.monotonic() - began
    metrics.TASKS.labels(task.name, state or "UNKNOWN").inc()
    metrics.TASK_DURATION.labels(task.name).observe(seconds)
    level = logging.DEBUG if state == "SUCCESS" and retval == 0 else logging.INFO
    logger.log(level, "task", extra={"members": {"status": state, "duration_ms": round(seconds * 1_000, 2)}})
    members.__exit__(None, None, None)
    if task_id in _spans:
        from hpts import tracing

        tracing.end_task(_spans.pop(task_id), state or "UNKNOWN")


setup_logging.connect(configure_logs)
task_prerun.connect(begin)
task_postrun.connect(end)
