"""A replan: payments that arrived late or were corrected late, allocated as if each had arrived on its date. Pure.

What payments and allocations from suspense gave to receivables goes back into suspense, on the dates that they count, and
is allocated again in the order of those dates, by the waterfall that every payment meets. What would come out the same
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date

from ledger.events import CREDIT, DEBIT, SETTLED, Event, Line, SuspenseAllocated
from ledger.rules.waterfall import allocate, allocate_payment
from ledger.state import LoanState, State

Shares = dict[str, int]  # role -> minor units


@dataclass(frozen=True, slots=True)
class Allocated:
    """Money that met, or may meet, what the loan owes: a payment with all that allocates it, or an allocation by itself.

    `order` is what counts on one date: the loan's version when it was first posted. `putting_back` are the events that bring
    `shares` back into suspense.
    """

    effective_at: date
    order: int
    amount_minor: int
    shares: Shares
    putting_back: Sequence[Event]
    payment_event_id: str | None = None


def replan(state: State, loan_id: str, allocated: Iterable[Allocated]) -> list[Event]:
    """The events that bring the loan to where it would be: first what puts back, newest first, then the new allocations."""
    trial = State(state.today, state.chart, {loan_id: deepcopy(state.loans[loan_id])})
    loan = trial.loans[loan_id]
    in_order = sorted(allocated, key=lambda each: (each.effective_at, each.order))
    for each in in_order:
        _move(trial, loan, each, each.shares, DEBIT)
    changed: list[tuple[Allocated, Shares]] = []
    for each in in_order:
        amount = min(each.amount_minor, loan.available(state.chart["suspense"], each.effective_at))
        # What met receivables did so before anything ended the loan: only money that never did is bound by its state.
        by_waterfall = allocate if each.shares or each.payment_event_id is None else allocate_payment
        shares = dict(by_waterfall(trial, loan, amount, each.effective_at))
        shares.pop("suspense", None)
        _move(trial, loan, each, shares, CREDIT)
        if shares != each.shares:
            changed.append((each, shares))
    back = [event for each, _ in sorted(changed, key=lambda pair: -pair[0].order) for event in each.putting_back]
    again = [
        SuspenseAllocated(
            loan_id=loan_id,
            amount_minor=sum(shares.values()),
            currency=loan.currency,
            effective_at=each.effective_at,
            payment_event_id=each.payment_event_id,
            facts={"payment_event_id": each.payment_event_id} if each.payment_event_id else {"order": each.order},
        )
        for each, shares in changed
        if shares
    ]
    return [*back, *again]


def _move(trial: State, loan: LoanState, each: Allocated, shares: Shares, side: str) -> None:
    """Shares between receivables and suspense, on the date that they count."""
    other = CREDIT if side == DEBIT else DEBIT
    about = (loan.currency, SETTLED, loan.loan_id, loan.borrower_id)
    lines = [Line(role, side, share, *about) for role, share in shares.items()]
    if lines:
        lines.append(Line("suspense", other, sum(shares.values()), *about))
    event = SuspenseAllocated(
        loan_id=loan.loan_id, amount_minor=1, currency=loan.currency, effective_at=each.effective_at
    )
    trial.apply(event, lines)
