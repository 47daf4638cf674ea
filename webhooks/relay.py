"""The relay: outbox messages become events of the tenant's feed, and each event a delivery per endpoint that wants it. Notices,
which tell of what is no entry, become deliveries alone.

It follows the outbox by the bounded cursor (docs/adr/0006): in order of (created_xid, entry_id), and only below the oldest
transaction that still runs, so nothing that commits late is passed by. One relay at a time works for a tenant; events, their
chain and their deliveries are one transaction, whose last event is the cursor of the next. Nothing here talks to the network.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant, take_turn, tenant_transaction
from ledger.queries import timestamp

BATCH = 500
# A transaction stays short, however many endpoints each event goes to.
MAX_DELIVERIES = 10_000
GENESIS = "0" * 64


class RelayStuck(RuntimeError):
    """The relay cannot go on by itself; readiness is red until somebody acts."""


class Head(NamedTuple):
    """The last event of the feed: where the next one begins."""

    sequence: int
    hash: str
    created_xid: str
    entry_id: str


NO_EVENT = Head(0, GENESIS, "0", "00000000-0000-0000-0000-000000000000")


def document(
    *,
    sequence: int,
    journal_entry_id: str,
    tenant_id: str,
    event_type: str,
    occurred_at: str,
    correlation_id: str | None,
) -> str:
    """The RFC 8785 JSON of an item of the feed without its two hashes: ASCII names, plain strings, one small integer."""
    members: dict[str, object] = {
        "event_type": event_type,
        "journal_entry_id": journal_entry_id,
        "occurred_at": occurred_at,
        "sequence": sequence,
        "tenant_id": tenant_id,
    }
    if correlation_id is not None:
        members["correlation_id"] = correlation_id
    return msgspec.json.encode(members, order="sorted").decode()


def chained(previous_hash: str, item: str) -> str:
    """The hash of an item that follows the one with `previous_hash`."""
    return hashlib.sha256((previous_hash + item).encode()).hexdigest()


def relay(tenant_id: str, *, limit: int = BATCH) -> int:
    """Announce the tenant's next entries, `limit` at most; gives how many. 0 also while another relay is at work."""
    relayed = 0
    while relayed < limit:
        count, size = _relay_some(tenant_id, limit - relayed)
        relayed += count
        if count < size:
            break
    return relayed


