"""All reads: one function per question. Each runs on the cursor of a `tenant_transaction()`.

Every statement filters by the running transaction's tenant; row security is the second wall. Signed sums exist only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from django.db import connections
from django.db.backends.utils import CursorWrapper

from hpts.metrics import Reading
from hpts.models import ApiClient
from hpts.tenancy import current_tenant, tenant_transaction
from ledger import document
from ledger.chart import Account, Chart
from ledger.events import METHODS, SETTLED
from ledger.models import PROPOSAL_DECISIONS
from ledger.state import CHARGED_OFF, REFINANCED

EPOCH = datetime.fromtimestamp(0, UTC)


def _rows(cursor: CursorWrapper, sql: str, **params: Any) -> list[tuple[Any, ...]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds and Z, as stored documents have it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- Tenants ---------------------------------------------------------------------------------------------------------


def tenant_ids() -> list[str]:
    """Every tenant, oldest first. Not to be asked inside a tenant's transaction."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT tenant_ids()::text")
        return [tenant_id for (tenant_id,) in cursor.fetchall()]


def tenants() -> list[str]:
    """Every tenant, then those that only a client names, because their own row is gone."""
    listed = tenant_ids()
    named = ApiClient.objects.order_by("tenant_id").values_list("tenant_id", flat=True).distinct()
    return listed + sorted({str(tenant_id) for tenant_id in named} - set(listed))


# --- For operators ---------------------------------------------------------------------------------------------------


def gauges() -> list[Reading]:
    """Accrual runs that have not ended, over all tenants."""
    open_runs, waiting, oldest, left_out = 0, 0, 0.0, 0
    for tenant_id in tenant_ids():
        with tenant_transaction(tenant_id) as cursor:
            ((runs, queued, seconds, exceptions),) = _rows(
                cursor,
                """SELECT count(*), count(*) FILTER (WHERE started_at IS NULL),
                          coalesce(extract(epoch FROM clock_timestamp() - min(requested_at)), 0)::float8,
                          (SELECT count(*) FROM accrual_exception x
                           JOIN accrual_run r ON r.tenant_id = x.tenant_id AND r.id = x.run_id
                           WHERE x.tenant_id = %(tenant)s AND r.requested_at > clock_timestamp() - interval '1 day')
                   FROM accrual_run WHERE tenant_id = %(tenant)s AND finished_at IS NULL""",
            )
        open_runs, waiting, oldest = open_runs + runs, waiting + queued, max(oldest, seconds)
        left_out += exceptions
    return [
        Reading("hpts_accrual_runs_open", "Accrual runs that have not ended.", open_runs),
        Reading("hpts_accrual_runs_waiting", "Accrual runs that no worker has begun.", waiting),
        Reading("hpts_accrual_run_oldest_seconds", "Since when the oldest of them has been asked for.", oldest),
        Reading("hpts_accrual_exceptions", "Loans that runs of the last day have left out.", left_out),
    ]


# --- Masters ---------------------------------------------------------------------------------------------------------


def tenant_is_active(tenant_id: str) -> bool:
    """Whether a tenant with this id exists. Opens a transaction of its own: authentication asks before any other."""
    with tenant_transaction(tenant_id) as cursor:
        return bool(_rows(cursor, "SELECT 1 FROM tenant WHERE id = %(tenant)s"))


def tenant_quota(tenant_id: str) -> tuple[int | None, int | None]:
    """Requests a second of the tenant and of each of its clients, where its row says. Opens a transaction of its own."""
    with tenant_transaction(tenant_id) as cursor:
        rows = _rows(cursor, "SELECT requests_per_second, client_requests_per_second FROM tenant WHERE id = %(tenant)s")
    return (rows[0][0], rows[0][1]) if rows else (None, None)


def tenant_directory(*, name: str = "", tenant_id: str | None = None, limit: int = 1) -> list[tuple[str, str]]:
    """Ids and names of tenants whose name holds a text, or the one with this id. For platform staff: no tenant's transaction,
    and as hpts_readonly, who alone may ask."""
    with connections["readonly"].cursor() as cursor:
        cursor.execute(
            "SELECT id::text, name FROM tenant_directory(%s::uuid, %s::text, %s::int)", (tenant_id, name, limit)
        )
        found: list[tuple[str, str]] = cursor.fetchall()
        return found


def tenant_of_transaction(cursor: CursorWrapper) -> tuple[str, str, str, str, date] | None:
    """Id, name, currency and time zone of the running transaction's tenant, and which date is today there."""
    rows = _rows(
        cursor,
        """SELECT id::text, name, currency, timezone, (clock_timestamp() AT TIME ZONE timezone)::date
           FROM tenant WHERE id = %(tenant)s""",
    )
    return rows[0] if rows else None


def today(cursor: CursorWrapper) -> date:
    """Today in the tenant's time zone, by the database's clock."""
    ((day,),) = _rows(
        cursor, "SELECT (clock_timestamp() AT TIME ZONE timezone)::date FROM tenant WHERE id = %(tenant)s"
    )
    return day  # type: ignore[no-any-return]


def tenant_currency(cursor: CursorWrapper) -> str:
    """The currency that the tenant reckons in; its loans may be in others."""
    ((currency,),) = _rows(cursor, "SELECT currency FROM tenant WHERE id = %(tenant)s")
    return str(currency)


def read_chart(cursor: CursorWrapper) -> Chart:
    return Chart(account for account, _ in accounts(cursor))


def accounts(cursor: CursorWrapper) -> list[tuple[Account, bool]]:
    """The chart in order of code, each account with whether it is closed."""
    rows = _rows(
        cursor,
        """SELECT code, name, account_type, normal_side, per_loan, role, closed_at IS NOT NULL
           FROM gl_account WHERE tenant_id = %(tenant)s ORDER BY code""",
    )
    return [(Account(*row[:6]), row[6]) for row in rows]


def account_object(account: Account, closed: bool) -> dict[str, Any]:
    """An account as the API shows it."""
    return {
        "account_code": account.code,
        "account_name": account.name,
        "account_type": account.account_type,
        "normal_side": account.normal_side,
        "per_loan": account.per_loan,
        "closed": closed,
    }


def books(cursor: CursorWrapper) -> list[tuple[str, str]]:
    """Every currency and layer that some line is in."""
    return _rows(cursor, "SELECT currency, layer FROM account_books(%(tenant)s) ORDER BY currency, layer")


def closed_periods(cursor: CursorWrapper, *, before: str | None, limit: int) -> list[tuple[date, str]]:
    """Closed periods, the latest first, before one of them: the date, and the JSON that the API shows."""
    rows = _rows(
        cursor,
        """SELECT through_date, closed_at, trial_balances FROM period_close
           WHERE tenant_id = %(tenant)s AND (%(before)s::date IS NULL OR through_date < %(before)s::date)
           ORDER BY through_date DESC LIMIT %(limit)s""",
        before=before,
        limit=limit,
    )
    return [
        (through, f'{{"through_date":"{through}","closed_at":"{timestamp(at)}","trial_balances":{balances}}}')
        for through, at, balances in rows
    ]


# --- Programs and loans ----------------------------------------------------------------------------------------------

_PROGRAM = """
    SELECT p.id, p.name, p.currency, t.annual_rate_bps, p.day_count_convention, t.waterfall, t.accrual_mode, p.created_at
    FROM program p
    CROSS JOIN LATERAL (
        SELECT pt.annual_rate_bps, pt.waterfall, pt.accrual_mode FROM program_terms pt
        WHERE pt.tenant_id = p.tenant_id AND pt.program_id = p.id AND pt.effective_at <= %(on)s
        ORDER BY pt.effective_at DESC, pt.id DESC LIMIT 1) t
    WHERE p.tenant_id = %(tenant)s
"""


def _program_object(row: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "program_id": str(row[0]),
        "name": row[1],
        "currency": row[2],
        "annual_rate_bps": row[3],
        "day_count_convention": row[4],
        "waterfall": row[5].split(","),
        "accrual_mode": row[6],
        "created_at": timestamp(row[7]),
    }


def program(cursor: CursorWrapper, *, program_id: str, on: date) -> dict[str, Any] | None:
    """A program with the terms in force on a date, as the API shows it."""
    rows = _rows(cursor, f"{_PROGRAM} AND p.id = %(program)s", program=program_id, on=on)
    return _program_object(rows[0]) if rows else None


def programs(cursor: CursorWrapper, *, on: date, after: str | None, limit: int) -> list[dict[str, Any]]:
    """Programs in order of id, after one of them."""
    rows = _rows(
        cursor,
        f"{_PROGRAM} AND (%(after)s::uuid IS NULL OR p.id > %(after)s::uuid) ORDER BY p.id LIMIT %(limit)s",
        on=on,
        after=after,
        limit=limit,
    )
    return [_program_object(row) for row in rows]


def waterfalls(cursor: CursorWrapper, *, program_id: str) -> list[tuple[date, tuple[str, ...]]]:
    """A program's waterfalls, each from its date on; of two for one date the later one comes last."""
    rows = _rows(
        cursor,
        """SELECT effective_at, waterfall FROM program_terms
           WHERE tenant_id = %(tenant)s AND program_id = %(program)s ORDER BY effective_at, id""",
        program=program_id,
    )
    return [(since, tuple(order.split(","))) for since, order in rows]


# Lent and owing nothing is paid off; receivables are never below zero, so that their sum tells. A loan's own terms come
# before its program's, each member by itself; those of a restructure hold until it is reversed.
_OWN_TERMS = """
    SELECT t.{member} FROM loan_terms t
    WHERE t.tenant_id = l.tenant_id AND t.loan_id = l.id AND t.effective_at <= greatest({on}, l.opened_on)
      AND t.{member} IS NOT NULL
      AND NOT EXISTS (SELECT FROM journal_entry r WHERE r.tenant_id = t.tenant_id AND r.reverses_entry_id = t.entry_id)
    ORDER BY t.effective_at DESC, t.id DESC LIMIT 1"""
