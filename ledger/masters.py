"""Creating the masters: tenants with their chart, programs, loans, terms, accounts, closed periods. No posting here.

Each runs on the cursor of a `tenant_transaction()` and answers what the API shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts.problems import NotFound
from hpts.tenancy import current_tenant
from ledger import queries
from ledger.chart import TEMPLATES
from ledger.errors import AccountClosed, FieldProblem, ProgramNotFound, ValidationFailed

# A program's first terms hold for every date.
SINCE_EVER = date(1, 1, 1)


def create_tenant(cursor: CursorWrapper, *, name: str, currency: str, timezone: str) -> None:
    """The tenant of the running transaction, with the chart of the template `consumer-lending`."""
    tenant_id = current_tenant()
    cursor.execute(
        "INSERT INTO tenant (id, name, currency, timezone) VALUES (%s, %s, %s, %s)",
        (tenant_id, name, currency, timezone),
    )
    cursor.executemany(
        """INSERT INTO gl_account (tenant_id, code, name, account_type, normal_side, per_loan, role)
           VALUES (%s, %s, %s, %s, %s, %s, %s)""",
        [
            (tenant_id, a.code, a.name, a.account_type, a.normal_side, a.per_loan, a.role)
            for a in TEMPLATES["consumer-lending"]
        ],
    )


def create_program(
    cursor: CursorWrapper,
    *,
    on: date,
    program_id: str,
    name: str,
    currency: str,
    annual_rate_bps: int,
    day_count_convention: str,
    waterfall: tuple[str, ...],
    accrual_mode: str,
) -> dict[str, Any]:
    """A program and its first terms. A used id violates `program_pkey` (409 program_exists)."""
    tenant_id = current_tenant()
    cursor.execute(
        "INSERT INTO program (tenant_id, id, name, currency, day_count_convention) VALUES (%s, %s, %s, %s, %s)",
        (tenant_id, program_id, name, currency, day_count_convention),
    )
    cursor.execute(
        """INSERT INTO program_terms (tenant_id, program_id, effective_at, annual_rate_bps, waterfall, accrual_mode)
           VALUES (%s, %s, %s, %s, %s, %s)""",
        (tenant_id, program_id, SINCE_EVER, annual_rate_bps, ",".join(waterfall), accrual_mode),
    )
    created = queries.program(cursor, program_id=program_id, on=on)
    assert created is not None
    return created


def add_program_terms(
    cursor: CursorWrapper,
    *,
    program_id: str,
    effective_at: date,
    annual_rate_bps: int | None,
    waterfall: tuple[str, ...] | None,
    accrual_mode: str | None,
) -> None:
    """New terms of a program from a date on. What is left out stays as it is in force on that date."""
    cursor.execute(
        """INSERT INTO program_terms (tenant_id, program_id, effective_at, annual_rate_bps, waterfall, accrual_mode)
           SELECT t.tenant_id, t.program_id, %(on)s, coalesce(%(rate)s, t.annual_rate_bps),
                  coalesce(%(waterfall)s, t.waterfall), coalesce(%(mode)s, t.accrual_mode)
           FROM program_terms t
           WHERE t.tenant_id = %(tenant)s AND t.program_id = %(program)s AND t.effective_at <= %(on)s
           ORDER BY t.effective_at DESC, t.id DESC LIMIT 1""",
        {
            "tenant": current_tenant(),
            "program": program_id,
            "on": effective_at,
            "rate": annual_rate_bps,
            "waterfall": ",".join(waterfall) if waterfall else None,
            "mode": accrual_mode,
        },
    )
    if cursor.rowcount == 0:
        raise NotFound(f"There is no program {program_id}.")


def create_loan(
    cursor: CursorWrapper,
    *,
    on: date,
    loan_id: str,
    borrower_id: str,
    program_id: str,
    opened_on: date,
    principal_limit_minor: int | None,
    annual_rate_bps: int | None,
) -> dict[str, Any]:
    """A loan in its program's currency, with a rate of its own or the program's. A used id violates `loan_pkey`."""
    tenant_id = current_tenant()
    cursor.execute(
        """INSERT INTO loan (tenant_id, id, borrower_id, program_id, currency, opened_on, principal_limit_minor)
           SELECT p.tenant_id, %s, %s, p.id, p.currency, %s, %s FROM program p WHERE p.tenant_id = %s AND p.id = %s""",
        (loan_id, borrower_id, opened_on, principal_limit_minor, tenant_id, program_id),
    )
    if cursor.rowcount == 0:
        raise ProgramNotFound(f"There is no program {program_id}.")
    if annual_rate_bps is not None:
        add_loan_terms(cursor, loan_id=loan_id, effective_at=opened_on, annual_rate_bps=annual_rate_bps)
    created = queries.loan(cursor, loan_id=loan_id, on=on)
    assert created is not None
    return created[0]


def create_loans(
    cursor: CursorWrapper, *, program_id: str, opened_on: date, loans: Sequence[tuple[str, str, int | None]]
) -> None:
    """Many loans of a program at once: (loan_id, borrower_id, a rate of its own or None)."""
    cursor.execute(
        """WITH made AS (
               SELECT * FROM unnest(%(loans)s::uuid[], %(borrowers)s::uuid[], %(rates)s::int[]) AS m (loan_id, borrower_id, rate)
           ), loan AS (
               INSERT INTO loan (tenant_id, id, borrower_id, program_id, currency, opened_on)
               SELECT p.tenant_id, m.loan_id, m.borrower_id, p.id, p.currency, %(on)s
               FROM made m JOIN program p ON p.tenant_id = %(tenant)s AND p.id = %(program)s
           )
           INSERT INTO loan_terms (tenant_id, loan_id, effective_at, annual_rate_bps)
           SELECT %(tenant)s, loan_id, %(on)s, rate FROM made WHERE rate IS NOT NULL""",
        {
            "tenant": current_tenant(),
            "program": program_id,
            "on": opened_on,
            "loans": [loan_id for loan_id, _, _ in loans],
            "borrowers": [borrower_id for _, borrower_id, _ in loans],
            "rates": [rate for _, _, rate in loans],
        },
    )


def add_loan_terms(
    cursor: CursorWrapper,
    *,
    loan_id: str,
    effective_at: date,
    annual_rate_bps: int | None = None,
    day_count_convention: str | None = None,
    entry_id: str | None = None,
) -> None:
    """A loan's own terms from a date on; with an entry they hold until it is reversed. The entry must be recorded."""
    cursor.execute(
        """INSERT INTO loan_terms (tenant_id, loan_id, effective_at, annual_rate_bps, day_count_convention, entry_id)
           VALUES (%s, %s, %s, %s, %s, %s)""",
        (current_tenant(), loan_id, effective_at, annual_rate_bps, day_count_convention, entry_id),
    )


