"""Putting right: the mirror of an entry, and an accountant's own lines."""

from __future__ import annotations

from ledger.errors import (
    AccountNotFound,
    AlreadyReversed,
    BorrowerMismatch,
    CurrencyMismatch,
    EffectiveDateRefused,
    FieldProblem,
    NotReversible,
    ValidationFailed,
)
from ledger.events import EventKind, Line, ManualAdjustment, Reversal
from ledger.state import EntryState, State

# A correction of these is another event: the return of a payment, a new reversal's original posted again.
NEVER_REVERSED = {EventKind.REVERSAL, EventKind.PAYMENT_RETURNED, EventKind.DISBURSEMENT_SETTLED}


def reversal(state: State, event: Reversal) -> list[Line]:
    """The exact mirror of every line, on its layer. Once per entry, and not dated before it."""
    original = state.entries[event.reverses_entry_id]
    if original.reversed_by == EventKind.REVERSAL:
        raise AlreadyReversed(f"Entry {original.entry_id} has been reversed.")
    if original.reversed_by is not None or original.settled_by is not None:
        raise NotReversible("What has been settled or returned is not reversed.")
    if original.event_type in NEVER_REVERSED or original.settles_entry_id is not None:
        raise NotReversible(f"An entry of the kind {original.event_type} is not reversed.")
    _not_built_upon(state, original)
    if event.effective_at < original.effective_at:
        raise EffectiveDateRefused(
            f"The entry is dated {original.effective_at}; its reversal cannot be dated before it."
        )
    return [line.mirrored() for line in original.lines]


def _not_built_upon(state: State, original: EntryState) -> None:
    """Refuse what later entries stand on: a charge-off that was recovered from, a refinance whose new loan has a life of
    its own, an allocation that a bank's return has undone."""
    ended = state.loans_ended_by(original)
    if original.event_type == EventKind.CHARGEOFF and any(loan.recovered for loan in ended):
        raise NotReversible("Money was recovered after this charge-off.")
    if original.event_type == EventKind.REFINANCE:
        touched = {line.loan_id for line in original.lines if line.loan_id is not None}
        if any(state.loans[loan_id].version > 1 for loan_id in touched - {loan.loan_id for loan in ended}):
            raise NotReversible("The new loan has other entries by now.")
    if original.event_type == EventKind.PAYMENT_ALLOCATED:
        allocations = [each for loan in state.loans.values() for each in loan.allocations]
        if any(each.undone_minor for each in allocations if each.entry_id == original.entry_id):
            raise NotReversible("The return of a payment has undone this allocation.")


def manual_adjustment(state: State, event: ManualAdjustment) -> list[Line]:
    """The lines as given, each with its loan's borrower. A line on an account kept per loan names its loan."""
    lines = []
    nameless = []
    for position, line in enumerate(event.lines):
        if line.account not in state.chart:
            raise AccountNotFound(f"There is no account {line.account}.")
        if line.loan_id is None:
            if line.borrower_id is not None:
                message = "A borrower is named together with a loan of theirs."
                nameless.append(FieldProblem(f"lines.{position}.loan_id", "required", message))
            elif state.chart[line.account].per_loan:
                message = f"Account {line.account} is kept per loan: name the loan."
                nameless.append(FieldProblem(f"lines.{position}.loan_id", "required", message))
            lines.append(line)
            continue
        loan = state.loans[line.loan_id]
        if line.borrower_id not in (None, loan.borrower_id):
            raise BorrowerMismatch(f"lines.{position}: the loan belongs to another borrower.")
        if line.currency != loan.currency:
            raise CurrencyMismatch(f"lines.{position}: the loan is in {loan.currency}.")
        lines.append(
            Line(
                line.account,
                line.direction,
                line.amount_minor,
                line.currency,
                line.layer,
                loan.loan_id,
                loan.borrower_id,
                line.external_ref,
            )
        )
    if nameless:
        raise ValidationFailed("One or more fields are not valid.", nameless)
    return lines
