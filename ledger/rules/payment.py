"""Repaying: the borrower's money comes in, waits, meets what is owed, and sometimes goes back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ledger.errors import (
    AlreadyReturned,
    AlreadyReversed,
    AlreadySettled,
    AmountExceedsBalance,
    EffectiveDateRefused,
)
from ledger.events import (
    CREDIT,
    DEBIT,
    PENDING,
    SETTLED,
    EventKind,
    Line,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    PaymentUnallocated,
    SuspenseAllocated,
)
from ledger.rules.standing import not_charged_off
from ledger.rules.waterfall import allocate, allocate_payment
from ledger.state import AllocationState, EntryState, LoanState, State


def payment_received(state: State, event: PaymentReceived) -> list[Line]:
    """Debit cash, credit fees, interest and principal by the waterfall, the rest suspense.

    An announced payment (pending) debits payment clearing and credits suspense on the pending layer, and is allocated when
    it settles. A charged-off loan takes recoveries instead.
    """
    loan = state.loans[event.loan_id]
    not_charged_off(loan, "A payment")
    about = (event.currency, event.layer, loan.loan_id, loan.borrower_id)
    if event.layer == PENDING:
        return [
            Line("payment_clearing", DEBIT, event.amount_minor, *about, event.external_ref),
            Line("suspense", CREDIT, event.amount_minor, *about),
        ]
    shares = allocate_payment(state, loan, event.amount_minor, event.effective_at)
    return [
        Line("cash", DEBIT, event.amount_minor, *about, event.external_ref),
        *(Line(role, CREDIT, share, *about) for role, share in shares),
    ]


def payment_allocated(state: State, event: PaymentSettled | SuspenseAllocated | PaymentUnallocated) -> list[Line]:
    """An announced payment settles, money in suspense meets what is owed, or a payment goes to suspense for a replan."""
    if isinstance(event, PaymentSettled):
        return _settled(state, event)
    if isinstance(event, PaymentUnallocated):
        return _unallocated(state, event)
    return _from_suspense(state, event)


def payment_returned(state: State, event: PaymentReturned) -> list[Line]:
    """The mirror of what the payment posted and still stands: on pending when it was not settled, else on settled.

    Never refused for want of money: suspense that is short gets back what allocations took from it (`undone()`), and what
    is missing then, because it was refunded, is principal again.
    """
    returned = returned_entry(state, event.payment_event_id)
    if event.effective_at < returned.effective_at:
        raise EffectiveDateRefused(
            f"The payment is dated {returned.effective_at}; its return cannot be dated before it."
        )
    taken_back = undone(state, event)
    lines = [line for each in taken_back for line in each.lines]
    for line in _standing(state, returned):
        mirrored = line.mirrored()
        if not _is_suspense(state, line):
            lines.append(mirrored)
            continue
        missing = _short(state, event, mirrored) - sum(each.amount_minor for each in taken_back)
        if mirrored.amount_minor > missing:
            lines.append(replace(mirrored, amount_minor=mirrored.amount_minor - missing))
        if missing:
            lines.append(replace(mirrored, account="principal", amount_minor=missing))
    return lines


def returned_entry(state: State, payment_event_id: str) -> EntryState:
    """The entry that a return mirrors and names: the settlement when there was one, else the payment.

    Raises AlreadyReturned, AlreadyReversed.
    """
    payment = state.entry(payment_event_id, EventKind.PAYMENT_RECEIVED)
    settlement = payment.settled_by if _is_pending(payment) else None
    entry = settlement or payment
    if EventKind.PAYMENT_RETURNED in (entry.reversed_by, payment.reversed_by):
        raise AlreadyReturned("This payment has been returned.")
    if payment.reversed_by is not None:
        raise AlreadyReversed("This payment has been reversed.")
    return entry


@dataclass(frozen=True, slots=True)
class Undone:
    """What a return takes back of one allocation: how much, and by which lines."""

    entry_id: str
    amount_minor: int
    lines: tuple[Line, ...]


def undone(state: State, event: PaymentReturned) -> list[Undone]:
    """The allocations from suspense that a return takes back, newest first, the last one in part, until suspense holds what
    the return debits to it. Those that a replan made of this very payment come before all others."""
    returned = returned_entry(state, event.payment_event_id)
    to_suspense = [line.mirrored() for line in _standing(state, returned) if _is_suspense(state, line)]
    if not to_suspense or to_suspense[0].layer == PENDING:  # Announced money is not allocated.
        return []
    short = _short(state, event, to_suspense[0])
    allocations = _loan_of(state, returned).allocations
    taken_back = []
    for allocation in sorted(allocations, key=lambda each: each.payment_event_id != event.payment_event_id):
        amount = min(short, allocation.standing_minor)
        if amount:
            taken_back.append(Undone(allocation.entry_id, amount, _mirrored_in_part(allocation, amount)))
            short -= amount
    return taken_back


def _settled(state: State, event: PaymentSettled) -> list[Line]:
    payment = state.entry(event.payment_event_id, EventKind.PAYMENT_RECEIVED)
    if EventKind.PAYMENT_RETURNED in (payment.reversed_by, payment.settled_by and payment.settled_by.reversed_by):
        raise AlreadyReturned("This payment has been returned.")
    if payment.reversed_by is not None:
        raise AlreadyReversed("This payment has been reversed.")
    if payment.settled_by is not None or not _is_pending(payment):
        raise AlreadySettled("This payment is settled.")
    loan = _loan_of(state, payment)
    not_charged_off(loan, "The settlement of a payment")
    if event.effective_at < payment.effective_at:
        raise EffectiveDateRefused(f"The payment is dated {payment.effective_at}.")
    announced = payment.lines[0]
    about = (announced.currency, SETTLED, loan.loan_id, loan.borrower_id)
    shares = allocate_payment(state, loan, announced.amount_minor, event.effective_at)
    return [
        *(line.mirrored() for line in payment.lines),
        Line("cash", DEBIT, announced.amount_minor, *about, announced.external_ref),
        *(Line(role, CREDIT, share, *about) for role, share in shares),
    ]


def _from_suspense(state: State, event: SuspenseAllocated) -> list[Line]:
    loan = state.loans[event.loan_id]
    about = (event.currency, SETTLED, loan.loan_id, loan.borrower_id)
    shares = allocate(state, loan, event.amount_minor, event.effective_at)
    if any(role == "suspense" for role, _ in shares):
        owed = sum(share for role, share in shares if role != "suspense")
        raise AmountExceedsBalance(f"The receivables take {owed} from {event.effective_at} on.")
    return [
        Line("suspense", DEBIT, event.amount_minor, *about),
        *(Line(role, CREDIT, share, *about) for role, share in shares),
    ]


def _unallocated(state: State, event: PaymentUnallocated) -> list[Line]:
    lines = [
        line.mirrored()
        for line in returned_entry(state, event.payment_event_id).lines
        if line.direction == CREDIT and line.layer == SETTLED and state.chart[line.account].role != "suspense"
    ]
    total = sum(line.amount_minor for line in lines)
    return [*lines, replace(lines[0], account="suspense", direction=CREDIT, amount_minor=total)]


def _is_suspense(state: State, line: Line) -> bool:
    return state.chart[line.account].role == "suspense"


def _is_pending(payment: EntryState) -> bool:
    return payment.lines[0].layer == PENDING


def _loan_of(state: State, payment: EntryState) -> LoanState:
    return state.loans[str(payment.lines[0].loan_id)]


def _standing(state: State, returned: EntryState) -> list[Line]:
    """The lines that a return mirrors: a settlement's own, without the mirror of the announcement. What a replan has put
    back into suspense stands there."""
    if returned.event_type == EventKind.PAYMENT_RECEIVED and _is_pending(returned):
        return list(returned.lines)
    lines = [line for line in returned.lines if line.layer == SETTLED]
    if returned.settled_by is None:
        return lines
    (cash,) = (line for line in lines if line.direction == DEBIT)
    return [cash, replace(cash, account="suspense", direction=CREDIT, external_ref=None)]


def _short(state: State, event: PaymentReturned, to_suspense: Line) -> int:
    """How much suspense lacks, effective on the return's date, of what the return debits to it."""
    loan = state.loans[str(to_suspense.loan_id)]
    available = loan.available(state.chart["suspense"], event.effective_at, to_suspense.layer)
    return max(to_suspense.amount_minor - available, 0)


def _mirrored_in_part(allocation: AllocationState, amount_minor: int) -> tuple[Line, ...]:
    """`amount_minor` of an allocation taken back: what it met last goes first, after what was taken back before."""
    debit, *met = allocation.lines
    skip, rest = allocation.undone_minor, amount_minor
    lines = []
    for line in reversed(met):
        skipped = min(skip, line.amount_minor)
        skip -= skipped
        share = min(rest, line.amount_minor - skipped)
        if share:
            lines.append(replace(line.mirrored(), amount_minor=share))
            rest -= share
    return (*lines, replace(debit.mirrored(), amount_minor=amount_minor))
