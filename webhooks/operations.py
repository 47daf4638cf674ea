"""What a client asks of webhooks: endpoints made, rotated, enabled, ended; deliveries made again. No HTTP, nothing is sent here.

Each runs on the cursor of a tenant's transaction and answers what the API shows.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.backends.utils import CursorWrapper

from hpts.fields import given
from hpts.problems import FieldProblem, NotFound, ValidationFailed
from hpts.tenancy import current_tenant
from ledger.events import EventKind
from ledger.queries import timestamp
from webhooks import delivery, queries, signing
from webhooks import serializers as shapes

# Each entry is sent to every one of them.
MAX_ENDPOINTS = 200
PREVIOUS_SECRET_HOURS = 24
RECOVERABLE_DAYS = 30
# Recovering a month of events for one endpoint may take longer than a request of the ledger is given.
LONG = "SET LOCAL statement_timeout = '60s'"


def _refused(field: str, code: str, message: str) -> ValidationFailed:
    return ValidationFailed("One or more fields are not valid.", [FieldProblem(field, code, message)])


def _known(cursor: CursorWrapper, endpoint_id: str) -> dict[str, Any]:
    found = queries.endpoint(cursor, endpoint_id=endpoint_id)
    if found is None:
        raise NotFound(f"There is no webhook endpoint {endpoint_id}.")
    return found


def _check_room(cursor: CursorWrapper) -> None:
    cursor.execute(
        "SELECT count(*) FROM webhook_endpoint WHERE tenant_id = %s AND state = 'enabled'", (current_tenant(),)
    )
    if cursor.fetchone()[0] >= MAX_ENDPOINTS:
        raise _refused("", "too_many", f"At most {MAX_ENDPOINTS} endpoints are enabled at a time.")


def create_endpoint(
    cursor: CursorWrapper, body: shapes.NewWebhookEndpoint, secret: str, refusal: str | None
) -> dict[str, Any]:
    """An enabled endpoint. `refusal`: why its addresses are not called, when they are not."""
    if refusal is not None:
        raise _refused("url", "target_refused", refusal)
    _check_room(cursor)
    endpoint_id = str(uuid.uuid4())
    cursor.execute(
        """INSERT INTO webhook_endpoint (tenant_id, id, url, event_types, description, secret)
           VALUES (%s, %s, %s, %s, %s, %s)""",
        (
            current_tenant(),
            endpoint_id,
            body.url,
            list(dict.fromkeys(given(body.event_types) or [])),
            given(body.description),
            signing.seal(secret, current_tenant(), endpoint_id),
        ),
    )
    return _known(cursor, endpoint_id)


def rotate_secret(cursor: CursorWrapper, endpoint_id: str, body: shapes.NewSecret, secret: str) -> dict[str, Any]:
    """From now on the new secret signs, and for a day the one before it too, unless that is revoked at once."""
    _known(cursor, endpoint_id)
    hours = 0 if given(body.revoke_previous) else PREVIOUS_SECRET_HOURS
    cursor.execute(
        """UPDATE webhook_endpoint
           SET secret = %s, previous_secret = secret, previous_valid_until = statement_timestamp() + make_interval(hours => %s)
           WHERE tenant_id = %s AND id = %s RETURNING previous_valid_until""",
        (signing.seal(secret, current_tenant(), endpoint_id), hours, current_tenant(), endpoint_id),
    )
    ((until,),) = cursor.fetchall()
    return {"previous_valid_until": timestamp(until)}


def enable(cursor: CursorWrapper, endpoint_id: str) -> dict[str, Any]:
    """The endpoint gets events again, and what has waited for it is due."""
    if _known(cursor, endpoint_id)["state"] == "disabled":
        _check_room(cursor)
    delivery.alone(cursor)
    cursor.execute(
        """UPDATE webhook_endpoint
           SET state = 'enabled', disabled_reason = NULL, failing_since = NULL, last_failed_at = NULL, paused_until = NULL
           WHERE tenant_id = %s AND id = %s""",
        (current_tenant(), endpoint_id),
    )
    return _known(cursor, endpoint_id)


def disable(cursor: CursorWrapper, endpoint_id: str) -> None:
    """Nothing is sent to the endpoint any more."""
    _known(cursor, endpoint_id)
    delivery.alone(cursor)
    cursor.execute(
        "UPDATE webhook_endpoint SET state = 'disabled', disabled_reason = 'deleted' WHERE tenant_id = %s AND id = %s",
        (current_tenant(), endpoint_id),
    )


def send_test(cursor: CursorWrapper, endpoint_id: str) -> dict[str, Any]:
    """A delivery that names no entry, of the first kind that the endpoint subscribed to."""
    kinds = _known(cursor, endpoint_id)["event_types"]
    cursor.execute(
        """INSERT INTO webhook_delivery (tenant_id, endpoint_id, event_type) VALUES (%s, %s, %s) RETURNING id::text""",
        (current_tenant(), endpoint_id, kinds[0] if kinds else EventKind.PAYMENT_RECEIVED.value),
    )
    ((delivery_id,),) = cursor.fetchall()
    return queries.deliveries(cursor, delivery_id=delivery_id)[0]


def recover(cursor: CursorWrapper, endpoint_id: str, since: str) -> dict[str, Any]:
    """Every event since an instant that the endpoint wants and has not acknowledged is due now, with all its attempts."""
    found = _known(cursor, endpoint_id)
    if datetime.fromisoformat(since) < datetime.now(UTC) - timedelta(days=RECOVERABLE_DAYS):
        raise _refused("since", "out_of_range", f"Events are recovered for {RECOVERABLE_DAYS} days.")
    cursor.execute(LONG)
    delivery.alone(cursor)
    cursor.execute(
        """INSERT INTO webhook_delivery AS d (tenant_id, endpoint_id, sequence, event_type)
           SELECT e.tenant_id, %(endpoint)s::uuid, e.sequence, e.event_type FROM webhook_event e
           WHERE e.tenant_id = %(tenant)s AND e.occurred_at >= %(since)s::timestamptz
             AND (%(kinds)s::text[] = '{}' OR e.event_type = ANY (%(kinds)s::text[]))
           ORDER BY e.sequence
           ON CONFLICT (tenant_id, endpoint_id, sequence) DO UPDATE
           SET state = 'pending', attempt = 0, lease_token = d.lease_token + 1, due_at = statement_timestamp(), finished_at = NULL
           WHERE d.state NOT IN ('succeeded', 'leased')""",
        {"tenant": current_tenant(), "endpoint": endpoint_id, "since": since, "kinds": found["event_types"]},
    )
    count = cursor.rowcount
    cursor.execute(
        """INSERT INTO webhook_delivery AS d (tenant_id, endpoint_id, notice_id, event_type)
           SELECT n.tenant_id, %(endpoint)s::uuid, n.id, n.event_type
           FROM notice n
           JOIN webhook_notice w ON w.tenant_id = n.tenant_id AND w.created_xid = n.created_xid AND w.notice_id = n.id
           WHERE n.tenant_id = %(tenant)s AND n.created_at >= %(since)s::timestamptz AND n.event_type = ANY (%(kinds)s::text[])
           ORDER BY n.created_xid, n.id
           ON CONFLICT (tenant_id, endpoint_id, notice_id) WHERE notice_id IS NOT NULL DO UPDATE
           SET state = 'pending', attempt = 0, lease_token = d.lease_token + 1, due_at = statement_timestamp(), finished_at = NULL
           WHERE d.state NOT IN ('succeeded', 'leased')""",
        {"tenant": current_tenant(), "endpoint": endpoint_id, "since": since, "kinds": found["event_types"]},
    )
    return {"webhook_endpoint_id": endpoint_id, "since": since, "delivery_count": count + cursor.rowcount}


def redeliver(cursor: CursorWrapper, delivery_id: str) -> dict[str, Any]:
    """The delivery is due now, with all its attempts and the same `webhook-id`; one that is on its way stays so."""
    delivery.alone(cursor)
    cursor.execute(
        """UPDATE webhook_delivery
           SET state = 'pending', attempt = 0, lease_token = lease_token + 1, due_at = statement_timestamp(), finished_at = NULL
           WHERE tenant_id = %s AND id = %s AND state <> 'leased'""",
        (current_tenant(), delivery_id),
    )
    found = queries.deliveries(cursor, delivery_id=delivery_id)
    if not found:
        raise NotFound(f"There is no webhook delivery {delivery_id}.")
    return found[0]
