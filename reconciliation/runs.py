"""Runs: every bank account of a tenant is reconciled, and the books are held against themselves. The table is the truth.

A run that was asked for, or that a night has come round for, is a row; whoever comes by works it off in one transaction. So a
worker that dies leaves the row as it was, two beats insert it once, and two workers never do the same one.
"""

from __future__ import annotations

import logging
import uuid
from datetime import date, timedelta
from typing import Any

from django.db import OperationalError
from django.db.backends.utils import CursorWrapper

from hpts import audit
from hpts.problems import FieldProblem, ValidationFailed
from hpts.tenancy import current_tenant, tenant_transaction
from ledger.idempotency import Answer, Call, once
from ledger.posting import Posting, Touches
from ledger.queries import today
from reconciliation import queries
from reconciliation.accounts import bank_accounts, take_time
from reconciliation.reconciling import reconcile
from reconciliation.status import mismatched_accounts

logger = logging.getLogger("hpts.reconciliation")
ACTOR = "schedule:reconciliation"
LONGEST_SECONDS = 600
# The operation, as the API names it.
REQUEST = "createReconciliationRun"


def request_run(cursor: CursorWrapper, *, as_of: date, actor: str, is_nightly: bool = False) -> str | None:
    """A queued run; None when that night's is there already."""
    run_id = str(uuid.uuid4())
    cursor.execute(
        """INSERT INTO reconciliation_run (tenant_id, id, as_of_date, is_nightly, actor) VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT DO NOTHING""",
        (current_tenant(), run_id, as_of, is_nightly, actor),
    )
    return run_id if cursor.rowcount else None


def request_once(call: Call, as_of: date | None) -> Answer:
    """Queue a run that somebody asks for, once for a key. Raises ValidationFailed for a date in the future."""

    def work(posting: Posting) -> dict[str, Any]:
        day = as_of or posting.today
        if day > posting.today:
            later = FieldProblem(
                "as_of_date", "out_of_range", f"The date lies in the future: today is {posting.today}."
            )
            raise ValidationFailed("One or more fields are not valid.", [later])
        run_id = request_run(posting.cursor, as_of=day, actor=call.origin.actor)
        assert run_id is not None  # Only nights are one of a kind.
        about = ("reconciliation run", run_id)
        audit.record(call.origin.as_caller(), REQUEST, about=about, cursor=posting.cursor)
        return queries.run(posting.cursor, run_id=run_id)

    return once(call, Touches(mode="read"), work)


def request_nightly(tenant_id: str) -> str | None:
    """The run as of yesterday in the tenant's time zone, unless it is there."""
    with tenant_transaction(tenant_id) as cursor:
        return request_run(cursor, as_of=today(cursor) - timedelta(days=1), actor=ACTOR, is_nightly=True)


def work_off(tenant_id: str) -> int:
    """Work off the tenant's queued runs; gives how many were."""
    done = 0
    while _work_off_one(tenant_id):
        done += 1
    return done


def _work_off_one(tenant_id: str) -> bool:
    """The oldest queued run that nobody else is at. A failure of our own is kept with the run; when the database goes away the
    run stays queued."""
    run_id = None
    try:
        with tenant_transaction(tenant_id) as cursor:
            run_id = _claim(cursor)
            if run_id is not None:
                _perform(cursor, run_id)
    except OperationalError:
        raise
    except Exception as error:
        logger.exception("reconciliation run %s of tenant %s failed", run_id, tenant_id)
        if run_id is None:
            raise
        with tenant_transaction(tenant_id) as cursor:
            _finish(cursor, run_id, "failed", detail=type(error).__name__)
    return run_id is not None


def _claim(cursor: CursorWrapper) -> str | None:
    take_time(cursor, LONGEST_SECONDS)
    cursor.execute(
        """SELECT id::text FROM reconciliation_run WHERE tenant_id = %s AND state = 'queued'
           ORDER BY requested_at, id LIMIT 1 FOR UPDATE SKIP LOCKED""",
        (current_tenant(),),
    )
    row = cursor.fetchone()
    return row[0] if row else None


def _perform(cursor: CursorWrapper, run_id: str) -> None:
    cursor.execute(
        "SELECT as_of_date, actor FROM reconciliation_run WHERE tenant_id = %s AND id = %s", (current_tenant(), run_id)
    )
    as_of, actor = cursor.fetchone()
    outcomes = [reconcile(cursor, account, actor, as_of) for account in bank_accounts(cursor)]
    _finish(
        cursor,
        run_id,
        "complete",
        matched=sum(each.matched for each in outcomes),
        opened=sum(each.opened for each in outcomes),
        mismatched=mismatched_accounts(cursor),
    )


def _finish(
    cursor: CursorWrapper,
    run_id: str,
    state: str,
    *,
    matched: int | None = None,
    opened: int | None = None,
    mismatched: int | None = None,
    detail: str | None = None,
) -> None:
    cursor.execute(
        """UPDATE reconciliation_run
           SET state = %s, started_at = transaction_timestamp(), finished_at = clock_timestamp(), matched_count = %s,
               break_count = %s, mismatched_account_count = %s, detail = %s
           WHERE tenant_id = %s AND id = %s AND state = 'queued'""",
        (state, matched, opened, mismatched, detail, current_tenant(), run_id),
    )
