"""The chart of accounts: roles, the templates that a new tenant's chart is copied from, and a tenant's chart as rules see it.

Rules name roles, never codes; a tenant may map a role to a code of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ledger.events import CREDIT, DEBIT

# What a loan owes, in the order in which a payment is applied unless its program says otherwise.
RECEIVABLES = ("fees", "interest", "principal")
# Balances that no rule takes below zero, on any date.
FLOORED = frozenset((*RECEIVABLES, "suspense"))


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `per_loan` accounts are control accounts: each of their lines names a loan."""

    code: str
    name: str
    account_type: str
    normal_side: str
    per_loan: bool = False
    role: str | None = None


CONSUMER_LENDING = (
    Account("1000", "Operating Cash", "asset", DEBIT, role="cash"),
    Account("1010", "Payment Clearing", "asset", DEBIT, role="payment_clearing"),
    Account("1050", "Disbursement Clearing", "liability", CREDIT, role="disbursement_clearing"),
    Account("1100", "Principal Receivable", "asset", DEBIT, True, "principal"),
    Account("1200", "Interest Receivable", "asset", DEBIT, True, "interest"),
    Account("1300", "Fees Receivable", "asset", DEBIT, True, "fees"),
    Account("2000", "Suspense", "liability", CREDIT, True, "suspense"),
    Account("3000", "Opening Balance Equity", "equity", CREDIT, role="opening_equity"),
    Account("4000", "Interest Income", "income", CREDIT, role="interest_income"),
    Account("4100", "Fee Income", "income", CREDIT, role="fee_income"),
    Account("4200", "Recovery Income", "income", CREDIT, role="recovery_income"),
    Account("5000", "Charge-off Expense", "expense", DEBIT, role="chargeoff_expense"),
    Account("5100", "Fee Waivers", "expense", DEBIT, role="fee_waivers"),
    Account("9000", "Commitments", "memo", DEBIT, True, "commitments"),
    Account("9100", "Commitments Contra", "memo", CREDIT, role="commitments_contra"),
)
TEMPLATES = {"consumer-lending": CONSUMER_LENDING}


class Chart:
    """A tenant's accounts, by role and by code."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self._by_code = {account.code: account for account in accounts}
        self._by_role = {account.role: account for account in self._by_code.values() if account.role is not None}

    def __getitem__(self, role_or_code: str) -> Account:
        """The account of a role or a code. KeyError when the chart has none."""
        return self._by_role.get(role_or_code) or self._by_code[role_or_code]

    def __contains__(self, role_or_code: str) -> bool:
        return role_or_code in self._by_role or role_or_code in self._by_code
