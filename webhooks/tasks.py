"""What is done by schedule. Deliveries are not: their sweep is the worker's own (worker.py), and no broker takes part in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hpts.celery import app, each
from hpts.tenancy import tenant_transaction
from ledger.queries import tenants
from webhooks import delivery

KEPT_DAYS = 31
BATCH = 5_000


@app.task(name="webhooks.purge_deliveries")
def purge_deliveries() -> int:
    """Remove deliveries that ended a month ago, in short transactions. Run twice at once it does no harm."""
    before = datetime.now(UTC) - timedelta(days=KEPT_DAYS)

    def purge(tenant_id: str) -> int:
        removed = 0
        while True:
            with tenant_transaction(tenant_id) as cursor:
                ended = delivery.purge(cursor, before=before, limit=BATCH)
            removed += ended
            if ended < BATCH:
                return removed

    return each(tenants(), "the purge of deliveries", purge)
