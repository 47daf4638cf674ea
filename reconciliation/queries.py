"""Reads of reconciliation: one function per question, on the cursor of a `tenant_transaction()`. Nothing is written."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from django.db.backends.utils import CursorWrapper

from hpts.metrics import Reading
from hpts.tenancy import current_tenant, tenant_transaction
from ledger.queries import tenant_ids, timestamp
from reconciliation.matching import KINDS


def _rows(cursor: CursorWrapper, sql: str, **params: Any) -> list[tuple[Any, ...]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _without_none(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


# --- For operators ---------------------------------------------------------------------------------------------------


def gauges() -> list[Reading]:
    """Open breaks by kind, and how old and how good the last look at the books is, over all tenants."""
    breaks: dict[str, int] = dict.fromkeys(KINDS, 0)
    failed, unproven, unsound, oldest = 0, 0, 0, 0.0
    for tenant_id in tenant_ids():
        with tenant_transaction(tenant_id) as cursor:
            found = _rows(
                cursor,
                """SELECT b.kind, count(*) FROM reconciliation_break b
                   WHERE b.tenant_id = %(tenant)s
                     AND NOT EXISTS (SELECT FROM reconciliation_resolution r
                                     WHERE r.tenant_id = b.tenant_id AND r.break_id = b.id)
                   GROUP BY b.kind""",
            )
            ((failures,),) = _rows(
                cursor,
                """SELECT count(*) FROM reconciliation_run
                   WHERE tenant_id = %(tenant)s AND state = 'failed' AND finished_at > clock_timestamp() - interval '1 day'""",
            )
            proof = integrity(cursor)
        for kind, count in found:
            breaks[kind] += count
        failed += failures
        if proof is None:
            unproven += 1
        else:
            is_sound, _, finished_at = proof
            unsound += not is_sound
            oldest = max(oldest, (datetime.now(UTC) - finished_at).total_seconds())
    return [
        *(
            Reading("hpts_reconciliation_breaks_open", "Breaks that nobody has resolved.", count, {"kind": kind})
            for kind, count in breaks.items()
        ),
        Reading("hpts_reconciliation_runs_failed", "Reconciliation runs that failed within a day.", failed),
        Reading("hpts_proof_oldest_seconds", "How long ago the books were proven, of the tenant longest ago.", oldest),
        Reading("hpts_proof_unsound_tenants", "Tenants whose last proof found their books broken.", unsound),
        Reading("hpts_proof_missing_tenants", "Tenants whose books have never been proven.", unproven),
    ]


# --- Statements ------------------------------------------------------------------------------------------------------


def answer_of(cursor: CursorWrapper, *, ref: str, digest: bytes) -> str | None:
    """What the import of this very file answered; None when it has not been imported."""
    rows = _rows(
        cursor,
        """SELECT a.answer FROM bank_statement s
           JOIN bank_statement_answer a ON a.tenant_id = s.tenant_id AND a.statement_id = s.id
           WHERE s.tenant_id = %(tenant)s AND s.bank_account_ref = %(ref)s AND s.file_hash = %(digest)s""",
        ref=ref,
        digest=digest,
    )
    return rows[0][0] if rows else None


def statement(cursor: CursorWrapper, *, statement_id: str) -> dict[str, Any] | None:
    """A statement, with what of it is matched and how many breaks are open in its dates, now."""
    rows = _rows(
        cursor,
        """SELECT s.id::text, s.bank_account_ref, s.from_date, s.to_date, a.currency, s.opening_balance_minor,
                  s.closing_balance_minor, s.line_count,
                  (SELECT count(*) FROM bank_match_statement_line x WHERE x.tenant_id = s.tenant_id AND x.statement_id = s.id),
                  (SELECT count(*) FROM reconciliation_break b
                   WHERE b.tenant_id = s.tenant_id AND b.bank_account_ref = s.bank_account_ref
                     AND (b.statement_id = s.id OR b.statement_id IS NULL AND b.value_date BETWEEN s.from_date AND s.to_date)
                     AND NOT EXISTS (SELECT FROM reconciliation_resolution r
                                     WHERE r.tenant_id = b.tenant_id AND r.break_id = b.id))
           FROM bank_statement s
           JOIN bank_account a ON a.tenant_id = s.tenant_id AND a.ref = s.bank_account_ref
           WHERE s.tenant_id = %(tenant)s AND s.id = %(statement)s""",
        statement=statement_id,
    )
    if not rows:
        return None
    row = rows[0]
    return {
        "statement_id": row[0],
        "bank_account_ref": row[1],
        "from_date": row[2].isoformat(),
        "to_date": row[3].isoformat(),
        "currency": row[4],
        "opening_balance_minor": str(row[5]),
        "closing_balance_minor": str(row[6]),
        "line_count": row[7],
        "matched_count": row[8],
        "break_count": row[9],
    }


def statement_lines(cursor: CursorWrapper, *, statement_id: str, after: int, limit: int) -> list[dict[str, Any]]:
    """Lines of a statement in its order, each with what it is matched with."""
    rows = _rows(
        cursor,
        """SELECT l.number, l.value_date, l.amount_minor, l.reference, l.description, m.rule,
                  ARRAY(SELECT DISTINCT j.entry_id::text FROM bank_match_journal_line j
                        WHERE j.tenant_id = l.tenant_id AND j.match_id = x.match_id ORDER BY 1)
           FROM bank_statement_line l
           LEFT JOIN bank_match_statement_line x
                ON x.tenant_id = l.tenant_id AND x.statement_id = l.statement_id AND x.number = l.number
           LEFT JOIN bank_match m ON m.tenant_id = x.tenant_id AND m.id = x.match_id
           WHERE l.tenant_id = %(tenant)s AND l.statement_id = %(statement)s AND l.number > %(after)s
           ORDER BY l.number LIMIT %(limit)s""",
        statement=statement_id,
        after=after,
        limit=limit,
    )
    return [
        _without_none(
            line_number=number,
            value_date=value_date.isoformat(),
            amount_minor=str(amount),
            reference=reference,
            description=description,
            match_rule=rule,
            journal_entry_ids=list(entries) or None,
        )
        for number, value_date, amount, reference, description, rule, entries in rows
    ]


# --- Breaks ----------------------------------------------------------------------------------------------------------


def breaks(
    cursor: CursorWrapper,
    *,
    state: str | None,
    kind: str | None,
    ref: str | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Breaks, the oldest money first, after one of them. A break ages until it is resolved."""
    rows = _rows(
        cursor,
        """SELECT b.id::text, b.kind, b.bank_account_ref, b.amount_minor, b.value_date, b.reference, b.entry_id::text,
                  r.break_id IS NOT NULL,
                  (coalesce(r.resolved_at, clock_timestamp()) AT TIME ZONE t.timezone)::date - b.value_date
           FROM reconciliation_break b
           JOIN tenant t ON t.id = b.tenant_id
           LEFT JOIN reconciliation_resolution r ON r.tenant_id = b.tenant_id AND r.break_id = b.id
           WHERE b.tenant_id = %(tenant)s
             AND (%(kind)s::text IS NULL OR b.kind = %(kind)s::text)
             AND (%(ref)s::text IS NULL OR b.bank_account_ref = %(ref)s::text)
             AND (%(state)s::text IS NULL OR (r.break_id IS NOT NULL) = (%(state)s::text = 'resolved'))
             AND (%(day)s::date IS NULL OR (b.value_date, b.id) > (%(day)s::date, %(after)s::uuid))
           ORDER BY b.value_date, b.id LIMIT %(limit)s""",
        state=state,
        kind=kind,
        ref=ref,
        day=after[0] if after else None,
        after=after[1] if after else None,
        limit=limit,
    )
    return [
        _without_none(
            break_id=row[0],
            kind=row[1],
            bank_account_ref=row[2],
            amount_minor=str(row[3]),
            value_date=row[4].isoformat(),
            reference=row[5],
            journal_entry_id=row[6],
            state="resolved" if row[7] else "open",
            age_days=max(row[8], 0),
        )
        for row in rows
    ]