def _relay_some(tenant_id: str, limit: int) -> tuple[int, int]:
    """One transaction: how many it has announced, and how many it would have."""
    with tenant_transaction(tenant_id) as cursor:
        if not take_turn(cursor, "relay"):
            return 0, limit
        cursor.execute("SELECT count(*) FROM webhook_endpoint WHERE tenant_id = %s AND state = 'enabled'", (tenant_id,))
        endpoints = cursor.fetchone()[0]
        size = min(limit, max(MAX_DELIVERIES // max(endpoints, 1), 1))
        head = _head(cursor)
        messages = _waiting(cursor, head, size)
        if messages:
            _append(cursor, head, messages)
        return len(messages), size


def relay_notices(tenant_id: str, *, limit: int = BATCH) -> int:
    """Have the tenant's next notices delivered to the endpoints that name their kind, `limit` at most; gives how many."""
    with tenant_transaction(tenant_id) as cursor:
        if not take_turn(cursor, "relay"):
            return 0
        cursor.execute(
            """WITH head AS (SELECT created_xid, notice_id FROM webhook_notice WHERE tenant_id = %(tenant)s
                             ORDER BY created_xid DESC, notice_id DESC LIMIT 1),
               next AS MATERIALIZED (
                   SELECT n.created_xid, n.id, n.event_type FROM notice n
                   WHERE n.tenant_id = %(tenant)s AND n.created_xid < pg_snapshot_xmin(pg_current_snapshot())
                     AND (n.created_xid, n.id) > (coalesce((SELECT created_xid FROM head), '0'),
                                                  coalesce((SELECT notice_id FROM head), '00000000-0000-0000-0000-000000000000'))
                   ORDER BY n.created_xid, n.id LIMIT %(limit)s),
               relayed AS (
                   INSERT INTO webhook_notice (tenant_id, created_xid, notice_id)
                   SELECT %(tenant)s, created_xid, id FROM next ORDER BY created_xid, id RETURNING notice_id),
               delivered AS (
                   INSERT INTO webhook_delivery (tenant_id, endpoint_id, notice_id, event_type)
                   SELECT p.tenant_id, p.id, n.id, n.event_type
                   FROM next n
                   JOIN webhook_endpoint p ON p.tenant_id = %(tenant)s AND p.state = 'enabled'
                                          AND n.event_type = ANY (p.event_types)
                   ORDER BY n.created_xid, n.id
                   ON CONFLICT DO NOTHING)
               SELECT count(*) FROM relayed""",
            {"tenant": tenant_id, "limit": limit},
        )
        return int(cursor.fetchone()[0])


def _head(cursor: CursorWrapper) -> Head:
    cursor.execute(
        """SELECT sequence, encode(hash, 'hex'), created_xid::text, entry_id::text,
                  created_xid < pg_snapshot_xmax(pg_current_snapshot())
           FROM webhook_event WHERE tenant_id = %s ORDER BY sequence DESC LIMIT 1""",
        (current_tenant(),),
    )
    row = cursor.fetchone()
    if row is None:
        return NO_EVENT
    if not row[4]:
        # The rows came out of another cluster, whose transactions were numbered higher than this one's are now.
        raise RelayStuck("The feed ends at a transaction id that this database cluster has not reached.")
    return Head(*row[:4])


def _waiting(cursor: CursorWrapper, head: Head, limit: int) -> list[tuple[str, str, str, datetime, str]]:
    """Transaction id, entry, kind, time of posting and correlation of the next outbox messages."""
    cursor.execute(
        """SELECT o.created_xid::text, o.entry_id::text, e.event_type, e.posted_at, e.correlation_id::text
           FROM (SELECT * FROM outbox_message
                 WHERE tenant_id = %(tenant)s AND (created_xid, entry_id) > (%(xid)s::xid8, %(entry)s::uuid)
                   AND created_xid < pg_snapshot_xmin(pg_current_snapshot())
                 ORDER BY created_xid, entry_id LIMIT %(limit)s) o
           CROSS JOIN LATERAL (SELECT event_type, posted_at, correlation_id FROM journal_entry
                               WHERE tenant_id = %(tenant)s AND id = o.entry_id OFFSET 0) e
           ORDER BY o.created_xid, o.entry_id""",
        {"tenant": current_tenant(), "xid": head.created_xid, "entry": head.entry_id, "limit": limit},
    )
    messages: list[tuple[str, str, str, datetime, str]] = cursor.fetchall()
    return messages


def _append(cursor: CursorWrapper, head: Head, messages: list[tuple[str, str, str, datetime, str]]) -> None:
    """Write the events behind the head, and their deliveries to the endpoints that are enabled now."""
    tenant_id, last = current_tenant(), head.hash
    columns: dict[str, list[Any]] = {name: [] for name in ("sequence", "xid", "entry", "kind", "at", "item", "hash")}
    for number, (xid, entry_id, event_type, posted_at, correlation_id) in enumerate(messages, head.sequence + 1):
        item = document(
            sequence=number,
            journal_entry_id=entry_id,
            tenant_id=tenant_id,
            event_type=event_type,
            occurred_at=timestamp(posted_at),
            correlation_id=correlation_id,
        )
        last = chained(last, item)
        row = (number, xid, entry_id, event_type, posted_at, item, last)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    before = [head.hash, *columns["hash"][:-1]]
    cursor.execute(
        """INSERT INTO webhook_event (tenant_id, sequence, created_xid, entry_id, event_type, occurred_at, document,
                                      previous_hash, hash)
           SELECT %(tenant)s, e.sequence, e.xid::xid8, e.entry, e.kind, e.at, e.item, decode(e.before, 'hex'),
                  decode(e.hash, 'hex')
           FROM unnest(%(sequence)s::bigint[], %(xid)s::text[], %(entry)s::uuid[], %(kind)s::text[], %(at)s::timestamptz[],
                       %(item)s::text[], %(before)s::text[], %(hash)s::text[])
                AS e (sequence, xid, entry, kind, at, item, before, hash)
           ORDER BY e.sequence""",
        {"tenant": tenant_id, "before": before, **columns},
    )
    cursor.execute(
        """INSERT INTO webhook_delivery (tenant_id, endpoint_id, sequence, event_type)
           SELECT e.tenant_id, p.id, e.sequence, e.event_type
           FROM webhook_event e
           JOIN webhook_endpoint p ON p.tenant_id = e.tenant_id AND p.state = 'enabled'
                                  AND (p.event_types = '{}' OR e.event_type = ANY (p.event_types))
           WHERE e.tenant_id = %s AND e.sequence > %s
           ORDER BY e.sequence
           ON CONFLICT DO NOTHING""",
        (tenant_id, head.sequence),
    )
