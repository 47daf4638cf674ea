"""Bank accounts, and the locks under which their lines are matched. No decision about a line lives here."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.backends.utils import CursorWrapper

from hpts.problems import FieldProblem, ValidationFailed
from hpts.tenancy import current_tenant, wait_turn
from ledger.errors import AccountNotFound, CurrencyMismatch

DEFAULT_ACCOUNT_CODE = "1000"


@dataclass(frozen=True, slots=True)
class BankAccount:
    ref: str
    account_code: str
    currency: str


def bank_accounts(cursor: CursorWrapper, ref: str | None = None) -> list[BankAccount]:
    """All of the tenant, or the one with this ref."""
    cursor.execute(
        """SELECT ref, account_code, currency FROM bank_account
           WHERE tenant_id = %(tenant)s AND (%(ref)s::text IS NULL OR ref = %(ref)s::text) ORDER BY ref""",
        {"tenant": current_tenant(), "ref": ref},
    )
    return [BankAccount(*row) for row in cursor.fetchall()]


def meet_account(cursor: CursorWrapper, ref: str, account_code: str | None, currency: str) -> BankAccount:
    """The bank account with this ref; the first statement makes it, on the GL account named or on 1000. Raises
    AccountNotFound, CurrencyMismatch, and ValidationFailed when it belongs to another GL account."""
    code = account_code or DEFAULT_ACCOUNT_CODE
    tenant = current_tenant()
    cursor.execute("SELECT FROM gl_account WHERE tenant_id = %s AND code = %s", (tenant, code))
    if cursor.rowcount == 0:
        raise AccountNotFound(f"There is no account {code}.")
    cursor.execute(
        """INSERT INTO bank_account (tenant_id, ref, account_code, currency) VALUES (%s, %s, %s, %s)
           ON CONFLICT DO NOTHING""",
        (tenant, ref, code, currency),
    )
    (account,) = bank_accounts(cursor, ref)
    if account_code is not None and account.account_code != account_code:
        other = FieldProblem("account_code", "account_differs", f"{ref} belongs to account {account.account_code}.")
        raise ValidationFailed("One or more fields are not valid.", [other])
    if account.currency != currency:
        raise CurrencyMismatch(f"{ref} is in {account.currency}, and the statement in {currency}.")
    return account


def lock(cursor: CursorWrapper, account: BankAccount) -> None:
    """Nobody else matches lines of this GL account until the transaction ends."""
    wait_turn(cursor, f"bank {account.account_code}")


def take_time(cursor: CursorWrapper, seconds: int = 60) -> None:
    """A statement of a hundred thousand lines takes longer than a request's usual work, in the database and between its
    statements."""
    for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
        cursor.execute("SELECT set_config(%s, %s, true)", (limit, f"{seconds}s"))