# --- Runs ------------------------------------------------------------------------------------------------------------

_RUN = """SELECT id::text, as_of_date, is_nightly, state, requested_at, started_at, finished_at, matched_count, break_count,
                 mismatched_account_count, detail
          FROM reconciliation_run WHERE tenant_id = %(tenant)s"""


def _run_object(row: tuple[Any, ...]) -> dict[str, Any]:
    return _without_none(
        run_id=row[0],
        as_of_date=row[1].isoformat(),
        trigger="nightly" if row[2] else "request",
        state=row[3],
        requested_at=timestamp(row[4]),
        started_at=_timestamp(row[5]),
        finished_at=_timestamp(row[6]),
        matched_count=row[7],
        break_count=row[8],
        mismatched_account_count=row[9],
        detail=row[10],
    )


def _timestamp(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def run(cursor: CursorWrapper, *, run_id: str) -> dict[str, Any]:
    ((*row,),) = _rows(cursor, f"{_RUN} AND id = %(run)s", run=run_id)
    return _run_object(tuple(row))


def runs(cursor: CursorWrapper, *, before: tuple[str, str] | None, limit: int) -> list[dict[str, Any]]:
    """Runs, the latest first, before one of them."""
    rows = _rows(
        cursor,
        f"""{_RUN} AND (%(at)s::timestamptz IS NULL OR (requested_at, id) < (%(at)s::timestamptz, %(before)s::uuid))
            ORDER BY requested_at DESC, id DESC LIMIT %(limit)s""",
        at=before[0] if before else None,
        before=before[1] if before else None,
        limit=limit,
    )
    return [_run_object(row) for row in rows]


# --- Proofs ----------------------------------------------------------------------------------------------------------


def integrity(cursor: CursorWrapper) -> tuple[bool, int, datetime] | None:
    """Whether the last proof and the last finished run found the books in order, accounts that do not agree by the later of both,
    and when that was. None before the first of them."""
    rows = _rows(
        cursor,
        """SELECT is_sound, mismatched, finished_at FROM (
               (SELECT breach_count = 0 AS is_sound, mismatched_account_count AS mismatched, finished_at
                FROM reconciliation_proof WHERE tenant_id = %(tenant)s ORDER BY finished_at DESC LIMIT 1)
               UNION ALL
               (SELECT mismatched_account_count = 0, mismatched_account_count, finished_at FROM reconciliation_run
                WHERE tenant_id = %(tenant)s AND state = 'complete' ORDER BY finished_at DESC LIMIT 1)) last
           ORDER BY finished_at DESC""",
    )
    return (all(sound for sound, *_ in rows), rows[0][1], rows[0][2]) if rows else None


def last_proven(cursor: CursorWrapper) -> tuple[tuple[str, str] | None, datetime] | None:
    """Through which entry (None: there was none) the last proof went that found nothing, and when it began. None without one, or
    when the rows came out of another cluster, whose transactions were numbered higher than this one's are now."""
    rows = _rows(
        cursor,
        """SELECT through_xid::text, through_entry_id::text, started_at FROM reconciliation_proof
           WHERE tenant_id = %(tenant)s AND breach_count = 0
             AND coalesce(through_xid < pg_snapshot_xmax(pg_current_snapshot()), true)
           ORDER BY finished_at DESC LIMIT 1""",
    )
    return ((rows[0][0], rows[0][1]) if rows[0][0] else None, rows[0][2]) if rows else None


def proof_due(cursor: CursorWrapper, *, full_after_days: int) -> tuple[bool, bool]:
    """Whether no proof has begun since midnight in the tenant's time zone, and whether the last full one was so many days ago."""
    rows = _rows(
        cursor,
        """SELECT max(p.started_at) >= (date_trunc('day', now.here) AT TIME ZONE t.timezone),
                  max(p.started_at) FILTER (WHERE p.is_full) > clock_timestamp() - make_interval(days => %(days)s)
           FROM tenant t
           CROSS JOIN LATERAL (SELECT clock_timestamp() AT TIME ZONE t.timezone AS here) now
           LEFT JOIN reconciliation_proof p ON p.tenant_id = t.id AND p.started_at > clock_timestamp() - interval '1 year'
           WHERE t.id = %(tenant)s GROUP BY now.here, t.timezone""",
        days=full_after_days,
    )
    proven, is_fresh = rows[0] if rows else (False, False)
    return not proven, not is_fresh


def latest_statement(cursor: CursorWrapper, *, ref: str, as_of: date) -> tuple[date, int] | None:
    """Last day and closing balance of the latest statement that ends on or before a date."""
    rows = _rows(
        cursor,
        """SELECT to_date, closing_balance_minor FROM bank_statement
           WHERE tenant_id = %(tenant)s AND bank_account_ref = %(ref)s AND to_date <= %(as_of)s
           ORDER BY to_date DESC, imported_at DESC, id DESC LIMIT 1""",
        ref=ref,
        as_of=as_of,
    )
    return (rows[0][0], rows[0][1]) if rows else None
