"""The audit log: who did what, on which object, when, from where, with which outcome. One function writes it, one reads it.

A row is never changed and never goes; the walls are migrations/0004_audit.sql. What was done is recorded in the transaction that
does it, so that one is never there without the other; what was refused, looked at or signed in to has a transaction of its own.
What has to be recorded is the doors' to say (docs/adr/0045).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.backends.utils import CursorWrapper
from django.http import HttpRequest

from hpts.tenancy import current_tenant, tenant_transaction

# What belongs to no tenant, such as the sign-in of somebody who serves all of them, has rows of this one.
NO_TENANT = "00000000-0000-0000-0000-000000000000"
DONE, REFUSED, FAILED = OUTCOMES = ("done", "refused", "failed")

# C0 and C1 controls and lone surrogates: nobody can see them, and PostgreSQL or a terminal may stumble over them.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
LONGEST = 500

INSERT = """INSERT INTO audit_record (tenant_id, actor, action, object_type, object_id, outcome, reason, detail, address,
                                      user_agent, correlation_id)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::inet, %s, %s::uuid)"""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who acts, from where, and why when they were asked. `actor` is written as in the journal: `staff:anna`,
    `client:acme-1`, `command:accrue`."""

    actor: str
    tenant_id: str = NO_TENANT
    address: str | None = None
    user_agent: str | None = None
    correlation_id: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, request: HttpRequest, actor: str, tenant_id: str = NO_TENANT, reason: str | None = None) -> Caller:
        """The caller of an HTTP request, who has been found to be `actor`."""
        return cls(
            actor,
            tenant_id,
            _address(request.META.get("REMOTE_ADDR", "")),
            request.META.get("HTTP_USER_AGENT"),
            getattr(request, "correlation_id", None),
            reason,
        )


def record(
    caller: Caller,
    action: str,
    *,
    about: tuple[str, str] | None = None,
    outcome: str = DONE,
    detail: str | None = None,
    cursor: CursorWrapper | None = None,
) -> None:
    """Write one row: with `cursor` in that tenant's running transaction, else in a transaction of the caller's tenant.

    `action`: as the API names the operation, when it has it; `about`: type and id of the object; `detail`: what the product says
    to it, such as the code of a refusal, and always there when the outcome is not `done`.
    """
    if cursor is None:
        with tenant_transaction(caller.tenant_id) as own:
            record(caller, action, about=about, outcome=outcome, detail=detail, cursor=own)
        return
    object_type, object_id = about or (None, None)
    texts = (caller.actor, action, object_type, object_id, outcome, caller.reason, detail)
    cursor.execute(
        INSERT,
        (
            current_tenant(),
            *(_plain(text) for text in texts),
            caller.address,
            _plain(caller.user_agent),
            caller.correlation_id,
        ),
    )


READ = """
    SELECT id, occurred_at, actor, action, object_type, object_id, outcome, reason, detail, host(address), user_agent,
           correlation_id::text
    FROM audit_record
    WHERE tenant_id = %(tenant)s
      AND (%(before)s::bigint IS NULL OR id < %(before)s) AND (%(id)s::bigint IS NULL OR id = %(id)s)
      AND (%(actor)s::text IS NULL OR actor = %(actor)s) AND (%(action)s::text IS NULL OR action = %(action)s)
      AND (%(object_id)s::text IS NULL OR object_id = %(object_id)s)
      AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s)
      AND (%(since)s::date IS NULL OR occurred_at >= %(since)s::date::timestamp AT TIME ZONE %(zone)s)
      AND (%(until)s::date IS NULL OR occurred_at < (%(until)s::date + 1)::timestamp AT TIME ZONE %(zone)s)
    ORDER BY id DESC LIMIT %(limit)s"""
MEMBERS = (
    *("id", "occurred_at", "actor", "action", "object_type", "object_id", "outcome", "reason", "detail", "address"),
    *("user_agent", "correlation_id"),
)


def records(
    cursor: CursorWrapper,
    *,
    zone: str = "UTC",
    actor: str | None = None,
    action: str | None = None,
    object_id: str | None = None,
    outcome: str | None = None,
    since: str | None = None,
    until: str | None = None,
    record_id: int | None = None,
    after: Sequence[str] | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """Records of the running transaction's tenant, the latest first, behind `after`, the id of the last one seen. `since` and
    `until` are days in `zone`; a name without a kind is that of a person."""
    if after is not None and not after[0].isdecimal():
        return []
    wanted = {
        "actor": actor if actor is None or ":" in actor else f"staff:{actor}",
        "action": action,
        "object_id": object_id.lower() if object_id else None,
        "outcome": outcome,
        "since": since,
        "until": until,
        "zone": zone,
        "id": record_id,
        "before": min(int(after[0]), 2**63 - 1) if after else None,
        "limit": limit,
    }
    cursor.execute(READ, {"tenant": current_tenant(), **wanted})
    return [dict(zip(MEMBERS, row, strict=True)) for row in cursor.fetchall()]


def _plain(text: str | None) -> str | None:
    """Text that anybody may have sent, as one line that can be shown."""
    return None if text is None else UNPRINTABLE.sub(" ", text)[:LONGEST]


def _address(text: str) -> str | None:
    """A socket of the file system has none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
