"""GET /reconciliation/status: the books against themselves, against the banks, and against the loans. Reads only.

Runs in a transaction of one snapshot, so that closing balances, books and breaks are of one moment.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant
from ledger.events import SETTLED
from ledger.queries import CONTROL_ACCOUNTS, timestamp, trial_balance
from reconciliation import queries
from reconciliation.accounts import BankAccount, bank_accounts
from reconciliation.reconciling import ACROSS

LOANS = """
    SELECT b.account_code AS code, b.currency, b.layer, sum(b.balance_minor) AS minor
    FROM loan_balance b WHERE b.tenant_id = %(tenant)s GROUP BY b.account_code, b.currency, b.layer"""


def status(cursor: CursorWrapper, as_of: date) -> dict[str, Any]:
    return {
        "as_of_date": as_of.isoformat(),
        "ledger_integrity": _ledger_integrity(cursor),
        "bank_reconciliation": [_bank_reconciliation(cursor, account, as_of) for account in bank_accounts(cursor)],
        "portfolio_rollup": _portfolio_rollup(cursor, as_of),
    }


# --- The books against themselves ------------------------------------------------------------------------------------


def _ledger_integrity(cursor: CursorWrapper) -> dict[str, Any]:
    """What the last proof and the last run found; before the first one, what is found now."""
    found = queries.integrity(cursor)
    if found is None:
        count = mismatched_accounts(cursor)
        found = (count == 0, count, datetime.now(UTC))
    is_sound, count, checked_at = found
    return {
        "status": "ok" if is_sound else "mismatch",
        "mismatched_account_count": count,
        "checked_at": timestamp(checked_at),
    }


def mismatched_accounts(cursor: CursorWrapper) -> int:
    """How many control accounts are not the sum of their loans' balances, in some currency and layer."""
    cursor.execute(
        f"""SELECT count(DISTINCT code)
            FROM ({CONTROL_ACCOUNTS}) ledger
            FULL JOIN ({LOANS}) loans USING (code, currency, layer)
            WHERE coalesce(ledger.minor, 0) <> coalesce(loans.minor, 0)""",
        {"tenant": current_tenant()},
    )
    return int(cursor.fetchone()[0])


# --- The books against the banks -------------------------------------------------------------------------------------


def _bank_reconciliation(cursor: CursorWrapper, account: BankAccount, as_of: date) -> dict[str, Any]:
    """Reconciled: no break is open, and what differs has been explained. Pending: no statement has come yet."""
    latest = queries.latest_statement(cursor, ref=account.ref, as_of=as_of)
    difference = 0
    if latest is None:
        state = "pending"
    else:
        through, closing = latest
        difference = closing - _ledger_minor(cursor, account, through)
        open_count, of_lines, of_opening = _standing(cursor, account, through)
        explained = difference - of_lines in (0, of_opening)
        state = "reconciled" if open_count == 0 and explained else "unreconciled"
    return {"bank_account_ref": account.ref, "status": state, "difference_minor": str(difference)}


def _ledger_minor(cursor: CursorWrapper, account: BankAccount, through: date) -> int:
    """The books' side: the GL account's balance, a matched line where the bank's line counts."""
    (books,) = trial_balance(cursor, currency=account.currency, layer=SETTLED, as_of=through, code=account.account_code)
    cursor.execute(
        f"SELECT {ACROSS}",
        {
            "tenant": current_tenant(),
            "ref": account.ref,
            "code": account.account_code,
            "currency": account.currency,
            "through": through,
        },
    )
    return books.dr_minor - books.cr_minor + int(cursor.fetchone()[0])


def _standing(cursor: CursorWrapper, account: BankAccount, through: date) -> tuple[int, int, int]:
    """How many breaks are open; by how much lines differ that were explained, and not matched since; and the opening balance
    that was explained last, which the books may have by now."""
    cursor.execute(
        """SELECT count(*) FILTER (WHERE r.action IS NULL),
                  coalesce(sum(b.difference_minor) FILTER (
                      WHERE r.action = 'explain' AND x.match_id IS NULL AND j.match_id IS NULL
                        AND (b.statement_id IS NOT NULL OR b.entry_id IS NOT NULL)), 0),
                  coalesce((array_agg(b.difference_minor ORDER BY b.opened_at DESC, b.id DESC) FILTER (
                      WHERE b.statement_id IS NULL AND b.entry_id IS NULL AND r.action = 'explain'))[1], 0)
           FROM reconciliation_break b
           LEFT JOIN reconciliation_resolution r ON r.tenant_id = b.tenant_id AND r.break_id = b.id
           LEFT JOIN bank_match_statement_line x
                ON x.tenant_id = b.tenant_id AND x.statement_id = b.statement_id AND x.number = b.number
           LEFT JOIN bank_match_journal_line j
                ON j.tenant_id = b.tenant_id AND j.entry_id = b.entry_id AND j.sequence = b.sequence
           WHERE b.tenant_id = %(tenant)s AND b.bank_account_ref = %(ref)s AND b.counted_on <= %(through)s""",
        {"tenant": current_tenant(), "ref": account.ref, "through": through},
    )
    open_count, of_lines, of_opening = cursor.fetchone()
    return int(open_count), int(of_lines), int(of_opening)


# --- The books against the loans -------------------------------------------------------------------------------------


def _portfolio_rollup(cursor: CursorWrapper, as_of: date) -> dict[str, Any]:
    """Control accounts against the sum of the loans' own balances as of the date, in every currency and layer; the two figures
    are of the principal, settled, in the tenant's own currency. What is dated later is taken off the loans' balances."""
    cursor.execute(
        f"""SELECT code = (SELECT a.code FROM gl_account a WHERE a.tenant_id = %(tenant)s AND a.role = 'principal')
                   AND currency = (SELECT t.currency FROM tenant t WHERE t.id = %(tenant)s) AND layer = 'SETTLED',
                   coalesce(ledger.minor, 0), coalesce(loans.minor, 0) - (coalesce(latest.minor, 0) - coalesce(ledger.minor, 0))
            FROM ({CONTROL_ACCOUNTS.replace("'infinity'", "%(as_of)s")}) ledger
            FULL JOIN ({CONTROL_ACCOUNTS}) latest USING (code, currency, layer)
            FULL JOIN ({LOANS}) loans USING (code, currency, layer)""",
        {"tenant": current_tenant(), "as_of": as_of},
    )
    rows = [(is_own, int(ledger), int(loans)) for is_own, ledger, loans in cursor.fetchall()]
    own = next(((ledger, loans) for is_own, ledger, loans in rows if is_own), (0, 0))
    return {
        "status": "ok" if all(ledger == loans for _, ledger, loans in rows) else "mismatch",
        "gl_principal_minor": str(own[0]),
        "sum_of_loan_balances_minor": str(own[1]),
    }
