"""Reconciliation's tasks: doors to reconciliation/runs.py. A task may run twice, late, or not at all; the table knows."""

from __future__ import annotations

import json
import logging

from django.conf import settings

from hpts.celery import app, each
from ledger.queries import tenants
from reconciliation import alerts, proving, runs

PROOF_SECONDS = 600.0
logger = logging.getLogger("hpts.reconciliation")


@app.task(name="reconciliation.work_off")
def work_off(tenant_id: str) -> None:
    """A tenant has a run to work off."""
    runs.work_off(tenant_id)


@app.task(name="reconciliation.look_around")
def look_around() -> int:
    """Each tenant's night, and what no message has told of."""

    def look(tenant_id: str) -> int:
        runs.request_nightly(tenant_id)
        return runs.work_off(tenant_id)

    return each(tenants(), "the reconciliation", look)


@app.task(name="reconciliation.prove_books", expires=PROOF_SECONDS)
def prove_books() -> int:
    """Each tenant's proof of the night. Books that are not in order are the operator's at once."""

    def prove(tenant_id: str) -> bool:
        outcome = proving.prove_tonight(tenant_id)
        if outcome is not None and outcome.failed:
            breaches = json.dumps(outcome.breaches, default=str)
            logger.critical("the books of tenant %s are not in order: %s", tenant_id, breaches)
        return outcome is not None

    return each(tenants(), "the proof", prove)


@app.task(name="reconciliation.mail_alerts")
def mail_alerts() -> int:
    """Tell by mail of breaks that were opened."""
    return each(tenants(), "the alerts", alerts.mail_alerts) if settings.ALERT_EMAILS else 0


def announce(tenant_id: str) -> None:
    """Tell a worker of a queued run. Without a broker the next look around finds it."""
    try:
        work_off.apply_async((tenant_id,), retry=False)
    except Exception as error:
        logger.warning("the broker is away, the run waits for the schedule: %s", error)
