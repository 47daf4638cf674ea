"""Repaying: the borrower's money comes in."""

from __future__ import annotations

from ledger.events import CREDIT, DEBIT, PENDING, Line, PaymentReceived
from ledger.rules.waterfall import allocate
from ledger.state import State


def payment_received(state: State, event: PaymentReceived) -> list[Line]:
    """Debit cash, credit fees, interest and principal by the waterfall, the rest suspense.

    An announced payment (pending) debits payment clearing and credits suspense on the pending layer, and is allocated when
    it settles.
    """
    loan = state.loans[event.loan_id]
    about = (event.currency, event.layer, loan.loan_id, loan.borrower_id)
    if event.layer == PENDING:
        return [
            Line("payment_clearing", DEBIT, event.amount_minor, *about, event.external_ref),
            Line("suspense", CREDIT, event.amount_minor, *about),
        ]
    shares = allocate(state, loan, event.amount_minor, event.effective_at)
    return [
        Line("cash", DEBIT, event.amount_minor, *about, event.external_ref),
        *(Line(role, CREDIT, share, *about) for role, share in shares),
    ]
