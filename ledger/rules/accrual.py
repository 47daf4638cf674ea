"""Interest: a day of it, for many loans in one entry."""

from __future__ import annotations

from ledger.errors import AccrualAlreadyPosted, AccrualModeRefuses, EffectiveDateRefused, FieldProblem, ValidationFailed
from ledger.events import CREDIT, DEBIT, Accrual, Line
from ledger.state import State

CONVENTION = "day_count_convention"


def accrual(state: State, event: Accrual) -> list[Line]:
    """Per loan: debit interest receivable, credit interest income. A loan with no interest has no line.

    The client's figures are held against the books: each loan is of the program, once in the batch, and its outstanding
    principal is that of the settled entries effective before the accrual date. All wrong items are named at once.
    """
    wrong = _wrong_items(state, event)
    if wrong:
        raise ValidationFailed("The batch does not agree with the books; nothing was posted.", wrong)
    if any(state.loans[item.loan_id].accrual_mode != "client" for item in event.loans):
        raise AccrualModeRefuses("The engine accrues this program's interest.")
    for item in event.loans:
        if event.effective_at < state.loans[item.loan_id].opened_on:
            raise EffectiveDateRefused(f"Loan {item.loan_id} opens on {state.loans[item.loan_id].opened_on}.")
        accrued = state.loans[item.loan_id].accrual
        if accrued is not None and not accrued[1]:
            raise AccrualAlreadyPosted(f"Loan {item.loan_id} has its interest for {event.effective_at}.")
    lines = []
    for item in event.loans:
        if item.interest_minor:
            loan = state.loans[item.loan_id]
            about = (item.interest_minor, loan.currency, "SETTLED", loan.loan_id, loan.borrower_id)
            lines += [Line("interest", DEBIT, *about), Line("interest_income", CREDIT, *about)]
    return lines


def _wrong_items(state: State, event: Accrual) -> list[FieldProblem]:
    wrong = []
    seen: set[str] = set()
    principal = state.chart["principal"]
    for position, item in enumerate(event.loans):
        loan = state.loans.get(item.loan_id)
        if item.loan_id in seen:
            wrong.append(FieldProblem(f"loans.{position}.loan_id", "duplicate", "The loan stands in the batch twice."))
        elif loan is None or loan.program_id != event.program_id:
            wrong.append(FieldProblem(f"loans.{position}.loan_id", "unknown_loan", "The program has no such loan."))
        elif loan.before(principal, event.effective_at) != item.outstanding_principal_minor:
            wrong.append(
                FieldProblem(
                    f"loans.{position}.outstanding_principal_minor",
                    "principal_differs",
                    f"The ledger's principal before {event.effective_at} is {loan.before(principal, event.effective_at)}.",
                )
            )
        elif loan.day_count_convention != event.day_count_convention and not any(p.field == CONVENTION for p in wrong):
            message = f"The program's is {loan.day_count_convention}."
            wrong.append(FieldProblem(CONVENTION, "day_count_differs", message))
        seen.add(item.loan_id)
    if not wrong and not any(item.interest_minor for item in event.loans):
        wrong.append(FieldProblem("loans", "nothing_to_post", "No loan of the batch has interest."))
    return wrong
