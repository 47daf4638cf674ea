"""Accrual runs: the engine's work on one program for one date, in chunks that any process may take.

The table of runs is the truth: whoever dies leaves a run that another goes on with, and a message that is lost is sent again.
A chunk is one transaction (`accrue_chunk`, migrations/0005_accruals.sql) that is done or has not been touched. Nothing here
computes interest.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from datetime import date
from typing import Any, Literal

from django.db import DatabaseError
from django.db.backends.utils import CursorWrapper

from hpts import metrics
from hpts.pipeline import Statement
from hpts.problems import InternalError, Problem
from hpts.tenancy import ENTER, current_tenant, opened_transaction, tenant_transaction
from ledger import queries
from ledger.errors import AccountClosed, AccrualModeRefuses, PeriodClosed
from ledger.events import EventKind
from ledger.posting import (
    LARGE_TIMEOUT,
    ROLLBACK_TO_SAVEPOINT,
    SAVEPOINT,
    Origin,
    passes,
    refused_by,
    with_retries,
)

# As many loans as keep a payment on one of them waiting for some tens of milliseconds (docs/adr/0018).
CHUNK_LOANS = 1_000

logger = logging.getLogger("hpts.accrual")

TAKE = Statement(
    """SELECT number, after_id, through_id FROM accrual_chunk
       WHERE tenant_id = $1::uuid AND run_id = $2::uuid AND done_at IS NULL
       ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED"""
)
ACCRUE = Statement("SELECT number FROM accrue_chunk($1::uuid, $2::int)")


# --- Asking for a run ------------------------------------------------------------------------------------------------


def request_run(cursor: CursorWrapper, *, program_id: str, accrual_date: date, origin: Origin) -> str:
    """The run of a program and date, made or, when it has ended, opened again: then it visits what is left. Gives its id.

    The caller has refused dates in the future and in closed periods. Raises AccrualModeRefuses.
    """
    program = queries.program(cursor, program_id=program_id, on=accrual_date)
    if program is None or program["accrual_mode"] != "engine":
        raise AccrualModeRefuses(f"On {accrual_date} the client accrues this program's interest.")
    params: dict[str, Any] = {
        "tenant": current_tenant(),
        "id": str(uuid.uuid4()),
        "program": program_id,
        "date": accrual_date,
        "actor": origin.actor,
        "correlation": origin.correlation_id,
    }
    cursor.execute(
        """INSERT INTO accrual_run (tenant_id, id, program_id, accrual_date, actor, correlation_id)
           VALUES (%(tenant)s, %(id)s, %(program)s, %(date)s, %(actor)s, %(correlation)s)
           ON CONFLICT (tenant_id, program_id, accrual_date) DO NOTHING RETURNING id::text""",
        params,
    )
    made = cursor.fetchone()
    if made is not None:
        return str(made[0])
    cursor.execute(
        """SELECT id::text, finished_at IS NOT NULL FROM accrual_run
           WHERE tenant_id = %(tenant)s AND program_id = %(program)s AND accrual_date = %(date)s FOR UPDATE""",
        params,
    )
    ((run_id, has_ended),) = cursor.fetchall()
    if has_ended:
        params["id"] = run_id
        cursor.execute(
            """UPDATE accrual_run SET actor = %(actor)s, correlation_id = %(correlation)s, finished_at = NULL,
                                      started_at = clock_timestamp()
               WHERE tenant_id = %(tenant)s AND id = %(id)s""",
            params,
        )
        cursor.execute(
            "UPDATE accrual_chunk SET done_at = NULL WHERE tenant_id = %(tenant)s AND run_id = %(id)s", params
        )
    return str(run_id)


def due(tenant_id: str, actor: str) -> list[str]:
    """Make the runs that the calendar asks for, and give the ids of all that should be worked on and are not.

    Of each program the day after its last run; one at a time, so that missed dates are made up for in their order. A closed
    period takes no entries any more: what it has missed comes with the first date after it.
    """
    with tenant_transaction(tenant_id) as cursor:
        idle = queries.idle_runs(cursor)
        return idle + [
            request_run(
                cursor,
                program_id=program_id,
                accrual_date=accrual_date,
                origin=Origin(tenant_id, actor, str(uuid.uuid4())),
            )
            for program_id, accrual_date in queries.accruals_due(cursor)
        ]


# --- Doing it --------------------------------------------------------------------------------------------------------


def work(
    tenant_id: str, run_id: str, *, seconds: float | None = None, report: Callable[[], None] | None = None
) -> Literal["left", "ended", "others"]:
    """Accrue chunk after chunk until none is free or the time is over. Gives what has become of the run: chunks may be left;
    this was the last one and has ended it; others are at the rest, or had ended it before. `report` is called after each chunk.
    """
    end = None if seconds is None else time.monotonic() + seconds
    with_retries(lambda: _start(tenant_id, run_id))
    while _accrue_one(tenant_id, run_id):
        if report is not None:
            report()
        if end is not None and time.monotonic() > end:
            return "left"
    return "ended" if with_retries(lambda: _finish(tenant_id, run_id)) else "others"


def _start(tenant_id: str, run_id: str) -> None:
    """Cut the program's loans into chunks, once. The first and the last range are open, so that a loan made meanwhile is in
    one of them."""
    with tenant_transaction(tenant_id, first=LARGE_TIMEOUT) as cursor:
        params: dict[str, Any] = {"tenant": tenant_id, "run": run_id, "size": CHUNK_LOANS}
        cursor.execute(
            """UPDATE accrual_run SET started_at = clock_timestamp()
               WHERE tenant_id = %(tenant)s AND id = %(run)s AND started_at IS NULL RETURNING program_id""",
            params,
        )
        started = cursor.fetchone()
        if started is None:
            return
        cursor.execute(
            """INSERT INTO accrual_chunk (tenant_id, run_id, number, after_id, through_id)
               SELECT %(tenant)s, %(run)s, row_number() OVER w, lag(edge.id) OVER w, edge.id
               FROM (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS position FROM loan
                                     WHERE tenant_id = %(tenant)s AND program_id = %(program)s) placed
                     WHERE position %% %(size)s = 0
                     UNION ALL SELECT NULL) edge
               WINDOW w AS (ORDER BY edge.id NULLS LAST)""",
            {**params, "program": started[0]},
        )


def _accrue_one(tenant_id: str, run_id: str) -> bool:
    """Accrue a free chunk, if there is one."""

    def attempt() -> bool:
        began = time.monotonic()
        with tenant_transaction(tenant_id, first=LARGE_TIMEOUT) as cursor:
            cursor.execute("SELECT number, accrued FROM accrue_chunk(%s, NULL)", (run_id,))
            ((number, accrued),) = cursor.fetchall()
        metrics.ACCRUED_LOANS.inc(accrued or 0)
        metrics.ACCRUAL_SECONDS.inc(time.monotonic() - began)
        if accrued:
            metrics.POSTINGS.labels(EventKind.ACCRUAL).inc()
        return number is not None

    try:
        return with_retries(attempt)
    except (Problem, DatabaseError):
        return with_retries(lambda: _isolate(tenant_id, run_id))


def _isolate(tenant_id: str, run_id: str) -> bool:
    """Take a chunk; when it cannot be accrued cut it in two, and a single loan out of the run: the others go on."""
    with opened_transaction(tenant_id, ENTER, first=LARGE_TIMEOUT) as transaction:
        taken = transaction.run(TAKE, (tenant_id, run_id))
        if taken.ntuples == 0:
            return False
        number = int.from_bytes(taken.get_value(0, 0) or b"")
        transaction.run(SAVEPOINT)
        try:
            transaction.run(ACCRUE, (run_id, str(number)))
        except DatabaseError as error:
            if passes(error):
                raise  # Nothing is wrong with the loans.
            refusal = refused_by(error)
            if refusal is None:
                logger.exception("a chunk of run %s cannot be accrued", run_id)
                refusal = InternalError("The database refused it; the log says why.")
            transaction.run(ROLLBACK_TO_SAVEPOINT)
            _part(transaction.cursor, run_id, number, refusal)
        return True


def _part(cursor: CursorWrapper, run_id: str, number: int, refusal: Problem) -> None:
    params: dict[str, Any] = {"tenant": current_tenant(), "run": run_id, "number": number}
    cursor.execute(
        """SELECT l.id FROM accrual_chunk c
           JOIN accrual_run r ON r.tenant_id = c.tenant_id AND r.id = c.run_id
           JOIN loan l ON l.tenant_id = c.tenant_id AND l.program_id = r.program_id AND l.opened_on < r.accrual_date
               AND l.version > 0
               AND (l.accrued_through IS NULL OR l.accrued_through < r.accrual_date
                    OR EXISTS (SELECT FROM accrual_pause p
                               WHERE p.tenant_id = l.tenant_id AND p.loan_id = l.id AND p.to_date = r.accrual_date
                                 AND p.reversed_revision IS NOT NULL))
               AND (c.after_id IS NULL OR l.id > c.after_id) AND (c.through_id IS NULL OR l.id <= c.through_id)
           WHERE c.tenant_id = %(tenant)s AND c.run_id = %(run)s AND c.number = %(number)s ORDER BY l.id""",
        params,
    )
    loans = [loan_id for (loan_id,) in cursor.fetchall()]
    if len(loans) > 1 and not _stops_all(cursor, refusal):
        params["middle"] = loans[len(loans) // 2 - 1]
        # Those who cut at once number their pieces one after the other.
        cursor.execute(
            "SELECT FROM accrual_run WHERE tenant_id = %(tenant)s AND id = %(run)s FOR NO KEY UPDATE", params
        )
        cursor.execute(
            """INSERT INTO accrual_chunk (tenant_id, run_id, number, after_id, through_id)
               SELECT tenant_id, run_id, (SELECT max(number) + 1 FROM accrual_chunk
                                          WHERE tenant_id = %(tenant)s AND run_id = %(run)s), %(middle)s, through_id
               FROM accrual_chunk WHERE tenant_id = %(tenant)s AND run_id = %(run)s AND number = %(number)s""",
            params,
        )
        cursor.execute(
            """UPDATE accrual_chunk SET through_id = %(middle)s
               WHERE tenant_id = %(tenant)s AND run_id = %(run)s AND number = %(number)s""",
            params,
        )
        return
    cursor.execute(
        """INSERT INTO accrual_exception (tenant_id, run_id, loan_id, code, detail)
           SELECT %(tenant)s, %(run)s, loan_id, %(code)s, %(detail)s FROM unnest(%(loans)s::uuid[]) AS loan_id
           ON CONFLICT (tenant_id, run_id, loan_id) DO UPDATE SET code = EXCLUDED.code, detail = EXCLUDED.detail""",
        {**params, "loans": loans, "code": refusal.code, "detail": refusal.detail},
    )
    cursor.execute(
        """UPDATE accrual_chunk SET done_at = clock_timestamp()
           WHERE tenant_id = %(tenant)s AND run_id = %(run)s AND number = %(number)s""",
        params,
    )


def _stops_all(cursor: CursorWrapper, refusal: Problem) -> bool:
    """Whether this stands in the way of every loan alike: then the one at fault is not looked for."""
    if isinstance(refusal, AccountClosed):
        cursor.execute(
            """SELECT EXISTS (SELECT FROM gl_account WHERE tenant_id = %s AND role IN ('interest', 'interest_income')
                              AND closed_at IS NOT NULL)""",
            (current_tenant(),),
        )
        ((stops_all,),) = cursor.fetchall()
        return bool(stops_all)
    return isinstance(refusal, PeriodClosed)


def _finish(tenant_id: str, run_id: str) -> bool:
    """End the run when no chunk is left to do; gives whether this did."""
    with tenant_transaction(tenant_id) as cursor:
        cursor.execute(
            """UPDATE accrual_run r SET finished_at = clock_timestamp()
               WHERE r.tenant_id = %(tenant)s AND r.id = %(run)s AND r.started_at IS NOT NULL AND r.finished_at IS NULL
                 AND NOT EXISTS (SELECT FROM accrual_chunk c
                                 WHERE c.tenant_id = r.tenant_id AND c.run_id = r.id AND c.done_at IS NULL)""",
            {"tenant": tenant_id, "run": run_id},
        )
        return bool(cursor.rowcount == 1)
