"""All reads of webhooks: which tenants have work, endpoints, deliveries, the feed, figures. One function per question."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant
from ledger.queries import timestamp

# Readiness is red when an entry has waited so long for its place in the feed.
STUCK_AFTER_SECONDS = 60.0


def _rows(cursor: CursorWrapper, sql: str, **params: Any) -> list[tuple[Any, ...]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


# --- Work ------------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What waits of one tenant. `waiting_since`: when the oldest entry that is not in the feed yet was posted."""

    tenant_id: str
    waiting_since: datetime | None
    to_relay: bool
    to_deliver: bool


def work() -> list[Work]:
    """Every tenant with something to relay or to deliver. Not to be asked inside a tenant's transaction."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT tenant_id::text, waiting_since, to_relay, to_deliver FROM webhook_work()")
        return [Work(*row) for row in cursor.fetchall()]


class RelayBehind(RuntimeError):
    """Entries wait for their announcement: no worker runs, or it cannot go on."""


def check_relay() -> None:
    """The readiness check: raises RelayBehind when the relay is stuck."""
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM clock_timestamp() - min(waiting_since))::float8 FROM webhook_work()"
        )
        ((seconds,),) = cursor.fetchall()
    if seconds is not None and seconds > STUCK_AFTER_SECONDS:
        raise RelayBehind(f"An entry has waited for {seconds:.0f} s to be announced.")
