"""Notices: what the world is told beside entries, written in the transaction of what they tell. Sending is not done here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant

BREAK_OPENED = "reconciliationBreakOpened"
KINDS = (BREAK_OPENED,)


def notify(cursor: CursorWrapper, event_type: str, things: Mapping[str, Mapping[str, Any]]) -> None:
    """Have it told, once and for all, that each thing has happened: its id, and the members that tell of it."""
    tenant_id = current_tenant()
    bodies = [
        msgspec.json.encode({**members, "event_type": event_type, "tenant_id": tenant_id}, order="sorted").decode()
        for members in things.values()
    ]
    cursor.execute(
        """INSERT INTO notice (tenant_id, id, event_type, body)
           SELECT %s, t.id, %s, t.body FROM unnest(%s::uuid[], %s::text[]) AS t (id, body)""",
        (tenant_id, event_type, list(things), bodies),
    )