_LOAN = f"""
    SELECT * FROM (
        SELECT l.id, l.borrower_id, l.program_id, l.currency,
               coalesce(l.ended_as, CASE WHEN l.draws > 0 AND owed.minor = 0 THEN 'paid_off' ELSE 'open' END) AS state,
               l.opened_on,
               coalesce(({_OWN_TERMS.format(member="annual_rate_bps", on="%(on)s")}), pt.annual_rate_bps) AS annual_rate_bps,
               coalesce(({_OWN_TERMS.format(member="day_count_convention", on="%(on)s")}), p.day_count_convention)
                   AS day_count_convention,
               l.principal_limit_minor, l.created_at, l.version
        FROM loan l
        JOIN program p ON p.tenant_id = l.tenant_id AND p.id = l.program_id
        LEFT JOIN LATERAL (
            SELECT t.annual_rate_bps FROM program_terms t
            WHERE t.tenant_id = l.tenant_id AND t.program_id = l.program_id AND t.effective_at <= greatest(%(on)s, l.opened_on)
            ORDER BY t.effective_at DESC, t.id DESC LIMIT 1) pt ON true
        LEFT JOIN LATERAL (
            SELECT sum(b.balance_minor) AS minor
            FROM loan_balance b
            JOIN gl_account a ON a.tenant_id = b.tenant_id AND a.code = b.account_code
            WHERE b.tenant_id = l.tenant_id AND b.loan_id = l.id AND b.layer = 'SETTLED'
              AND a.role IN ('principal', 'interest', 'fees')) owed ON true
        WHERE l.tenant_id = %(tenant)s {{where}}) shown
"""


def _loan_object(row: tuple[Any, ...]) -> dict[str, Any]:
    shown = {
        "loan_id": str(row[0]),
        "borrower_id": str(row[1]),
        "program_id": str(row[2]),
        "currency": row[3],
        "state": row[4],
        "opened_on": row[5].isoformat(),
        "annual_rate_bps": row[6],
        "day_count_convention": row[7],
        "created_at": timestamp(row[9]),
    }
    if row[8] is not None:
        shown["principal_limit_minor"] = str(row[8])
    return shown


def loan(cursor: CursorWrapper, *, loan_id: str, on: date) -> tuple[dict[str, Any], int] | None:
    """A loan as the API shows it, and its version."""
    rows = _rows(cursor, _LOAN.format(where="AND l.id = %(loan)s"), loan=loan_id, on=on)
    return (_loan_object(rows[0]), rows[0][10]) if rows else None


