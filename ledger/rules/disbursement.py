"""Lending: the loan is drawn, the money leaves the bank."""

from __future__ import annotations

from ledger.errors import AlreadyReversed, AlreadySettled, AmountExceedsLimit, EffectiveDateRefused
from ledger.events import CREDIT, DEBIT, PENDING, SETTLED, Disbursement, DisbursementSettled, EventKind, Line
from ledger.rules.standing import not_ended
from ledger.state import LoanState, State


def disbursement(state: State, event: Disbursement) -> list[Line]:
    """Debit principal receivable, credit disbursement clearing, on the event's layer.

    Refuses what would lift the loan's principal, settled and pending together, above its limit, and an ended loan.
    """
    loan = state.loans[event.loan_id]
    not_ended(loan, "A draw")
    within_limit(state, loan, event.amount_minor)
    about = (event.amount_minor, event.currency, event.layer, loan.loan_id, loan.borrower_id)
    return [Line("principal", DEBIT, *about), Line("disbursement_clearing", CREDIT, *about)]


def disbursement_settled(state: State, event: DisbursementSettled) -> list[Line]:
    """The money has left: debit disbursement clearing, credit cash.

    A pending disbursement first leaves the pending layer, and its principal is debited on the settled one instead of
    clearing, because nothing was waiting there. Refused: settled or reversed before, dated before the disbursement.
    """
    original = state.entry(event.disbursement_event_id, EventKind.DISBURSEMENT)
    if original.settled_by is not None:
        raise AlreadySettled("This disbursement has been settled.")
    if original.reversed_by is not None:
        raise AlreadyReversed("This disbursement has been reversed.")
    if event.effective_at < original.effective_at:
        raise EffectiveDateRefused(f"The disbursement is dated {original.effective_at}.")
    drawn = original.lines[0]
    about = (drawn.amount_minor, drawn.currency, SETTLED, drawn.loan_id, drawn.borrower_id)
    if drawn.layer == PENDING:
        leaving = [line.mirrored() for line in original.lines]
        return [*leaving, Line("principal", DEBIT, *about), Line("cash", CREDIT, *about)]
    return [Line("disbursement_clearing", DEBIT, *about), Line("cash", CREDIT, *about)]


def within_limit(state: State, loan: LoanState, amount_minor: int) -> None:
    """Refuse what lifts settled and pending principal above the loan's limit."""
    if loan.principal_limit_minor is None:
        return
    principal = state.chart["principal"]
    outstanding = loan.balance(principal) + loan.balance(principal, PENDING)
    if outstanding + amount_minor > loan.principal_limit_minor:
        raise AmountExceedsLimit(
            f"The principal would be {outstanding + amount_minor}; the loan's limit is {loan.principal_limit_minor}."
        )
