"""Endings and new beginnings: charge-off and what is recovered after it, refinance, restructure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from ledger.chart import RECEIVABLES
from ledger.errors import BorrowerMismatch, CurrencyMismatch, LoanStateRefuses
from ledger.events import CREDIT, DEBIT, SETTLED, ChargeOff, Line, Recovery, Refinance, Restructure
from ledger.rules.disbursement import within_limit
from ledger.rules.standing import not_ended
from ledger.rules.waterfall import allocation
from ledger.state import CHARGED_OFF, OPEN, LoanState, State


def chargeoff(state: State, event: ChargeOff) -> list[Line]:
    """Debit charge-off expense, credit all principal, interest and fees, interest up to the date first. Suspense stays."""
    loan = state.loans[event.loan_id]
    not_ended(loan, "A charge-off")
    taken = _all_owed(state, loan, ("principal", "interest", "fees"))
    return [*_up_to_date(state, loan, event.effective_at), _line(loan, "chargeoff_expense", DEBIT, _sum(taken)), *taken]


def recovery(state: State, event: Recovery) -> list[Line]:
    """Debit cash, credit recovery income. Only on a charged-off loan."""
    loan = state.loans[event.loan_id]
    if loan.ended_as != CHARGED_OFF:
        raise LoanStateRefuses("A recovery is refused: the loan has not been charged off. Post a payment.")
    about = (event.amount_minor, event.currency, SETTLED, loan.loan_id, loan.borrower_id)
    return [Line("cash", DEBIT, *about, event.external_ref), Line("recovery_income", CREDIT, *about)]


def refinance(state: State, event: Refinance) -> list[Line]:
    """Debit principal of the new loan, credit all that the old one owes, interest up to the date first; cash on top goes to
    disbursement clearing."""
    old, new = state.loans[event.loan_id], state.loans[event.new_loan_id]
    not_ended(old, "A refinance")
    not_ended(new, "A refinance into it")
    if new.borrower_id != old.borrower_id:
        raise BorrowerMismatch("The new loan belongs to another borrower.")
    if new.currency != old.currency:
        raise CurrencyMismatch(f"The loan is in {old.currency}, the new one in {new.currency}.")
    taken = _all_owed(state, old, RECEIVABLES)
    if event.cash_out_minor:
        taken.append(_line(new, "disbursement_clearing", CREDIT, event.cash_out_minor))
    within_limit(state, new, _sum(taken))
    return [*_up_to_date(state, old, event.effective_at), _line(new, "principal", DEBIT, _sum(taken)), *taken]


def ended_with(state: State, lines: Iterable[Line]) -> dict[str, int]:
    """What a charge-off or a refinance took of fees, interest and principal, by its lines. A correction of interest that came
    with it is none of it."""
    lines = tuple(lines)
    taken = allocation(state, lines)
    corrected = sum(
        line.amount_minor for line in lines if line.account == "interest_income" and line.direction == DEBIT
    )
    return {**{role: taken[role] for role in RECEIVABLES}, "interest": taken["interest"] - corrected}


def accrued_with(lines: Iterable[Line], income_code: str) -> int:
    """The interest that came with a charge-off or a refinance to bring the loan up to its date; of a reversal, what goes."""
    return sum(
        line.amount_minor if line.direction == CREDIT else -line.amount_minor
        for line in lines
        if line.account in ("interest_income", income_code)
    )


def restructure(state: State, event: Restructure) -> list[Line]:
    """Debit principal, credit the interest and fees that become principal; no lines when nothing does.

    The limit counts what is capitalised and does not refuse it. Only an open loan is restructured.
    """
    loan = state.loans[event.loan_id]
    if state.of(loan) != OPEN:
        raise LoanStateRefuses("A restructure is refused: the loan is not open.")
    wanted = {"interest": event.capitalise_interest, "fees": event.capitalise_fees}
    owed = state.owed(loan)
    taken = [_line(loan, role, CREDIT, owed[role]) for role in wanted if wanted[role] and owed[role]]
    return [_line(loan, "principal", DEBIT, _sum(taken)), *taken] if taken else []


def _all_owed(state: State, loan: LoanState, roles: tuple[str, ...]) -> list[Line]:
    """A credit per receivable that holds something. Refused when none does."""
    owed = state.owed(loan)
    owed["interest"] += _unposted(state, loan)
    if not any(owed.values()):
        raise LoanStateRefuses(f"Loan {loan.loan_id} owes nothing.")
    return [_line(loan, role, CREDIT, owed[role]) for role in roles if owed[role]]


def _up_to_date(state: State, loan: LoanState, on: date) -> list[Line]:
    """The engine's interest through the event's date that no run has posted, or what runs have posted beyond it.

    Of that only what the loan has had since: interest that came later is taken back by the next run, which is dated later."""
    minor = _unposted(state, loan)
    if minor < 0:
        left = loan.available(state.chart["interest"], on) - (state.owed(loan)["interest"] + minor)
        minor = -min(-minor, max(left, 0))
    accounts = ("interest", "interest_income") if minor > 0 else ("interest_income", "interest")
    sides = zip(accounts, (DEBIT, CREDIT), strict=True)
    return [_line(loan, account, direction, abs(minor)) for account, direction in sides] if minor else []


def _unposted(state: State, loan: LoanState) -> int:
    """Never more is taken back than the loan owes; a run gives the rest to suspense."""
    return max(loan.unposted_minor, -state.owed(loan)["interest"])


def _line(loan: LoanState, account: str, direction: str, amount_minor: int) -> Line:
    return Line(account, direction, amount_minor, loan.currency, SETTLED, loan.loan_id, loan.borrower_id)


def _sum(lines: list[Line]) -> int:
    return sum(line.amount_minor for line in lines)