def loans(
    cursor: CursorWrapper,
    *,
    on: date,
    program_id: str | None,
    borrower_id: str | None,
    state: str | None,
    after: str | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Loans in order of id, after one of them, that pass the filters."""
    where = ""
    if program_id is not None:
        where += " AND l.program_id = %(program)s"
    if borrower_id is not None:
        where += " AND l.borrower_id = %(borrower)s"
    if after is not None:
        where += " AND l.id > %(after)s"
    if state in (CHARGED_OFF, REFINANCED):
        where += " AND l.ended_as = %(state)s"
    sql = _LOAN.format(where=where) + (" WHERE state = %(state)s" if state else "") + " ORDER BY id LIMIT %(limit)s"
    rows = _rows(cursor, sql, on=on, program=program_id, borrower=borrower_id, state=state, after=after, limit=limit)
    return [_loan_object(row) for row in rows]


def loan_version(cursor: CursorWrapper, *, loan_id: str) -> int | None:
    """How many entries have touched a loan; None when there is no such loan."""
    rows = _rows(cursor, "SELECT version FROM loan WHERE tenant_id = %(tenant)s AND id = %(loan)s", loan=loan_id)
    return rows[0][0] if rows else None


def version_of_entrys_loan(cursor: CursorWrapper, *, entry_id: str) -> int | None:
    """The version of the one loan that an entry is about; None when it is about none or many."""
    rows = _rows(
        cursor,
        """SELECT l.version FROM journal_entry e
           JOIN loan l ON l.tenant_id = e.tenant_id AND l.id = e.loan_id
           WHERE e.tenant_id = %(tenant)s AND e.id = %(entry)s""",
        entry=entry_id,
    )
    return rows[0][0] if rows else None


# --- Journal ---------------------------------------------------------------------------------------------------------


def entry(cursor: CursorWrapper, *, entry_id: str) -> str | None:
    """An entry as the API shows it: JSON, as it was rendered when it was posted."""
    rows = _rows(
        cursor, "SELECT document FROM journal_entry WHERE tenant_id = %(tenant)s AND id = %(entry)s", entry=entry_id
    )
    return document.public(rows[0][0]) if rows else None


def proposal(cursor: CursorWrapper, *, proposal_id: str) -> tuple[Any, ...] | None:
    """Operation, path, body, reason, maker and time of a proposal; what was decided, by whom, when, why, and the entry."""
    rows = _rows(
        cursor,
        """SELECT p.operation_id, p.path::text, p.body::text, p.reason, p.maker, p.proposed_at, d.decision, d.decided_by,
                  d.decided_at, d.reason, d.entry_id::text
           FROM proposal p
           LEFT JOIN proposal_decision d ON d.tenant_id = p.tenant_id AND d.proposal_id = p.id
           WHERE p.tenant_id = %(tenant)s AND p.id = %(proposal)s""",
        proposal=proposal_id,
    )
    if not rows:
        return None
    operation_id, path, body, *rest = rows[0]
    return operation_id, msgspec.json.decode(path), msgspec.json.decode(body), *rest


PROPOSAL_STATES = ("open", *PROPOSAL_DECISIONS)


def proposal_rows(
    cursor: CursorWrapper, *, state: str | None, maker: str | None, after: Sequence[str] | None, limit: int
) -> list[dict[str, Any]]:
    """Proposals, the latest first, behind the one whose time and id are `after`."""
    rows = _rows(
        cursor,
        """SELECT p.id::text, p.operation_id, p.reason, p.maker, p.proposed_at, coalesce(d.decision, 'open'), d.decided_by,
                  d.entry_id::text
           FROM proposal p
           LEFT JOIN proposal_decision d ON d.tenant_id = p.tenant_id AND d.proposal_id = p.id
           WHERE p.tenant_id = %(tenant)s
             AND (%(state)s::text IS NULL OR coalesce(d.decision, 'open') = %(state)s)
             AND (%(maker)s::text IS NULL OR p.maker = %(maker)s)
             AND (%(at)s::timestamptz IS NULL OR (p.proposed_at, p.id) < (%(at)s::timestamptz, %(before)s::uuid))
           ORDER BY p.proposed_at DESC, p.id DESC LIMIT %(limit)s""",
        state=state,
        maker=maker if maker is None or ":" in maker else f"staff:{maker}",
        at=after[0] if after else None,
        before=after[1] if after else None,
        limit=limit,
    )
    names = ("proposal_id", "operation_id", "reason", "maker", "proposed_at", "state", "decided_by", "entry_id")
    return [dict(zip(names, row, strict=True)) for row in rows]


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One entry of a loan's history: the loan's version after it, and its JSON with the loan's own lines."""

    version: int
    body: str


# An accrual of many loans, or its reversal: each loan's history shows its own lines alone.
_SHARED = """(e.loan_id IS NULL AND 'accrual' = CASE e.event_type WHEN 'reversal' THEN (
                 SELECT o.event_type FROM journal_entry o WHERE o.tenant_id = e.tenant_id AND o.id = e.reverses_entry_id)
             ELSE e.event_type END)"""


def history(
    cursor: CursorWrapper,
    *,
    loan_id: str,
    from_date: date | None,
    to_date: date | None,
    kind: str | None,
    after: int,
    limit: int,
) -> list[HistoryItem]:
    """A loan's entries after a version, oldest first. Versions are given out under the loan's lock, so none appears late."""
    where = ""
    if from_date is not None:
        where += " AND l.effective_at >= %(from)s"
    if to_date is not None:
        where += " AND l.effective_at <= %(to)s"
    if kind is not None:
        where += " AND e.event_type = %(kind)s"
    rows = _rows(
        cursor,
        f"""SELECT loan_version, id, batch, CASE WHEN batch THEN left(document, {document.HEAD}) ELSE document END,
                   posted_at, reverses_entry_id
            FROM (SELECT DISTINCT ON (l.loan_version) l.loan_version, e.id, e.document, e.posted_at,
                         e.reverses_entry_id, {_SHARED} AS batch
                  FROM journal_line l
                  JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id
                  WHERE l.tenant_id = %(tenant)s AND l.loan_id = %(loan)s AND l.loan_version > %(after)s{where}
                  ORDER BY l.loan_version LIMIT %(limit)s) page
            ORDER BY loan_version""",
        loan=loan_id,
        after=after,
        limit=limit,
        kind=kind,
        **{"from": from_date, "to": to_date},
    )
    shared = [row[1] for row in rows if row[2]]
    lines = _lines_of_loan(cursor, loan_id, shared) if shared else {}
    return [
        HistoryItem(
            version,
            document.with_lines(text, lines[entry_id], timestamp(posted_at), reverses and str(reverses))
            if batch
            else document.public(text),
        )
        for version, entry_id, batch, text, posted_at, reverses in rows
    ]


def _lines_of_loan(
    cursor: CursorWrapper, loan_id: str, entry_ids: Sequence[object]
) -> dict[object, list[dict[str, Any]]]:
    """One loan's lines of entries that it shares with other loans, with the sequence numbers that they have there."""
    rows = _rows(
        cursor,
        """SELECT entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id::text,
                  borrower_id::text, external_ref
           FROM journal_line
           WHERE tenant_id = %(tenant)s AND loan_id = %(loan)s AND entry_id = ANY (%(entries)s)
           ORDER BY entry_id, sequence""",
        loan=loan_id,
        entries=list(entry_ids),
    )
    lines: dict[object, list[dict[str, Any]]] = {}
    for entry_id, *line in rows:
        lines.setdefault(entry_id, []).append(document.line_object(*line))
    return lines


@dataclass(frozen=True, slots=True)
class PaymentEntry:
    """A payment in force, its settlement, or an allocation from suspense; `payment_event_id`: what a replan allocated anew;
    `order`: the loan's version after it, or after the allocation that a replan posted again."""

    order: int
    entry_id: str
    event_type: str
    effective_at: date
    document: str
    settles_entry_id: str | None
    payment_event_id: str | None


def payment_entries(cursor: CursorWrapper, *, loan_id: str) -> list[PaymentEntry]:
    """A loan's payments, settlements and allocations in force, oldest first."""
    rows = _rows(
        cursor,
        """SELECT DISTINCT ON (l.loan_version) coalesce((e.facts->>'order')::bigint, l.loan_version), e.id::text, e.event_type,
                  e.effective_at, e.document, e.settles_entry_id::text, e.facts->>'payment_event_id'
           FROM journal_line l
           JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id
           WHERE l.tenant_id = %(tenant)s AND l.loan_id = %(loan)s
             AND e.event_type IN ('payment_received', 'payment_allocated')
             AND NOT EXISTS (SELECT FROM journal_entry x WHERE x.tenant_id = e.tenant_id AND x.reverses_entry_id = e.id)
           ORDER BY l.loan_version""",
        loan=loan_id,
    )
    return [PaymentEntry(*row) for row in rows]


def suspense_allocations(cursor: CursorWrapper, *, loan_id: str) -> list[tuple[str, str, int, str | None]]:
    """A loan's allocations from suspense in force, newest first: entry, document, what returns have undone of it, and the
    payment that a replan allocated anew by it."""
    rows = _rows(
        cursor,
        """SELECT e.id, e.document, coalesce((
                  SELECT sum((r.facts->'undone'->>e.id::text)::bigint)
                  FROM journal_entry r
                  WHERE r.tenant_id = e.tenant_id AND r.loan_id = e.loan_id AND r.event_type = 'payment_returned'
                    AND r.facts->'undone' ? e.id::text), 0)::bigint, e.facts->>'payment_event_id'
           FROM journal_entry e
           WHERE e.tenant_id = %(tenant)s AND e.loan_id = %(loan)s AND e.event_type = 'payment_allocated'
             AND e.settles_entry_id IS NULL
             AND NOT EXISTS (SELECT FROM journal_entry x WHERE x.tenant_id = e.tenant_id AND x.reverses_entry_id = e.id)
           ORDER BY (SELECT l.loan_version FROM journal_line l
                     WHERE l.tenant_id = e.tenant_id AND l.entry_id = e.id AND l.sequence = 1) DESC""",
        loan=loan_id,
    )
    return [(str(entry_id), *row) for entry_id, *row in rows]


def has_recovery(cursor: CursorWrapper, *, loan_id: str) -> bool:
    """Whether some recovery of a loan is in force."""
    return bool(
        _rows(
            cursor,
            """SELECT 1 FROM journal_entry e
               WHERE e.tenant_id = %(tenant)s AND e.loan_id = %(loan)s AND e.event_type = 'recovery'
                 AND NOT EXISTS (SELECT FROM journal_entry x
                                 WHERE x.tenant_id = e.tenant_id AND x.reverses_entry_id = e.id)
               LIMIT 1""",
            loan=loan_id,
        )
    )


# --- Balances --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoanBalances:
    """What a loan owed at the end of a date, by role, and when an entry effective by then was last posted."""

    currency: str
    version: int
    by_role: dict[str, int]
    last_activity_at: datetime | None


# The version that a loan had at an instant. Versions are given out under the loan's lock, without a gap, and `posted_at`
# rises with them: so halving finds it, in a few look-ups by key however long the history is.
_VERSION_AT = """(
    WITH RECURSIVE halving (low, high) AS (
        SELECT 0::bigint, l.version
        UNION ALL
        SELECT CASE WHEN probe.known THEN probe.version ELSE h.low END,
               CASE WHEN probe.known THEN h.high ELSE probe.version - 1 END
        FROM halving h
        CROSS JOIN LATERAL (
            SELECT j.loan_version AS version, (
                       SELECT e.posted_at <= %({at})s::timestamptz FROM journal_entry e
                       WHERE e.tenant_id = j.tenant_id AND e.id = j.entry_id) AS known
            FROM journal_line j
            WHERE j.tenant_id = l.tenant_id AND j.loan_id = l.id AND j.loan_version = (h.low + h.high + 1) / 2
            LIMIT 1) probe
        WHERE h.low < h.high)
    SELECT h.low FROM halving h WHERE h.low = h.high)"""


def loan_balances(
    cursor: CursorWrapper, *, loan_id: str, as_of: date, known_at: str | None = None
) -> LoanBalances | None:
    """SETTLED balances of a loan with entries effective on or before `as_of`, as they were known at an instant (by default
    now): the cached rows, or the lines when other entries exist. One statement, so that version, balances and date are
    of one moment."""
    rows = _rows(
        cursor,
        f"""SELECT l.currency, l.version,
                  CASE WHEN cached THEN l.last_posted_at ELSE (
                      SELECT e.posted_at FROM journal_entry e
                      WHERE e.tenant_id = l.tenant_id AND e.id = (
                          SELECT j.entry_id FROM journal_line j
                          WHERE j.tenant_id = l.tenant_id AND j.loan_id = l.id AND j.loan_version <= known.version
                            AND j.effective_at <= %(as_of)s
                          ORDER BY j.loan_version DESC LIMIT 1)) END,
                  CASE WHEN cached THEN (
                      SELECT json_object_agg(a.role, b.balance_minor)
                      FROM loan_balance b
                      JOIN gl_account a ON a.tenant_id = b.tenant_id AND a.code = b.account_code
                      WHERE b.tenant_id = l.tenant_id AND b.loan_id = l.id AND b.layer = %(layer)s
                        AND a.role IS NOT NULL)
                  ELSE (
                      SELECT json_object_agg(s.role, s.minor)
                      FROM (SELECT a.role,
                                   sum(CASE j.direction WHEN a.normal_side THEN j.amount_minor ELSE -j.amount_minor END)
                                       AS minor
                            FROM journal_line j
                            JOIN gl_account a ON a.tenant_id = j.tenant_id AND a.code = j.account_code
                            WHERE j.tenant_id = l.tenant_id AND j.loan_id = l.id AND j.loan_version <= known.version
                              AND j.effective_at <= %(as_of)s AND j.layer = %(layer)s
                              AND a.per_loan AND a.role IS NOT NULL
                            GROUP BY a.role) s)
                  END
           FROM loan l
           -- OFFSET 0, or each mention of the version would look for it again.
           CROSS JOIN LATERAL (
               SELECT {_VERSION_AT.format(at="known_at") if known_at else "l.version"} AS version OFFSET 0) known
           CROSS JOIN LATERAL (
               SELECT l.last_effective_at <= %(as_of)s AND known.version = l.version AS cached) answer
           WHERE l.tenant_id = %(tenant)s AND l.id = %(loan)s""",
        loan=loan_id,
        as_of=as_of,
        known_at=known_at,
        layer=SETTLED,
    )
    if not rows:
        return None
    currency, version, last_activity_at, by_role = rows[0]
    return LoanBalances(currency, version, by_role or {}, last_activity_at)


# The balances that a statement follows, in the order in which it shows them, each with the side on which it grows.
STATED = {"principal": "DR", "interest": "DR", "fees": "DR", "suspense": "CR"}
_AMOUNTS = ",".join(f'"{role}_minor":"%s"' for role in STATED)
# An entry of a statement as SQL, of a row `s`: what it changed, and the balances after it.
_STATED_ENTRY = (
    """'{"journal_entry_id":"' || s.entry_id || '","event_type":"' || s.event_type || '","effective_at":"' || s.effective_at
       || '","posted_at":"' || to_char(s.posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '",'"""
    + " || ',' ".join(f"""|| '"{role}_minor":"' || s.{role} || '"'""" for role in STATED)
    + """ || ',"balance":{' """
    + " || ',' ".join(f"""|| '"{role}_minor":"' || s.{role}_after || '"'""" for role in STATED)
    + " || '}}'"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A loan's SETTLED balances before and after some of its entries, and the entries: what each changed, and the balances
    after it. All three are JSON, as the API shows them. Within a day a balance may pass below zero; the day ends at zero
    or above."""

    currency: str
    version: int
    opened_on: date
    opening: str
    entries: str
    closing: str


def statement(cursor: CursorWrapper, *, loan_id: str, since: date | None, until: date) -> Statement | None:
    """What moved a loan from one date to another, both included, by effective date and then as it was posted. Without
    `since` from the loan's opening on."""
    return _stated(
        cursor,
        loan_id=loan_id,
        shown="j.effective_at >= coalesce(%(since)s::date, l.opened_on)",
        counted="j.effective_at <= %(until)s::date",
        order="c.effective_at NULLS FIRST, c.version",
        since=since,
        until=until,
    )


def balance_changes(
    cursor: CursorWrapper, *, loan_id: str, as_of: date, known_after: str, known_at: str
) -> Statement | None:
    """What was learned of a loan's balances as of a date between two instants, as it was posted."""
    return _stated(
        cursor,
        loan_id=loan_id,
        instants=f"""CROSS JOIN LATERAL (
            SELECT {_VERSION_AT.format(at="known_after")} AS earlier, {_VERSION_AT.format(at="known_at")} AS later
            OFFSET 0) known""",
        shown="j.loan_version > known.earlier",
        counted="j.loan_version <= known.later AND j.effective_at <= %(as_of)s::date",
        order="c.version",
        as_of=as_of,
        known_after=known_after,
        known_at=known_at,
    )


def _stated(
    cursor: CursorWrapper, *, loan_id: str, shown: str, counted: str, order: str, instants: str = "", **params: Any
) -> Statement | None:
    """One statement, so that balances and entries are of one moment: the lines that are counted become a row per entry that
    is shown, and one row of version 0 for all that lies before.

    A statement may have thousands of entries: lines are met with the accounts' codes and not joined with the chart, entries
    are looked up one by one, by full key (OFFSET 0), and PostgreSQL makes one text of them, which passes through.
    """
    codes = ", ".join(f"max(a.code) FILTER (WHERE a.role = '{role}') AS {role}" for role in STATED)
    sums = ", ".join(
        f"""coalesce(sum(CASE j.direction WHEN '{side}' THEN j.amount_minor ELSE -j.amount_minor END)
                     FILTER (WHERE j.account_code = chart.{role}), 0)::bigint AS {role}"""
        for role, side in STATED.items()
    )
    after = ", ".join(f"sum(c.{role}) OVER in_order AS {role}_after" for role in STATED)
    before = ", ".join(f"coalesce(sum(s.{role}) FILTER (WHERE s.entry_id IS NULL), 0)" for role in STATED)
    rows = _rows(
        cursor,
        f"""SELECT l.currency, l.version, l.opened_on, stated.*
            FROM loan l {instants}
            CROSS JOIN LATERAL (SELECT {codes} FROM gl_account a WHERE a.tenant_id = l.tenant_id) chart
            CROSS JOIN LATERAL (
                SELECT string_agg({_STATED_ENTRY}, ','), {before}, {", ".join(f"coalesce(sum(s.{role}), 0)" for role in STATED)}
                FROM (
                    SELECT c.*, e.event_type, e.posted_at, {after}
                    FROM (
                        SELECT CASE WHEN {shown} THEN j.loan_version ELSE 0 END AS version,
                               CASE WHEN {shown} THEN j.entry_id END AS entry_id,
                               CASE WHEN {shown} THEN j.effective_at END AS effective_at, {sums}
                        FROM journal_line j
                        WHERE j.tenant_id = l.tenant_id AND j.loan_id = l.id AND j.layer = %(layer)s AND {counted}
                        GROUP BY 1, 2, 3) c
                    LEFT JOIN LATERAL (
                        SELECT e.event_type, e.posted_at FROM journal_entry e
                        WHERE e.tenant_id = l.tenant_id AND e.id = c.entry_id OFFSET 0) e ON true
                    WINDOW in_order AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
                    ORDER BY {order}) s) stated
            WHERE l.tenant_id = %(tenant)s AND l.id = %(loan)s""",
        loan=loan_id,
        layer=SETTLED,
        **params,
    )
    if not rows:
        return None
    currency, version, opened_on, entries, *balances = rows[0]
    opening, closing = balances[: len(STATED)], balances[len(STATED) :]
    return Statement(
        currency,
        version,
        opened_on,
        opening=f"{{{_AMOUNTS % tuple(opening)}}}",
        entries=f"[{entries or ''}]",
        closing=f"{{{_AMOUNTS % tuple(closing)}}}",
    )


# --- Accrual runs ----------------------------------------------------------------------------------------------------

_RUN = """
    SELECT r.id, r.program_id, r.accrual_date, r.started_at, r.finished_at, coalesce(c.loans, 0), coalesce(c.accrued, 0),
           (SELECT count(*) FROM accrual_exception x WHERE x.tenant_id = r.tenant_id AND x.run_id = r.id),
           coalesce(c.total, 0), r.requested_at, coalesce(c.chunks, 0), coalesce(c.done, 0), p.name, p.currency
    FROM accrual_run r
    JOIN program p ON p.tenant_id = r.tenant_id AND p.id = r.program_id
    LEFT JOIN LATERAL (
        SELECT sum(k.loan_count) AS loans, sum(k.accrued_count) AS accrued, sum(k.total_minor) AS total,
               count(*) AS chunks, count(k.done_at) AS done
        FROM accrual_chunk k WHERE k.tenant_id = r.tenant_id AND k.run_id = r.id) c ON true
    WHERE r.tenant_id = %(tenant)s
"""


def _run_object(row: tuple[Any, ...]) -> dict[str, Any]:
    run_id, program_id, accrual_date, started_at, finished_at, loans, accrued, exceptions, total, *_ = row
    if finished_at is not None:
        state = "complete_with_exceptions" if exceptions else "complete"
    else:
        state = "running" if started_at is not None else "queued"
    shown = {
        "accrual_run_id": str(run_id),
        "program_id": str(program_id),
        "accrual_date": accrual_date.isoformat(),
        "state": state,
        "loan_count": int(loans),
        "accrued_count": int(accrued),
        "exception_count": exceptions,
        "total_accrued_minor": str(total),
    }
    if started_at is not None:
        shown["started_at"] = timestamp(started_at)
    if finished_at is not None:
        shown["finished_at"] = timestamp(finished_at)
    return shown


def accrual_run(cursor: CursorWrapper, *, run_id: str) -> dict[str, Any] | None:
    """An accrual run as the API shows it."""
    rows = _rows(cursor, f"{_RUN} AND r.id = %(run)s", run=run_id)
    return _run_object(rows[0]) if rows else None


def accrual_exceptions(cursor: CursorWrapper, *, run_id: str, limit: int) -> list[dict[str, str]]:
    """The loans that a run could not accrue, and why, in order of id."""
    rows = _rows(
        cursor,
        """SELECT loan_id, code, detail FROM accrual_exception WHERE tenant_id = %(tenant)s AND run_id = %(run)s
           ORDER BY loan_id LIMIT %(limit)s""",
        run=run_id,
        limit=limit,
    )
    return [{"loan_id": str(loan_id), "code": code, "detail": detail} for loan_id, code, detail in rows]


def accrual_runs(
    cursor: CursorWrapper, *, program_id: str | None, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """Accrual runs, the latest date first, after a date and id."""
    return [_run_object(row) for row in _runs(cursor, program_id, after, limit)]


def _runs(
    cursor: CursorWrapper, program_id: str | None, after: tuple[str, str] | None, limit: int
) -> list[tuple[Any, ...]]:
    where = ""
    if program_id is not None:
        where += " AND r.program_id = %(program)s"
    if after is not None:
        where += " AND (r.accrual_date, r.id) < (%(date)s::date, %(run)s::uuid)"
    on, run_id = after or (None, None)
    return _rows(
        cursor,
        f"{_RUN}{where} ORDER BY r.accrual_date DESC, r.id DESC LIMIT %(limit)s",
        program=program_id,
        date=on,
        run=run_id,
        limit=limit,
    )


def run_progress(cursor: CursorWrapper, *, run_id: str) -> tuple[int, int]:
    """How many chunks a run has, and how many of them are done."""
    rows = _rows(
        cursor,
        """SELECT count(*), count(done_at) FROM accrual_chunk WHERE tenant_id = %(tenant)s AND run_id = %(run)s""",
        run=run_id,
    )
    return rows[0]


def has_accrued(cursor: CursorWrapper, *, program_id: str, since: date) -> bool:
    """Whether some loan of a program has been accrued for a date or a later one, by an entry in force."""
    rows = _rows(
        cursor,
        """SELECT 1 FROM loan l
           JOIN loan_accrual x ON x.tenant_id = l.tenant_id AND x.loan_id = l.id AND x.accrual_date >= %(since)s
           WHERE l.tenant_id = %(tenant)s AND l.program_id = %(program)s AND l.last_effective_at >= %(since)s
             AND NOT EXISTS (SELECT FROM journal_entry r WHERE r.tenant_id = x.tenant_id AND r.reverses_entry_id = x.entry_id)
           LIMIT 1""",
        program=program_id,
        since=since,
    )
    return bool(rows)


def accruals_due(cursor: CursorWrapper) -> list[tuple[str, date]]:
    """Each program that the engine accrues and that is behind, and the date that is next: the day after its last run, not before
    the engine took over and not in a closed period. None while one of its runs is under way."""
    return _rows(
        cursor,
        """SELECT p.id::text, next.day
           FROM program p
           JOIN tenant n ON n.id = p.tenant_id
           CROSS JOIN LATERAL (SELECT (clock_timestamp() AT TIME ZONE n.timezone)::date AS today) now
           -- The last time that the engine accrued without a break. A program's first terms hold for every date: by them the
           -- engine accrues from the day on which the program was made.
           CROSS JOIN LATERAL (
               SELECT CASE WHEN m.before IS NULL THEN (p.created_at AT TIME ZONE n.timezone)::date ELSE m.effective_at END
                          AS since, m.until
               FROM (SELECT c.*, coalesce(lead(c.effective_at) OVER (ORDER BY c.effective_at, c.id), 'infinity') AS until
                     FROM (SELECT t.id, t.effective_at, t.accrual_mode,
                                  lag(t.accrual_mode) OVER (ORDER BY t.effective_at, t.id) AS before
                           FROM program_terms t WHERE t.tenant_id = p.tenant_id AND t.program_id = p.id) c
                     WHERE c.accrual_mode IS DISTINCT FROM c.before) m
               WHERE m.accrual_mode = 'engine' AND m.effective_at < m.until AND m.effective_at <= now.today
               ORDER BY m.effective_at DESC, m.id DESC LIMIT 1) engine
           CROSS JOIN LATERAL (
               SELECT greatest(engine.since,
                               (SELECT max(r.accrual_date) + 1 FROM accrual_run r
                                WHERE r.tenant_id = p.tenant_id AND r.program_id = p.id),
                               (SELECT max(c.through_date) + 1 FROM period_close c WHERE c.tenant_id = p.tenant_id)) AS day) next
           WHERE p.tenant_id = %(tenant)s AND next.day <= now.today AND next.day < engine.until
             AND NOT EXISTS (SELECT FROM accrual_run r
                             WHERE r.tenant_id = p.tenant_id AND r.program_id = p.id AND r.finished_at IS NULL)
           ORDER BY p.id""",
    )


def idle_runs(cursor: CursorWrapper) -> list[str]:
    """The runs that have not ended and that nobody has brought on for a while, the oldest first."""
    rows = _rows(
        cursor,
        """SELECT r.id::text FROM accrual_run r
           WHERE r.tenant_id = %(tenant)s AND r.finished_at IS NULL
             AND greatest(r.requested_at, r.started_at,
                          (SELECT max(c.done_at) FROM accrual_chunk c WHERE c.tenant_id = r.tenant_id AND c.run_id = r.id))
                 < clock_timestamp() - interval '10 seconds'
           ORDER BY r.requested_at""",
    )
    return [run_id for (run_id,) in rows]


# --- Payoff ----------------------------------------------------------------------------------------------------------


def payoff(cursor: CursorWrapper, *, loan_id: str, as_of: date) -> tuple[dict[str, str], int] | None:
    """What settles a loan at the end of a date, as the API shows it, and the loan's version. Needs a snapshot.

    Interest that is not yet posted is below zero when what has been posted is too much, after a back-dated payment; it
    then lowers the interest that is owed, and no more than that.
    """
    found = loan_balances(cursor, loan_id=loan_id, as_of=as_of)
    if found is None:
        return None
    amounts = {role: found.by_role.get(role, 0) for role in STATED}
    counted, posted, _ = interest_counted(cursor, loan_id=loan_id, through=as_of)
    accrued = max(counted - posted, -amounts["interest"])
    return {
        "loan_id": loan_id,
        "currency": found.currency,
        "as_of_date": as_of.isoformat(),
        **{f"{role}_minor": str(minor) for role, minor in amounts.items()},
        "accrued_interest_minor": str(accrued),
        "payoff_minor": str(amounts["principal"] + amounts["interest"] + amounts["fees"] + accrued),
    }, found.version


def interest_counted(cursor: CursorWrapper, *, loan_id: str, through: date) -> tuple[int, int, int]:
    """A loan's interest from its opening through a date as the engine counts it; what the engine has posted of dates up to it;
    and what in all. Minor units. All zero when the engine has never accrued its program; where terms are missing nothing can be
    counted, and it is what has been posted. Needs a snapshot or the loan's lock."""
    rows = _rows(
        cursor,
        """SELECT coalesce(minor_units(loan_interest(l.tenant_id, l.id, %(through)s, l.version)),
                           l.interest_posted_minor)::bigint,
                  l.interest_posted_minor - CASE WHEN l.accrued_through > %(through)s THEN (
                      SELECT coalesce(sum(x.interest_minor), 0) FROM loan_accrual x
                      WHERE x.tenant_id = l.tenant_id AND x.loan_id = l.id AND x.accrual_date > %(through)s
                        AND x.since IS NOT NULL
                        AND NOT EXISTS (SELECT FROM journal_entry r
                                        WHERE r.tenant_id = x.tenant_id AND r.reverses_entry_id = x.entry_id)) ELSE 0 END,
                  l.interest_posted_minor
           FROM loan l WHERE l.tenant_id = %(tenant)s AND l.id = %(loan)s""",
        loan=loan_id,
        through=through,
    )
    counted, posted_by_then, posted = rows[0] if rows else (0, 0, 0)
    return counted, int(posted_by_then), posted


def unposted_interest(cursor: CursorWrapper, *, loan_id: str, through: date) -> int:
    """What a loan's interest through a date is above all that the engine has posted: what has to be posted if it ends then."""
    counted, _, posted = interest_counted(cursor, loan_id=loan_id, through=through)
    return counted - posted


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """Gross debits and credits of an account, and their difference on its normal side (may be negative)."""

    account: Account
    dr_minor: int
    cr_minor: int

    @property
    def normal_minor(self) -> int:
        net = self.dr_minor - self.cr_minor
        return net if self.account.normal_side == "DR" else -net


def trial_balance(
    cursor: CursorWrapper,
    *,
    currency: str,
    layer: str,
    as_of: date,
    code: str | None = None,
    known_at: str | None = None,
) -> list[AccountBalance]:
    """Every account of the chart (or one) with the sums of its lines effective on or before `as_of`, and posted by an
    instant when one is given; one statement, so debits and credits are of one moment."""
    sums = "SELECT * FROM account_balances(%(tenant)s, %(currency)s, %(layer)s, %(as_of)s, %(code)s)"
    bound = None
    if known_at:
        instant = datetime.fromisoformat(known_at)
        if _is_nearer_to_the_beginning(cursor, known_at):
            # An accrual's id may be a millisecond late.
            bound = first_id(instant + timedelta(milliseconds=2))
            sums = _MOVED.format(sign="", when="e.id < %(bound)s", posted="<=")
        else:
            bound = first_id(instant)
            sums += " UNION ALL " + _MOVED.format(sign="-", when="e.id >= %(bound)s", posted=">")
    rows = _rows(
        cursor,
        f"""SELECT a.code, a.name, a.account_type, a.normal_side, a.per_loan, a.role, coalesce(s.dr, 0), coalesce(s.cr, 0)
           FROM gl_account a
           LEFT JOIN (SELECT account_code, sum(dr_minor) AS dr, sum(cr_minor) AS cr FROM ({sums}) m GROUP BY account_code) s
               ON s.account_code = a.code
           WHERE a.tenant_id = %(tenant)s AND (%(code)s::text IS NULL OR a.code = %(code)s::text)
           ORDER BY a.code""",
        currency=currency,
        layer=layer,
        as_of=as_of,
        code=code,
        known_at=known_at,
        bound=bound,
    )
    return [AccountBalance(Account(*row[:6]), int(row[6]), int(row[7])) for row in rows]


# What the entries posted up to an instant, or after it, have moved; the bound on the ids reads no others.
_MOVED = """
    SELECT j.account_code, {sign}coalesce(sum(j.amount_minor) FILTER (WHERE j.direction = 'DR'), 0) AS dr_minor,
           {sign}coalesce(sum(j.amount_minor) FILTER (WHERE j.direction = 'CR'), 0) AS cr_minor
    FROM journal_entry e
    JOIN journal_line j ON j.tenant_id = e.tenant_id AND j.entry_id = e.id
    WHERE e.tenant_id = %(tenant)s AND {when} AND e.posted_at {posted} %(known_at)s::timestamptz
      AND j.currency = %(currency)s AND j.layer = %(layer)s AND j.effective_at <= %(as_of)s
      AND (%(code)s::text IS NULL OR j.account_code = %(code)s::text)
    GROUP BY j.account_code"""


def _is_nearer_to_the_beginning(cursor: CursorWrapper, known_at: str) -> bool:
    """Whether an instant is nearer to the tenant's beginning than to now: so that the shorter part of the journal is read."""
    ((nearer,),) = _rows(
        cursor,
        """SELECT %(known_at)s::timestamptz - created_at < clock_timestamp() - %(known_at)s::timestamptz
           FROM tenant WHERE id = %(tenant)s""",
        known_at=known_at,
    )
    return bool(nearer)


def first_id(instant: datetime) -> str:
    """No entry that was posted at this instant or later has a smaller id: ids begin with their milliseconds (RFC 9562)."""
    milliseconds = (instant - EPOCH) // timedelta(milliseconds=1)
    digits = f"{min(max(milliseconds, 0), (1 << 48) - 1):012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"


# Each account that is kept per loan, in each currency and layer, on its normal side. For a FROM.
CONTROL_ACCOUNTS = """
    SELECT a.code, b.currency, b.layer,
           CASE a.normal_side WHEN 'DR' THEN s.dr_minor - s.cr_minor ELSE s.cr_minor - s.dr_minor END AS minor
    FROM account_books(%(tenant)s) b
    CROSS JOIN LATERAL account_balances(%(tenant)s, b.currency, b.layer, 'infinity', NULL) s
    JOIN gl_account a ON a.tenant_id = %(tenant)s AND a.code = s.account_code AND a.per_loan"""


def account_balance_object(balance: AccountBalance) -> dict[str, str]:
    """An account's balance as the API shows it."""
    return {
        "account_code": balance.account.code,
        "account_name": balance.account.name,
        "dr_balance_minor": str(balance.dr_minor),
        "cr_balance_minor": str(balance.cr_minor),
        "normal_balance_minor": str(balance.normal_minor),
    }


def trial_balance_object(balances: Sequence[AccountBalance], currency: str, layer: str) -> dict[str, Any]:
    """A trial balance as the API shows it."""
    return {
        "currency": currency,
        "layer": layer,
        "accounts": [account_balance_object(balance) for balance in balances],
        "total_dr_minor": str(sum(balance.dr_minor for balance in balances)),
        "total_cr_minor": str(sum(balance.cr_minor for balance in balances)),
    }


# --- The journal in its order ----------------------------------------------------------------------------------------

# An entry's place is (created_xid, id); this id comes before all of a transaction.
BEFORE_ALL = "00000000-0000-0000-0000-000000000000"

_RECORDED = """FROM outbox_message o
                 CROSS JOIN LATERAL (SELECT e.document, e.line_count, e.effective_at FROM journal_entry e
                                     WHERE e.tenant_id = o.tenant_id AND e.id = o.entry_id OFFSET 0) e
                 WHERE o.tenant_id = %(tenant)s AND o.created_xid < %(below)s::xid8
                   AND (%(from)s::date IS NULL OR e.effective_at >= %(from)s)
                   AND (%(to)s::date IS NULL OR e.effective_at <= %(to)s)
                   AND (o.created_xid, o.entry_id) > (%(xid)s::xid8, %(after)s::uuid)"""


def journal_size(cursor: CursorWrapper, *, since: str, below: str, from_date: date | None, to_date: date | None) -> int:
    """How many entries were recorded from one transaction id on and below another."""
    asked = {"xid": since, "below": below, "after": BEFORE_ALL, "from": from_date, "to": to_date}
    ((count,),) = _rows(cursor, f"SELECT count(*) {_RECORDED}", **asked)
    return int(count)


def journal_after(
    cursor: CursorWrapper,
    *,
    below: str,
    after: tuple[str, str],
    from_date: date | None,
    to_date: date | None,
    entries: int,
    lines: int,
) -> list[tuple[str, str, str]]:
    """Transaction id, id and document of the next entries, so many at most, and of no more lines unless it is one entry."""
    xid, entry_id = after
    asked = {"xid": xid, "below": below, "after": entry_id, "from": from_date, "to": to_date}
    return _rows(
        cursor,
        f"""SELECT xid::text, entry_id::text, document
            FROM (SELECT *, row_number() OVER w AS place, sum(line_count) OVER w AS lines
                  FROM (SELECT o.created_xid AS xid, o.entry_id, e.document, e.line_count {_RECORDED}
                        ORDER BY o.created_xid, o.entry_id LIMIT %(entries)s) next
                  WINDOW w AS (ORDER BY xid, entry_id)) counted
            WHERE place = 1 OR lines <= %(lines)s
            ORDER BY place""",
        entries=entries,
        lines=lines,
        **asked,
    )


# --- Sealed history --------------------------------------------------------------------------------------------------


class Unsealed(NamedTuple):
    """A tenant with entries that are in no block. `is_final`: the oldest of them can be sealed now."""

    tenant_id: str
    waiting_since: datetime
    is_final: bool


def unsealed() -> list[Unsealed]:
    """Every tenant with something to seal. Not to be asked inside a tenant's transaction."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT tenant_id::text, waiting_since, is_final FROM seal_work()")
        return [Unsealed(*row) for row in cursor.fetchall()]


def seals(cursor: CursorWrapper, *, before: int | None, limit: int) -> list[dict[str, Any]]:
    """Blocks as the API shows them, the last one first."""
    rows = _rows(
        cursor,
        f"""SELECT number, merkle_root, previous_hash, hash, sealed_at, signature, entry_count, key_id FROM journal_seal
            WHERE tenant_id = %(tenant)s{"" if before is None else " AND number < %(before)s"}
            ORDER BY number DESC LIMIT %(limit)s""",
        before=before,
        limit=limit,
    )
    return [
        _block(*covered) | {"entry_count": count} | ({} if key_id is None else {"key_id": key_id})
        for *covered, count, key_id in rows
    ]


def _block(
    number: int, merkle_root: bytes, previous_hash: bytes, own_hash: bytes, sealed_at: datetime, signature: bytes | None
) -> dict[str, Any]:
    """A block as every answer shows it."""
    block: dict[str, Any] = {
        "number": number,
        "merkle_root": merkle_root.hex(),
        "previous_hash": previous_hash.hex(),
        "hash": own_hash.hex(),
        "sealed_at": timestamp(sealed_at),
    }
    if signature is not None:
        block["signature"] = signature.hex()
    return block


@dataclass(frozen=True, slots=True)
class Sealed:
    """An entry and its place in sealed history. Without a block it has none yet."""

    document: str
    content_hash: bytes
    block: dict[str, Any] | None
    leaf_index: int
    leaves: bytes


def sealed_entry(cursor: CursorWrapper, *, entry_id: str) -> Sealed | None:
    """What proves an entry; None when there is no such entry. One statement, and so one moment."""
    rows = _rows(
        cursor,
        """SELECT e.document, e.content_hash, s.number, s.merkle_root, s.previous_hash, s.hash, s.sealed_at, s.signature,
                  s.leaves, (SELECT count(*) FROM outbox_message o
                   WHERE o.tenant_id = e.tenant_id AND (o.created_xid, o.entry_id) < (e.created_xid, e.id)
                     AND (o.created_xid, o.entry_id) > (coalesce(b.last_xid, '0'),
                                                        coalesce(b.last_entry_id, '00000000-0000-0000-0000-000000000000')))
           FROM journal_entry e
           LEFT JOIN LATERAL (SELECT * FROM journal_seal s
                              WHERE s.tenant_id = e.tenant_id AND (s.last_xid, s.last_entry_id) >= (e.created_xid, e.id)
                              ORDER BY s.last_xid, s.last_entry_id LIMIT 1) s ON true
           LEFT JOIN journal_seal b ON b.tenant_id = e.tenant_id AND b.number = s.number - 1
           WHERE e.tenant_id = %(tenant)s AND e.id = %(entry)s""",
        entry=entry_id,
    )
    if not rows:
        return None
    row = rows[0]
    block = None if row[2] is None else _block(*row[2:8])
    return Sealed(row[0], bytes(row[1]), block, row[9], bytes(row[8] or b""))


# --- What the admin shows --------------------------------------------------------------------------------------------

# How many of the latest entries are looked through for what has no index: an amount, a line's reference, a correlation id.
RECENT_ENTRIES = 50_000


def _as_dicts(cursor: CursorWrapper, sql: str, **params: Any) -> list[dict[str, Any]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _one(cursor: CursorWrapper, sql: str, **params: Any) -> dict[str, Any] | None:
    found = _as_dicts(cursor, sql, **params)
    return found[0] if found else None


# A page that says how many there are counts no more than these.
COUNTED = 20_000


def postings_of_day(cursor: CursorWrapper) -> list[dict[str, Any]]:
    """How many entries of each kind are among those posted since the tenant's day began, the last `COUNTED` of them, and when
    the last one was. Ids of entries begin with the millisecond of their posting, so that the key finds them."""
    return _as_dicts(
        cursor,
        """SELECT e.event_type, count(*) AS entries, max(e.posted_at) AS last_posted_at
           FROM tenant n
           CROSS JOIN LATERAL (
               SELECT date_trunc('day', clock_timestamp() AT TIME ZONE n.timezone) AT TIME ZONE n.timezone AS began) day
           CROSS JOIN LATERAL (
               SELECT j.event_type, j.posted_at FROM journal_entry j
               WHERE j.tenant_id = n.id
                 AND j.id >= (lpad(to_hex((extract(epoch FROM day.began) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
               ORDER BY j.id DESC LIMIT %(counted)s) e
           WHERE n.id = %(tenant)s GROUP BY e.event_type ORDER BY entries DESC, e.event_type""",
        counted=COUNTED,
    )


def postings_by_date(cursor: CursorWrapper, *, since: date, until: date) -> list[tuple[date, str, int]]:
    """How many entries of each kind count for each of the dates."""
    return _rows(
        cursor,
        """SELECT effective_at, event_type, count(*) FROM journal_entry
           WHERE tenant_id = %(tenant)s AND effective_at BETWEEN %(since)s AND %(until)s
           GROUP BY effective_at, event_type ORDER BY effective_at""",
        since=since,
        until=until,
    )


def account_sums(cursor: CursorWrapper, *, as_of: date) -> list[dict[str, Any]]:
    """Debits and credits of every account by currency and layer, of entries effective on or before a date."""
    return _as_dicts(
        cursor,
        """SELECT a.code, a.name, a.account_type, a.normal_side, s.currency, s.layer, s.dr, s.cr,
                  CASE a.normal_side WHEN 'DR' THEN s.dr - s.cr ELSE s.cr - s.dr END AS minor
           FROM gl_account a
           JOIN (SELECT k.currency, k.layer, b.account_code, b.dr_minor::bigint AS dr, b.cr_minor::bigint AS cr
                 FROM account_books(%(tenant)s) k
                 CROSS JOIN account_balances(%(tenant)s, k.currency, k.layer, %(as_of)s, NULL) b) s ON s.account_code = a.code
           WHERE a.tenant_id = %(tenant)s ORDER BY s.currency, s.layer DESC, a.code""",
        as_of=as_of,
    )


def entries(
    cursor: CursorWrapper,
    *,
    kind: str | None,
    layer: str | None,
    since: str | None,
    until: str | None,
    reference: str | None,
    after: tuple[str] | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Entries that pass the filters, the latest posted first, after one of them. `minor` is the sum of the debits, when they
    are of one currency."""
    asked = {
        "e.event_type = %(kind)s": kind,
        "e.effective_at >= %(since)s::date": since,
        "e.effective_at <= %(until)s::date": until,
        "e.external_ref = %(reference)s": reference,
        "e.id < %(after)s::uuid": after,
        """EXISTS (SELECT FROM journal_line j WHERE j.tenant_id = e.tenant_id AND j.entry_id = e.id
                   AND j.layer = %(layer)s)""": layer,
    }
    where = "".join(f" AND {condition}" for condition, value in asked.items() if value is not None)
    return _as_dicts(
        cursor,
        f"""SELECT e.id::text AS entry_id, e.event_type, e.loan_id::text AS loan_id, e.effective_at, e.posted_at, e.external_ref,
                   e.line_count, d.currency, d.minor, r.id IS NOT NULL AS reversed
            FROM (SELECT * FROM journal_entry e WHERE e.tenant_id = %(tenant)s{where} ORDER BY e.id DESC LIMIT %(limit)s) e
            LEFT JOIN journal_entry r ON r.tenant_id = e.tenant_id AND r.reverses_entry_id = e.id
            LEFT JOIN LATERAL (
                SELECT CASE WHEN min(j.currency) = max(j.currency) THEN min(j.currency) END AS currency,
                       CASE WHEN min(j.currency) = max(j.currency) THEN sum(j.amount_minor) END AS minor
                FROM journal_line j
                WHERE j.tenant_id = e.tenant_id AND j.entry_id = e.id AND j.direction = 'DR') d ON true
            ORDER BY e.id DESC""",
        kind=kind,
        layer=layer,
        since=since,
        until=until,
        reference=reference,
        after=after[0] if after else None,
        limit=limit,
    )


def entry_shown(cursor: CursorWrapper, *, entry_id: str) -> dict[str, Any] | None:
    """An entry's columns, the head of its document, the idempotency key that posted it and the engine's run that did.

    The key's row is of the same transaction, written after the entry: it is sought among those of the minute behind it.
    """
    return _one(
        cursor,
        f"""SELECT e.id::text AS entry_id, e.event_type, e.loan_id::text AS loan_id, e.effective_at, e.posted_at,
                   e.correlation_id::text AS correlation_id, e.reverses_entry_id::text AS reverses_entry_id,
                   e.settles_entry_id::text AS settles_entry_id, e.source_method, e.external_ref, e.line_count,
                   e.facts::json AS facts,
                   left(e.document, {document.HEAD}) AS head, encode(e.content_hash, 'hex') AS content_hash,
                   r.id::text AS run_id,
                   (SELECT k.key FROM idempotency_key k
                    WHERE k.tenant_id = e.tenant_id
                      AND k.created_at BETWEEN e.posted_at - interval '1 s' AND e.posted_at + interval '60 s'
                      AND strpos(k.response, e.id::text) > 0
                    ORDER BY k.created_at LIMIT 1) AS key
            FROM journal_entry e
            LEFT JOIN accrual_run r ON r.tenant_id = e.tenant_id AND r.accrual_date = e.effective_at
                 AND r.correlation_id = e.correlation_id AND e.event_type = 'accrual'
            WHERE e.tenant_id = %(tenant)s AND e.id = %(entry)s""",
        entry=entry_id,
    )


def entry_lines(cursor: CursorWrapper, *, entry_id: str, limit: int) -> list[dict[str, Any]]:
    """An entry's lines in order, with the names of their accounts."""
    return _as_dicts(
        cursor,
        """SELECT j.sequence, j.account_code, a.name AS account_name, j.direction, j.amount_minor, j.currency, j.layer,
                  j.loan_id::text AS loan_id, j.external_ref
           FROM journal_line j JOIN gl_account a ON a.tenant_id = j.tenant_id AND a.code = j.account_code
           WHERE j.tenant_id = %(tenant)s AND j.entry_id = %(entry)s ORDER BY j.sequence LIMIT %(limit)s""",
        entry=entry_id,
        limit=limit,
    )


def entry_sums(cursor: CursorWrapper, *, entry_id: str) -> list[dict[str, Any]]:
    """Debits and credits of an entry by currency and layer."""
    return _as_dicts(
        cursor,
        """SELECT currency, layer, coalesce(sum(amount_minor) FILTER (WHERE direction = 'DR'), 0)::bigint AS dr,
                  coalesce(sum(amount_minor) FILTER (WHERE direction = 'CR'), 0)::bigint AS cr
           FROM journal_line WHERE tenant_id = %(tenant)s AND entry_id = %(entry)s
           GROUP BY currency, layer ORDER BY currency, layer DESC""",
        entry=entry_id,
    )


def entry_chain(cursor: CursorWrapper, *, entry_id: str) -> list[dict[str, Any]]:
    """The entries that an entry hangs together with: what it reverses or settles, and what reverses or settles it, however
    far; as they were posted."""
    return _as_dicts(
        cursor,
        """WITH RECURSIVE chain (id) AS (
               SELECT %(entry)s::uuid
               UNION
               SELECT linked.id FROM chain c CROSS JOIN LATERAL (
                   SELECT unnest(ARRAY[e.reverses_entry_id, e.settles_entry_id]) FROM journal_entry e
                   WHERE e.tenant_id = %(tenant)s AND e.id = c.id
                   UNION ALL
                   SELECT e.id FROM journal_entry e WHERE e.tenant_id = %(tenant)s AND e.reverses_entry_id = c.id
                   UNION ALL
                   SELECT e.id FROM journal_entry e WHERE e.tenant_id = %(tenant)s AND e.settles_entry_id = c.id) linked (id)
               WHERE linked.id IS NOT NULL)
           SELECT e.id::text AS entry_id, e.event_type, e.effective_at, e.posted_at,
                  e.reverses_entry_id::text AS reverses_entry_id, e.settles_entry_id::text AS settles_entry_id
           FROM journal_entry e WHERE e.tenant_id = %(tenant)s AND e.id IN (SELECT id FROM chain) ORDER BY e.id LIMIT 100""",
        entry=entry_id,
    )


def loan_rows(
    cursor: CursorWrapper,
    *,
    on: date,
    state: str | None,
    program: str | None,
    borrower: str | None,
    after: tuple[str] | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Loans in order of id that pass the filters, as the API shows them, with program and balances by role."""
    found = loans(
        cursor,
        on=on,
        program_id=program,
        borrower_id=borrower,
        state=state,
        after=after[0] if after else None,
        limit=limit,
    )
    more = _rows(
        cursor,
        """SELECT l.id::text, p.name, l.last_posted_at, coalesce(json_object_agg(a.role, b.balance_minor)
                  FILTER (WHERE a.role IS NOT NULL AND b.layer = 'SETTLED'), '{}')
           FROM loan l
           JOIN program p ON p.tenant_id = l.tenant_id AND p.id = l.program_id
           LEFT JOIN loan_balance b ON b.tenant_id = l.tenant_id AND b.loan_id = l.id
           LEFT JOIN gl_account a ON a.tenant_id = b.tenant_id AND a.code = b.account_code
           WHERE l.tenant_id = %(tenant)s AND l.id = ANY (%(ids)s::uuid[]) GROUP BY l.id, p.name, l.last_posted_at""",
        ids=[each["loan_id"] for each in found],
    )
    by_id = {loan_id: (name, last, balances) for loan_id, name, last, balances in more}
    shown = []
    for each in found:
        name, last, balances = by_id[each["loan_id"]]
        owed = {role: balances.get(role, 0) for role in STATED}
        shown.append(each | owed | {"program_name": name, "last_posted_at": last})
    return shown


def loan_terms_of(cursor: CursorWrapper, *, loan_id: str) -> dict[str, Any] | None:
    """What the API does not say of a loan: its program's name, how far it is accrued, and what paused it."""
    return _one(
        cursor,
        """SELECT p.name AS program_name, l.version, l.last_effective_at, l.last_posted_at, l.accrued_through,
                  (SELECT count(*) FROM accrual_pause x WHERE x.tenant_id = l.tenant_id AND x.loan_id = l.id
                     AND x.reversed_revision IS NULL) AS pauses
           FROM loan l JOIN program p ON p.tenant_id = l.tenant_id AND p.id = l.program_id
           WHERE l.tenant_id = %(tenant)s AND l.id = %(loan)s""",
        loan=loan_id,
    )


def loan_balance_rows(cursor: CursorWrapper, *, loan_id: str) -> list[dict[str, Any]]:
    """A loan's balances by account and layer, as they are now."""
    return _as_dicts(
        cursor,
        """SELECT b.account_code AS code, a.name, b.layer, b.currency, b.balance_minor AS minor
           FROM loan_balance b JOIN gl_account a ON a.tenant_id = b.tenant_id AND a.code = b.account_code
           WHERE b.tenant_id = %(tenant)s AND b.loan_id = %(loan)s ORDER BY b.layer DESC, b.account_code""",
        loan=loan_id,
    )


def account_days(cursor: CursorWrapper, *, code: str, since: date, until: date) -> list[dict[str, Any]]:
    """What moved an account on each date from `since` on, by currency and layer; a row without a date is all before it."""
    return _as_dicts(
        cursor,
        """SELECT currency, layer, effective_at, dr_minor::bigint AS dr, cr_minor::bigint AS cr
           FROM account_days(%(tenant)s, %(code)s, %(since)s, %(until)s)
           ORDER BY currency, layer DESC, effective_at NULLS FIRST""",
        code=code,
        since=since,
        until=until,
    )


def account_tail(
    cursor: CursorWrapper, *, code: str, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """An account's lines, the latest posted first, after one of them."""
    behind = "AND (j.entry_id, j.sequence) < (%(entry)s::uuid, %(sequence)s::smallint)" if after else ""
    return _as_dicts(
        cursor,
        f"""SELECT j.entry_id::text AS entry_id, j.sequence, e.event_type, j.effective_at, e.posted_at, j.direction,
                   CASE j.direction WHEN 'DR' THEN j.amount_minor END AS dr,
                   CASE j.direction WHEN 'CR' THEN j.amount_minor END AS cr,
                   j.currency, j.layer, j.loan_id::text AS loan_id
            FROM (SELECT * FROM journal_line j
                  WHERE j.tenant_id = %(tenant)s AND j.account_code = %(code)s {behind}
                  ORDER BY j.entry_id DESC, j.sequence DESC LIMIT %(limit)s) j
            JOIN journal_entry e ON e.tenant_id = j.tenant_id AND e.id = j.entry_id
            ORDER BY j.entry_id DESC, j.sequence DESC""",
        code=code,
        entry=after[0] if after else None,
        sequence=after[1] if after else None,
        limit=limit,
    )


def cash_lines(
    cursor: CursorWrapper, *, code: str, currency: str, since: date, until: date
) -> tuple[int, list[tuple[date, int, str | None]]]:
    """An account's settled balance before a date, debit positive, and its lines from then to another one: date, net amount and
    the entry's reference. What a bank's statement would show."""
    ((before,),) = _rows(
        cursor,
        """SELECT coalesce(sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END), 0)::bigint FROM journal_line
           WHERE tenant_id = %(tenant)s AND account_code = %(code)s AND currency = %(currency)s AND layer = 'SETTLED'
             AND effective_at < %(since)s""",
        code=code,
        currency=currency,
        since=since,
    )
    lines = _rows(
        cursor,
        """SELECT j.effective_at, CASE j.direction WHEN 'DR' THEN j.amount_minor ELSE -j.amount_minor END, e.external_ref
           FROM journal_line j JOIN journal_entry e ON e.tenant_id = j.tenant_id AND e.id = j.entry_id
           WHERE j.tenant_id = %(tenant)s AND j.account_code = %(code)s AND j.currency = %(currency)s AND j.layer = 'SETTLED'
             AND j.effective_at BETWEEN %(since)s AND %(until)s
           ORDER BY j.effective_at, j.entry_id, j.sequence""",
        code=code,
        currency=currency,
        since=since,
        until=until,
    )
    return before, lines


def accrual_run_rows(
    cursor: CursorWrapper, *, program: str | None, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """Accrual runs as the API shows them, with their programs' names and currencies and real instants."""
    return [
        _run_object(row) | {"started_at": row[3], "finished_at": row[4], "program_name": row[-2], "currency": row[-1]}
        for row in _runs(cursor, program, after, limit)
    ]


def run_entries(cursor: CursorWrapper, *, run_id: str, limit: int) -> list[dict[str, Any]]:
    """A run's chunks, in order: how many loans each had, how many it accrued, and when it was done."""
    return _as_dicts(
        cursor,
        """SELECT number, loan_count, accrued_count, total_minor::bigint AS total_minor, done_at FROM accrual_chunk
           WHERE tenant_id = %(tenant)s AND run_id = %(run)s ORDER BY number LIMIT %(limit)s""",
        run=run_id,
        limit=limit,
    )


def programs_behind(cursor: CursorWrapper, *, yesterday: date) -> list[dict[str, Any]]:
    """Programs that the engine accrues, with the last date that was accrued for each and the day up to which it should be."""
    return _as_dicts(
        cursor,
        """SELECT p.id::text AS program_id, p.name,
                  (SELECT max(r.accrual_date) FROM accrual_run r
                   WHERE r.tenant_id = p.tenant_id AND r.program_id = p.id AND r.finished_at IS NOT NULL) AS accrued_through,
                  %(yesterday)s::date AS due_through
           FROM program p
           WHERE p.tenant_id = %(tenant)s AND 'engine' = (
               SELECT t.accrual_mode FROM program_terms t
               WHERE t.tenant_id = p.tenant_id AND t.program_id = p.id AND t.effective_at <= %(yesterday)s
               ORDER BY t.effective_at DESC, t.id DESC LIMIT 1)
           ORDER BY p.name""",
        yesterday=yesterday,
    )


def program_rows(cursor: CursorWrapper, *, on: date, after: tuple[str] | None, limit: int) -> list[dict[str, Any]]:
    """Programs as the API shows them, their waterfall in words."""
    found = programs(cursor, on=on, after=after[0] if after else None, limit=limit)
    return [each | {"waterfall": " → ".join(each["waterfall"])} for each in found]


def program_terms(cursor: CursorWrapper, *, program_id: str) -> list[dict[str, Any]]:
    """A program's terms, the latest first; of two for one date the first one holds."""
    return _as_dicts(
        cursor,
        """SELECT effective_at, annual_rate_bps, waterfall, accrual_mode, created_at FROM program_terms
           WHERE tenant_id = %(tenant)s AND program_id = %(program)s ORDER BY effective_at DESC, id DESC LIMIT 100""",
        program=program_id,
    )


def period_shown(cursor: CursorWrapper, *, through: str) -> dict[str, Any] | None:
    """A closed period, with the trial balances that the books had then, as JSON."""
    return _one(
        cursor,
        """SELECT through_date, closed_at, actor, trial_balances FROM period_close
           WHERE tenant_id = %(tenant)s AND through_date = %(through)s::date""",
        through=through,
    )


def period_rows(cursor: CursorWrapper, *, after: tuple[str] | None, limit: int) -> list[dict[str, Any]]:
    """Closed periods, the latest first."""
    return _as_dicts(
        cursor,
        """SELECT through_date, closed_at, actor FROM period_close
           WHERE tenant_id = %(tenant)s AND (%(before)s::date IS NULL OR through_date < %(before)s::date)
           ORDER BY through_date DESC LIMIT %(limit)s""",
        before=after[0] if after else None,
        limit=limit,
    )


def key_rows(
    cursor: CursorWrapper, *, prefix: str | None, after: tuple[str] | None, limit: int
) -> list[dict[str, Any]]:
    """Idempotency keys in order, those that begin with a text."""
    return _as_dicts(
        cursor,
        """SELECT key, created_at, encode(fingerprint, 'hex') AS fingerprint, length(response) AS size FROM idempotency_key
           WHERE tenant_id = %(tenant)s AND (%(after)s::text IS NULL OR key > %(after)s::text COLLATE "C")
             AND (%(prefix)s::text IS NULL
                  OR key >= %(prefix)s::text COLLATE "C" AND key < %(prefix)s::text COLLATE "C" || chr(1114111))
           ORDER BY key LIMIT %(limit)s""",
        prefix=prefix,
        after=after[0] if after else None,
        limit=limit,
    )


def key_shown(cursor: CursorWrapper, *, key: str) -> dict[str, Any] | None:
    """A key, and the answer that a replay repeats."""
    return _one(
        cursor,
        """SELECT key, created_at, encode(fingerprint, 'hex') AS fingerprint, left(response, 20000) AS response
           FROM idempotency_key WHERE tenant_id = %(tenant)s AND key = %(key)s""",
        key=key,
    )


def outbox_rows(cursor: CursorWrapper, *, after: tuple[str] | None, limit: int) -> list[dict[str, Any]]:
    """What the outbox holds, the latest first. Its order among one transaction's entries is that of their ids."""
    return _as_dicts(
        cursor,
        """SELECT o.entry_id::text AS entry_id, o.created_xid::text AS created_xid, e.event_type, e.posted_at, e.effective_at
           FROM (SELECT e.id, e.event_type, e.posted_at, e.effective_at, e.tenant_id, e.created_xid FROM journal_entry e
                 WHERE e.tenant_id = %(tenant)s AND (%(after)s::uuid IS NULL OR e.id < %(after)s::uuid)
                 ORDER BY e.id DESC LIMIT %(limit)s) e
           JOIN outbox_message o ON o.tenant_id = e.tenant_id AND o.created_xid = e.created_xid AND o.entry_id = e.id
           ORDER BY e.id DESC""",
        after=after[0] if after else None,
        limit=limit,
    )


def called(cursor: CursorWrapper, *, uuid: str) -> list[tuple[str, str]]:
    """What of the books has this id: `(kind, id)`. A borrower is told by the loans."""
    return _rows(
        cursor,
        """SELECT 'entry', id::text FROM journal_entry WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid
           UNION ALL SELECT 'loan', id::text FROM loan WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid
           UNION ALL (SELECT 'borrower', id::text FROM loan WHERE tenant_id = %(tenant)s AND borrower_id = %(id)s::uuid
                      ORDER BY id LIMIT 50)
           UNION ALL SELECT 'program', id::text FROM program WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid
           UNION ALL SELECT 'accrual_run', id::text FROM accrual_run WHERE tenant_id = %(tenant)s AND id = %(id)s::uuid""",
        id=uuid,
    )


def entries_called(cursor: CursorWrapper, *, uuids: Sequence[str]) -> list[str]:
    """Which of these ids are entries'."""
    rows = _rows(
        cursor,
        "SELECT id::text FROM journal_entry WHERE tenant_id = %(tenant)s AND id = ANY (%(ids)s::uuid[]) ORDER BY id",
        ids=list(uuids),
    )
    return [entry_id for (entry_id,) in rows]


def referred(cursor: CursorWrapper, *, reference: str) -> list[dict[str, Any]]:
    """The payments with this external reference; when there is none, recent entries with a line that has it."""
    return _as_dicts(
        cursor,
        """WITH known AS (
               SELECT id FROM journal_entry
               WHERE tenant_id = %(tenant)s AND external_ref = %(reference)s AND source_method IS NOT NULL
                 AND source_method = ANY (%(methods)s)
           ), recent AS (
               SELECT coalesce((SELECT id FROM journal_entry WHERE tenant_id = %(tenant)s
                                ORDER BY id DESC OFFSET %(recent)s LIMIT 1),
                               '00000000-0000-0000-0000-000000000000') AS id
           )
           SELECT e.id::text AS entry_id, e.event_type, e.effective_at FROM journal_entry e
           WHERE e.tenant_id = %(tenant)s AND e.id IN (
               SELECT id FROM known UNION
               SELECT j.entry_id FROM journal_line j, recent
               WHERE j.tenant_id = %(tenant)s AND j.entry_id > recent.id AND j.external_ref = %(reference)s
                 AND NOT EXISTS (SELECT FROM known))
           ORDER BY e.id DESC LIMIT 50""",
        reference=reference,
        methods=list(METHODS),
        recent=RECENT_ENTRIES,
    )


def of_amount(cursor: CursorWrapper, *, minor: Sequence[int]) -> list[dict[str, Any]]:
    """Recent entries with a line of one of these amounts, the latest first."""
    return _as_dicts(
        cursor,
        """SELECT DISTINCT ON (j.entry_id) j.entry_id::text AS entry_id, e.event_type, e.effective_at, j.amount_minor, j.currency
           FROM journal_line j JOIN journal_entry e ON e.tenant_id = j.tenant_id AND e.id = j.entry_id
           WHERE j.tenant_id = %(tenant)s AND j.amount_minor = ANY (%(minor)s)
             AND j.entry_id > coalesce((SELECT id FROM journal_entry WHERE tenant_id = %(tenant)s
                                        ORDER BY id DESC OFFSET %(recent)s LIMIT 1),
                                       '00000000-0000-0000-0000-000000000000')
           ORDER BY j.entry_id DESC LIMIT 50""",
        minor=list(minor),
        recent=RECENT_ENTRIES,
    )
