"""All reads of webhooks: which tenants have work, endpoints, deliveries, the feed, figures. One function per question."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections
from django.db.backends.utils import CursorWrapper

from hpts.metrics import Reading
from hpts.tenancy import current_tenant, tenant_transaction
from ledger.queries import COUNTED, tenant_ids, timestamp
from webhooks.models import UNDELIVERED

# Readiness is red when an entry has waited so long for its place in the feed.
STUCK_AFTER_SECONDS = 60.0
# As `figures()` names them: due now, to be tried again later, on their way, and what has been given up.
DELIVERY_STATES = ("due", "retrying", "in_flight", *UNDELIVERED)


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
        cursor.execute("SELECT extract(epoch FROM clock_timestamp() - min(waiting_since))::float8 FROM webhook_work()")
        ((seconds,),) = cursor.fetchall()
    if seconds is not None and seconds > STUCK_AFTER_SECONDS:
        raise RelayBehind(f"An entry has waited for {seconds:.0f} s to be announced.")


def gauges() -> list[Reading]:
    """What waits to be announced, over all tenants."""
    totals: dict[str, float] = defaultdict(float)
    oldest = {"oldest_waiting_seconds": 0.0, "oldest_due_seconds": 0.0}
    for tenant_id in tenant_ids():
        with tenant_transaction(tenant_id) as cursor:
            found = figures(cursor)
        for name in ("waiting_for_relay", *DELIVERY_STATES):
            totals[name] += found[name]
        oldest = {name: max(seconds, found[name] or 0.0) for name, seconds in oldest.items()}
    return [
        Reading("hpts_outbox_messages", "Entries that are not yet in the feed.", totals["waiting_for_relay"]),
        Reading(
            "hpts_outbox_oldest_seconds", "How long the oldest of them has waited.", oldest["oldest_waiting_seconds"]
        ),
        Reading(
            "hpts_webhook_oldest_due_seconds", "For how long the oldest delivery is due.", oldest["oldest_due_seconds"]
        ),
        *(
            Reading("hpts_webhook_deliveries", "Webhook deliveries by state.", totals[state], {"state": state})
            for state in DELIVERY_STATES
        ),
    ]


# --- Endpoints and deliveries ----------------------------------------------------------------------------------------


def _present(**members: object) -> dict[str, Any]:
    """The members that have a value; instants as text."""
    return {
        name: timestamp(value) if isinstance(value, datetime) else value
        for name, value in members.items()
        if value is not None
    }


def endpoints(cursor: CursorWrapper, *, after: str | None, limit: int) -> list[dict[str, Any]]:
    """Endpoints as the API shows them, in order of id."""
    return _endpoints(cursor, "(%(after)s::uuid IS NULL OR id > %(after)s::uuid)", after=after, limit=limit)


def endpoint(cursor: CursorWrapper, *, endpoint_id: str) -> dict[str, Any] | None:
    """One endpoint as the API shows it."""
    found = _endpoints(cursor, "id = %(id)s::uuid", id=endpoint_id, limit=1)
    return found[0] if found else None


def _endpoints(cursor: CursorWrapper, condition: str, **params: Any) -> list[dict[str, Any]]:
    rows = _rows(
        cursor,
        f"""SELECT id::text, url, event_types, description, state, disabled_reason, failing_since, created_at
            FROM webhook_endpoint WHERE tenant_id = %(tenant)s AND {condition} ORDER BY id LIMIT %(limit)s""",
        **params,
    )
    return [
        _present(
            webhook_endpoint_id=endpoint_id,
            url=url,
            event_types=event_types,
            description=description,
            state=state,
            disabled_reason=disabled_reason,
            failing_since=failing_since,
            created_at=created_at,
        )
        for endpoint_id, url, event_types, description, state, disabled_reason, failing_since, created_at in rows
    ]


def deliveries(
    cursor: CursorWrapper,
    *,
    delivery_id: str | None = None,
    endpoint_id: str | None = None,
    state: str | None = None,
    event_type: str | None = None,
    before: str | None = None,
    limit: int = 1,
) -> list[dict[str, Any]]:
    """Deliveries as the API shows them, the newest first."""
    # Only what is asked for stands in the statement, so that each question finds its index.
    asked = {"id": delivery_id, "endpoint_id": endpoint_id, "state": state, "event_type": event_type}
    conditions = [f"d.{name} = %({name})s" for name, value in asked.items() if value is not None]
    if before is not None:
        conditions.append("d.id < %(before)s::uuid")
    rows = _rows(
        cursor,
        f"""SELECT d.id::text, d.endpoint_id::text, v.entry_id::text, d.event_type, d.state, d.attempt, d.created_at,
                   CASE WHEN d.state = 'pending' THEN d.due_at END, d.attempted_at, d.status_code, d.error, d.finished_at,
                   d.notice_id::text
            FROM webhook_delivery d
            LEFT JOIN webhook_event v ON v.tenant_id = d.tenant_id AND v.sequence = d.sequence
            WHERE {" AND ".join(["d.tenant_id = %(tenant)s", *conditions])} ORDER BY d.id DESC LIMIT %(limit)s""",
        **asked,
        before=before,
        limit=limit,
    )
    return [
        _present(
            delivery_id=row[0],
            webhook_endpoint_id=row[1],
            journal_entry_id=row[2],
            event_type=row[3],
            state=row[4],
            attempt=row[5],
            created_at=row[6],
            next_attempt_at=row[7],
            last_attempt_at=row[8],
            last_status=row[9],
            last_error=row[10],
            finished_at=row[11],
            break_id=row[12],
        )
        for row in rows
    ]


# --- The feed --------------------------------------------------------------------------------------------------------

# How many events one request with a filter looks at.
FEED_WINDOW = 10_000


class Feed(NamedTuple):
    """A piece of the feed: items as JSON text, the cursor behind them, and the last event's sequence."""

    items: list[str]
    next_cursor: int
    head: int


