"""The ledger's refusals: one class each, with the code of the contract. The handler in hpts/problems.py renders them."""

from __future__ import annotations

from hpts.problems import FieldProblem, Problem, ValidationFailed

__all__ = ["FieldProblem", "Problem", "ValidationFailed"]  # Rules take all that they raise from here.


class LoanNotFound(Problem):
    """The body names a loan that this tenant does not have."""

    status, code, title = 422, "loan_not_found", "Loan not found"


class ProgramNotFound(Problem):
    """The body names a program that this tenant does not have."""

    status, code, title = 422, "program_not_found", "Program not found"


class EntryNotFound(Problem):
    """The body names a journal entry that this tenant does not have."""

    status, code, title = 422, "entry_not_found", "Journal entry not found"


class AccountNotFound(Problem):
    """The body names an account that is not in this tenant's chart."""

    status, code, title = 422, "account_not_found", "Account not found"


class AccountClosed(Problem):
    """The account takes no more lines."""

    status, code, title = 422, "account_closed", "The account is closed"


class BorrowerMismatch(Problem):
    """The loan belongs to another borrower."""

    status, code, title = 422, "borrower_mismatch", "The borrower is not the loan's"


class CurrencyMismatch(Problem):
    """The currency is not the loan's, or not the program's."""

    status, code, title = 422, "currency_mismatch", "The currency is not the loan's"


class UnbalancedEntry(Problem):
    """Debits and credits differ in some currency and layer."""

    status, code, title = 422, "unbalanced_entry", "The entry does not balance"


class AmountExceedsBalance(Problem):
    """A receivable or suspense would fall below zero on the event's date or on a later one."""

    status, code, title = 422, "amount_exceeds_balance", "More than the balance holds"


class AmountExceedsLimit(Problem):
    """The loan's principal would rise above its limit."""

    status, code, title = 422, "amount_exceeds_limit", "More than the loan's limit"


class AmountOutOfRange(Problem):
    """A sum would leave the range of a 64-bit integer."""

    status, code, title = 422, "amount_out_of_range", "A sum is out of range"


class AccrualModeRefuses(Problem):
    """The program's interest is accrued by the engine, not by batches."""

    status, code, title = 422, "accrual_mode_refuses", "The program's accrual mode refuses this"


class LoanStateRefuses(Problem):
    """The loan is in a state that does not take this event."""

    status, code, title = 422, "loan_state_refuses", "The loan's state refuses this"


class EffectiveDateRefused(Problem):
    """The date lies in the future, before the loan's opening, or before the event that this one follows."""

    status, code, title = 422, "effective_date_refused", "The effective date is refused"


class PeriodClosed(Problem):
    """The books are closed through that date or a later one."""

    status, code, title = 422, "period_closed", "The period is closed"


class NotReversible(Problem):
    """Entries of this kind, or in this situation, are not reversed."""

    status, code, title = 422, "not_reversible", "The entry is not reversible"


class AlreadyReversed(Problem):
    """The entry has been reversed, once and for all."""

    status, code, title = 409, "already_reversed", "Already reversed"


class AlreadySettled(Problem):
    """The payment or disbursement has been settled."""

    status, code, title = 409, "already_settled", "Already settled"


class AlreadyReturned(Problem):
    """The payment has been returned."""

    status, code, title = 409, "already_returned", "Already returned"


class AccrualAlreadyPosted(Problem):
    """A loan of the batch has its interest for that date."""

    status, code, title = 409, "accrual_already_posted", "The date has been accrued"


class DuplicateExternalRef(Problem):
    """A payment with this source method and external reference exists."""

    status, code, title = 409, "duplicate_external_ref", "The external reference has been used"


class LoanChanged(Problem):
    """The loan has moved since the version that If-Match names. Nothing was written."""

    status, code, title = 412, "loan_changed", "The loan has changed"


class PlanOutdated(Problem):
    """The loan has moved since the plan was made, or it is another plan. Nothing was written; ask for a new one."""

    status, code, title = 409, "plan_outdated", "The plan is outdated"


class LoanExists(Problem):
    """This tenant has a loan with this id."""

    status, code, title = 409, "loan_exists", "The loan exists"


class ProgramExists(Problem):
    """This tenant has a program with this id."""

    status, code, title = 409, "program_exists", "The program exists"


# What a named constraint of the database says, when two writers met and the rules could not see it coming.
BY_CONSTRAINT: dict[str, type[Problem]] = {
    "journal_entry_one_reversal": AlreadyReversed,
    "journal_entry_one_settlement": AlreadySettled,
    "journal_entry_one_external_ref": DuplicateExternalRef,
    "loan_accrual_once_per_date": AccrualAlreadyPosted,
    "loan_accrual_pkey": AccrualAlreadyPosted,
    "journal_line_account": AccountNotFound,
    "journal_line_account_open": AccountClosed,
    "journal_line_balanced": UnbalancedEntry,
    "loan_balance_not_below_zero": AmountExceedsBalance,
    "journal_entry_period_open": PeriodClosed,
    "period_close_forward": PeriodClosed,
    "loan_pkey": LoanExists,
    "program_pkey": ProgramExists,
}


class NotSealedYet(Problem):
    """The entry is in no block yet; it will be within seconds."""

    status, code, title = 404, "not_sealed_yet", "The entry is not sealed yet"
