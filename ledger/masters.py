"""Creating the masters: tenants with their chart, programs and loans with their first terms. No posting here.

Each runs on the cursor of a `tenant_transaction()` and answers what the API shows.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant
from ledger import queries
from ledger.chart import TEMPLATES
from ledger.errors import ProgramNotFound

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
        cursor.execute(
            "INSERT INTO loan_terms (tenant_id, loan_id, effective_at, annual_rate_bps) VALUES (%s, %s, %s, %s)",
            (tenant_id, loan_id, opened_on, annual_rate_bps),
        )
    created = queries.loan(cursor, loan_id=loan_id, on=on)
    assert created is not None
    return created[0]