def feed(cursor: CursorWrapper, *, after: int, event_type: str | None, limit: int) -> Feed:
    """The events behind a cursor, in order. A filter costs at most a window of events, which the cursor then leaves behind."""
    ((head,),) = _rows(cursor, "SELECT coalesce(max(sequence), 0) FROM webhook_event WHERE tenant_id = %(tenant)s")
    last = min(head, after + FEED_WINDOW)
    rows = _rows(
        cursor,
        f"""SELECT sequence, document, encode(previous_hash, 'hex'), encode(hash, 'hex') FROM webhook_event
            WHERE tenant_id = %(tenant)s AND sequence > %(after)s AND sequence <= %(last)s
              {"" if event_type is None else "AND event_type = %(event_type)s"}
            ORDER BY sequence LIMIT %(limit)s""",
        after=after,
        last=last,
        event_type=event_type,
        limit=limit,
    )
    items = [f'{document[:-1]},"previous_hash":"{previous}","hash":"{own}"}}' for _, document, previous, own in rows]
    return Feed(items, rows[-1][0] if len(rows) == limit else max(last, after), head)


# --- Figures ---------------------------------------------------------------------------------------------------------


def figures(cursor: CursorWrapper) -> dict[str, Any]:
    """What an operator looks at, of one tenant: what waits, for how long, what has failed."""
    ((relayed, waiting, oldest),) = _rows(
        cursor,
        """WITH head AS (SELECT sequence, created_xid, entry_id FROM webhook_event
                         WHERE tenant_id = %(tenant)s ORDER BY sequence DESC LIMIT 1)
           SELECT coalesce((SELECT sequence FROM head), 0), count(o.entry_id),
                  extract(epoch FROM clock_timestamp() - min(e.posted_at))::float8
           FROM outbox_message o JOIN journal_entry e ON e.tenant_id = o.tenant_id AND e.id = o.entry_id
           WHERE o.tenant_id = %(tenant)s
             AND (o.created_xid, o.entry_id) > (coalesce((SELECT created_xid FROM head), '0'),
                                                coalesce((SELECT entry_id FROM head), '00000000-0000-0000-0000-000000000000'))""",
    )
    ((due, oldest_due, later, leased),) = _rows(
        cursor,
        """SELECT count(*) FILTER (WHERE d.state = 'pending' AND d.due_at <= c.now),
                  extract(epoch FROM max(c.now - d.due_at) FILTER (WHERE d.state = 'pending' AND d.due_at <= c.now))::float8,
                  count(*) FILTER (WHERE d.state = 'pending' AND d.due_at > c.now), count(*) FILTER (WHERE d.state = 'leased')
           FROM (SELECT statement_timestamp() AS now) c, webhook_delivery d
           JOIN webhook_endpoint e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
           WHERE d.tenant_id = %(tenant)s AND d.state IN ('pending', 'leased') AND e.state = 'enabled'""",
    )
    failed = _rows(
        cursor,
        """SELECT state, count(*) FROM webhook_delivery
           WHERE tenant_id = %(tenant)s AND state IN ('exhausted', 'dead', 'cancelled') GROUP BY state""",
    )
    ((enabled, disabled, failing),) = _rows(
        cursor,
        """SELECT count(*) FILTER (WHERE state = 'enabled'), count(*) FILTER (WHERE state = 'disabled'),
                  count(*) FILTER (WHERE state = 'enabled' AND failing_since IS NOT NULL)
           FROM webhook_endpoint WHERE tenant_id = %(tenant)s""",
    )
    return {
        "events": relayed,
        "waiting_for_relay": waiting,
        "oldest_waiting_seconds": oldest,
        "endpoints": {"enabled": enabled, "disabled": disabled, "failing": failing},
        "due": due,
        "oldest_due_seconds": oldest_due,
        "retrying": later,
        "in_flight": leased,
        **dict.fromkeys(UNDELIVERED, 0),
        **dict(failed),
    }


