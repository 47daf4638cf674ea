"""Reconciliation's tasks: doors to reconciliation/runs.py. A task may run twice, late, or not at all; the table knows."""

from __future__ import annotations

import json
import logging

from django.conf import settings

from hpts.celery import app
from ledger.queries import tenants
from reconciliation import alerts, proving, runs

PROOF_SECONDS = 600.0
logger = logging.getLogger("hpts.reconciliation")


@app.task(name="reconciliation.work_off")
def work_off(tenant_id: str) -> None:
    """A tenant has a run to work off."""
    runs.work_off(tenant_id)


@app.task(name="reconciliation.look_around")
def look_around() -> None:
    """Each tenant's night, and what no message has told of. One tenant's failure is not another's."""
    for tenant_id in tenants():
        try:
            runs.request_nightly(tenant_id)
            runs.work_off(tenant_id)
        except Exception:
            logger.exception("reconciliation of tenant %s", tenant_id)


@app.task(name="reconciliation.prove_books", expires=PROOF_SECONDS)
def prove_books() -> None:
    """Each tenant's proof of the night. Books that are not in order are the operator's at once."""
    for tenant_id in tenants():
        try:
            outcome = proving.prove_tonight(tenant_id)
            if outcome is not None and outcome.failed:
                logger.critical(
                    "the books of tenant %s are not in order: %s", tenant_id, json.dumps(outcome.breaches, default=str)
                )
        except Exception:
            logger.exception("the books of tenant %s are not proven", tenant_id)


@app.task(name="reconciliation.mail_alerts")
def mail_alerts() -> None:
    """Tell by mail of breaks that were opened. One tenant's failure is not another's."""
    if not settings.ALERT_EMAILS:
        return
    for tenant_id in tenants():
        try:
            alerts.mail_alerts(tenant_id)
        except Exception:
            logger.exception("alerts of tenant %s", tenant_id)


def announce(tenant_id: str) -> None:
    """Tell a worker of a queued run. Without a broker the next look around finds it."""
    try:
        work_off.apply_async((tenant_id,), retry=False)
    except Exception as error:
        logger.warning("the broker is away, the run waits for the schedule: %s", error)