def add_accrual_pause(
    cursor: CursorWrapper, *, loan_id: str, from_date: date, to_date: date | None, actor: str
) -> dict[str, Any]:
    """A loan earns no interest for these dates. A pause from the same date that was asked for before holds no more."""
    cursor.execute(
        """INSERT INTO accrual_pause (tenant_id, loan_id, from_date, to_date, actor) VALUES (%s, %s, %s, %s, %s)
           RETURNING created_at""",
        (current_tenant(), loan_id, from_date, to_date, actor),
    )
    ((created_at,),) = cursor.fetchall()
    shown = {"loan_id": loan_id, "from_date": from_date.isoformat(), "created_at": queries.timestamp(created_at)}
    return shown | ({"to_date": to_date.isoformat()} if to_date else {})


def create_account(
    cursor: CursorWrapper, *, code: str, name: str, account_type: str, normal_side: str, per_loan: bool
) -> dict[str, Any]:
    """An account of the tenant's own, without a role. Raises ValidationFailed for a code that the chart has."""
    cursor.execute(
        """INSERT INTO gl_account (tenant_id, code, name, account_type, normal_side, per_loan)
           VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
        (current_tenant(), code, name, account_type, normal_side, per_loan),
    )
    if cursor.rowcount == 0:
        taken = FieldProblem("account_code", "exists", f"The chart has an account {code}.")
        raise ValidationFailed("One or more fields are not valid.", [taken])
    return _account(cursor, code)


def close_account(cursor: CursorWrapper, *, code: str, reason: str) -> dict[str, Any]:
    """The account takes no more lines. Raises NotFound, AccountClosed."""
    cursor.execute(
        """UPDATE gl_account SET closed_at = clock_timestamp(), closure_reason = %s
           WHERE tenant_id = %s AND code = %s AND closed_at IS NULL""",
        (reason, current_tenant(), code),
    )
    was_open = cursor.rowcount == 1
    closed = _account(cursor, code)
    if not was_open:
        raise AccountClosed(f"Account {code} is closed.")
    return closed


def _account(cursor: CursorWrapper, code: str) -> dict[str, Any]:
    for account, closed in queries.accounts(cursor):
        if account.code == code:
            return queries.account_object(account, closed)
    raise NotFound(f"There is no account {code}.")


def close_period(cursor: CursorWrapper, *, through_date: date, actor: str) -> dict[str, Any]:
    """Close the books through a date and keep what they say: one trial balance per currency and layer in use.

    The posting must have been opened in the mode `close`, so that nothing is dated into the period meanwhile.
    """
    balances = [
        queries.trial_balance_object(
            queries.trial_balance(cursor, currency=currency, layer=layer, as_of=through_date), currency, layer
        )
        for currency, layer in queries.books(cursor)
    ]
    cursor.execute(
        """INSERT INTO period_close (tenant_id, through_date, actor, trial_balances) VALUES (%s, %s, %s, %s)
           RETURNING closed_at""",
        (current_tenant(), through_date, actor, msgspec.json.encode(balances).decode()),
    )
    ((closed_at,),) = cursor.fetchall()
    return {
        "through_date": through_date.isoformat(),
        "closed_at": queries.timestamp(closed_at),
        "trial_balances": balances,
    }