# --- What the admin shows --------------------------------------------------------------------------------------------


def _as_dicts(cursor: CursorWrapper, sql: str, **params: Any) -> list[dict[str, Any]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# How an endpoint is, in one word: `stuck` is an enabled one whose deliveries fail or wait for longer than a minute.
_ENDPOINT = """
    SELECT e.id::text AS endpoint_id, e.url, e.description, e.event_types, e.disabled_reason, e.failing_since, e.last_failed_at,
           e.paused_until, e.created_at, w.waiting, w.oldest_seconds, u.undelivered, e.state AS enabled,
           CASE WHEN e.state = 'disabled' THEN 'disabled'
                WHEN e.failing_since IS NOT NULL THEN 'failing'
                WHEN w.oldest_seconds > 60 THEN 'stuck' ELSE 'enabled' END AS state
    FROM webhook_endpoint e
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting,
               extract(epoch FROM clock_timestamp() - min(d.created_at))::float8 AS oldest_seconds
        FROM webhook_delivery d
        WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'pending') w
    CROSS JOIN LATERAL (
        SELECT count(*) AS undelivered FROM webhook_delivery d
        WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state IN ('exhausted', 'dead', 'cancelled')) u
    WHERE e.tenant_id = %(tenant)s
"""


def endpoint_rows(cursor: CursorWrapper, *, after: tuple[str] | None, limit: int) -> list[dict[str, Any]]:
    """Endpoints in order of id, with what waits for each; those that were deleted are shown too."""
    return _as_dicts(
        cursor,
        f"{_ENDPOINT} AND (%(after)s::uuid IS NULL OR e.id > %(after)s::uuid) ORDER BY e.id LIMIT %(limit)s",
        after=after[0] if after else None,
        limit=limit,
    )


def endpoint_shown(cursor: CursorWrapper, *, endpoint_id: str) -> dict[str, Any] | None:
    """One endpoint; nothing of its secrets."""
    found = _as_dicts(cursor, f"{_ENDPOINT} AND e.id = %(id)s::uuid", id=endpoint_id)
    return found[0] if found else None


_DELIVERY = """
    SELECT d.id::text AS delivery_id, d.endpoint_id::text AS endpoint_id, e.url, v.entry_id::text AS entry_id, d.sequence,
           d.event_type, d.state, d.attempt, d.created_at, d.attempted_at, d.finished_at, d.status_code, d.error, d.failures,
           CASE WHEN d.state = 'pending' THEN d.due_at END AS next_attempt_at
    FROM webhook_delivery d
    JOIN webhook_endpoint e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
    LEFT JOIN webhook_event v ON v.tenant_id = d.tenant_id AND v.sequence = d.sequence
    WHERE d.tenant_id = %(tenant)s
"""


def delivery_rows(
    cursor: CursorWrapper, *, state: str | None, endpoint: str | None, after: tuple[str] | None, limit: int
) -> list[dict[str, Any]]:
    """Deliveries that pass the filters, the newest first, after one of them."""
    asked = {
        "d.state = %(state)s": state,
        "d.endpoint_id = %(endpoint)s::uuid": endpoint,
        "d.id < %(after)s::uuid": after,
    }
    where = "".join(f" AND {condition}" for condition, value in asked.items() if value is not None)
    return _as_dicts(
        cursor,
        f"{_DELIVERY}{where} ORDER BY d.id DESC LIMIT %(limit)s",
        state=state,
        endpoint=endpoint,
        after=after[0] if after else None,
        limit=limit,
    )


def delivery_shown(cursor: CursorWrapper, *, delivery_id: str) -> dict[str, Any] | None:
    found = _as_dicts(cursor, f"{_DELIVERY} AND d.id = %(id)s::uuid", id=delivery_id)
    return found[0] | {"failures": json.loads(found[0]["failures"] or "[]")} if found else None


def deliveries_of_entry(cursor: CursorWrapper, *, entry_id: str) -> list[dict[str, Any]]:
    """Where an entry's event went, and what became of it."""
    return _as_dicts(
        cursor,
        """SELECT v.sequence, v.relayed_at, d.id::text AS delivery_id, d.endpoint_id::text AS endpoint_id, e.url, d.state,
                  d.attempt, d.finished_at
           FROM webhook_event v
           LEFT JOIN webhook_endpoint e ON e.tenant_id = v.tenant_id
           LEFT JOIN webhook_delivery d ON d.tenant_id = v.tenant_id AND d.endpoint_id = e.id AND d.sequence = v.sequence
           WHERE v.tenant_id = %(tenant)s AND v.entry_id = %(entry)s::uuid ORDER BY e.id LIMIT 100""",
        entry=entry_id,
    )


def called(cursor: CursorWrapper, *, uuid: str) -> list[tuple[str, str]]:
    """What of the webhooks has this id: `(kind, id)`."""
    return _rows(
        cursor,
        """SELECT 'endpoint', id::text FROM webhook_endpoint WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid
           UNION ALL SELECT 'delivery', id::text FROM webhook_delivery WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid""",
        id=uuid,
    )


def backlog(cursor: CursorWrapper, *, limit: int) -> dict[str, Any]:
    """How many entries wait for their place in the feed (`COUNTED` at most) and since when, how many deliveries have failed for
    good, and `troubled`: endpoints that fail, wait, or were switched off because they failed, the worst first."""
    (found,) = _as_dicts(
        cursor,
        f"""WITH head AS (SELECT sequence, created_xid, entry_id FROM webhook_event
                         WHERE tenant_id = %(tenant)s ORDER BY sequence DESC LIMIT 1),
                waiting AS (
                    SELECT count(*) AS entries, min(w.posted_at) AS since
                    FROM (SELECT e.posted_at
                          FROM outbox_message o JOIN journal_entry e ON e.tenant_id = o.tenant_id AND e.id = o.entry_id
                          WHERE o.tenant_id = %(tenant)s
                            AND (o.created_xid, o.entry_id) > (coalesce((SELECT created_xid FROM head), '0'), coalesce(
                                (SELECT entry_id FROM head), '00000000-0000-0000-0000-000000000000'))
                          ORDER BY o.created_xid, o.entry_id LIMIT %(counted)s) w)
           SELECT coalesce((SELECT sequence FROM head), 0) AS events, w.entries AS waiting,
                  extract(epoch FROM clock_timestamp() - w.since)::float8 AS waiting_seconds,
                  (SELECT count(*) FROM webhook_endpoint e WHERE e.tenant_id = %(tenant)s AND e.state = 'enabled') AS endpoints,
                  (SELECT count(*) FROM webhook_delivery d
                   WHERE d.tenant_id = %(tenant)s AND d.state IN ('exhausted', 'dead', 'cancelled')) AS undelivered,
                  (SELECT coalesce(json_agg(t), '[]') FROM (
                       SELECT * FROM ({_ENDPOINT}) shown
                       WHERE state IN ('failing', 'stuck') OR disabled_reason IN ('failing', 'gone')
                       ORDER BY failing_since NULLS LAST, endpoint_id LIMIT %(limit)s) t) AS troubled
           FROM waiting w""",
        limit=limit,
        counted=COUNTED,
    )
    for each in found["troubled"]:
        since = each["failing_since"]
        each["failing_since"] = datetime.fromisoformat(since) if since else None
    return found
