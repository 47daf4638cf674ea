"""Fees: assessed, and waived."""

from __future__ import annotations

from ledger.events import CREDIT, DEBIT, SETTLED, FeeAssessed, FeeWaived, Line
from ledger.rules.standing import not_ended
from ledger.state import State


def fee_assessed(state: State, event: FeeAssessed) -> list[Line]:
    """Debit fees receivable, credit fee income. An ended loan takes no fee."""
    loan = state.loans[event.loan_id]
    not_ended(loan, "A fee")
    about = (event.amount_minor, event.currency, SETTLED, loan.loan_id, loan.borrower_id)
    return [Line("fees", DEBIT, *about), Line("fee_income", CREDIT, *about)]


def fee_waived(state: State, event: FeeWaived) -> list[Line]:
    """Debit fee waivers, credit fees receivable; never more than is outstanding on any date from the event's on."""
    loan = state.loans[event.loan_id]
    about = (event.amount_minor, event.currency, SETTLED, loan.loan_id, loan.borrower_id)
    return [Line("fee_waivers", DEBIT, *about), Line("fees", CREDIT, *about)]
