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


# --- What the admin shows --------------------------------------------------------------------------------------------


def _as_dicts(cursor: CursorWrapper, sql: str, **params: Any) -> list[dict[str, Any]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


_RUN_SHOWN = """SELECT id::text AS run_id, as_of_date, CASE WHEN is_nightly THEN 'nightly' ELSE 'request' END AS trigger, state,
                       actor, requested_at, started_at, finished_at, matched_count, break_count, mismatched_account_count, detail
                FROM reconciliation_run WHERE tenant_id = %(tenant)s"""


def run_rows(
    cursor: CursorWrapper, *, state: str | None, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """Runs that pass the filter, the latest first, before one of them."""
    return _as_dicts(
        cursor,
        f"""{_RUN_SHOWN} AND (%(state)s::text IS NULL OR state = %(state)s::text)
              AND (%(at)s::timestamptz IS NULL OR (requested_at, id) < (%(at)s::timestamptz, %(before)s::uuid))
            ORDER BY requested_at DESC, id DESC LIMIT %(limit)s""",
        state=state,
        at=after[0] if after else None,
        before=after[1] if after else None,
        limit=limit,
    )


def run_shown(cursor: CursorWrapper, *, run_id: str) -> dict[str, Any] | None:
    found = _as_dicts(cursor, f"{_RUN_SHOWN} AND id = %(run)s::uuid", run=run_id)
    return found[0] if found else None


def last_proof(cursor: CursorWrapper) -> dict[str, Any] | None:
    """The latest proof of the books, with what it found first."""
    found = _as_dicts(
        cursor,
        """SELECT is_full, entry_count, line_count, breach_count, breaches::json AS breaches, actor, finished_at
           FROM reconciliation_proof WHERE tenant_id = %(tenant)s ORDER BY finished_at DESC LIMIT 1""",
    )
    return found[0] if found else None


def bank_account_rows(cursor: CursorWrapper) -> list[dict[str, Any]]:
    """Each bank account with its latest statement and how many of its breaks are open, and how much they make."""
    return _as_dicts(
        cursor,
        """SELECT a.ref, a.account_code, a.currency, s.id::text AS statement_id, s.to_date, s.closing_balance_minor,
                  coalesce(b.breaks, 0) AS open_breaks, coalesce(b.minor, 0)::bigint AS open_minor
           FROM bank_account a
           LEFT JOIN LATERAL (
               SELECT s.id, s.to_date, s.closing_balance_minor FROM bank_statement s
               WHERE s.tenant_id = a.tenant_id AND s.bank_account_ref = a.ref
               ORDER BY s.to_date DESC, s.imported_at DESC LIMIT 1) s ON true
           LEFT JOIN LATERAL (
               SELECT count(*) AS breaks, sum(b.difference_minor) AS minor FROM reconciliation_break b
               WHERE b.tenant_id = a.tenant_id AND b.bank_account_ref = a.ref
                 AND NOT EXISTS (SELECT FROM reconciliation_resolution r
                                 WHERE r.tenant_id = b.tenant_id AND r.break_id = b.id)) b ON true
           WHERE a.tenant_id = %(tenant)s ORDER BY a.ref LIMIT 100""",
    )


def statement_rows(
    cursor: CursorWrapper, *, account: str | None, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """Statements, the latest first, with how many of their lines are matched."""
    return _as_dicts(
        cursor,
        """SELECT s.id::text AS statement_id, s.bank_account_ref, a.currency, s.format, s.from_date, s.to_date,
                  s.opening_balance_minor, s.closing_balance_minor, s.line_count, s.imported_at, s.actor,
                  (SELECT count(*) FROM bank_match_statement_line x
                   WHERE x.tenant_id = s.tenant_id AND x.statement_id = s.id) AS matched_count
           FROM bank_statement s JOIN bank_account a ON a.tenant_id = s.tenant_id AND a.ref = s.bank_account_ref
           WHERE s.tenant_id = %(tenant)s AND (%(account)s::text IS NULL OR s.bank_account_ref = %(account)s::text)
             AND (%(to)s::date IS NULL OR (s.to_date, s.id) < (%(to)s::date, %(before)s::uuid))
           ORDER BY s.to_date DESC, s.id DESC LIMIT %(limit)s""",
        account=account,
        to=after[0] if after else None,
        before=after[1] if after else None,
        limit=limit,
    )


def line_rows(
    cursor: CursorWrapper, *, statement: str, currency: str, after: tuple[str] | None, limit: int
) -> list[dict[str, Any]]:
    """Lines of a statement in its order, each with the match that claims it and the first entry of that match, or its break."""
    rows = _as_dicts(
        cursor,
        """SELECT l.number, l.value_date, l.amount_minor, l.reference, l.description, m.rule,
                  (SELECT min(j.entry_id::text) FROM bank_match_journal_line j
                   WHERE j.tenant_id = l.tenant_id AND j.match_id = x.match_id) AS entry_id,
                  b.id::text AS break_id
           FROM bank_statement_line l
           LEFT JOIN bank_match_statement_line x
                ON x.tenant_id = l.tenant_id AND x.statement_id = l.statement_id AND x.number = l.number
           LEFT JOIN bank_match m ON m.tenant_id = x.tenant_id AND m.id = x.match_id
           LEFT JOIN LATERAL (
               SELECT b.id FROM reconciliation_break b
               WHERE b.tenant_id = l.tenant_id AND b.statement_id = l.statement_id AND b.number = l.number
               ORDER BY b.opened_at DESC LIMIT 1) b ON true
           WHERE l.tenant_id = %(tenant)s AND l.statement_id = %(statement)s::uuid
             AND (%(after)s::int IS NULL OR l.number > %(after)s::int)
           ORDER BY l.number LIMIT %(limit)s""",
        statement=statement,
        after=after[0] if after else None,
        limit=limit,
    )
    return [
        row | {"currency": currency, "state": "matched" if row["rule"] else "break" if row["break_id"] else "open"}
        for row in rows
    ]


_BREAK = """
    SELECT b.id::text AS break_id, b.kind, b.bank_account_ref, a.currency, b.amount_minor, b.difference_minor, b.value_date,
           b.reference, b.statement_id::text AS statement_id, b.number, b.entry_id::text AS entry_id, b.opened_at,
           CASE WHEN r.break_id IS NULL THEN 'open' ELSE 'resolved' END AS state, r.action, r.reason, r.actor, r.resolved_at,
           r.entry_id::text AS resolving_entry_id,
           greatest((coalesce(r.resolved_at, clock_timestamp()) AT TIME ZONE t.timezone)::date - b.value_date, 0) AS age_days
    FROM reconciliation_break b
    JOIN tenant t ON t.id = b.tenant_id
    JOIN bank_account a ON a.tenant_id = b.tenant_id AND a.ref = b.bank_account_ref
    LEFT JOIN reconciliation_resolution r ON r.tenant_id = b.tenant_id AND r.break_id = b.id
    WHERE b.tenant_id = %(tenant)s
"""


def break_rows(
    cursor: CursorWrapper,
    *,
    state: str | None,
    kind: str | None,
    account: str | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Breaks that pass the filters, the oldest money first, after one of them, each with its resolution."""
    return _as_dicts(
        cursor,
        f"""{_BREAK}
             AND (%(kind)s::text IS NULL OR b.kind = %(kind)s::text)
             AND (%(account)s::text IS NULL OR b.bank_account_ref = %(account)s::text)
             AND (%(state)s::text IS NULL OR (r.break_id IS NOT NULL) = (%(state)s::text = 'resolved'))
             AND (%(day)s::date IS NULL OR (b.value_date, b.id) > (%(day)s::date, %(after)s::uuid))
            ORDER BY b.value_date, b.id LIMIT %(limit)s""",
        kind=kind,
        account=account,
        state=state,
        day=after[0] if after else None,
        after=after[1] if after else None,
        limit=limit,
    )


def break_shown(cursor: CursorWrapper, *, break_id: str) -> dict[str, Any] | None:
    """A break with the line of the bank that it is about, and its resolution."""
    found = _as_dicts(
        cursor,
        f"""SELECT b.*, l.description, l.amount_minor AS line_minor FROM ({_BREAK} AND b.id = %(id)s::uuid) b
            LEFT JOIN bank_statement_line l
                 ON l.tenant_id = %(tenant)s AND l.statement_id::text = b.statement_id AND l.number = b.number""",
        id=break_id,
    )
    return found[0] if found else None


def matches_of_entry(cursor: CursorWrapper, *, entry_id: str) -> list[dict[str, Any]]:
    """Which lines of the bank an entry's lines are matched with."""
    return _as_dicts(
        cursor,
        """SELECT m.bank_account_ref, m.rule, m.matched_at, x.statement_id::text AS statement_id, x.number
           FROM bank_match_journal_line j
           JOIN bank_match m ON m.tenant_id = j.tenant_id AND m.id = j.match_id
           LEFT JOIN bank_match_statement_line x ON x.tenant_id = j.tenant_id AND x.match_id = j.match_id
           WHERE j.tenant_id = %(tenant)s AND j.entry_id = %(entry)s::uuid ORDER BY x.statement_id, x.number LIMIT 20""",
        entry=entry_id,
    )


def called(cursor: CursorWrapper, *, uuid: str) -> list[tuple[str, str]]:
    """What of reconciliation has this id: `(kind, id)`."""
    return _rows(
        cursor,
        """SELECT 'run', id::text FROM reconciliation_run WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid
           UNION ALL SELECT 'statement', id::text FROM bank_statement WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid
           UNION ALL SELECT 'break', id::text FROM reconciliation_break WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid""",
        id=uuid,
    )
